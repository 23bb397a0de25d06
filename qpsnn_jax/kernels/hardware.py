"""What the machine can do, as far as the choice of a program depends on it."""

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
