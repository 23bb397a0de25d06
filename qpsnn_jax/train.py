"""The training loop: drives the pure steps over a data set, logs, saves, and resumes where it was killed."""

import importlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from qpsnn_jax import checkpoint
from qpsnn_jax.config import Config, LossName, augmenter
from qpsnn_jax.costs import activity_reducers, sops_reducers
from qpsnn_jax.data import DataSet, normalize
from qpsnn_jax.data.dataset import Examples
from qpsnn_jax.data.feed import Feed, count, evaluation_batches, feed
from qpsnn_jax.graph import Graph
from qpsnn_jax.losses import cross_entropy, temporal_cross_entropy
from qpsnn_jax.network import Capture, Reducer
from qpsnn_jax.optim import OptimizerName, cosine_schedule, optimizer
from qpsnn_jax.progress import progress
from qpsnn_jax.steps import (
    Loss,
    TrainState,
    Variables,
    evaluation_variables,
    init_state,
    make_eval_step,
    make_train_step,
)

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
    and within an epoch every ``checkpoint_steps``.

    Args:
        graph, variables: the network to start from.
        data: training and test sets; the test accuracy is recorded each epoch and decides nothing.
        plan: what to do.
        directory: of this course of training.
        title: for the progress display.

    Returns:
        :class:`Trained`.

    Raises:
        ValueError: the batch is larger than the training set, or a checkpoint in ``directory`` cannot be read.
        FloatingPointError: the loss or a weight is no longer finite; the last good checkpoint stays.
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
    initial = jax.jit(partial(init_state, tx=tx, average=config.average is not None))(variables, key=key)
    batches = feed(data.train, config.batch_size, plan.seed, workers=config.workers)
    state, epochs, seconds = _resume(initial, graph, directory, batches)
    started = time.monotonic() - seconds
    step = jax.jit(
        make_train_step(
            graph,
            tx,
            loss=_loss(config),
            prepare=_prepare(data, config),
            decay=config.average or 0.0,
            penalty=_penalty(graph, config.sops_penalty),
        ),
        donate_argnums=0,
    )
    eval_step = _activity_step(graph, data.mean, data.std)
    result, done, total = None, int(state.step), plan.epochs * steps_per_epoch
    metrics = _Metrics(directory, keep=done, within_epoch=done % steps_per_epoch)
    with closing(metrics), progress(title, total=total, done=done) as shown:
        for number in range(done + 1, total + 1):
            state, values = step(state, *next(batches))
            shown.advance(1, metrics.record(values))
            epoch, within = divmod(number, steps_per_epoch)
            if within == 0:
                metrics.flush()
                result = _evaluate(eval_step, evaluation_variables(state), data.test)
                loss = metrics.end_epoch(result.accuracy)
                epochs.append({"epoch": epoch, "train_loss": loss, "test_accuracy": result.accuracy})
                shown.line(
                    f"epoch {epoch}/{plan.epochs}, train loss {loss:.3f}, test accuracy {100 * result.accuracy:.2f} %"
                )
            if _due(config, epoch, within) or number == total:
                metrics.sync()
                _save(directory, graph, state, epochs, time.monotonic() - started, batches)
    result = result or _evaluate(eval_step, evaluation_variables(state), data.test)
    return Trained(evaluation_variables(state), result, epochs, time.monotonic() - started)


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
        :class:`Evaluation`. The activity is the mean over the full batches.
    """
    if capture is None:
        return _evaluate(_activity_step(graph, data.mean, data.std), variables, examples)
    return _evaluate(jax.jit(make_eval_step(graph, prepare=normalizer(data), capture=capture)), variables, examples)


def whole_batches(config: Config, data: DataSet) -> int:
    """Batches in an epoch; what is left over waits for the next one.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    total = count(data.train)
    if total < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {total} training images.")
    return total // config.batch_size


def normalizer(data: DataSet) -> Callable[[Array], Array]:
    """The normalization of a data set, from uint8 pixels to floating images."""
    return partial(normalize, mean=data.mean, std=data.std)


@lru_cache(maxsize=4)
def _activity_step(graph: Graph, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """Kept, because fine-tuning evaluates the network that pruning has just evaluated, and compiling takes seconds."""
    prepare = partial(normalize, mean=mean, std=std)
    return jax.jit(make_eval_step(graph, prepare=prepare, capture=activity_reducers(graph)))


def _evaluate(step: Callable, variables: Variables, examples: Examples) -> Evaluation:
    sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
    activity: dict[str, np.ndarray] = {}
    full = 0
    for batch in evaluation_batches(examples):
        partial_sums, captured = step(variables, *batch)
        sums = {name: value + float(partial_sums[name]) for name, value in sums.items()}
        if batch.weights.all():
            full += 1
            activity = {name: activity.get(name, 0) + np.asarray(x, np.float64) for name, x in captured.items()}
    activity = {name: total / full for name, total in activity.items()}
    return Evaluation(sums["correct"] / sums["count"], sums["loss"] / sums["count"], activity)


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


def _due(config: Config, epoch: int, within: int) -> bool:
    """Whether a checkpoint is due after so many whole epochs and so many steps of the next."""
    if within == 0:
        return epoch % config.checkpoint_epochs == 0
    return config.checkpoint_steps is not None and within % config.checkpoint_steps == 0


def _resume(
    state: TrainState, graph: Graph, directory: Path, batches: Feed
) -> tuple[TrainState, list[dict[str, float]], float]:
    found = checkpoint.latest(directory)
    if found is None:
        return state, [], 0.0
    if found.graph != graph or "epochs" not in found.notes:
        raise ValueError(f"checkpoint {found.path} is of another network than this run's; choose another directory.")
    batches.set_state(found.notes["batches"])
    return checkpoint.restore(found, state), found.notes["epochs"], found.notes["seconds"]


def _save(
    directory: Path,
    graph: Graph,
    state: TrainState,
    epochs: list[dict[str, float]],
    seconds: float,
    batches: Feed,
) -> None:
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.variables))):
        raise FloatingPointError(f"a weight is not finite after step {int(state.step)}; try a lower learning_rate.")
    notes = {"epochs": epochs, "seconds": seconds, "batches": batches.get_state()}
    checkpoint.save(directory, int(state.step), graph, state, notes)


class _Metrics:
    """Writes one JSON line per step, a step late, so that the device never waits to be read.

    Where tensorboardX is installed, the same numbers go to ``tensorboard`` beside it.
    """

    def __init__(self, directory: Path, keep: int, within_epoch: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = path.read_text().splitlines()[:keep] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._directory, self._file, self._board = directory, path.open("a"), _tensorboard(directory, keep)
        self._step, self._pending = keep, None
        # Of the epoch under way, which a checkpoint within it has interrupted.
        self._losses = [json.loads(line)["loss"] for line in kept[keep - within_epoch :]]
        self._note = ""

    def record(self, values: dict[str, Array]) -> str:
        """Take a step's metrics, write those of the step before, and return them as text."""
        self.flush()
        self._pending = values
        return self._note

    def flush(self) -> None:
        """Write the metrics still pending."""
        if self._pending is None:
            return
        values = {name: float(value) for name, value in self._pending.items()}
        self._step, self._pending = self._step + 1, None
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

    def sync(self) -> None:
        """Put everything on disk."""
        self.flush()
        self._file.flush()

    def close(self) -> None:
        """Close the files, whatever happened."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _show(self, group: str, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, self._step)


def _tensorboard(directory: Path, step: int) -> Any:
    """A writer that forgets what an interrupted run wrote after ``step``, or None without tensorboardX."""
    try:
        tensorboard = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    return tensorboard.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
