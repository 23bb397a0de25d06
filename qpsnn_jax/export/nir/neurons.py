"""NIR's neurons in Euler steps of dt, as LIF nodes that fire above their threshold."""

import dataclasses
import warnings
from typing import Any

import numpy as np

from qpsnn_jax.export.nir.building import Found, Reader
from qpsnn_jax.export.nir.fields import channel_field
from qpsnn_jax.model.nodes import LIF, Add, AveragePool, Conv, Dense, MaxPool

# Time constants in seconds are shorter than a thousand steps of 10⁻⁴ s; those in steps, read as seconds, are longer.
_SLOW = 1e-3


def read_lif(reader: Reader, found: Found) -> str:
    r"""A neuron :math:`τ \dot v = v_{leak} - v + r I`, reset to zero.

    Raises:
        ValueError: it does not reset to zero, or its numbers are out of range; the message names the node.
    """
    tau, r, rest, threshold, reset = _fields(reader, found, "tau", "r", "v_leak", "v_threshold", "v_reset")
    dt = _in_dtype(reader.dt, tau)
    if np.any(reset) or np.any(r <= 0) or np.any(tau < dt):
        raise ValueError(
            f"node {found.name!r}: only neurons that reset to zero, with r > 0 and tau of at least dt, can be read, "
            f"got v_reset {_said(reset)}, r {_said(r)} and tau {_said(tau)} with dt {dt:g}."
        )
    with np.errstate(all="ignore"):
        # A Graph's numbers are bounded, which the node that is made of them says.
        threshold, leak = threshold * ((tau / dt) / r), 1 - dt / tau
    source = _shifted(reader, found, rest / r) if np.any(rest) else found.source
    return _neurons(reader, found, source, leak, threshold)


def read_if(reader: Reader, found: Found) -> str:
    r"""A neuron :math:`\dot v = r I`, reset to zero.

    Raises:
        ValueError: it does not reset to zero, or r is not positive; the message names the node.
    """
    r, threshold, reset = _fields(reader, found, "r", "v_threshold", "v_reset")
    dt = _in_dtype(reader.dt, r)
    if np.any(reset) or np.any(r <= 0):
        raise ValueError(
            f"node {found.name!r}: only neurons that reset to zero, with r > 0, can be read, "
            f"got v_reset {_said(reset)} and r {_said(r)}."
        )
    with np.errstate(all="ignore"):
        threshold = threshold / (dt * r)
    return _neurons(reader, found, found.source, np.ones_like(r), threshold)


def warn_of_steps(reader: Reader) -> None:
    """Warn of the first neurons whose potential hardly moves in a step of dt, which the file may count time in."""
    for name, node in reader.nodes_of.items():
        kind = type(node).__name__
        if kind not in ("LIF", "IF"):
            continue
        field = "tau" if kind == "LIF" else "r"
        value = np.asarray(getattr(node, field), np.float64)
        gain = reader.dt / value if kind == "LIF" else reader.dt * value
        if gain.max() < _SLOW:
            warnings.warn(
                f"node {name!r}: with {field} = {_said(value)} and a step of dt = {reader.dt:g}, its potential takes "
                f"up {gain.max():.2g} of its input in a step, and neither the file nor you say how long a step is; if "
                "the program that wrote it counts time in steps, as sinabs and Spyx do, give dt=1 (--dt 1).",
                stacklevel=3,
            )
            return


def _fields(reader: Reader, found: Found, *fields: str) -> tuple[Any, ...]:
    shape = reader.hwc(found.source)
    # Older files leave out a v_reset of zero.
    values = (getattr(found.node, field, None) for field in fields)
    pairs = zip(fields, values, strict=True)
    return tuple(channel_field(found.name, name, 0.0 if value is None else value, shape) for name, value in pairs)


def _in_dtype(dt: float, like: Any) -> Any:
    with np.errstate(all="ignore"):
        return like.dtype.type(dt)


def _neurons(reader: Reader, found: Found, source: str, leak: Any, threshold: Any) -> str:
    # With a constant added to it the current is no longer that of the pool alone.
    alone = source == found.source and np.ndim(threshold) == 0
    if alone and (pool := _pooled(reader, found, float(threshold))) is not None:
        del reader.nodes[source], reader.yields[source]
        return reader.add(MaxPool(found.name, pool.input, pool.window, pool.strides, pool.padding))
    return reader.add(LIF(found.name, source, _constant(leak), _constant(threshold), ">"))


def _constant(value: Any) -> float | tuple[float, ...]:
    return float(value) if np.ndim(value) == 0 else tuple(float(x) for x in value)


def _said(value: Any) -> str:
    least, most = np.min(value), np.max(value)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _shifted(reader: Reader, found: Found, shift: Any) -> str:
    """The current plus a constant, which neurons that rest at another potential than zero have."""
    channels = reader.hwc(found.source)[2]
    bias = np.broadcast_to(np.asarray(shift, np.float32), channels)
    if layer := _layer_of(reader, found.source, found.name):
        reader.nodes[layer] = dataclasses.replace(reader.nodes[layer], bias=True)
        reader.params[layer] = reader.params[layer] | {"bias": reader.params[layer].get("bias", 0) + bias}
        return found.source
    name, flat = reader.fresh(f"{found.name}.rest"), len(reader.yields[found.source].shape) == 1
    kernel = np.eye(channels, dtype=np.float32) if flat else np.ones((1, 1, 1, channels), np.float32)
    reader.params[name] = {"kernel": kernel, "bias": bias.copy()}
    if flat:
        return reader.add(Dense(name, found.source, channels))
    return reader.add(Conv(name, found.source, channels, (1, 1), (1, 1), (0, 0), bias=True, groups=channels))


def _layer_of(reader: Reader, source: str, neurons: str) -> str:
    """A layer that only these neurons read, alone or in a sum, so that its bias can take a constant; "" for none."""
    node = reader.nodes[source]
    if type(node) is Add:
        return next((name for other in node.inputs if (name := _layer_of(reader, other, neurons))), "")
    return source if type(node) in (Conv, Dense) and reader.readers.get(source) == [neurons] else ""


def _pooled(reader: Reader, found: Found, threshold: float) -> AveragePool | None:
    """The average-pool before neurons that fire at a single spike in its window, if that is all they do."""
    pool, one_spike = reader.nodes[found.source], 0.25
    if type(pool) is not AveragePool or pool.window != (2, 2) or not 0 <= threshold < one_spike:
        return None
    alone = reader.readers.get(found.source) == [found.name]
    return pool if alone and reader.yields[pool.input].spiking else None
