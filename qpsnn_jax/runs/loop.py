"""The training loop: drives the pure steps over a data set, logs, saves, and resumes where it was killed."""

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.data import DataSet
from qpsnn_jax.data.dataset import Examples
from qpsnn_jax.data.feed import Feed, count, evaluation_batches, feed
from qpsnn_jax.model.costs import activity_reducers, sops_reducers
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Capture, Reducer
from qpsnn_jax.numerics.losses import cross_entropy, temporal_cross_entropy
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs.config import Config, LossName, augmenter
from qpsnn_jax.runtime.compiling import low_memory_jit
from qpsnn_jax.runtime.processes import any_process, is_process_zero, write_on_process_zero
from qpsnn_jax.runtime.progress import progress
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, device_put, fsdp_shardings, replicated
from qpsnn_jax.runtime.stopping import Terminated, termination
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.optim import OptimizerName, cosine_schedule, optimizer
from qpsnn_jax.training.steps import (
    Loss,
    TrainState,
    Variables,
    all_finite,
    evaluation_variables,
    init_state,
    make_eval_step,
    make_train_step,
    scan_steps,
)

# Numbers that the layers of a batch put out, from which on memory counts: 256 MB in float32.
_LARGE = 1 << 26
_LOSSES: dict[LossName, Callable[..., Array]] = {"cross_entropy": cross_entropy, "tet": temporal_cross_entropy}


@dataclass(frozen=True)
class Plan:
    """One course of training: how long, with which optimizer, from which seed; the rest is in ``config``."""

    config: Config
    epochs: int
    optimizer: OptimizerName
    learning_rate: float
    seed: int


class Evaluation(NamedTuple):
    """Accuracy (a fraction) and mean loss (nats) on a set, and the activity that ``cost`` needs."""

    accuracy: float
    loss: float
    activity: dict[str, np.ndarray]


class Trained(NamedTuple):
    """Result of :func:`fit`: the variables to use, their evaluation, a record per epoch, and the seconds it took."""

    variables: Variables
    result: Evaluation
    epochs: list[dict[str, float]]
    seconds: float


