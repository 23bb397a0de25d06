"""The training loop: runs the pure steps over a data set, saves checkpoints, and resumes from them."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.data.dataset import DataSet
from qpsnn_jax.data.feed import Feed, count, feed
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs.evaluation import Evaluation, activity_step, evaluate_by
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.programs import Teacher, initial_state, make_advance, make_optimizer
from qpsnn_jax.runs.records import Epoch
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.processes import any_process
from qpsnn_jax.runtime.sharding import data_mesh, device_put, replicated
from qpsnn_jax.runtime.stopping import Terminated, finished_programs, termination
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import TrainState, Variables, evaluation_variables
from qpsnn_jax.training.steps import Prepare
from qpsnn_jax.training.timesteps import check_timesteps
from qpsnn_jax.training.trees import all_finite


class Trained(NamedTuple):
    """Result of :func:`fit`: the trained variables, their evaluation, the record of each epoch, the time in seconds."""

    variables: Variables
    result: Evaluation
    epochs: list[Epoch]
    seconds: float


def fit(
    graph: Graph,
    variables: Variables,
    data: DataSet,
    training: Training,
    directory: Path,
    *,
    prepare: Prepare,
    run: RunSettings,
    workers: int = 0,
    teacher: Teacher | None = None,
    hooks: Sequence[Hooks] = (),
) -> Trained:
    """Train a network, or resume an earlier call with the same arguments.

    Every epoch visits the training set in an order drawn from the seed and the epoch's number, in whole batches. Each
    step's random key comes from the seed and the step's number. So a run that was killed and resumed ends with the
    same bits as one that was not. The number of time steps may change between epochs (``timesteps_schedule``); every
    evaluation is at the network's own. Checkpoints are saved in ``directory`` every ``checkpoint_epochs``, and within
    an epoch every ``checkpoint_steps``. SIGTERM saves one more and stops. Several processes train together if all of
    them call this with the same arguments; a SIGTERM to any of them stops all after the same step.

    Args:
        graph, variables: the network to start from.
        data: training and test sets; the test accuracy is recorded each epoch, and no choice uses it.
        training: epochs, batch size, optimizer and loss.
        directory: for checkpoints.
        prepare: from a key and raw images to normalized, augmented ones.
        run: seed, checkpoints and sharding.
        workers: processes that read and decode files ahead; 0 for none.
        teacher: the network that ``training.distill`` names.
        hooks: functions to call meanwhile.

    Raises:
        ValueError: the batch is larger than the training set, the schedule of time steps does not fit the network, a
            checkpoint in ``directory`` cannot be read, or the devices cannot share a batch equally.
        FloatingPointError: the loss or a weight is no longer finite; the last good checkpoint stays.
        Terminated: SIGTERM arrived; everything is saved.
    """
    check_timesteps(training, graph)
    steps_per_epoch, schedule = whole_batches(data, training.batch_size), training.schedule
    mesh = batch_mesh(training.batch_size)
    tx = make_optimizer(training, steps_per_epoch)
    initial, shardings = initial_state(variables, tx, mesh, training, run)
    batches = feed(data.train, training.batch_size, run.seed, workers=workers, mesh=mesh)
    with closing(batches), termination() as terminated, finished_programs():
        state, notes = _resume(initial, graph, directory, batches)
        log = _Log(directory, training.epochs, int(state.step), notes, hooks)
        advance = make_advance(graph, tx, training, prepare, mesh, shardings, run, teacher, variables.get("masks"))
        measured = activity_step(graph, data.mean, data.std, mesh, run.precision, None)
        stopping = any_process(terminated)
        result, total = None, training.epochs * steps_per_epoch
        for hook in hooks:
            hook.start(log.step, total)
        for number, size in _dispatches(log.step, total, steps_per_epoch, run.checkpoint_steps):
            timesteps = schedule[(number - size) // steps_per_epoch] if schedule else None
            state, values = advance(timesteps or graph.timesteps)(state, batches, size)
            log.take(values)
            epoch, within = divmod(number, steps_per_epoch)
            if within == 0:
                log.flush()
                result = evaluate_by(measured, evaluation_variables(state), data.test, mesh, workers=workers)
                log.end_epoch(epoch, result.accuracy, timesteps)
            stop = stopping()
            if stop or number == total or _due(run, number, epoch, within):
                _save(directory, graph, state, {**log.save(number), "batches": batches.get_state()})
            if stop:
                raise Terminated
        if stopping():  # in the last step
            raise Terminated
    final = device_put(evaluation_variables(state), replicated(mesh))
    result = result or evaluate_by(measured, final, data.test, mesh, workers=workers)
    return Trained(final, result, log.epochs, log.seconds)


def whole_batches(data: DataSet, batch_size: int) -> int:
    """The number of whole batches in an epoch. The examples left over are skipped in that epoch.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    total = count(data.train)
    if total < batch_size:
        raise ValueError(f"batch_size {batch_size} is larger than the {total} training images.")
    return total // batch_size


