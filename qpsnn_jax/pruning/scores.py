"""Criteria that score the channels of a layer; the channels with the lowest scores are removed."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.pruning.rank import LARGEST, matrix_ranks
from qpsnn_jax.runtime.sharding import with_auto_axes

Threshold = Literal["absolute", "relative", "exact"]


def singular_values(spikes: Array) -> Array:
    r"""Singular values of each channel's time-averaged spike map, :math:`S_{avg} = \frac1T \sum_t S[t]`.

    Args:
        spikes: S, shape ``b t h w c``, floating or integer.

    Returns:
        float32, shape ``b c min(h, w)``, in descending order.

    Raises:
        ValueError: ``spikes`` is not five-dimensional.

    References:
        QP-SNN (ICLR 2025), Eq. 11-12.
    """
    _check_maps("spikes", spikes)
    return with_auto_axes(_singular_values, spikes, (0, 4, None))


def svs_scores(spikes: Array, *, epsilon: ArrayLike | None = None, threshold: Threshold = "relative") -> Array:
    r"""Singular-value score (SVS) of each channel: how many singular values of its mean spike map exceed ε.

    .. math:: \mathrm{score}_c = \frac1B \sum_b \#\{\,i : σ_i(S_{avg}^{b,c}) > ε\,\}

    Args:
        spikes: S, shape ``b t h w c``, floating or integer.
        epsilon: ε. For an ``absolute`` threshold the bound itself, by default 1e-6 (the paper's). For a
            ``relative`` one the factor on the largest singular value, max(h, w)·(float32 machine epsilon), the usual
            rank tolerance and the released code's, when left out.
        threshold: ``absolute``, ``relative``, or ``exact``: every singular value that is not zero counts, ε is not
            used, and the rank of the integer matrix T·S_avg is found by elimination (see
            :func:`qpsnn_jax.matrix_ranks` for its error probability). The spikes must be 0 or 1.

    Returns:
        float32, one score per channel, shape ``c``, between 0 and min(h, w); NaN where a spike is NaN.

    Raises:
        ValueError: ``spikes`` is not five-dimensional, ``threshold`` is unknown, or is ``exact`` with an ε.

    References:
        QP-SNN (ICLR 2025), Eq. 11-13.
    """
    spikes = jnp.asarray(spikes)
    found = jnp.mean(_ranks(spikes, epsilon, threshold).astype(jnp.float32), axis=0)
    return found + jnp.sum(0 * spikes.astype(jnp.float32), axis=(0, 1, 2, 3))  # a rank, an integer, cannot be NaN


def svs_ranks(spikes: Array, *, epsilon: ArrayLike | None = None, threshold: Threshold = "relative") -> Array:
    """The per-image terms of :func:`svs_scores`: numerical rank of each channel's mean spike map.

    Args:
        spikes, epsilon, threshold: as in :func:`svs_scores`.

    Returns:
        int32, shape ``b c``.

    Raises:
        ValueError: ``spikes`` is not five-dimensional, ``threshold`` is unknown, or is ``exact`` with an ε.
    """
    return _ranks(jnp.asarray(spikes), epsilon, threshold)


def spike_counts(spikes: Array) -> Array:
    """T·S_avg: how often each neuron fired, ``b t h w c`` to ``b h w c``, in the smallest unsigned integer type.

    Args:
        spikes: 0 and 1.

    Raises:
        ValueError: ``spikes`` is not five-dimensional.
    """
    _check_maps("spikes", spikes)
    return jnp.sum(spikes, axis=1, dtype=jnp.float32).astype(np.min_scalar_type(spikes.shape[1]))


def count_ranks(counts: Array) -> Array:
    """Rank of each channel's map of :func:`spike_counts`, ``b h w c`` to int32 ``b c``, by elimination.

    Counts are below 2^24, as float32 adds them.
    """
    largest = min(int(jnp.iinfo(counts.dtype).max), LARGEST)
    return matrix_ranks(jnp.moveaxis(counts, -1, 1), largest=largest)


def sca_scores(membranes: Array) -> Array:
    r"""Spiking channel activity (SCA): mean over batch and time of the L1 norm of the membrane map.

    .. math:: \mathrm{score}_c = \frac{1}{B T} \sum_{b,t} \| Ũ_{b,t,c} \|_1

    Args:
        membranes: Ũ before the reset, shape ``b t h w c``.

    Returns:
        One score per channel, shape ``c``, of the dtype of ``membranes`` (infinite in float16 beyond 65,504).

    Raises:
        ValueError: ``membranes`` is not five-dimensional.

    References:
        QP-SNN (ICLR 2025), Eq. 7; Li et al., ICML 2024.
    """
    membranes = jnp.asarray(membranes)
    _check_maps("membranes", membranes)
    norms = jnp.sum(jnp.abs(membranes), axis=(2, 3), dtype=np.promote_types(membranes.dtype, np.float32))
    return jnp.mean(norms, axis=(0, 1)).astype(membranes.dtype)


def magnitude_scores(kernel: Array) -> Array:
    r"""L1 norm of each output channel's weights, :math:`\mathrm{score}_o = \sum |W_{…o}|`.

    Args:
        kernel: W, shape ``… o``.

    Returns:
        One score per channel, shape ``o``, of the dtype of ``kernel``.

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.
    """
    kernel = jnp.asarray(kernel)
    return jnp.sum(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))


def random_scores(key: Array, channels: int) -> Array:
    """Uniform random scores: the control for every criterion.

    Args:
        key: a jax.random key.
        channels: how many.

    Returns:
        float32 in [0, 1), shape ``channels``.
    """
    return jax.random.uniform(key, (channels,), jnp.float32)


def _check_maps(name: str, array: Array) -> None:
    if array.ndim != 5:
        raise ValueError(f"{name} must have the shape b t h w c, got {array.shape}.")


@jax.jit
def _singular_values(spikes: Array) -> Array:
    maps = jnp.moveaxis(jnp.mean(spikes.astype(jnp.float32), axis=1), -1, 1)
    # On the CPU, JAX's batched SVD runs in the thread pool that it also waits for, so two of them in one program can
    # deadlock. One matrix at a time is safe and as fast.
    return jax.lax.platform_dependent(maps, cpu=_svd_one_by_one, default=_svd)


def _svd(maps: Array) -> Array:
    return jnp.linalg.svd(maps, compute_uv=False)


def _svd_one_by_one(maps: Array) -> Array:
    b, c, h, w = maps.shape
    return jax.lax.map(_svd, maps.reshape(b * c, h, w)).reshape(b, c, min(h, w))


@jax.jit(static_argnames="threshold")
def _ranks(spikes: Array, epsilon: ArrayLike | None, threshold: Threshold) -> Array:
    if threshold == "exact":
        if epsilon is not None:
            raise ValueError("threshold exact takes no epsilon.")
        return count_ranks(spike_counts(spikes))
    values = singular_values(spikes)
    if threshold == "absolute":
        # The paper's ε = 1e-6 is absolute; in float32 a zero singular value of a 32×32 map can be computed as about
        # that.
        bound = jnp.full_like(values[..., :1], 1e-6 if epsilon is None else epsilon)
    elif threshold == "relative":
        factor = max(spikes.shape[2:4]) * jnp.finfo(values.dtype).eps if epsilon is None else epsilon
        bound = jnp.asarray(factor, values.dtype) * values[..., :1]
    else:
        raise ValueError(f"threshold must be absolute, relative or exact, got {threshold!r}.")
    return jnp.sum(values > bound, axis=-1, dtype=jnp.int32)
