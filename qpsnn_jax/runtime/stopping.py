"""Stopping: SIGTERM, which a cluster sends before it reclaims a machine, as a flag, and an orderly end of a loop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Terminated(KeyboardInterrupt):
    """SIGTERM stopped the work after everything was saved."""


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Defer SIGTERM and return a function that tells whether it arrived.

    Python delivers signals to the main thread only. In any other thread nothing is deferred and the function returns
    False.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def finished_programs() -> Iterator[None]:
    """Wait, when an exception leaves the block, for the programs that the devices still run.

    An interrupt leaves Python at once, while a device goes on with arrays that Python is about to delete. Where
    training was interrupted and started again many times in one process, this ended in a crash of jaxlib 0.10.2.
    Of several processes none waits: a program that needs the others might never end.
    """
    try:
        yield
    except BaseException:
        import jax  # here, because the command line imports this module to end at once

        if jax.process_count() == 1:
            with suppress(Exception):
                jax.block_until_ready(jax.live_arrays())
        raise
