"""Frames against a loop over the events, with exact fractions for the borders."""

from fractions import Fraction
from math import floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from qpsnn_jax.data.sources.events import Events, read_atis
from qpsnn_jax.data.sources.frames import count_events, frames_by_count, frames_by_time

BOTH = pytest.mark.parametrize("make", [frames_by_count, frames_by_time])


def recording(rows, size):
    columns = np.asarray(rows, np.int64).reshape(-1, 4).T
    x, y, polarity, t = (c.astype(d) for c, d in zip(columns, (np.uint16, np.uint16, np.uint8, np.int64), strict=True))
    return Events(x, y, polarity, t, size)


def draw(seed, number, size, longest=300_000):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, bound, number) for bound in (size[1], size[0], 2)]
    return recording(np.stack([*columns, np.sort(rng.integers(0, longest, number))], 1), size)


def slow(events, timesteps, size, by):
    """Count the events one by one."""
    frames = np.zeros((timesteps, *size, 2), int)
    rows = list(zip(*(field.tolist() for field in events[:4]), strict=True))
    times = [t for *_, t in rows]
    for index, (x, y, polarity, t) in enumerate(rows):
        share = Fraction(index, len(rows)) if by == "count" else Fraction(t - min(times), max(times) - min(times) + 1)
        row, column = Fraction(y * size[0], events.size[0]), Fraction(x * size[1], events.size[1])
        frames[floor(share * timesteps), floor(row), floor(column), polarity] += 1
    return frames


SHAPES = [((34, 34), (34, 34)), ((34, 34), (17, 17)), ((128, 128), (48, 48)), ((9, 14), (4, 20)), ((5, 3), (1, 1))]


@pytest.mark.parametrize(("sensor", "size"), SHAPES)
@pytest.mark.parametrize("timesteps", [1, 3, 10])
def test_every_event_in_its_cell(sensor, size, timesteps):
    events = draw(0, 1000, sensor)
    for by, make in (("count", frames_by_count), ("time", frames_by_time)):
        frames = make(events, timesteps, size)
        assert (frames.shape, frames.dtype) == ((timesteps, *size, 2), jnp.int32)
        np.testing.assert_array_equal(frames, slow(events, timesteps, size, by))


SENSOR = (6, 11)
ROWS = st.tuples(st.integers(0, 10), st.integers(0, 5), st.integers(0, 1), st.integers(-(2**62), 2**62))
NEAR = st.tuples(st.integers(0, 10), st.integers(0, 5), st.integers(0, 1), st.integers(0, 12))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.one_of(st.lists(ROWS, max_size=40), st.lists(NEAR, max_size=40)),
    st.sampled_from([1, 2, 7]),
    st.sampled_from([(6, 11), (4, 5), (13, 2)]),
)
def test_no_event_is_lost_or_counted_twice(rows, timesteps, size):
    """In any order, with equal times, and with the smallest and largest times."""
    events = recording(rows, SENSOR)
    for by, make in (("count", frames_by_count), ("time", frames_by_time)):
        frames = np.asarray(make(events, timesteps, size))
        assert frames.sum() == len(rows)
        np.testing.assert_array_equal(frames, slow(events, timesteps, size, by))


@pytest.mark.parametrize("number", [1, 1023, 1024, 1025, 2048, 2049, 5000])
@BOTH
def test_all_lengths_around_the_padding(make, number):
    assert int(make(draw(number, number, (34, 34)), 4, (34, 34)).sum()) == number


@BOTH
def test_a_recording_without_events_gives_zeros(make):
    frames = make(recording([], (34, 34)), 3, (8, 8))
    assert frames.shape == (3, 8, 8, 2)
    assert not frames.any()


@BOTH
def test_polarities_are_off_then_on(make):
    frames = make(recording([(2, 1, 0, 0), (2, 1, 1, 1), (2, 1, 1, 2)], (4, 4)), 1, (4, 4))
    np.testing.assert_array_equal(frames[0, 1, 2], [1, 2])


def test_frames_of_equal_numbers_differ_by_one_at_most():
    for number in (10, 101, 4034):
        sums = np.asarray(frames_by_count(draw(1, number, (34, 34)), 10, (34, 34))).sum((1, 2, 3))
        assert sums.max() - sums.min() <= 1


