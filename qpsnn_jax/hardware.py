"""What the machine can do, as far as the choice of a program depends on it, and its memory in large pages."""

import os
import sys
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


def take_large_pages() -> None:
    """Start this process anew, as it was called, with a C library that asks Linux for memory in large pages.

    XLA asks for a program's working memory anew at every call, and the system gives it page by page: by 2 MiB instead
    of 4 KiB, large networks train a fifth faster on a CPU. glibc reads the setting when a process starts, and only
    then. Where ``GLIBC_TUNABLES`` is set already, and but on Linux, nothing happens.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