def fit(graph: Graph, variables: Variables, data: DataSet, plan: Plan, directory: Path, title: str) -> Trained:
    """Train a network, or go on where an earlier call with the same arguments was stopped.

    Every epoch visits the training set in an order drawn from the seed and the epoch's number, in whole batches. Each
    step's random key comes from the seed and the step's number. So a run that was killed and started again ends with
    the same bits as one that was not. ``directory`` gets ``metrics.jsonl`` and checkpoints, every ``checkpoint_epochs``
    and within an epoch every ``checkpoint_steps``. SIGTERM saves one more and stops. Several processes, which must all
    call this alike, train together; a SIGTERM to any of them stops all after the same step.

    Args:
        graph, variables: the network to start from.
        data: training and test sets; the test accuracy is recorded each epoch and decides nothing.
        plan: what to do.
        directory: of this course of training.
        title: for the progress display.

    Returns:
        :class:`Trained`.

    Raises:
        ValueError: the batch is larger than the training set, a checkpoint or the metrics in ``directory`` cannot be
            read, or the devices cannot share a batch equally.
        FloatingPointError: the loss or a weight is no longer finite; the last good checkpoint stays.
        Terminated: SIGTERM came, and everything is saved.
    """
    config = plan.config
    steps_per_epoch = whole_batches(config, data)
    tx = optimizer(
        plan.optimizer,
        cosine_schedule(
            plan.learning_rate,
            epochs=max(1, plan.epochs),
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=config.warmup_epochs,
        ),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    key = jax.random.key_data(jax.random.key(plan.seed))
    initial = jax.jit(partial(init_state, tx=tx, ema=config.average is not None))(variables, key=key)
    mesh = mesh_of(config)
    whole, places = replicated(mesh), _places(initial, mesh, fsdp=config.fsdp)
    initial = device_put(initial, places)
    batches = feed(data.train, config.batch_size, plan.seed, workers=config.workers, mesh=mesh)
    state, epochs, losses, seconds = _resume(initial, graph, directory, batches)
    started = time.monotonic() - seconds
    made = make_train_step(
        graph,
        tx,
        loss=_loss(config),
        prepare=_prepare(data, config),
        ema_decay=config.average or 0.0,
        penalty=_penalty(graph, config.sops_penalty),
        **({"gather": partial(jax.lax.with_sharding_constraint, shardings=whole)} if config.fsdp else {}),
    )
    jit = partial(_jit(graph, config.batch_size // mesh.size), donate_argnums=0, out_shardings=(places, whole))
    step, steps = jit(made), jit(scan_steps(made))
    eval_step = _activity_step(graph, data.mean, data.std, mesh)
    result, done, total = None, int(state.step), plan.epochs * steps_per_epoch
    metrics = _Metrics(directory, done, losses)
    with (
        closing(batches),
        closing(metrics),
        progress(title, total=total, done=done, shown=is_process_zero()) as shown,
        termination() as terminated,
    ):
        stopping = any_process(terminated)
        for number, size in _dispatches(done, total, steps_per_epoch, config.checkpoint_steps):
            state, values = step(state, *next(batches)) if size == 1 else steps(state, *batches.several(size))
            shown.advance(size, metrics.record(values))
            epoch, within = divmod(number, steps_per_epoch)
            if within == 0:
                metrics.flush()
                result = _evaluate(eval_step, evaluation_variables(state), data.test, config.workers, mesh)
                loss = metrics.end_epoch(result.accuracy)
                epochs.append({"epoch": epoch, "train_loss": loss, "test_accuracy": result.accuracy})
                shown.line(
                    f"epoch {epoch}/{plan.epochs}, train loss {loss:.3f}, test accuracy {100 * result.accuracy:.2f} %"
                )
            stop = stopping()
            if stop or number == total or _due(config, number, epoch, within):
                losses = metrics.flush()
                seconds = time.monotonic() - started
                notes = {"epochs": epochs, "losses": losses, "seconds": seconds, "batches": batches.get_state()}
                _save(directory, graph, state, notes)
            if stop:
                raise Terminated
        if stopping():  # in the last step
            raise Terminated
    final = device_put(evaluation_variables(state), whole)
    result = result or _evaluate(eval_step, final, data.test, config.workers, mesh)
    return Trained(final, result, epochs, time.monotonic() - started)


def evaluate(
    graph: Graph, variables: Variables, examples: Examples, data: DataSet, *, capture: Capture | None = None
) -> Evaluation:
    """Accuracy, loss and activity of a network on labelled images.

    Args:
        graph, variables: the network.
        examples: the images and labels.
        data: the data set whose statistics normalize them.
        capture: what to measure besides; the activity that ``cost`` needs when left out.

    Returns:
        :class:`Evaluation`. The activity is the mean over all examples.
    """
    mesh = data_mesh()
    if capture is None:
        step = _activity_step(graph, data.mean, data.std, mesh)
    else:
        made = make_eval_step(graph, prepare=normalizer(data), capture=capture)
        step = jax.jit(made, out_shardings=replicated(mesh))
    return _evaluate(step, variables, examples, 0, mesh)


def whole_batches(config: Config, data: DataSet) -> int:
    """Batches in an epoch; what is left over waits for the next one.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    total = count(data.train)
    if total < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {total} training images.")
    return total // config.batch_size


def mesh_of(config: Config) -> Mesh:
    """All devices, which share every batch.

    Raises:
        ValueError: they cannot share it equally.
    """
    mesh = data_mesh()
    if config.batch_size % mesh.size:
        raise ValueError(f"batch_size {config.batch_size} must be a multiple of the {mesh.size} devices that share it.")
    return mesh


def normalizer(data: DataSet) -> Callable[[Array], Array]:
    """The normalization of a data set, from uint8 pixels to floating images."""
    return partial(normalize, mean=data.mean, std=data.std)


@lru_cache(maxsize=4)
def _activity_step(graph: Graph, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh) -> Callable:
    """Kept, because fine-tuning evaluates the network that pruning has just evaluated, and compiling takes seconds."""
    prepare = partial(normalize, mean=mean, std=std)
    step = make_eval_step(graph, prepare=prepare, capture=activity_reducers(graph))
    return jax.jit(step, out_shardings=replicated(mesh))


def _evaluate(step: Callable, variables: Variables, examples: Examples, workers: int, mesh: Mesh) -> Evaluation:
    variables = device_put(variables, replicated(mesh))
    sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
    activity: dict[str, np.ndarray] = {}
    for images, labels in evaluation_batches(examples, workers=workers):
        size = len(labels)
        batch = images, labels, np.ones(size, np.float32)
        if size % mesh.size == 0:
            batch = device_put(batch, batch_sharding(mesh))
        partial_sums, captured = step(variables, *batch)
        sums = {name: value + float(partial_sums[name]) for name, value in sums.items()}
        activity = {name: activity.get(name, 0) + size * np.asarray(x, np.float64) for name, x in captured.items()}
    activity = {name: total / sums["count"] for name, total in activity.items()}
    return Evaluation(sums["correct"] / sums["count"], sums["loss"] / sums["count"], activity)


def _jit(graph: Graph, examples: int) -> Callable[..., Any]:
    """To hold little memory where a step takes much; where it takes little, XLA's own order is a tenth faster."""
    steps = {name: graph.timesteps if value.timed else 1 for name, value in graph.values.items()}
    numbers = examples * sum(steps[name] * math.prod(value.shape) for name, value in graph.values.items())
    return low_memory_jit if numbers > _LARGE else jax.jit


def _dispatches(done: int, total: int, per_epoch: int, checkpoint_steps: int | None) -> Iterator[tuple[int, int]]:
    """How many steps are done after each program that is started, and how many it takes.

    None reaches over the end of an epoch or the place of a checkpoint, so that a run that is started again cuts what is
    left alike.
    """
    every = [per_epoch, total] + ([checkpoint_steps] if checkpoint_steps else [])
    while done < total:
        size = _at_once()
        if size > min(n - done % n for n in every):
            size = 1
        done += size
        yield done, size


def _at_once() -> int:
    """Steps in one program; one on a CPU, which starts programs quickly and runs the body of a loop on one thread."""
    return 1 if jax.default_backend() == "cpu" else 8


def _loss(config: Config) -> Loss:
    return partial(_LOSSES[config.loss], label_smoothing=config.label_smoothing)


def _penalty(graph: Graph, weight: float) -> dict[str, Reducer]:
    """``weight`` for every million synaptic operations of an image."""

    def scaled(reducer: Reducer) -> Reducer:
        return lambda value: weight * 1e-6 * reducer(value)

    return {name: scaled(reducer) for name, reducer in sops_reducers(graph).items()} if weight else {}


def _prepare(data: DataSet, config: Config) -> Callable[[Array, Array], Array]:
    augmented = augmenter(config)
    return lambda key, pixels: augmented(key, pixels, data.mean, data.std)


def _places(state: TrainState, mesh: Mesh, *, fsdp: bool) -> TrainState:
    """Where the arrays of a state lie: whole on every device, or the weights and what follows them cut."""
    whole = replicated(mesh)
    places: TrainState = jax.tree.map(lambda _: whole, state)
    if not fsdp:
        return places
    params = {"params": fsdp_shardings(mesh, state.variables["params"])}
    variables, ema = places.variables | params, places.ema and places.ema | params
    return places._replace(variables=variables, opt_state=fsdp_shardings(mesh, state.opt_state), ema=ema)


def _due(config: Config, steps: int, epoch: int, within: int) -> bool:
    """Whether a checkpoint is due after so many steps, that is so many whole epochs and steps within the next."""
    if within == 0 and epoch % config.checkpoint_epochs == 0:
        return True
    return config.checkpoint_steps is not None and steps % config.checkpoint_steps == 0


def _resume(
    state: TrainState, graph: Graph, directory: Path, batches: Feed
) -> tuple[TrainState, list[dict[str, float]], list[float], float]:
    found = checkpoint.latest(directory)
    if found is None:
        return state, [], [], 0.0
    notes = found.notes
    if found.graph != graph or not {"epochs", "losses", "seconds", "batches"} <= set(notes):
        raise ValueError(
            f"checkpoint {found.path} is not one that this training wrote, or it is of another network; choose another "
            "directory."
        )
    batches.set_state(notes["batches"])
    return checkpoint.restore(found, state), notes["epochs"], notes["losses"], notes["seconds"]


def _save(directory: Path, graph: Graph, state: TrainState, notes: dict[str, Any]) -> None:
    if not all_finite(state.variables):
        raise FloatingPointError(f"a weight is not finite after step {int(state.step)}; try a lower learning_rate.")
    checkpoint.save(directory, int(state.step), graph, state, notes)


class _Metrics:
    """Writes one JSON line per step, a program late, so that the device never waits to be read.

    Of several processes the first writes; the others know the same numbers, and stop where they are not finite.
    Where tensorboardX is installed, the same numbers go to ``tensorboard`` beside it.
    """

    def __init__(self, directory: Path, keep: int, losses: list[float]) -> None:
        """Go on after ``keep`` steps; ``losses`` are those of the epoch under way."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = _kept_lines(path, keep)
        write_on_process_zero(path, "".join(line + "\n" for line in kept).encode())
        self._directory, self._file = directory, (path if is_process_zero() else Path(os.devnull)).open("a")
        self._board = _tensorboard(directory, keep) if is_process_zero() else None
        self._step, self._pending = keep, None
        self._losses = list(losses)
        self._note = ""

    def record(self, values: dict[str, Array]) -> str:
        """Take the metrics of a step, or of several; write those of before, and return the last as text."""
        self._write_pending()
        self._pending = values
        return self._note

    def flush(self) -> list[float]:
        """Write everything to the file, and return the losses of the epoch under way."""
        self._write_pending()
        self._file.flush()
        return list(self._losses)

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        pending = {name: np.atleast_1d(value) for name, value in jax.device_get(self._pending).items()}
        self._pending = None
        for numbers in zip(*pending.values(), strict=True):
            self._write(dict(zip(pending, map(float, numbers), strict=True)))

    def _write(self, values: dict[str, float]) -> None:
        self._step += 1
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {self._step}; the checkpoints before it stay in "
                f"{self._directory}. Try a lower learning_rate or a clip_norm, in a new --out."
            )
        self._file.write(json.dumps({"step": self._step, **values}) + "\n")
        self._show("train", values)
        self._losses.append(values["loss"])
        self._note = f"loss {values['loss']:.3f}"

    def end_epoch(self, test_accuracy: float) -> float:
        """Return the mean loss of the epoch."""
        losses, self._losses = self._losses, []
        self._show("test", {"accuracy": test_accuracy})
        return float(np.mean(losses))

    def close(self) -> None:
        """Close the files, whatever happened."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _show(self, group: str, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, self._step)


def _kept_lines(path: Path, keep: int) -> list[str]:
    """The lines of the first ``keep`` steps; what an interrupted run wrote after its last checkpoint is dropped."""
    if keep == 0:
        return []
    if not path.exists():
        raise ValueError(f"{path} is missing, without which the metrics of {keep} steps are lost; start a new --out.")
    lines = path.read_text().splitlines()[:keep]
    try:
        steps = [json.loads(line)["step"] for line in lines]
    except (ValueError, KeyError, TypeError):
        steps = []
    if steps != list(range(1, keep + 1)):
        raise ValueError(f"{path} is damaged: it does not hold the steps 1 to {keep}; start a new --out.")
    return lines


def _tensorboard(directory: Path, step: int) -> Any:
    """A writer that forgets what an interrupted run wrote after ``step``, or None without tensorboardX."""
    try:
        tensorboard = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    return tensorboard.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
