"""SIGTERM, which a cluster sends before it reclaims a machine, as a flag that a loop can test."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
