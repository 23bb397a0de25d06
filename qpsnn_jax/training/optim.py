"""Optimizers and learning-rate schedules of the paper's set-ups, as Optax transformations."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from qpsnn_jax.numerics.learned import LEARNED
from qpsnn_jax.numerics.ranges import passes

Number = float | Array
OptimizerName = Literal["sgd", "adam"]


def cosine_schedule(
    learning_rate: Number, *, epochs: int, steps_per_epoch: int, warmup_epochs: Number = 0.0
) -> optax.Schedule:
    r"""Cosine decay to zero that changes once per epoch, after a linear warm-up that changes at every step.

    .. math:: η(e) = \tfrac12 η_0 \big(1 + \cos(π\,e / E)\big), \quad e = \lfloor step / steps\_per\_epoch \rfloor

    Args:
        learning_rate: η₀, a number or a traced one.
        epochs: E, including the warm-up.
        steps_per_epoch: optimizer steps in an epoch.
        warmup_epochs: length of the linear rise from 0; may be a fraction, or traced.

    Returns:
        A function from the step to the learning rate.

    Raises:
        ValueError: a number out of range; traced numbers are not checked.

    References:
        QP-SNN (ICLR 2025), table 8; Loshchilov and Hutter, ICLR 2017.
    """
    positive = all(map(_positive, (learning_rate, epochs, steps_per_epoch)))
    if not positive or epochs < 1 or steps_per_epoch < 1 or not _not_negative(warmup_epochs):
        raise ValueError("learning_rate, epochs and steps_per_epoch must be positive, warmup_epochs not negative.")
    decay = optax.cosine_decay_schedule(learning_rate, epochs)
    warmup_steps = warmup_epochs * steps_per_epoch

    def schedule(step: Any) -> Any:
        epoch, count = (jnp.asarray(n, jnp.float32) for n in (step // steps_per_epoch, step + 1))
        # The rise is over where it is shorter than a step, and where there is none.
        return decay(epoch) * jnp.minimum(1.0, count / jnp.maximum(warmup_steps, 1.0))

    return schedule


def optimizer(
    name: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Number = 0.9,
    nesterov: bool = True,
    weight_decay: Number = 0.0,
    clip_norm: Number | None = None,
    scale_lr: Number = 1.0,
) -> optax.GradientTransformation:
    """SGD with momentum or Adam, L2 weight decay on convolution weights only, optional clipping by global norm.

    The decay is added to the gradient before the optimizer's update, as in the released code.

    Args:
        name: ``sgd`` or ``adam``.
        learning_rate: a number or a schedule.
        momentum, nesterov: of SGD.
        weight_decay: λ of the term λ·W added to the gradient of convolution kernels ``h w i o``.
        clip_norm: largest global norm of the gradient, applied before the decay; None for no clipping.
        scale_lr: factor on the learning rate of learned scales
            (:data:`qpsnn_jax.numerics.learned.LEARNED`), which are never decayed.

    Returns:
        An Optax transformation.

    Raises:
        ValueError: unknown name, or a number out of range.

    References:
        QP-SNN (ICLR 2025), table 8; Adam: Kingma and Ba, ICLR 2015.
    """
    if not _not_negative(weight_decay) or not all(n is None or _positive(n) for n in (clip_norm, scale_lr)):
        raise ValueError("weight_decay must not be negative, and clip_norm and scale_lr positive.")
    if not callable(learning_rate) and not _not_negative(learning_rate):
        raise ValueError(f"learning_rate must be a number that is not negative, or a schedule, got {learning_rate}.")
    if not passes(momentum, lambda x: 0 <= x < 1):
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}.")
    if name == "sgd":
        update = optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    elif name == "adam":
        update = _unstrict(optax.adam(learning_rate))
    else:
        raise ValueError(f"optimizer must be sgd or adam, got {name!r}.")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        optax.add_decayed_weights(weight_decay, mask=_convolution_kernels),
        update,
        optax.masked(optax.scale(scale_lr), _learned_scales),
    )


def _positive(number: Number) -> bool:
    """Whether a number is finite and above 0, as one that is traced is taken to be."""
    return passes(number, lambda x: 0 < x < math.inf)


def _not_negative(number: Number) -> bool:
    return passes(number, lambda x: 0 <= x < math.inf)


def _unstrict(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Optax's Adam raises a float to an integer count, which strict dtype promotion rejects."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _convolution_kernels(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim == 4, params)


def _learned_scales(params: optax.Params) -> optax.Params:
    def learned(path: tuple, leaf: Any) -> bool:
        del leaf
        return isinstance(path[-1], jax.tree_util.DictKey) and path[-1].key in LEARNED

    return jax.tree_util.tree_map_with_path(learned, params)
