"""The metrics of every step as JSON lines, and for TensorBoard if tensorboardX is installed."""

import importlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.records import Epoch
from qpsnn_jax.runtime.files import naming
from qpsnn_jax.runtime.processes import is_process_zero, write_on_process_zero


@contextmanager
def write_metrics(directory: Path) -> Iterator[Hooks]:
    """Hooks that write ``metrics.jsonl`` into a directory, and with tensorboardX also ``tensorboard``.

    When training resumes, the metrics after its last checkpoint are dropped. Those before it that are lost, as after a
    power cut, are missing from then on, with a warning. Only process 0 writes.
    """
    with ExitStack() as stack:
        writers: list[_Writer] = []

        def start(done: int, total: int) -> None:
            writers.append(_Writer(directory, done))
            stack.callback(writers[0].close)

        def metrics(step: int, values: Mapping[str, float]) -> None:
            writers[0].write(step, values)

        def epoch(done: Epoch, epochs: int) -> None:
            writers[0].show("test", {"accuracy": done.test_accuracy})

        yield Hooks(start, metrics, epoch, lambda step: writers[0].flush())


class _Writer:
    def __init__(self, directory: Path, done: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path, self._step = directory / "metrics.jsonl", done
        kept = _kept_lines(self._path, done)
        write_on_process_zero(self._path, b"".join(line + b"\n" for line in kept))
        place = self._path if is_process_zero() else Path(os.devnull)
        self._file: TextIO = place.open("a", encoding="utf-8")
        self._board = _tensorboard(directory, done) if is_process_zero() else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        self.show("train", values)

    def show(self, group: str, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, self._step)

    def flush(self) -> None:
        with naming(self._path):
            self._file.flush()
            if is_process_zero():
                os.fsync(self._file.fileno())

    def close(self) -> None:
        with naming(self._path):
            self._file.close()
        if self._board is not None:
            self._board.close()


def _kept_lines(path: Path, keep: int) -> list[bytes]:
    """The lines of the first ``keep`` steps, as far as they are there."""
    lines, last = [], 0
    for line in path.read_bytes().splitlines() if keep and path.exists() else ():
        step = _step_of(line)
        if step is not None and last < step <= keep:
            lines.append(line)
            last = step
    if len(lines) < keep and is_process_zero():
        lost = f"{keep - len(lines):,} of the first {keep:,} steps"
        warnings.warn(f"{path} has lost the metrics of {lost}; the training itself goes on as it was.", stacklevel=2)
    return lines


def _step_of(line: bytes) -> int | None:
    """The step that a line is of; None if it is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _tensorboard(directory: Path, step: int) -> Any:
    """A writer that drops what an interrupted run wrote after ``step``; None without tensorboardX."""
    try:
        tensorboard = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    return tensorboard.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
