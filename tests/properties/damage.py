"""Damage to files, to their bytes and to their values, and limits of time and memory for reading them."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

STRANGE = (None, True, -1, 0, 1, 3, 2**31, 10**30, 0.5, 1e308, -0.0, float("nan"), float("inf"), "", "image", "x" * 99)
STRANGE += ("\x1b[2J", "\ud800", "../a", [], [[]], {}, [0, 1], [1] * 7, {"a": 1})
LONGEST_SENTENCE = 600


@contextmanager
def limits(seconds: float = 20, memory: int = 2**30) -> Iterator[None]:
    """No longer than ``seconds``, and no more than ``memory`` bytes beside what the process has."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not read within {seconds} s")

    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def result_or_error(read: Callable[[], Any]) -> tuple[Any, str]:
    """The result, or None and the error's sentence."""
    with limits():
        try:
            return read(), ""
        except ValueError as error:
            said = str(error)
    assert said.strip(), "no word of why"
    assert "\n" not in said, said
    assert len(said) < LONGEST_SENTENCE, said
    assert said.isprintable(), repr(said)
    return None, said


def damaged(draw: np.random.Generator, whole: bytes) -> bytes:
    """The bytes with one random damage."""
    start, end = sorted(draw.integers(0, len(whole) + 1, 2).tolist())
    noise = draw.bytes(int(draw.integers(1, 40)))
    place = int(draw.integers(0, max(1, len(whole))))
    flipped = bytearray(whole or b"\0")
    for _ in range(draw.integers(1, 4)):
        flipped[draw.integers(len(flipped))] ^= 1 << int(draw.integers(8))
    digits = [i for i, byte in enumerate(whole) if chr(byte) in "0123456789"] or [place]
    digit = int(draw.choice(digits))
    choices = (
        bytes(flipped),
        bytes(flipped),
        whole[:start],
        whole[:start] + whole[end:],
        whole[:place] + noise + whole[place:],
        whole[:place] + noise + whole[place + len(noise) :],
        whole[:end] + whole[start:],
        whole[:start] + bytes(end - start) + whole[end:],
        whole[:digit] + str(draw.integers(10)).encode() + whole[digit + 1 :],
        whole[:digit] + b"9" * int(draw.integers(1, 12)) + whole[digit:],
        whole[end:] + whole[:end],
        noise,
        b"",
    )
    return choices[draw.integers(len(choices))]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a document of JSON."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def changed(document: Any, path: tuple, value: Any) -> Any:
    """A document of JSON with another value at one place, or without it where the value is ``changed``."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    if len(path) == 1 and value is changed:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def hostile(draw: np.random.Generator, document: Any) -> Any:
    """A document of JSON with one to three values that are strange, gone or from elsewhere in it."""
    for _ in range(draw.integers(1, 4)):
        found = list(places(document))[1:]
        if not found:
            break
        path, other = found[draw.integers(len(found))], found[draw.integers(len(found))]
        value = document
        for key in other:
            value = value[key]
        strange = STRANGE[draw.integers(len(STRANGE))]
        document = changed(document, path, (strange, strange, value, changed)[draw.integers(4)])
    return document


def text_of(draw: np.random.Generator, document: Any) -> bytes:
    """A document of JSON as bytes, now and then nested deeply, in another encoding or none."""
    text = json.dumps(document)
    choices = [text.encode()] * 12
    choices += [b"[" * 100_000, b'{"a":' * 50_000, text.encode("utf-16"), b"\xff" + text.encode(), b"1" * 10_000]
    return choices[draw.integers(len(choices))]


def strange_array(draw: np.random.Generator, array: np.ndarray) -> Any:
    """An array that differs from ``array``: in its numbers, its dtype or its shape, or without numbers."""
    floats = np.asarray(array, np.float64) if array.dtype.kind in "biuf" else np.zeros(array.shape)
    choices = (
        np.full(array.shape, np.nan),
        np.full(array.shape, np.inf, np.float32),
        np.full(array.shape, -1e30),
        np.full(array.shape, 2**62),
        -floats,
        floats * 0,
        floats.clip(-6e4, 6e4).astype(np.float16),
        floats.astype(np.complex64),
        floats > 0,
        np.full(array.shape, "text", dtype="S9"),
        np.array(b"x"),
        floats.ravel(),
        floats[..., None],
        floats[None],
        np.zeros((0, *array.shape[1:])),
        np.zeros(()),
        np.zeros((2, 3, 4, 5, 6)),
        np.swapaxes(floats, 0, -1) if floats.ndim > 1 else np.zeros(7),
        np.zeros(array.shape, [("a", "f4"), ("b", "i8")]),
        np.arange(3),
    )
    return choices[draw.integers(len(choices))]
