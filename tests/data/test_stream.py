"""Streaming: the examples of an epoch, resuming within it, hosts, worker processes, and crops on the host."""

import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data.augment.host_crop import CenterCrop, TrainCrop, draw_box
from qpsnn_jax.data.stream import _Apart, stream

COUNT = 23


class Numbers:
    """A source of numbered examples."""

    def __init__(self, count=COUNT):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 3), index, np.uint8), "label": np.int32(index)}


def noisy(example, rng):
    return {**example, "noise": rng.random()}


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def test_every_epoch_holds_each_example_once_in_a_new_order():
    flat = np.concatenate(labels(stream(Numbers(20), 5, 0, epochs=3))).reshape(3, 20)
    assert [sorted(epoch) for epoch in flat.tolist()] == [list(range(20))] * 3
    assert len({tuple(epoch) for epoch in flat.tolist()}) == 3


def test_remainder_changes_from_epoch_to_epoch():
    batches = labels(stream(Numbers(), 5, 0, epochs=4))
    assert [len(batch) for batch in batches] == [5] * 16
    left_out = [set(range(COUNT)) - {x for batch in batches[4 * i : 4 * i + 4] for x in batch} for i in range(4)]
    assert [len(left) for left in left_out] == [3] * 4
    assert len({frozenset(left) for left in left_out}) > 1


def test_order_of_the_source_for_evaluation():
    assert labels(stream(Numbers(), 10, 0, epochs=1, shuffle=False)) == [list(range(10)), list(range(10, 20))]


def test_seed_decides():
    first, again, other = (labels(stream(Numbers(), 5, seed, epochs=1)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6])
def test_resumes_with_exactly_the_remaining_batches(done):
    def fresh():
        return stream(Numbers(), 5, 7, transform=noisy, epochs=2)

    running = fresh()
    for _ in range(done):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    rest = list(running)
    resumed = fresh()
    next(resumed)
    resumed.set_state(state)
    again = list(resumed)
    assert len(again) == len(rest) == 8 - done
    for one, two in zip(rest, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_each_example_draws_for_itself():
    noise = np.concatenate([batch["noise"] for batch in stream(Numbers(20), 5, 0, transform=noisy, epochs=2)])
    assert len(set(noise.tolist())) == 40


def test_hosts_share_an_epoch(monkeypatch):
    import grain

    seen = []
    for host in range(3):
        shard = grain.sharding.ShardOptions(shard_index=host, shard_count=3)
        monkeypatch.setattr(grain.sharding, "ShardByJaxProcess", lambda shard=shard: shard)
        seen.append(labels(stream(Numbers(), 7, 0, epochs=2)))
    assert [[len(batch) for batch in host] for host in seen] == [[7, 7]] * 3
    for epoch in range(2):
        assert len({x for host in seen for x in host[epoch]}) == 21
    assert labels(stream(Numbers(), 21, 0, epochs=1, shard_by_process=False))[0] != seen[0]


def test_worker_processes_change_nothing_and_resume():
    def fresh(workers):
        return stream(Numbers(), 5, 3, workers=workers, transform=TrainCrop(4), epochs=2)

    expected = list(fresh(0))
    running = fresh(2)
    first = [next(running) for _ in range(3)]
    state = running.get_state()
    rest = list(running)
    resumed = fresh(2)
    resumed.set_state(state)
    again = list(resumed)
    assert labels(first + rest) == labels(expected)
    assert labels(again) == labels(rest)
    for one, two in zip(first + rest, expected, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])


def test_an_interrupt_does_not_reach_workers_that_are_starting():
    batches = stream(Numbers(), 5, 3, workers=1)
    answers = []
    # A worker needs a second to start, in which it could not ignore anything yet.
    reading = threading.Thread(target=lambda: answers.extend(next(batches) for _ in range(6)))
    reading.start()
    deadline = time.monotonic() + 60
    while reading.is_alive() and time.monotonic() < deadline:
        for worker in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.01)
    batches.close()
    plain = stream(Numbers(), 5, 3)
    assert labels(answers) == labels([next(plain) for _ in range(6)])


