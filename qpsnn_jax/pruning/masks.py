"""Removal of single weights by masks: scores of every weight, and the masks that leave the highest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.masks import concrete, masked_layer, read_masks, with_masks
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import Weighted
from qpsnn_jax.model.precision import with_float_weights
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.numerics.sparsity import highest_n_of_m, lowest_removed
from qpsnn_jax.runtime.checks import finite, integer

WeightCriterion = Callable[[Graph, Mapping[str, Any], Sequence[str]], Mapping[str, Any]]
"""From a network and names of layers to one score for every weight of their kernels; low ones are removed."""


def mask_by(
    criterion: WeightCriterion,
    graph: Graph,
    variables: Mapping[str, Any],
    *,
    sparsity: float | Mapping[str, float] | None = None,
    n_of_m: tuple[int, int] | None = None,
    layers: Sequence[str] | None = None,
) -> tuple[Graph, dict[str, Any]]:
    r"""The network without the weights of the lowest scores, which become zero by a mask (see :func:`with_masks`).

    Each layer loses :math:`⌊\text{sparsity} · n⌋` of its n weights, of equal scores the first; or, of every m
    consecutive input channels, at each tap and for each output, all but n. Weights that a mask has removed already
    count as lost, and stay so.

    Args:
        criterion: :func:`weight_magnitude`, one made by :func:`weight_by_rate`, :func:`weight_by_gradient` or
            :func:`weight_at_random`, or your own :data:`WeightCriterion`.
        graph, variables: the network.
        sparsity: the share of weights that are removed, at least 0 and below 1, of all layers or by layer.
        n_of_m: n and m in place of a sparsity, such as ``(2, 4)``.
        layers: names of the layers; by default those of ``sparsity`` by layer, or all but the last node and those that
            read the image.

    Returns:
        ``(graph, variables)``, to be trained, pruned and exported.

    Raises:
        ValueError: neither or both of ``sparsity`` and ``n_of_m``, a sparsity out of range, m that does not divide the
            input channels, an unknown layer, scores of another shape or not finite, or under :func:`jax.jit`, because
            which weights are left decides the program; the message names the node.

    References:
        Named as next step in QP-SNN (ICLR 2025); N:M: Mishra et al., 2021.
    """
    if (sparsity is None) == (n_of_m is None):
        raise ValueError("mask_by takes either a sparsity or n_of_m.")
    if not callable(criterion):
        raise ValueError(f"criterion must be a function, such as weight_magnitude, got {criterion!r}.")
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names, got {layers!r}.")
    n_of_m = None if n_of_m is None else _two_integers(n_of_m)
    default = sparsity if isinstance(sparsity, Mapping) else maskable_layers(graph)
    names = list(default if layers is None else layers)
    if isinstance(sparsity, Mapping) and (more := sorted(set(sparsity) - set(names))):
        raise ValueError(f"sparsity names {more[0]!r}, which is not among the layers {', '.join(names)}.")
    shares = {name: _share(name, sparsity.get(name) if isinstance(sparsity, Mapping) else sparsity) for name in names}
    kernels = {name: masked_layer(graph, name).leaves(graph.inputs_of(graph.by_name[name]))["kernel"] for name in names}
    found, before = criterion(graph, variables, names), read_masks(graph, variables)
    masks = {}
    for name in names:
        scores = concrete(name, found.get(name) if isinstance(found, Mapping) else None)
        if scores.shape != kernels[name].shape or not np.isfinite(scores).all():
            raise ValueError(f"node {name!r}: its scores must be finite numbers of the shape {kernels[name].shape}.")
        kept = before.get(name, np.ones(scores.shape, bool))
        scores = np.where(kept, scores, -np.inf)
        try:
            chosen = highest_n_of_m(scores, *n_of_m) if n_of_m else lowest_removed(scores, shares[name])
        except ValueError as error:
            raise ValueError(f"node {name!r}: {error}") from None
        masks[name] = chosen * kept
    return with_masks(graph, variables, masks)


def maskable_layers(graph: Graph) -> list[str]:
    """The convolutions and dense layers, but the last node and those that read the image."""
    edges = {graph.output.name, *(node.name for node in graph.nodes if graph.input.name in node.inputs)}
    return [node.name for node in graph.nodes if isinstance(node, Weighted) and node.name not in edges]


def weight_magnitude(graph: Graph, variables: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Array]:
    r"""Scores :math:`|W|` of the weights before quantization, of which few bits leave few magnitudes.

    Args:
        graph, variables: the network.
        layers: names of layers.

    Returns:
        By layer, of the shape of its kernel.

    References:
        Han et al., NeurIPS 2015.
    """
    del graph
    return {name: jnp.abs(variables["params"][name]["kernel"]) for name in layers}


def weight_by_rate(activity: Mapping[str, Any]) -> WeightCriterion:
    r"""The criterion :math:`|W| r_i` with r the firing rate of the weight's input channel, the mean over its map.

    Args:
        activity: of the inputs of the layers, as for :func:`qpsnn_jax.cost`.

    Returns:
        A :data:`WeightCriterion`; it raises ``ValueError`` where the activity of an input is missing.

    References:
        Sun et al., A simple and effective pruning approach (Wanda), ICLR 2024, with rates in place of norms.
    """

    def scores(graph: Graph, variables: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Array]:
        magnitudes = weight_magnitude(graph, variables, layers)
        rates = {name: _rates(graph, name, activity).astype(magnitudes[name].dtype) for name in layers}
        return {name: magnitudes[name] * rates[name] for name in layers}

    return scores


def weight_by_gradient(
    batches: Iterable[tuple[Array, Array]],
    *,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    precision: Precision = "auto",
) -> WeightCriterion:
    r"""The criterion :math:`Ŵ^2 \sum_b g_b^2` with g the gradient of a batch's mean loss by the quantized weight Ŵ.

    To second order, with the squared gradient in place of the curvature, it is twice the rise of the loss without the
    weight. The network runs in evaluation mode. The gradient is that by Ŵ, not the straight-through one, which is zero
    where weights are clipped.

    Args:
        batches: normalized images, as the network takes them, and labels.
        loss: from currents ``b t classes`` and labels ``b`` to one loss per example.
        precision: of :class:`qpsnn_jax.SpikingNetwork`.

    Returns:
        A :data:`WeightCriterion`; it raises ``ValueError`` where there are no batches.

    References:
        LeCun et al., Optimal brain damage, NeurIPS 1989.
    """
    given = list(batches)
    if wrong := [batch for batch in given if not isinstance(batch, tuple | list) or len(batch) != 2]:
        raise ValueError(f"batches must be pairs of images and labels, got {type(wrong[0]).__name__}.")

    def scores(graph: Graph, variables: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Array]:
        if not given:
            raise ValueError("weight_by_gradient needs at least one batch of images and labels.")
        graph, variables = with_float_weights(graph, variables)
        step = _squared_gradients(graph, loss, precision, tuple(layers))
        found = [step(variables, *batch) for batch in given]
        sums = jax.tree.map(lambda *each: sum(each), *found)
        return {name: jnp.square(variables["params"][name]["kernel"]) * sums[name] for name in layers}

    return scores


def weight_at_random(key: Array) -> WeightCriterion:
    """The criterion of uniform random scores: the control for every other.

    Args:
        key: a jax.random key.

    Returns:
        A :data:`WeightCriterion`.
    """

    def scores(graph: Graph, variables: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Array]:
        del graph
        shapes = {name: variables["params"][name]["kernel"].shape for name in layers}
        return {name: jax.random.uniform(jax.random.fold_in(key, i), shapes[name]) for i, name in enumerate(layers)}

    return scores


def _share(name: str, sparsity: Any) -> float:
    share = 0.0 if sparsity is None else finite(f"the sparsity of node {name!r}", sparsity, 0, 1)
    if share == 1:
        raise ValueError(f"the sparsity of node {name!r} must be below 1, got {sparsity}.")
    return share


def _two_integers(n_of_m: Any) -> tuple[int, int]:
    if isinstance(n_of_m, str) or np.shape(n_of_m) != (2,):
        raise ValueError(f"n_of_m must be two integers such as (2, 4), got {n_of_m!r}.")
    n, m = (integer("each of n_of_m", each, 1) for each in n_of_m)
    return n, m


def _rates(graph: Graph, name: str, activity: Mapping[str, Any]) -> Array:
    """The rate of the input of each weight of a layer, ``1 1 i o`` or ``i o``."""
    node = masked_layer(graph, name)
    if node.input not in activity:
        raise ValueError(f"node {name!r}: the activity of its input {node.input!r} is missing.")
    shape = graph.values[node.input].shape
    rates = np.broadcast_to(np.asarray(activity[node.input], np.float32), shape).reshape(-1, shape[-1]).mean(0)
    # The outputs of a group read only its own channels.
    own = np.repeat(rates.reshape(node.groups, -1).T, node.features // node.groups, axis=1)
    return jnp.asarray(own if len(shape) == 1 else own[None, None])


@lru_cache(maxsize=4)
def _squared_gradients(
    graph: Graph, loss: Callable[[Array, Array], Array], precision: Precision, layers: tuple[str, ...]
) -> Callable[..., dict[str, Array]]:
    network = SpikingNetwork(graph, precision)

    def mean_loss(kernels: dict[str, Array], variables: Any, images: Array, labels: Array) -> Array:
        own = {name: {**variables["params"][name], "kernel": kernel} for name, kernel in kernels.items()}
        output: Any = network.apply({**variables, "params": {**variables["params"], **own}}, images)
        return jnp.mean(loss(output.currents, labels))

    @jax.jit
    def squares(variables: Any, images: Array, labels: Array) -> dict[str, Array]:
        kernels = {name: variables["params"][name]["kernel"] for name in layers}
        return jax.tree.map(jnp.square, jax.grad(mean_loss)(kernels, variables, images, labels))

    return squares
