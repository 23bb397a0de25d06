"""The embedded digits are the published ones, and the split is fair and fixed."""

import hashlib

import numpy as np
import pytest

from qpsnn_jax.data import load
from qpsnn_jax.data.sources.digits import read

PER_CLASS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def as_rows(arrays):
    return [image.tobytes() + bytes([label]) for image, label in zip(arrays.images, arrays.labels, strict=True)]


def test_the_file_holds_the_published_scans():
    images, labels = read()
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8, 1)
    digest = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_class_counts_and_range():
    images, labels = read()
    assert np.bincount(labels).tolist() == PER_CLASS
    assert (images.min(), images.max()) == (0, 16)


def test_split_is_disjoint_and_complete():
    data = load("digits")
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    images, labels = read()
    everything = [np.round(image * (255 / 16)).astype(np.uint8) for image in images]
    rows = [image.tobytes() + bytes([label]) for image, label in zip(everything, labels, strict=True)]
    assert sorted(as_rows(data.train) + as_rows(data.test)) == sorted(rows)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_split_is_stratified(seed):
    data = load("digits", seed=seed)
    expected = np.asarray(PER_CLASS) * 1437 / 1797
    assert np.abs(np.bincount(data.train.labels) - expected).max() < 2


def test_same_seed_same_split_other_seed_another():
    first, again, other = (load("digits", seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.labels, again.test.labels)
    assert sorted(as_rows(first.train)) != sorted(as_rows(other.train))


def test_the_default_split_does_not_drift():
    assert load("digits").train.labels[:20].tolist() == [0, 6, 3, 8, 1, 4, 5, 9, 7, 2, 8, 1, 5, 6, 9, 4, 2, 0, 7, 3]


def test_statistics_are_of_the_whole_training_part():
    whole = load("digits", seed=2)
    pixels = whole.train.images.astype(np.float64) / 255
    assert whole.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert whole.std == pytest.approx((pixels.std(),), rel=1e-12)
    few = load("digits", seed=2, train_examples=10)
    assert (few.mean, few.std) == (whole.mean, whole.std)


def test_load_takes_subsets_from_the_front():
    whole, few = load("digits", seed=5), load("digits", seed=5, train_examples=100, test_examples=50)
    np.testing.assert_array_equal(few.train.images, whole.train.images[:100])
    np.testing.assert_array_equal(few.test.labels, whole.test.labels[:50])
    assert np.bincount(few.train.labels).tolist() == [10] * 10
    assert (few.name, few.classes) == ("digits", 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train_examples": 0}, "train_examples must be an integer from 1 to 1437"),
        ({"train_examples": 1438}, "train_examples must be an integer from 1 to 1437"),
        ({"test_examples": 361}, "test_examples must be an integer from 1 to 360"),
        ({"test_examples": 2.5}, "test_examples must be an integer"),
        ({"train_examples": True}, "train_examples must be an integer"),
        ({"seed": -1}, "seed must be an integer, 0 or more"),
        ({"seed": 0.5}, "seed must be an integer, 0 or more"),
    ],
)
def test_impossible_requests_raise(arguments, words):
    with pytest.raises(ValueError, match=words):
        load("digits", **arguments)


def test_unknown_name_raises():
    with pytest.raises(ValueError, match="there is no data set 'mnits'; choose one of digits, cifar10, "):
        load("mnits")
