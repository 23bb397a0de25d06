"""The command ``qpsnn``, also as ``python -m qpsnn_jax``: the command line in a process with large pages of memory."""

import os
import sys
from contextlib import suppress

from qpsnn_jax.runs.cli import main


def start() -> int:
    """Run the command line; return its status."""
    _take_large_pages()
    return main()


def _take_large_pages() -> None:
    """Start this process anew, as it was called, with a C library that asks Linux for memory in large pages.

    XLA asks for a program's working memory anew at every call, and the system gives it page by page. By 2 MiB instead
    of 4 KiB, large networks train a tenth to a quarter faster on a CPU where the system gives such pages on request;
    small ones neither gain nor lose. glibc reads the setting only when a process starts; processes that this one
    starts inherit it. Nothing happens where ``GLIBC_TUNABLES`` is set already, or on anything but Linux.
    """
    # The second name, because a process with privileges of its own is not shown the first.
    if sys.platform != "linux" or not {"GLIBC_TUNABLES", "QPSNN_STARTED"}.isdisjoint(os.environ):
        return
    os.environ |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "QPSNN_STARTED": "1"}
    with suppress(OSError):
        os.execv(sys.executable or "", sys.orig_argv)


if __name__ == "__main__":
    sys.exit(start())
