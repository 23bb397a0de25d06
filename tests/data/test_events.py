"""Readers of event files, on recordings that are written here, whole and damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from event_files import AEDAT2_HEADER, aedat2, aedat2_address, atis, draw, listed
from hypothesis import given, settings
from hypothesis import strategies as st

from qpsnn_jax.data.sources.events import read_aedat, read_atis

FORMATS = {"atis": (read_atis, atis, 34), "aedat": (read_aedat, aedat2, 128)}
EACH = pytest.mark.parametrize(("read", "write", "side"), FORMATS.values(), ids=FORMATS.keys())


@pytest.fixture
def file(tmp_path):
    """Write bytes to a file and return its path."""

    def write(content) -> Path:
        path = tmp_path / "recording.dat"
        path.write_bytes(content)
        return path

    return write


def error_of(read, path):
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    return message


@EACH
def test_reads_back_what_was_written(file, read, write, side):
    written = draw(0, 1234, side, side)
    events = read(file(write(written)))
    assert listed(events) == written
    assert [field.dtype for field in events[:4]] == [np.uint16, np.uint16, np.uint8, np.int64]
    assert events.size == (side, side)


@EACH
def test_every_corner_and_both_polarities(file, read, write, side):
    last = side - 1
    written = [(x, y, p, 7) for x in (0, last) for y in (0, last) for p in (0, 1)]
    assert listed(read(file(write(written)))) == written


@EACH
def test_one_event(file, read, write, side):
    assert listed(read(str(file(write([(3, 5, 1, 9)]))))) == [(3, 5, 1, 9)]


@EACH
def test_reading_leaves_nothing_shared_with_the_file(file, read, write, side):
    events = read(file(write(draw(1, 10, side, side))))
    assert all(field.flags.writeable for field in events[:4])


def test_a_header_alone_is_a_recording_without_events(file):
    events = read_aedat(file(AEDAT2_HEADER))
    assert [field.shape for field in events[:4]] == [(0,)] * 4
    assert events.t.dtype == np.int64


def test_atis_by_hand(file):
    events = read_atis(file(bytes([10, 20, 0x81, 0x02, 0x03, 33, 0, 0x7F, 0xFF, 0xFF])))
    assert listed(events) == [(10, 20, 1, 0x010203), (33, 0, 0, 2**23 - 1)]


def test_atis_overflow_records_move_the_clock(file):
    records = [(1, 1, 1, 10), (255, 240, 0, 0), (2, 2, 0, 20), (0, 240, 1, 0), (0, 240, 1, 0), (3, 3, 1, 5)]
    events = read_atis(file(atis(records)), (180, 240))
    assert listed(events) == [(1, 1, 1, 10), (2, 2, 0, 20 + 2**13), (3, 3, 1, 5 + 3 * 2**13)]


def test_aedat2_by_hand(file):
    """Address 0x1234: row bits 0x12, column bits 0x1a, bit 0 clear, which the DVS128 sends for ON."""
    events = read_aedat(file(b"#!AER-DAT2.0\n" + bytes.fromhex("00001234 00000102 00007fff 00000103")))
    assert listed(events) == [(127 - 0x1A, 127 - 0x12, 1, 258), (0, 0, 0, 259)]


def test_aedat2_special_events_are_left_out(file):
    kept = aedat2_address(5, 6, 1)
    words = [(kept, 1), (0x8000, 2), (kept | 0x80000000, 3), (kept | 0x80008000, 4), (kept, 5)]
    content = AEDAT2_HEADER + b"".join(struct.pack(">II", *word) for word in words)
    assert listed(read_aedat(file(content))) == [(5, 6, 1, 1), (5, 6, 1, 5)]


def test_aedat2_clock_goes_on_where_it_wraps(file):
    times = (2**31 - 3, 2**31 + 4, 2**31 + 2, 3 * 2**30, 2**32 - 1, 2**32, 2**32 + 9)
    written = [(0, 0, 0, t) for t in times]
    assert listed(read_aedat(file(aedat2(written)))) == written


def test_missing_file_and_folder(tmp_path):
    assert "cannot be read" in error_of(read_atis, tmp_path / "none.bin")
    assert "cannot be read" in error_of(read_aedat, tmp_path)


@pytest.mark.parametrize(
    ("read", "content", "offset", "words"),
    [
        (read_atis, b"", 0, "is empty"),
        (read_atis, bytes(13), 10, "cut off, with 3 of the 5 bytes"),
        (read_atis, bytes(10) + bytes([34, 0, 0, 0, 0]), 10, "not of this sensor"),
        (read_atis, bytes(5) + bytes([0, 34, 0, 0, 0]), 5, "not of this sensor"),
        (read_aedat, b"", 0, "does not begin with"),
        (read_aedat, b"\x89PNG\r\n\x1a\n", 0, "does not begin with"),
        (read_aedat, b"#!AER-DAT3.1\r\n", 9, "another version"),
        (read_aedat, b"#!AER-DAT2.0", 0, "no complete header line"),
        (read_aedat, b"#!AER-DAT2.0\r\n# cut of", 14, "no complete header line"),
        (read_aedat, AEDAT2_HEADER + bytes(11), len(AEDAT2_HEADER) + 8, "cut off, with 3 of the 8 bytes"),
        (read_aedat, AEDAT2_HEADER + bytes(8) + b"\0\1" + bytes(6), len(AEDAT2_HEADER) + 8, "not of this sensor"),
    ],
)
def test_damage_raises_at_its_byte(file, read, content, offset, words):
    message = error_of(read, file(content))
    assert words in message
    assert message.endswith(f"at byte {offset}.")


def outcome(read, path):
    """The events or the error; any other error fails the test."""
    try:
        return read(path)
    except ValueError as error:
        return error


@EACH
def test_every_truncation_raises_or_is_a_beginning(file, read, write, side):
    """Only events whose bytes are complete."""
    written = draw(2, 40, side, side)
    content = write(written)
    accepted = 0
    for length in range(len(content)):
        got = outcome(read, file(content[:length]))
        if isinstance(got, ValueError):
            assert "at byte " in str(got)
        else:
            accepted += 1
            assert listed(got) == written[: len(got.t)]
            assert len(got.t) <= length // (5 if read is read_atis else 8)
    assert 0 < accepted < len(content) // 4


@EACH
def test_flipped_bits_raise_nothing_else(file, read, write, side):
    content = write(draw(3, 50, side, side))
    rng = np.random.default_rng(0)
    for _ in range(1500):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 4))
        damaged[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        got = outcome(read, file(damaged.tobytes()))
        if isinstance(got, ValueError):
            assert "at byte " in str(got)
        else:
            assert len(got.t) <= len(content) // 5
            assert not len(got.t) or (got.x.max() < side and got.y.max() < side and got.polarity.max() < 2)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([b"", b"#!AER-DAT2.0\r\n"]))
def test_any_bytes_are_read_or_raise(tmp_path_factory, content, header):
    path = tmp_path_factory.getbasetemp() / "any.dat"
    path.write_bytes(header + content)
    for got in (outcome(read_atis, path), outcome(read_aedat, path)):
        assert "at byte " in str(got) if isinstance(got, ValueError) else len(got.t) <= len(header + content) // 5


@pytest.fixture(scope="module")
def nmnist_dir():
    path = SHARED / "data" / "nmnist"
    if not path.exists():
        pytest.skip("nmnist is not on this machine; set QPSNN_SHARED to the folder that holds data/nmnist")
    return path


def test_the_real_nmnist(nmnist_dir):
    paths = sorted(nmnist_dir.glob("*/*/*.bin"))
    assert len(paths) == 600
    for path in paths:
        events = read_atis(path)
        assert len(events.t) * 5 == path.stat().st_size
        assert (np.diff(events.t) >= 0).all()
        assert 250_000 < events.t[-1] < 350_000
        assert set(np.unique(events.polarity)) == {0, 1}


def test_a_real_recording_by_a_slow_reading(nmnist_dir):
    path = min(nmnist_dir.glob("Train/0/*.bin"))
    content = path.read_bytes()
    slow = []
    for start in range(0, len(content), 5):
        bits = int.from_bytes(content[start : start + 5], "big")
        slow.append((bits >> 32, bits >> 24 & 255, bits >> 23 & 1, bits & (2**23 - 1)))
    assert listed(read_atis(path)) == slow
