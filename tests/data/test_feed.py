"""Feeds: the examples of an epoch, resuming within it, and evaluation batches, for arrays and for files."""

import json
from contextlib import closing

import jax
import numpy as np
import pytest

from qpsnn_jax.data import feed as feeds
from qpsnn_jax.data.dataset import Arrays, DataSet, Files
from qpsnn_jax.data.feed import Selected, count, evaluation_batches, feed, first, sample

COUNT = 23


class Numbers:
    """Examples whose content is their number."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return int(index)


def centre(example, rng):
    del rng
    return {"image": np.full((4, 4, 3), example, np.uint8), "label": np.int32(example)}


def crop(example, rng):
    return {**centre(example, rng), "image": rng.integers(0, 256, (4, 4, 3), np.uint8)}


KINDS = {
    "arrays": Arrays(np.stack([centre(i, None)["image"] for i in range(COUNT)]), np.arange(COUNT, dtype=np.int32)),
    "files": Files(Numbers(), (4, 4, 3), crop, centre),
}
each = pytest.mark.parametrize("examples", KINDS.values(), ids=KINDS)


def taken(batches, number):
    return [[int(label) for label in next(batches).labels] for _ in range(number)]


@each
def test_every_epoch_visits_each_example_at_most_once_in_a_new_order(examples):
    assert count(examples) == COUNT
    labels = taken(feed(examples, 5, 0), 12)
    epochs = [[x for batch in labels[i : i + 4] for x in batch] for i in (0, 4, 8)]
    assert [len(set(epoch)) for epoch in epochs] == [20] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    assert labels == taken(feed(examples, 5, 0), 12)
    assert labels != taken(feed(examples, 5, 1), 12)


@each
def test_a_feed_goes_on_where_another_was(examples):
    whole = feed(examples, 5, 3)
    expected = [next(whole) for _ in range(11)]
    broken = feed(examples, 5, 3)
    for _ in range(6):
        next(broken)
    state = json.loads(json.dumps(broken.get_state()))
    again = feed(examples, 5, 3)
    again.set_state(state)
    for batch in expected[6:]:
        jax.tree.map(np.testing.assert_array_equal, tuple(next(again)), tuple(batch))


def test_another_number_of_workers_than_before_raises():
    state = feed(KINDS["files"], 5, 3, workers=1).get_state()
    with pytest.raises(ValueError, match="data.workers must be 1 here, as when the training was stopped."):
        feed(KINDS["files"], 5, 3).set_state(state)


@each
def test_several_batches_are_the_next_ones_together(examples):
    one_by_one, together = feed(examples, 5, 3), feed(examples, 5, 3)
    next(one_by_one), next(together)
    stacked = [next(one_by_one) for _ in range(3)]
    found = together.several(3)
    assert found.labels.shape == (3, 5)
    for i, batch in enumerate(stacked):
        jax.tree.map(np.testing.assert_array_equal, (found.images[i], found.labels[i]), tuple(batch))
    jax.tree.map(np.testing.assert_array_equal, tuple(next(together)), tuple(next(one_by_one)))


def test_arrays_are_put_on_the_device_once(monkeypatch):
    moved, put = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda *x: moved.append(x) or put(*x))
    batches = feed(KINDS["arrays"], 5, 0)
    batch = [next(batches) for _ in range(9)][-1]
    assert len(moved) == 1
    assert isinstance(batch.images, jax.Array)
    np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels.astype(np.uint8))


@each
@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 23), (7, [6, 6, 6, 5]), (22, [12, 11]), (23, [23]), (500, [23])])
def test_evaluation_visits_each_example_once_in_order(examples, size, sizes, monkeypatch):
    monkeypatch.setattr(feeds, "_EVALUATION_BATCH", size)
    batches = list(evaluation_batches(examples))
    assert [len(batch.labels) for batch in batches] == sizes
    assert np.concatenate([batch.labels for batch in batches]).tolist() == list(range(COUNT))
    for batch in batches:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels.astype(np.uint8))


@pytest.mark.parametrize(("total", "size"), [(20, 10), (21, 7), (18, 9), (10, 10), (22, 11), (23, 8)])
def test_batches_are_equal_where_a_few_more_make_them_so(total, size, monkeypatch):
    monkeypatch.setattr(feeds, "_EVALUATION_BATCH", 11 if total == 22 else 10)
    examples = Arrays(np.zeros((total, 4, 4, 3), np.uint8), np.zeros(total, np.int32))
    assert len(next(evaluation_batches(examples)).labels) == size


def test_large_images_are_evaluated_in_small_batches():
    large = Files(Numbers(), (2048, 1024, 3), crop, centre)
    assert len(next(evaluation_batches(large)).labels) == 1


@each
def test_scoring_takes_whole_batches_without_augmentation(examples):
    batches = list(sample(examples, 5, 3, seed=1))
    assert [batch.shape for batch in batches] == [(5, 4, 4, 3)] * 3
    seen = [int(image[0, 0, 0]) for batch in batches for image in batch]
    assert len(set(seen)) == 15
    assert all((image == image[0, 0, 0]).all() for batch in batches for image in batch)
    assert len(list(sample(examples, 5, 99))) == 4
    assert [len(batch) for batch in sample(examples, 99, 99)] == [COUNT]
    drawn = [int(image[0, 0, 0]) for batch in sample(examples, 5, 3, seed=2) for image in batch]
    assert (seen == drawn) == isinstance(examples, Arrays)


@each
def test_the_first_example_is_a_batch_of_one(examples):
    images, labels = first(examples)
    assert images.shape == (1, 4, 4, 3)
    assert labels.tolist() == [0]


def test_chosen_examples_stand_for_themselves():
    chosen = Selected(Numbers(), np.array([7, 3, 3]))
    assert [chosen[i] for i in range(len(chosen))] == [7, 3, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_of_files_are_held_against_the_classes(workers):
    """When they are read: training and evaluation name the label."""
    files = KINDS["files"]
    data = DataSet("numbers", files, files, COUNT - 3, (0.5,) * 3, (0.25,) * 3)
    words = f"labels must be from 0 to {COUNT - 4}, an example has {COUNT - 3}"
    with pytest.raises(ValueError, match=words):
        list(evaluation_batches(data.test, workers=workers))
    if not workers:
        with closing(feed(data.train, COUNT, 0)) as batches, pytest.raises(ValueError, match="labels must be from 0"):
            next(batches)
        DataSet("numbers", files, files, COUNT, (0.5,) * 3, (0.25,) * 3)
