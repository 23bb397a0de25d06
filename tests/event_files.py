"""Recordings written in the real file formats, byte by byte, from plain lists of (x, y, polarity, t)."""

import struct

import numpy as np

AEDAT2_HEADER = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
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


def listed(events):
    """Events as a list of tuples again."""
    return list(zip(*(field.tolist() for field in events[:4]), strict=True))