class Slow:
    """Counts once it is allowed to, or fails."""

    def __init__(self, error=None):
        self.let, self.error, self.count, self.closed = threading.Event(), error, 0, 0

    def __next__(self):
        self.let.wait(30)
        if self.error is not None:
            raise self.error
        self.count += 1
        return self.count

    def set_state(self, state):
        self.count = state

    def close(self):
        self.closed += 1
        self.let.set()


def interrupted(batches):
    """Request a batch, and interrupt the wait for it."""
    alarm = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        alarm.start()
        next(batches)
    alarm.join()
    signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_who_waits_for_a_worker_can_be_interrupted_and_ask_again():
    slow = Slow()
    batches = _Apart(slow)
    interrupted(batches)
    slow.let.set()
    assert [next(batches) for _ in range(3)] == [1, 2, 3]
    slow.let.clear()
    interrupted(batches)
    slow.let.set()
    batches.set_state(7)
    assert next(batches) == 8
    slow.let.clear()
    interrupted(batches)
    batches.close()
    assert slow.closed == 2  # before and after the requested batch has arrived


@pytest.mark.parametrize("error", [StopIteration(), ValueError("broken"), SystemExit(1)])
def test_what_ends_a_read_reaches_who_waits(error):
    slow = Slow(error)
    slow.let.set()
    with pytest.raises(type(error)):
        next(_Apart(slow))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 24}, "batch_size"),
        ({"batch_size": 5.0}, "batch_size"),
        ({"batch_size": 5, "seed": -1}, "seed"),
        ({"batch_size": 5, "workers": -1}, "workers"),
        ({"batch_size": 5, "epochs": 0}, "epochs"),
    ],
)
def test_impossible_streams_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        stream(Numbers(), **{"seed": 0, **arguments})


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def picture(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("image", [picture(), encoded(picture())], ids=["array", "png"])
def test_train_crop_is_pillows_box(image):
    example = {"image": image, "label": 3}
    result = TrainCrop(16)(example, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    top, left, height, width = draw_box(rng, 40, 60, (0.08, 1.0), (3 / 4, 4 / 3))
    box = (left, top, left + width, top + height)
    expected = np.asarray(Image.fromarray(picture()).resize((16, 16), Image.Resampling.BILINEAR, box=box))
    expected = expected[:, ::-1] if rng.random() < 0.5 else expected
    np.testing.assert_array_equal(result["image"], expected)
    assert (result["label"].dtype, int(result["label"])) == (np.int32, 3)


def test_train_crop_mirrors_half_of_the_time():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255
    crop = TrainCrop(8, (1, 1), (1, 1))
    left = Counter(
        int(crop({"image": image, "label": 0}, np.random.default_rng(seed))["image"][0, 0, 0]) for seed in range(400)
    )
    assert set(left) == {0, 255}
    assert 150 < left[0] < 250


def test_boxes_lie_within_the_image():
    rng = np.random.default_rng(0)
    boxes = np.asarray([draw_box(rng, 40, 60, (0.1, 0.3), (3 / 4, 4 / 3)) for _ in range(1000)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [40, 60]).all()
    assert (boxes[:, 2] * boxes[:, 3] / 2400).mean() == pytest.approx(0.2, abs=0.01)
    assert draw_box(rng, 30, 10, (1, 1), (1, 1)) == (10, 0, 10, 10)


def test_center_crop_takes_the_middle():
    image = np.zeros((20, 32, 3), np.uint8)
    image[6:14, 12:20] = 200
    example = {"image": encoded(image), "label": np.int64(7)}
    np.testing.assert_array_equal(CenterCrop(8, 20)(example)["image"], np.full((8, 8, 3), 200))
    assert CenterCrop(24, 32)(example)["image"].shape == (24, 24, 3)


def test_grey_jpeg_becomes_rgb():
    result = CenterCrop(8, 8)({"image": encoded(picture()[..., 0], "JPEG"), "label": 0})
    assert result["image"].shape == (8, 8, 3)


def test_unreadable_bytes_and_impossible_crops_raise():
    with pytest.raises(ValueError, match="an image is not a picture in one of the formats PNG"):
        CenterCrop(8, 8)({"image": b"abc", "label": 0})
    with pytest.raises(ValueError, match="size must be"):
        TrainCrop(0)
    with pytest.raises(ValueError, match="resize must be an integer, 8 or more, got 7"):
        CenterCrop(8, 7)
