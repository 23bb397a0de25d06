"""Event recordings as arrays: N-MNIST's ATIS files, and AEDAT 2.0 and 3.1.

A file is read whole and decoded for all events at once. What a header declares is compared with the bytes that are
there before it is used, so memory stays in proportion to the file; a file that is cut off or of another kind is refused
by name and byte offset. Rows count from the top, as in images.
"""

import struct
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

_ATIS_BYTES = 5
_ATIS_OVERFLOW_ROW, _ATIS_OVERFLOW = 240, 2**13  # one past the last row; what such a record adds to the clock
_DVS128 = (128, 128)
_AEDAT2_SPECIAL = 0x80008000  # synchronization and other special events of jAER, no pixels
_VERSION, _FORMAT, _END = b"#!AER-DAT", b"#Format:", b"#!END-HEADER"
# A packet header of AEDAT 3.1: type, source, bytes of an event, place of its time, overflows, capacity, events, valid.
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _AEDAT_BYTES, _TIME_AT = 1, 8, 4


class Events(NamedTuple):
    """A recording: n events in the order of the file, as NumPy arrays of shape ``n``.

    Attributes:
        x: column from the left, uint16, below ``size[1]``.
        y: row from the top, uint16, below ``size[0]``.
        polarity: uint8, 1 where it got brighter (ON), 0 where it got darker (OFF).
        t: time in µs, int64. Cameras give it in order, but nothing here relies on that.
        size: height and width of the sensor in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    t: np.ndarray
    size: tuple[int, int]


class _File(NamedTuple):
    """A file's whole content, with what it is called when it is refused."""

    path: str | PathLike[str]
    kind: str
    content: bytes

    def refusal(self, offset: int, what: str) -> ValueError:
        return ValueError(f"{self.path} is no readable {self.kind} file: it {what} at byte {offset}.")


def read_atis(path: str | PathLike[str], size: tuple[int, int] = (34, 34)) -> Events:
    """Read an ATIS ``.bin`` file, as N-MNIST and N-Caltech101 come.

    Each event is 40 bits, big-endian: x (8), y (8), polarity (1, ON is 1), time in µs (23). A record in row 240 is no
    event; it adds 2¹³ µs to the time of all that follow (N-Caltech101 has such records, N-MNIST none that we saw).

    Args:
        path: the file.
        size: height and width of the sensor; 34×34 is N-MNIST's.

    Returns:
        The events; a file cut off between two records cannot be told from a shorter recording.

    Raises:
        ValueError: a file that cannot be read, is empty or cut off, or has an event outside of the sensor.

    References:
        Orchard et al., Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades, 2015.
    """
    file = _open(path, "ATIS")
    if not file.content:
        raise file.refusal(0, "holds nothing")
    records = _records(file, 0, len(file.content), np.uint8, _ATIS_BYTES).astype(np.int64)
    event = records[:, 1] != _ATIS_OVERFLOW_ROW
    x, y = records[:, 0], records[:, 1]
    _check_pixels(file, event & ((x >= size[1]) | (y >= size[0])), 0, _ATIS_BYTES)
    t = (records[:, 2] & 0x7F) << 16 | records[:, 3] << 8 | records[:, 4]
    return _kept(event, Events(x, y, records[:, 2] >> 7, t + np.cumsum(~event) * _ATIS_OVERFLOW, size))


def read_aedat(path: str | PathLike[str], size: tuple[int, int] = _DVS128) -> Events:
    """Read an AEDAT file of version 2.0 (DVS128 addresses, as CIFAR10-DVS comes) or 3.1, whichever its first line says.

    Version 2.0 has header lines that begin with ``#``, then for each event a 32-bit address and a 32-bit time in µs,
    big-endian. Address bit 0 is 0 for ON (the hardware's sense, as jAER reads it; the format's description says the
    opposite), bits 1-7 count columns from the right and bits 8-14 rows from the bottom; all are turned round here. Bit
    15 or 31 marks special events, which are left out; any other bit is another camera's. The clock may wrap.

    Version 3.1 has header lines up to ``#!END-HEADER``, then little-endian packets: a header of 28 bytes, then events
    of one type. Polarity events are 8 bytes: valid bit, polarity, y (15 bits), x (15), time in µs (31); above the time
    stands the packet's overflow counter. Invalid events are left out and packets of other types passed over.

    Args:
        path: the file.
        size: height and width of the sensor of a 3.1 file; version 2.0 is always 128×128.

    Returns:
        The events, none where the file has only a header.

    Raises:
        ValueError: a file that cannot be read, is cut off, is of another version or camera, or contradicts itself.

    References: iniVation, AEDAT file formats, docs.inivation.com; libcaer, polarity.h; jAER, class DVS128.
    """
    file = _open(path, "AEDAT")
    if not file.content.startswith(_VERSION):
        raise file.refusal(0, f"does not begin with {_VERSION.decode()}")
    line, start = _header_line(file, 0)
    version = line[len(_VERSION) :]
    if version not in (b"2.0", b"3.1"):
        raise file.refusal(len(_VERSION), "is of another version than 2.0 and 3.1")
    return _aedat2(file, start) if version == b"2.0" else _aedat3(file, start, size)


