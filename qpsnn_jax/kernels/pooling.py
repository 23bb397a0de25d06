"""Max-pools, in plain JAX, and natively where windows do not overlap: gradients, and spikes as bits."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.kernels.native.call import native_call, packing_call
from qpsnn_jax.kernels.packed import Spikes, no_bits
from qpsnn_jax.kernels.saved import Saved, restored, when_needed


def max_pool(x: Array, window: Pair, strides: Pair, padding: Pair) -> Array:
    """The largest value of each window of ``… h w c``. Among equal ones, the first receives the gradient.

    By selection, because the gradient of ``reduce_window`` needs four integers for each element on a CPU.
    """
    around = (*((0, 0) for _ in x.shape[:-3]), *((p, p) for p in padding), (0, 0))
    padded = jnp.pad(x, around, constant_values=-jnp.inf)
    sizes = zip(padded.shape[-3:-1], window, strides, strict=True)
    rows, columns = ([slice(i, n - k + i + 1, s) for i in range(k)] for n, k, s in sizes)
    largest, *others = (padded[..., row, column, :] for row, column in product(rows, columns))
    for each in others:
        largest = jnp.where((each > largest) | jnp.isnan(each), each, largest)
    return largest


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def pool_tiles(x: Array, window: Pair, spikes: bool = False) -> Array:
    """:func:`max_pool` of float32 maps by windows side by side, without padding; on a CPU its gradient is native.

    If the maps are ``spikes``, GPUs and TPUs keep four to a byte for the gradient.
    """
    del spikes
    return max_pool(x, window, window, (0, 0))


def _forward(x: Array, window: Pair, spikes: bool) -> tuple[Array, Array | Saved]:
    saved = Saved.of(x) if spikes else x
    return pool_tiles(restored(saved), window, spikes), saved


def _backward(window: Pair, spikes: bool, saved: Array | Saved, cotangent: Array) -> tuple[Array]:
    del spikes
    saved, cotangent = when_needed(saved, cotangent)
    x = restored(saved)
    maps, given = (each.reshape(-1, *each.shape[-3:]) for each in (x, cotangent))
    (found,) = native_call("max_pool_grad", _grad, maps, given, results=(maps.shape,), in_place=0, window=window)
    return (found.reshape(x.shape),)


pool_tiles.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_bits(x: Array, bits: Array, window: Pair) -> Spikes:
    (pooled,) = packing_call(
        "max_pool_spikes",
        _pool_spikes,
        Spikes(x, bits),
        results=(_pooled_shape(x, window),),
        window=window,
        shape=(x.shape[0] * x.shape[1], *x.shape[2:]),
    )
    return pooled


def _bits_forward(x: Array, bits: Array, window: Pair) -> tuple[Spikes, Array | Saved]:
    del bits  # where anything is differentiated, nothing reads them
    pooled, saved = _forward(x, window, True)
    return Spikes(pooled, no_bits(pooled.shape)), saved


def _bits_backward(window: Pair, saved: Array | Saved, cotangent: Spikes) -> tuple[Array, None]:
    return *_backward(window, True, saved, cotangent.array), None


_pool_bits.defvjp(_bits_forward, _bits_backward)


def pool_packed(x: Spikes, window: Pair) -> Spikes:
    """:func:`pool_tiles` of spikes ``b t h w c``; on a CPU their bits are merged, where nothing is differentiated."""
    return _pool_bits(*x, window)


def _pool_spikes(x: Array, *, window: Pair, shape: tuple[int, ...]) -> Array:
    del shape  # of the native call, which gets the bits
    return max_pool(x, window, window, (0, 0))


def _pooled_shape(x: Array, window: Pair) -> tuple[int, ...]:
    batch, steps, h, w, channels = x.shape
    return batch, steps, h // window[0], w // window[1], channels


def _grad(maps: Array, cotangent: Array, *, window: Pair) -> Array:
    return jax.vjp(lambda x: max_pool(x, window, window, (0, 0)), maps)[1](cotangent)[0]
