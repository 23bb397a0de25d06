"""The integer network computed by XLA: a second reading, written apart from the interpreter."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.export.folded_layers import Concatenation, MaxPool, Neurons, Readout, Residual, Sum
from qpsnn_jax.export.integer_network import IntegerNetwork

_FLOAT32 = 2**24


def simulate(network: IntegerNetwork, pixels: Array) -> Array:
    """Logits, int32 ``b classes``: in float32 wherever the bound says that it holds them, elsewhere in int32."""
    folded = network.folded
    maps: dict[str, Array] = {folded.image.name: pixels if folded.image.frames else pixels[:, None]}
    logits = jnp.zeros(0, jnp.int32)
    for layer in folded.layers:
        match layer:
            case Neurons():
                maps[layer.name] = _simulated(network, layer, maps)
            case MaxPool():
                maps[layer.name] = _pool(maps[layer.source], layer.window, layer.strides, layer.padding, jax.lax.max)
            case Sum():
                maps[layer.name] = maps[layer.first] + maps[layer.second]
            case Concatenation():
                maps[layer.name] = jnp.concatenate([maps[name] for name in layer.sources], axis=-1)
            case Readout():
                logits = _readout(network, layer, maps[layer.source])
    return logits


def _simulated(network: IntegerNetwork, layer: Neurons, maps: Mapping[str, Array]) -> Array:
    constants, steps = network.neurons[layer.name], network.folded.timesteps
    worst = max(int(constants.high.max()), -int(constants.low.min()), constants.sums)
    kind: Any = jnp.float32 if worst < _FLOAT32 else jnp.int32

    def convolve(x: Array, kernel: np.ndarray) -> Array:
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]).astype(kind),
            jnp.asarray(kernel).astype(kind),
            layer.strides,
            tuple((p, p) for p in layer.padding),
            rhs_dilation=layer.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def each(channels: np.ndarray) -> Array:
        return jnp.asarray(channels.reshape(1, 1, 1, 1, -1)).astype(kind)

    x = maps[layer.source]
    ones = each(constants.live * 2**constants.shift)
    totals = convolve(x, constants.weights) * ones + each(constants.bias)
    if constants.fine is not None:
        fine = convolve(x, constants.fine) * ones
        totals = totals + (jnp.floor(fine / 256) if kind is jnp.float32 else fine >> 8)
    if constants.pads.any():
        inside = jnp.ones((1, 1, *x.shape[2:4], 1), jnp.uint8)
        totals = totals + each(constants.pads.sum((0, 1))) - convolve(inside, constants.pads[:, :, None])
    if layer.residual is not None:
        totals = totals + _carried(layer.residual, maps[layer.residual.source]).astype(kind) * each(constants.residual)
    totals = jnp.broadcast_to(totals, (len(totals), steps, *totals.shape[2:]))
    membrane, spikes = jnp.zeros_like(totals[:, 0]), []
    for step in range(steps):
        leaked = jnp.floor(membrane / 2) if kind is jnp.float32 else membrane >> 1
        membrane = leaked + totals[:, step]
        fired = membrane >= each(constants.threshold)[:, 0]
        membrane = jnp.where(fired, 0, membrane)
        spikes.append(fired.astype(jnp.uint8))
    return jnp.stack(spikes, axis=1)


def _carried(residual: Residual, spikes: Array) -> Array:
    channels = np.asarray(residual.channels)
    strided = spikes[:, :, :: residual.stride, :: residual.stride]
    return jnp.where(jnp.asarray(channels >= 0).reshape(1, 1, 1, 1, -1), strided[..., channels], 0)


def _readout(network: IntegerNetwork, layer: Readout, spikes: Array) -> Array:
    counts = jnp.sum(spikes.astype(jnp.int32), axis=1, keepdims=True)
    pooled = _pool(counts, layer.window, layer.strides, (0, 0), jax.lax.add)
    weights = jnp.asarray(network.readout.weights)
    return pooled.reshape(len(pooled), -1) @ weights.reshape(-1, weights.shape[-1]) + jnp.asarray(
        network.readout.bias[None]
    )


def _pool(x: Array, window: Any, strides: Any, padding: Any, combine: Any) -> Array:
    spread = ((0, 0), (0, 0), *((p, p) for p in padding), (0, 0))
    zero = np.zeros((), x.dtype)
    return jax.lax.reduce_window(x, zero, combine, (1, 1, *window, 1), (1, 1, *strides, 1), spread)
