"""The instruction-set extensions of this machine's processor."""

from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's extensions, by Linux's names; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