def batch_mesh(batch_size: int) -> Mesh:
    """The mesh of all devices, over which every batch is sharded.

    Raises:
        ValueError: the batch cannot be sharded equally.
    """
    mesh = data_mesh()
    if batch_size % mesh.size:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {mesh.size} devices that share it.")
    return mesh


def _dispatches(done: int, total: int, per_epoch: int, checkpoint_steps: int | None) -> Iterator[tuple[int, int]]:
    """For each program that is started: the number of steps done after it, and the number of steps that it takes.

    No program crosses the end of an epoch or a checkpoint, so that a resumed run divides its steps in the same way.
    """
    every = [per_epoch, total] + ([checkpoint_steps] if checkpoint_steps else [])
    while done < total:
        size = _at_once()
        if size > min(n - done % n for n in every):
            size = 1
        done += size
        yield done, size


def _at_once() -> int:
    """Steps in one program. One on a CPU, which starts programs quickly and runs the body of a loop on one thread."""
    return 1 if jax.default_backend() == "cpu" else 8


def _due(run: RunSettings, steps: int, epoch: int, within: int) -> bool:
    """Whether a checkpoint is due after ``steps`` steps: ``epoch`` whole epochs and ``within`` steps of the next."""
    if within == 0 and epoch % run.checkpoint_epochs == 0:
        return True
    return run.checkpoint_steps is not None and steps % run.checkpoint_steps == 0


def _resume(state: TrainState, graph: Graph, directory: Path, batches: Feed) -> tuple[TrainState, Mapping[str, Any]]:
    try:
        found = checkpoint.latest(directory)
        if found is None:
            return state, {"epochs": [], "losses": [], "seconds": 0.0}
        notes = found.notes
        if found.graph != graph or not {"epochs", "losses", "seconds", "batches"} <= set(notes):
            raise ValueError(
                f"checkpoint {found.path} was not written by this training, or holds another network; choose another "
                "directory."
            )
        batches.set_state(notes["batches"])
        return checkpoint.restore(found, state), notes
    except checkpoint.DamagedError as error:
        said = str(error).rstrip(".")
        raise ValueError(f"{said}; delete it to resume from the checkpoint before it, or from the start.") from None


def _save(directory: Path, graph: Graph, state: TrainState, notes: dict[str, Any]) -> None:
    if not all_finite(state.variables):
        raise FloatingPointError(f"a weight is not finite after step {int(state.step)}; try a lower learning_rate.")
    checkpoint.save(directory, int(state.step), graph, state, notes)


class _Log:
    """The record of a training. Metrics are read one program late, so that the device need not wait for the host."""

    def __init__(
        self, directory: Path, epochs: int, step: int, notes: Mapping[str, Any], hooks: Sequence[Hooks]
    ) -> None:
        self.step, self.epochs = step, [Epoch(**epoch) for epoch in notes["epochs"]]
        self._directory, self._of, self._hooks = directory, epochs, hooks
        self._losses, self._pending = list(notes["losses"]), None
        self._started = time.monotonic() - notes["seconds"]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def take(self, values: dict[str, Array]) -> None:
        """Store the metrics of a program; report those of the one before."""
        self.flush()
        self._pending = values

    def flush(self) -> None:
        """Report the stored metrics."""
        if self._pending is None:
            return
        pending = {name: np.atleast_1d(value) for name, value in jax.device_get(self._pending).items()}
        self._pending = None
        for numbers in zip(*pending.values(), strict=True):
            self._report(dict(zip(pending, map(float, numbers), strict=True)))

    def _report(self, values: dict[str, float]) -> None:
        self.step += 1
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {self.step}; the checkpoints before it stay in "
                f"{self._directory}. Try a lower learning_rate or a clip_norm, in a new --out."
            )
        self._losses.append(values["loss"])
        for hook in self._hooks:
            hook.metrics(self.step, values)

    def end_epoch(self, number: int, test_accuracy: float, timesteps: int | None) -> None:
        """Record an epoch whose metrics have been reported."""
        self.epochs.append(Epoch(number, float(np.mean(self._losses)), test_accuracy, timesteps))
        self._losses = []
        for hook in self._hooks:
            hook.epoch(self.epochs[-1], self._of)

    def save(self, step: int) -> dict[str, Any]:
        """Report everything before a checkpoint, and return the notes that it must hold."""
        self.flush()
        for hook in self._hooks:
            hook.checkpoint(step)
        return {
            "epochs": [epoch._asdict() for epoch in self.epochs],
            "losses": self._losses,
            "seconds": self.seconds,
        }
