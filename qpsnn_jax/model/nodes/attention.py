"""Spiking self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.accelerators import BITS
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.kernels.products import einsum_spikes
from qpsnn_jax.model.nodes.base import Activity, Context, Count, Leaves, Node, Result, Value, Values
from qpsnn_jax.model.nodes.checks import float_fields, image_shape, integer_fields


class AttentionTrace(NamedTuple):
    """The ``currents`` of an attention node, ``b [t] h w c``, and their synaptic ``operations``, ``b [t]``."""

    currents: Array
    operations: Array


@dataclass(frozen=True)
class Attention(Node):
    """Spiking self-attention without softmax, ``factor · (Q Kᵀ) V`` in each head, over the positions of ``h w c``.

    Args:
        query, key, value: nodes of equal shape; channels are split into heads of ``head_features``, one after the
            other.
        head_features: channels of a head.
        factor: constant on the result.

    References:
        Zhou et al., Spikformer, ICLR 2023.
    """

    query: str
    key: str
    value: str
    head_features: int
    factor: float = 0.125

    counts_operations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer_fields(self, "head_features")
        float_fields(self, "factor")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of query, key and value."""
        return (self.query, self.key, self.value)

    @property
    def unit(self) -> int:
        """Heads are removed as units."""
        return self.head_features

    @property
    def observed(self) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def infer(self, inputs: Values) -> Value:
        """Currents of the shape of its three inputs."""
        shapes = {value.shape for value in inputs}
        if len(shapes) != 1 or image_shape(inputs[0])[-1] % self.head_features:
            raise ValueError(
                f"needs query, key and value of one shape whose channels split into heads of {self.head_features}, "
                f"got {', '.join(str(value.shape) for value in inputs)}."
            )
        return Value(inputs[0].shape, any(value.timed for value in inputs), spiking=False)

    def run(self, leaves: Leaves, inputs: Sequence[Array], context: Context) -> Result:
        """:func:`attention` of its inputs."""
        spiking = all(value.spiking for value in context.inputs)
        precision = context.precision if spiking else "exact"
        trace = attention(*inputs, head_features=self.head_features, factor=self.factor, precision=precision)
        return Result(trace.currents, trace)

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """The operations of its two products; ``operations`` of its trace if all inputs are spikes.

        The factor is not counted: it is a power of two, or part of the next layer's scale.
        """
        h, w, c = image_shape(inputs[0])
        dense = 2 * timesteps * h * w * c * self.head_features
        if not all(value.spiking for value in inputs):
            return Count(dense, macs=float(dense))
        return Count(dense, acs=None if activity.own is None else timesteps * float(activity.own))

    def measure(self, value: Value, captured: Any) -> Array:
        """Mean of its operations."""
        return jnp.mean(captured.operations)


def attention(
    query: Array, key: Array, value: Array, *, head_features: int, factor: float, precision: Precision
) -> AttentionTrace:
    r"""``factor · Q (Kᵀ V)`` per head on ``b [t] h w c``; without a softmax the product can start with Kᵀ V.

    The operations are :math:`\sum_n |k_n| |v_n|` for Kᵀ V, one for each pair of spikes of key and value, and
    :math:`d \sum_n |q_n|` for its product with Q, where each spike of the query adds a row of d numbers. Inputs
    that are not spikes need ``precision="exact"``.
    """
    shape = query.shape
    heads = (*shape[:-3], shape[-3] * shape[-2], shape[-1] // head_features, head_features)
    q, k, v = (x.reshape(heads) for x in (query, key, value))
    lead, product = "bt"[: q.ndim - 3], partial(einsum_spikes, precision=precision)
    memory = product(f"{lead}nhd,{lead}nhe->{lead}hde", k, v, exact=True, spikes=(True, True))
    # Counts of positions.
    currents = product(f"{lead}nhd,{lead}hde->{lead}nhe", q, memory, exact=q.shape[-3] <= 2**BITS)
    currents = factor * currents.reshape(shape)
    counted = partial(jnp.sum, dtype=np.promote_types(query.dtype, np.float32))  # half precision counts to 256
    meetings = counted(counted(k, -1) * counted(v, -1), (-2, -1))
    return AttentionTrace(currents, meetings + head_features * counted(q, (-3, -2, -1)))
