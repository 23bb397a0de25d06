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
    """Keep freed memory for the next computations on a CPU, in large pages where Linux allows them.

    Every call of a compiled program allocates its results and its working memory. By default, glibc returns large
    blocks, and all above 32 MiB, to Linux when they are freed. Linux then clears them page by page at the next call,
    which takes up to a third of a training step of a large batch. After this function, the process keeps as much memory
    as it needed at its peak, and somewhat more. Results do not change. Steps of small batches, whose blocks glibc keeps
    anyway, become slower, since all threads then share one list of free blocks (``experiments/README.md``).

    Call it in the main thread, before the first computation: it has no effect on threads that have allocated memory,
    nor on those that take over the memory of a thread that has ended.

    Returns:
        Whether glibc accepted the settings; False with other allocators.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    try:
        _, mallopt = libc.gnu_get_libc_version, libc.mallopt
    except AttributeError:
        return False
    # glibc returns blocks outside the main arena, and blocks with a mapping of their own, when they are freed.
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)]
    if _addresses_are_free():
        _use_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return all(done)


def _addresses_are_free() -> bool:
    """Whether addresses without memory behind them count for nothing, and an allocation does not write to them."""
    import resource

    try:
        strict = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        strict = True
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    limited = any(resource.getrlimit(each)[0] != resource.RLIM_INFINITY for each in limits)
    written = "MALLOC_PERTURB_" in os.environ or "malloc.perturb" in os.environ.get("GLIBC_TUNABLES", "")
    return not (strict or limited or written)


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
