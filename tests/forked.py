"""Command lines in processes of their own, forked from one process that has imported what they need, once."""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from unittest import mock

from qpsnn_jax.runs.cli.main import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked", "qpsnn_jax.runs.controls", "orbax.checkpoint.v1", "matplotlib.figure"])


class Forked:
    """A process that ends with the status of ``work(arguments)``, in this environment with the changes."""

    def __init__(
        self, arguments: list[str], work: Callable = main, environment: Mapping[str, str] | None = None
    ) -> None:
        (self._out, out), (self._err, err) = (_context.Pipe(duplex=False) for _ in range(2))
        given = (work, arguments, {**os.environ, **(environment or {})}, (out, err))
        self.process = _context.Process(target=_run, args=given)
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # for the process that is forked
            self.process.start()
        out.close()
        err.close()

    def ended(self, *status: int) -> tuple[str, str]:
        """Standard output and error, once it has ended with one of the statuses."""
        said = _read(self._out), _read(self._err)
        self.process.join(240)
        assert self.process.exitcode in status, (self.process.exitcode, *said)
        return said

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Waits until something happened, which the process must not end before."""
        deadline = time.monotonic() + 240
        while not happened():
            assert self.process.is_alive(), self.ended()
            assert time.monotonic() < deadline
            time.sleep(0.005)


def _read(stream: Connection) -> str:
    """What was written, once all that could write have ended."""
    with open(os.dup(stream.fileno()), encoding="utf-8") as file:
        return file.read()


def _run(work: Callable, arguments: list[str], environment: Mapping[str, str], streams: Iterable[Connection]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    status = work(arguments)
    atexit._run_exitfuncs()  # as at the end of a program, which multiprocessing leaves out
    sys.exit(status)
