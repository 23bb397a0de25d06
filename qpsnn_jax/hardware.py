"""What the machine can do, as far as the choice of a program depends on it."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

_PORTABLE: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Within it nothing is known of this machine, so that programs for others come out alike on all."""
    before = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(before)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for what comes next; to be called before any thread starts.

    XLA asks for all the working memory of a program anew at every call. What is large goes back to the system after it
    otherwise, and comes from there page by page, zeroed: a fifth of the time of a large training step on a CPU. Does
    nothing where the C library is not that of Linux.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # mallopt(3): one arena, nothing mapped by itself, nothing trimmed from the end.
    for option, value in ((-8, 1), (-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(option, value)


def cpu_flags() -> frozenset[str]:
    """The processor's extensions, as Linux names them; nothing elsewhere."""
    return frozenset() if _PORTABLE.get() else _flags_in_linux()


@cache
def _flags_in_linux() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
