"""Training at fewer time steps than the network has: its graph and its frames at another T."""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runtime.checks import integer
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.steps import Prepare


def merge_frames(frames: Array, timesteps: int, *, binary: bool = False) -> Array:
    r"""Fewer frames, each from k neighbouring ones: their mean, or of frames of 0 and 1 their maximum.

    .. math:: y[t] = \tfrac1k \sum_{i<k} x[kt + i]

    Args:
        frames: x, shape ``b t …``, floating.
        timesteps: t / k.
        binary: whether the frames are of 0 and 1, as the result then is.

    Returns:
        y, shape ``b t/k …``, in the dtype of ``frames``.

    Raises:
        ValueError: ``timesteps`` does not divide t, or the frames are not floating.
    """
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"frames must be floating to be merged, got {frames.dtype}; normalize them first.")
    timesteps = integer("timesteps", timesteps, 1)
    check_divides(timesteps, frames.shape[1])
    groups = frames.reshape(frames.shape[0], timesteps, -1, *frames.shape[2:])
    return groups.max(axis=2) if binary else groups.mean(axis=2)


def check_divides(timesteps: int, frames: int) -> None:
    """Check that frames can be merged into so many.

    Raises:
        ValueError: they cannot.
    """
    if timesteps < 1 or frames % timesteps:
        raise ValueError(f"{frames} frames cannot be merged equally into {timesteps}; choose a divisor of {frames}.")


def check_timesteps(training: Training, graph: Graph) -> None:
    """Check that a schedule of time steps fits a network.

    Raises:
        ValueError: it ends at another T than the network's, or a T is larger, or does not divide the frames.
    """
    steps = training.schedule
    if steps and (steps[-1] != graph.timesteps or max(steps) > graph.timesteps):
        raise ValueError(
            f"timesteps_schedule must end at the T = {graph.timesteps} of the network and not exceed it, "
            f"got {training.timesteps_schedule!r}."
        )
    if graph.input.frames:
        for timesteps in dict.fromkeys(steps):
            check_divides(timesteps, graph.timesteps)


def at_timesteps(graph: Graph, timesteps: int) -> Graph:
    """The same network at another number of time steps; it takes the same variables."""
    return replace(graph, timesteps=timesteps)


def prepare_at(prepare: Prepare, graph: Graph, timesteps: int) -> Prepare:
    """Normalization and augmentation for a network at fewer time steps; frames are merged after them."""
    if not graph.input.frames or timesteps == graph.timesteps:
        return prepare
    binary = graph.input.binary
    return lambda key, images: merge_frames(prepare(key, images), timesteps, binary=binary)
