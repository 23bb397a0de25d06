"""Losses on the output currents of a spiking network."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from qpsnn_jax.numerics.ranges import passes


def cross_entropy(currents: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    r"""Cross-entropy of the softmax of the time mean, the paper's loss.

    .. math:: L = \mathrm{CE}\Big(\mathrm{softmax}\big(\tfrac1T \textstyle\sum_t O[t]\big), y\Big)

    Args:
        currents: O, shape ``… t classes``.
        labels: y, integer class numbers of shape ``…``.
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).

    Returns:
        One loss per example, in nats, shape ``…``; NaN where the label is not the number of a class.

    Raises:
        ValueError: ``label_smoothing`` outside [0, 1), currents that are not floating, or labels that are not one
            integer for each example.

    References:
        QP-SNN (ICLR 2025), section 3; label smoothing: Szegedy et al., CVPR 2016.
    """
    currents = _floating(currents)
    targets = _targets(labels, currents, label_smoothing)
    return optax.softmax_cross_entropy(jnp.mean(currents, axis=-2), targets) + _nan_where_unknown(labels, currents)


def temporal_cross_entropy(
    currents: Array, labels: Array, *, target_current: float = 1.0, weight: float = 0.0, label_smoothing: float = 0.0
) -> Array:
    r"""Temporal efficient training (TET): the cross-entropy of every step, averaged.

    .. math:: L = (1 - λ)\,\tfrac1T \sum_t \mathrm{CE}(O[t], y) + λ\,\tfrac1T \sum_t \mathrm{mean}\,(O[t] - φ)^2

    Args:
        currents: O, shape ``… t classes``.
        labels: y, integer class numbers of shape ``…``.
        target_current: φ, the value to which the second term draws the currents.
        weight: λ, in [0, 1]; 0 omits the second term.
        label_smoothing: weight of the uniform distribution in the target, in [0, 1).

    Returns:
        One loss per example, in nats, shape ``…``; NaN where the label is not the number of a class.

    Raises:
        ValueError: ``label_smoothing`` outside [0, 1), ``weight`` outside [0, 1], or labels that are not one integer
            for each example.

    References:
        Deng et al., Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting, ICLR 2022.
    """
    if not passes(weight, lambda x: 0 <= x <= 1):
        raise ValueError(f"weight must be between 0 and 1, got {weight}.")
    currents = _floating(currents)
    targets = jnp.expand_dims(_targets(labels, currents, label_smoothing), -2)
    step_loss = optax.softmax_cross_entropy(currents, jnp.broadcast_to(targets, currents.shape))
    spread = jnp.mean(jnp.square(currents - target_current), axis=(-2, -1))
    return (1 - weight) * jnp.mean(step_loss, axis=-1) + weight * spread + _nan_where_unknown(labels, currents)


def distillation_loss(currents: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    r"""Distance of the outputs of a network from those of its teacher, at every step, averaged.

    .. math:: L = \frac{τ^2}{T} \sum_t \mathrm{KL}\big(\mathrm{softmax}(Z[t]/τ) \,\|\, \mathrm{softmax}(O[t]/τ)\big)

    The factor τ² keeps the gradient of the size that it has at τ = 1.

    Args:
        currents: O, shape ``… t classes``.
        teacher: Z, of the same shape; gradients flow to it as well.
        temperature: τ, positive; above 1 it brings out the classes that the teacher does not choose.

    Returns:
        One loss per example, in nats, shape ``…``; 0 where both give the same probabilities.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """
    if currents.shape != teacher.shape:
        raise ValueError(f"teacher must have the shape of the currents, {currents.shape}, got {teacher.shape}.")
    if not passes(temperature, lambda x: 0 < x < float("inf")):
        raise ValueError(f"temperature must be positive, got {temperature}.")
    own, target = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (currents, teacher.astype(currents.dtype)))
    divergence = jnp.sum(jnp.exp(target) * (target - own), axis=-1)
    return temperature**2 * jnp.mean(divergence, axis=-1)


def _floating(currents: Array) -> Array:
    currents = jnp.asarray(currents)
    if not jnp.issubdtype(currents.dtype, jnp.floating):
        raise ValueError(f"currents must be floating, got {currents.dtype}.")
    return currents


def _targets(labels: Array, currents: Array, label_smoothing: float) -> Array:
    labels = jnp.asarray(labels)
    if currents.ndim < 2 or labels.shape != currents.shape[:-2] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape … for currents … t classes, got {labels.dtype} of shape {labels.shape} "
            f"for currents of shape {currents.shape}."
        )
    if not passes(label_smoothing, lambda x: 0 <= x < 1):
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}.")
    one_hot = jax.nn.one_hot(labels, currents.shape[-1], dtype=currents.dtype)
    return optax.smooth_labels(one_hot, label_smoothing)


def _nan_where_unknown(labels: Array, currents: Array) -> Array:
    """NaN for a label that is not the number of a class, whose target would not be a class, and 0 for others."""
    numbers = jnp.asarray(labels).astype(jnp.int32)
    known = (numbers >= 0) & (numbers < currents.shape[-1])
    return jnp.where(known, 0, jnp.nan).astype(currents.dtype)