def test_frames_by_count_follow_the_order_of_the_file():
    events = recording([(0, 0, 0, 9), (1, 0, 0, 3), (2, 0, 0, 5), (3, 0, 0, 1)], (1, 4))
    np.testing.assert_array_equal(np.asarray(frames_by_count(events, 4, (1, 4)))[:, 0, :, 0], np.eye(4))


@pytest.mark.parametrize("start", [0, -5, 2**62, -(2**63), 2**63 - 10])
def test_borders_in_time_are_exact(start):
    """Ten µs in four frames: borders at 2.5, 5 and 7.5."""
    events = recording([(0, 0, 1, start + k) for k in range(10)], (1, 1))
    sums = np.asarray(frames_by_time(events, 4, (1, 1))).sum((1, 2, 3))
    np.testing.assert_array_equal(sums, [3, 2, 3, 2])


def test_one_compilation_for_each_padded_length():
    count_events.clear_cache()
    for number in (0, 5, 900, 1024, 1500, 2000, 2048):
        frames_by_count(draw(2, number, (34, 34)), 5, (34, 34))
        frames_by_time(draw(2, number, (34, 34)), 5, (34, 34))
    assert count_events._cache_size() == 2


def test_count_events_maps_over_a_batch():
    many = [draw(seed, 300, (10, 12)) for seed in range(3)]
    steps = np.stack([np.arange(300, dtype=np.int32) * 2 // 300] * 3)
    steps[:, -7:] = 2
    fields = [np.stack([getattr(events, name) for events in many]) for name in ("y", "x", "polarity")]
    count = jax.vmap(lambda *a: count_events(*a, timesteps=2, sensor=(10, 12), size=(5, 4)))
    frames = np.asarray(count(steps, *fields))
    assert frames.shape == (3, 2, 5, 4, 2)
    np.testing.assert_array_equal(frames.sum((1, 2, 3, 4)), [293] * 3)


GOOD = draw(3, 200, (8, 8))


@pytest.mark.parametrize(
    ("events", "timesteps", "size", "words"),
    [
        (GOOD, 0, (8, 8), "timesteps must be an integer"),
        (GOOD, True, (8, 8), "timesteps must be an integer"),
        (GOOD, 2.0, (8, 8), "timesteps must be an integer"),
        (GOOD, 2, (0, 8), "height must be an integer"),
        (GOOD, 2, (8, -1), "width must be an integer"),
        (GOOD, 2, 8, "size must be a height and a width"),
        (GOOD, 2, (8, 8, 2), "size must be a height and a width"),
        (GOOD, 2**20, (2**6, 2**5), "too many cells"),
        (GOOD, 1, (1, 2**30), "too many cells"),
        (GOOD._replace(size=(8, 7)), 2, (8, 8), "x must be below 7"),
        (GOOD._replace(size=(7, 8)), 2, (8, 8), "y must be below 7"),
        (GOOD._replace(polarity=GOOD.polarity * 2), 2, (8, 8), "polarity must be below 2"),
        (GOOD._replace(x=-GOOD.x.astype(np.int32)), 2, (8, 8), "x must be below 8 and not negative"),
        (GOOD._replace(t=GOOD.t / 2), 2, (8, 8), "t must hold one integer for each event"),
        (GOOD._replace(y=GOOD.y[1:]), 2, (8, 8), "y must hold one integer for each event"),
    ],
)
@BOTH
def test_contradictions_raise(make, events, timesteps, size, words):
    with pytest.raises(ValueError, match=words):
        make(events, timesteps, size)


def test_the_real_nmnist():
    folder = SHARED / "data" / "nmnist"
    if not folder.exists():
        pytest.skip("nmnist is not on this machine; set QPSNN_SHARED to the folder that holds data/nmnist")
    paths = sorted(folder.glob("Test/*/*.bin"))
    for path in paths:
        events = read_atis(path)
        for make in (frames_by_count, frames_by_time):
            assert int(make(events, 10, (34, 34)).sum()) == path.stat().st_size // 5
    events = read_atis(paths[7])
    np.testing.assert_array_equal(frames_by_count(events, 10, (20, 34)), slow(events, 10, (20, 34), "count"))
    np.testing.assert_array_equal(frames_by_time(events, 10, (20, 34)), slow(events, 10, (20, 34), "time"))