def _aedat2(file: _File, start: int) -> Events:
    while file.content.startswith(b"#", start):
        _, start = _header_line(file, start)
    address, clock = _records(file, start, len(file.content), ">u4", _AEDAT_BYTES).T
    event = address & _AEDAT2_SPECIAL == 0
    _check_pixels(file, event & (address >= 2**15), start, _AEDAT_BYTES)
    # The clock wraps; its differences are exact in 32 bits as long as no two events are 35 minutes apart.
    t = np.cumsum(np.diff(clock, prepend=np.uint32(0)).astype(np.int32), dtype=np.int64)
    x, y = 127 - (address >> 1 & 0x7F), 127 - (address >> 8 & 0x7F)
    return _kept(event, Events(x, y, 1 - (address & 1), t, _DVS128))


def _aedat3(file: _File, start: int, size: tuple[int, int]) -> Events:
    line = b""
    while line != _END:
        line, end = _header_line(file, start)
        if line.startswith(_FORMAT) and line != _FORMAT + b" RAW":
            raise file.refusal(start, "announces packets in another format than RAW")
        start = end
    packets = [_polarity_events(file, start, 0, 0, size)]
    while start < len(file.content):
        body, end, count, overflow = _packet(file, start)
        packets.append(_polarity_events(file, body, count, overflow, size))
        start = end
    x, y, polarity, t, _ = zip(*packets, strict=True)
    return Events(np.concatenate(x), np.concatenate(y), np.concatenate(polarity), np.concatenate(t), size)


def _packet(file: _File, start: int) -> tuple[int, int, int, int]:
    """Check a packet's header; returns where the body begins and ends, how many polarity events it holds, overflows."""
    body = start + _PACKET.size
    if body > len(file.content):
        raise file.refusal(start, "is cut off in a packet header")
    kind, _, width, time, overflow, capacity, count, valid = _PACKET.unpack_from(file.content, start)
    if kind < 0 or width < 1 or overflow < 0 or not 0 <= valid <= count <= capacity:
        raise file.refusal(start, "has no valid packet header")
    if kind == _POLARITY and (width, time) != (_AEDAT_BYTES, _TIME_AT):
        raise file.refusal(start, "has polarity events of another layout")
    end = body + capacity * width
    if end > len(file.content):
        raise file.refusal(start, f"is cut off in a packet of {end - start} bytes")
    return body, end, count if kind == _POLARITY else 0, overflow


def _polarity_events(file: _File, start: int, count: int, overflow: int, size: tuple[int, int]) -> Events:
    data, clock = _records(file, start, start + count * _AEDAT_BYTES, "<u4", _AEDAT_BYTES).T
    valid = data & 1 != 0
    x, y = data >> 17, data >> 2 & 0x7FFF
    _check_pixels(file, valid & ((x >= size[1]) | (y >= size[0]) | (clock >= 2**31)), start, _AEDAT_BYTES)
    return _kept(valid, Events(x, y, data >> 1 & 1, clock.astype(np.int64) + (overflow << 31), size))


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
        raise file.refusal(start, "has no whole header line")
    return file.content[start:end].rstrip(), end + 1


def _records(file: _File, start: int, end: int, dtype: str | type, record: int) -> np.ndarray:
    """Give the bytes from start to end as rows, one for each record, in this machine's byte order."""
    rest = (end - start) % record
    if rest:
        raise file.refusal(end - rest, f"is cut off, with {rest} of the {record} bytes of a record,")
    data = np.frombuffer(file.content[start:end], dtype)
    return data.astype(data.dtype.newbyteorder("=")).reshape(-1, record // data.itemsize)


def _check_pixels(file: _File, outside: np.ndarray, start: int, record: int) -> None:
    if outside.any():
        raise file.refusal(start + int(outside.argmax()) * record, "has an event that is not of this sensor")
