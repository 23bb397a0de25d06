"""SIGTERM is deferred, and can be tested for."""

import os
import signal
import threading

from qpsnn_jax.runtime.stopping import termination


def test_the_signal_is_held_back_and_the_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    with termination() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_holds_nothing_back():
    answers = []

    def work():
        with termination() as stopping:
            answers.append((stopping(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [(False, signal.getsignal(signal.SIGTERM))]
