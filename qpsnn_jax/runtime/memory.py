"""The memory that a process keeps for its next computations."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

# Parameters of mallopt, from glibc's malloc.h, and advice of madvise, from Linux's mman.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_HUGE_PAGES = 14
_HUGE_PAGE = 2**21


@cache
def reuse_memory() -> bool:
    """Keep the memory that computations on a CPU free, for the next ones, in large pages where Linux allows them.

    Every call of a compiled program allocates its results and its working memory. By default, glibc returns blocks of
    that size to Linux at once, which then clears the same memory again, page by page, at the next call: up to a third
    of the time of a training step. After this function, memory is kept until the process ends, so the process holds
    the most that it ever needed, and somewhat more. Results do not change.

    It holds for the whole process and for threads that have not allocated yet, so call it before the first
    computation; the command line does.

    Returns:
        Whether it has an effect: with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    try:
        _, mallopt = libc.gnu_get_libc_version, libc.mallopt
    except AttributeError:
        return False
    # Blocks of other arenas than the first, and those that are mapped by themselves, are returned when they are freed.
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)]
    if _addresses_are_free():
        _use_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return all(done)


def _addresses_are_free() -> bool:
    """Whether addresses that no memory is behind count for nothing: without a limit, and without strict overcommit."""
    import resource

    try:
        strict = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        strict = True
    return not strict and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def _use_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Extend the heap by ``size`` bytes of addresses, and ask for large pages there, where memory is used."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block is None:
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, _HUGE_PAGES)
    libc.free(block)
