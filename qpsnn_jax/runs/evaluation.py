"""Accuracy, loss and activity of a network on a data set, computed on all devices."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.data.dataset import DataSet, Examples
from qpsnn_jax.data.feed import evaluation_batches, first
from qpsnn_jax.kernels.dispatch import Precision, compiler_options
from qpsnn_jax.model.costs import activity_reducers
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Capture, SpikingNetwork
from qpsnn_jax.numerics.early_exit import EarlyExit, early_exit
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, device_put, replicated
from qpsnn_jax.training.state import Variables
from qpsnn_jax.training.steps import make_eval_step


class Evaluation(NamedTuple):
    """Accuracy (a fraction), mean loss (nats), and the captured activity by node, on a set of examples."""

    accuracy: float
    loss: float
    activity: dict[str, np.ndarray]


def evaluate(
    graph: Graph,
    variables: Variables,
    examples: Examples,
    data: DataSet,
    *,
    capture: Capture | None = None,
    precision: Precision = "auto",
) -> Evaluation:
    """Accuracy, loss and activity of a network on labelled images.

    Args:
        graph, variables: the network.
        examples: the images and labels.
        data: the data set whose mean and std normalize them.
        capture: as for :class:`qpsnn_jax.SpikingNetwork`; None: the activity that :func:`qpsnn_jax.cost` needs.
        precision: as for :class:`qpsnn_jax.SpikingNetwork`.

    Returns:
        :class:`Evaluation`. The activity is the mean over all examples.
    """
    mesh = data_mesh()
    measured = tuple(capture.items()) if isinstance(capture, Mapping) else capture and tuple(capture)
    step = activity_step(graph, data.mean, data.std, mesh, precision, measured)
    return evaluate_by(step, variables, examples, mesh)


class ExitEvaluation(NamedTuple):
    """Accuracy (a fraction) with early exit, and the share of examples that leave at each step, from the first."""

    accuracy: float
    shares: tuple[float, ...]

    @property
    def mean_steps(self) -> float:
        """Time steps of an example in the mean."""
        return sum(step * share for step, share in enumerate(self.shares, 1))


def evaluate_early_exit(
    graph: Graph,
    variables: Variables,
    examples: Examples,
    data: DataSet,
    threshold: float,
    *,
    precision: Precision = "auto",
) -> ExitEvaluation:
    """Accuracy and time steps of a network with :func:`qpsnn_jax.early_exit`; arguments as for :func:`evaluate`.

    Raises:
        ValueError: a network of fewer than two classes.
    """

    @partial(jax.jit, compiler_options=compiler_options(precision))
    def leave(images: Array) -> EarlyExit:
        output: Any = SpikingNetwork(graph, precision).apply(variables, normalizer(data)(images))
        return early_exit(output.currents, threshold)

    right, counts = 0, np.zeros(graph.timesteps)
    for images, labels in evaluation_batches(examples):
        predictions, steps = jax.device_get(leave(images))
        right += int((predictions == labels).sum())
        counts += np.bincount(steps - 1, minlength=graph.timesteps)
    return ExitEvaluation(right / counts.sum(), tuple(float(share) for share in counts / counts.sum()))


def sensitivity_batches(data: DataSet, examples: int = 640, batch_size: int = 128) -> Iterator[tuple[Array, Array]]:
    """The first training images, normalized, and their labels, for :func:`qpsnn_jax.bit_sensitivity`."""
    taken = first(data.train, examples)
    prepare = jax.jit(normalizer(data))
    for start in range(0, len(taken.labels), batch_size):
        images, labels = (each[start : start + batch_size] for each in taken)
        if start == 0 or len(labels) == batch_size:
            yield prepare(images), jnp.asarray(labels)


def normalizer(data: DataSet) -> Callable[[Array], Array]:
    """The normalization of a data set, from uint8 pixels to floating images."""
    return partial(normalize, mean=data.mean, std=data.std)


@lru_cache(maxsize=4)
def activity_step(
    graph: Graph,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh,
    precision: Precision,
    capture: tuple | None,
) -> Callable:
    """The jitted step of :func:`evaluate`, which captures the activity, or names or pairs of a name and a reducer.

    Cached, because fine-tuning evaluates the network that pruning has just evaluated, and compiling takes seconds.
    """
    prepare = partial(normalize, mean=mean, std=std)
    named: Capture = activity_reducers(graph) if capture is None else capture
    if capture and isinstance(capture[0], tuple):
        named = dict(capture)
    step = make_eval_step(graph, prepare=prepare, capture=named, precision=precision)
    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options(precision))


def evaluate_by(
    step: Callable, variables: Variables, examples: Examples, mesh: Mesh, *, workers: int = 0
) -> Evaluation:
    """:func:`evaluate` with a jitted step and ``workers`` processes that read files ahead."""
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
