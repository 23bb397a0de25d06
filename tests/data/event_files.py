"""Recordings written in the real file formats, byte by byte, from plain lists of (x, y, polarity, t)."""

import struct

import numpy as np

AEDAT2_HEADER = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)
AEDAT3_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-05-01 10:00:00 (TZ+0100)\r\n#!END-HEADER\r\n"
)


def draw(seed, number, height, width, longest=300_000):
    rng = np.random.default_rng(seed)
    x, y, p = rng.integers(0, width, number), rng.integers(0, height, number), rng.integers(0, 2, number)
    t = np.sort(rng.integers(0, longest, number))
    return list(zip(x.tolist(), y.tolist(), p.tolist(), t.tolist(), strict=True))


def atis(events):
    return b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in events)


def aedat2_address(x, y, p):
    return (127 - y) << 8 | (127 - x) << 1 | (1 - p)


def aedat2(events, header=AEDAT2_HEADER):
    body = b"".join(struct.pack(">II", aedat2_address(x, y, p), t % 2**32) for x, y, p, t in events)
    return header + body


def aedat3_event(x, y, p, t, valid=1):
    return struct.pack("<Ii", x << 17 | y << 2 | p << 1 | valid, t % 2**31)


def aedat3_packet(body, number, valid=None, kind=1, width=8, time_at=4, overflow=0, capacity=None):
    counts = number if capacity is None else capacity, number, number if valid is None else valid
    return struct.pack("<hhiiiiii", kind, 1, width, time_at, overflow, *counts) + body


def aedat3(events, per_packet=100, header=AEDAT3_HEADER):
    """Give packets of events with a common overflow, and a packet of another type after each."""
    content = header
    for start in range(0, len(events), per_packet):
        part = events[start : start + per_packet]
        for overflow in sorted({t >> 31 for *_, t in part}):
            body = [aedat3_event(*event) for event in part if event[3] >> 31 == overflow]
            content += aedat3_packet(b"".join(body), len(body), overflow=overflow)
        content += aedat3_packet(bytes(36), 1, kind=3, width=36)
    return content


def listed(events):
    """Events as a list of tuples again."""
    return list(zip(*(field.tolist() for field in events[:4]), strict=True))
