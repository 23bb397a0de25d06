"""Event recordings as arrays: N-MNIST's ATIS files, and the AEDAT 2.0 of CIFAR10-DVS.

A file is read and decoded for all events at once. An error about a truncated file, or one of another kind, names the
file and the byte offset. Rows count from the top, as in images.
"""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

_ATIS_BYTES = 5
_ATIS_OVERFLOW_ROW, _ATIS_OVERFLOW = 240, 2**13  # one past the last row, and what such a record adds to the clock
_DVS128 = (128, 128)
_AEDAT2_SPECIAL = 0x80008000  # synchronization and other special events of jAER, no pixels
_VERSION, _AEDAT_BYTES = b"#!AER-DAT", 8


class Events(NamedTuple):
    """A recording: n events in the order of the file, as NumPy arrays of shape ``n``.

    Attributes:
        x: column from the left, uint16, below ``size[1]``.
        y: row from the top, uint16, below ``size[0]``.
        polarity: uint8, 1 where it got brighter (ON), 0 where it got darker (OFF).
        t: time in µs, int64. Cameras record in order, but nothing here relies on that.
        size: height and width of the sensor in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    t: np.ndarray
    size: tuple[int, int]


class _File(NamedTuple):
    """The content of a file, with its name and kind for error messages."""

    path: str | PathLike[str]
    kind: str
    content: bytes

    def error(self, offset: int, what: str) -> ValueError:
        return ValueError(f"{self.path} is not a readable {self.kind} file: it {what} at byte {offset}.")


def read_atis(path: str | PathLike[str], size: tuple[int, int] = (34, 34)) -> Events:
    """Read an ATIS ``.bin`` file, the format of N-MNIST and N-Caltech101.

    Each event is 40 bits, big-endian: x (8), y (8), polarity (1, ON is 1), time in µs (23). A record in row 240 is no
    event; it adds 2¹³ µs to the time of all that follow (N-Caltech101 has such records; we found none in N-MNIST).

    Args:
        path: the file.
        size: height and width of the sensor; 34×34 is N-MNIST's.

    Returns:
        The events; a file truncated between two records cannot be distinguished from a shorter recording.

    Raises:
        ValueError: a file that cannot be read, is empty or truncated, or has an event outside of the sensor.

    References:
        Orchard et al., Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades, 2015.
    """
    file = _open(path, "ATIS")
    if not file.content:
        raise file.error(0, "is empty")
    records = _records(file, 0, len(file.content), np.uint8, _ATIS_BYTES).astype(np.int64)
    event = records[:, 1] != _ATIS_OVERFLOW_ROW
    x, y = records[:, 0], records[:, 1]
    _check_pixels(file, event & ((x >= size[1]) | (y >= size[0])), 0, _ATIS_BYTES)
    t = (records[:, 2] & 0x7F) << 16 | records[:, 3] << 8 | records[:, 4]
    return _kept(event, Events(x, y, records[:, 2] >> 7, t + np.cumsum(~event) * _ATIS_OVERFLOW, size))


def read_aedat(path: str | PathLike[str]) -> Events:
    """Read an AEDAT 2.0 file with DVS128 addresses, the format of CIFAR10-DVS.

    Header lines begin with ``#``; then each event has a 32-bit address and a 32-bit time in µs, big-endian. Address bit
    0 is 0 for ON (the hardware's sense, as jAER reads it; the format's description says the opposite), bits 1-7 count
    columns from the right and bits 8-14 rows from the bottom; all are inverted here. Bit 15 or 31 marks special events,
    which are skipped; any other bit belongs to another camera. The clock may wrap.

    Args:
        path: the file.

    Returns:
        The events of a sensor of 128×128, none if the file has only a header.

    Raises:
        ValueError: a file that cannot be read, is truncated, or is of another version or camera.

    References:
        iniVation, AEDAT file formats, docs.inivation.com; jAER, class DVS128.
    """
    file = _open(path, "AEDAT")
    if not file.content.startswith(_VERSION):
        raise file.error(0, f"does not begin with {_VERSION.decode()}")
    line, start = _header_line(file, 0)
    if line[len(_VERSION) :] != b"2.0":
        raise file.error(len(_VERSION), "is of another version than 2.0")
    while file.content.startswith(b"#", start):
        _, start = _header_line(file, start)
    address, clock = _records(file, start, len(file.content), ">u4", _AEDAT_BYTES).T
    event = address & _AEDAT2_SPECIAL == 0
    _check_pixels(file, event & (address >= 2**15), start, _AEDAT_BYTES)
    # The clock wraps; its differences are exact in 32 bits as long as no two events are 35 minutes apart.
    t = np.cumsum(np.diff(clock, prepend=np.uint32(0)).astype(np.int32), dtype=np.int64)
    x, y = 127 - (address >> 1 & 0x7F), 127 - (address >> 8 & 0x7F)
    return _kept(event, Events(x, y, 1 - (address & 1), t, _DVS128))


def _kept(keep: np.ndarray, events: Events) -> Events:
    x, y = events.x[keep].astype(np.uint16), events.y[keep].astype(np.uint16)
    return Events(x, y, events.polarity[keep].astype(np.uint8), events.t[keep].astype(np.int64), events.size)


def _open(path: str | PathLike[str], kind: str) -> _File:
    try:
        return _File(path, kind, Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None


def _header_line(file: _File, start: int) -> tuple[bytes, int]:
    end = file.content.find(b"\n", start)
    if not file.content.startswith(b"#", start) or end < 0:
        raise file.error(start, "has no complete header line")
    return file.content[start:end].rstrip(), end + 1


def _records(file: _File, start: int, end: int, dtype: str | type, record: int) -> np.ndarray:
    """The bytes from start to end as rows, one for each record, in this machine's byte order."""
    rest = (end - start) % record
    if rest:
        raise file.error(end - rest, f"is cut off, with {rest} of the {record} bytes of a record,")
    data = np.frombuffer(file.content[start:end], dtype)
    return data.astype(data.dtype.newbyteorder("=")).reshape(-1, record // data.itemsize)


def _check_pixels(file: _File, outside: np.ndarray, start: int, record: int) -> None:
    if outside.any():
        raise file.error(start + int(outside.argmax()) * record, "has an event that is not of this sensor")
