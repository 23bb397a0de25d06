"""SIGTERM, which a cluster sends before it takes a machine away, as a question that a loop can ask."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """Work was stopped by SIGTERM, after everything was saved."""


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back and give a function that says whether it came.

    Python delivers signals to the main thread only; in any other one nothing is held back, and the answer is no.
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
