"""Distillation: a network is trained to reproduce the outputs of another one, its teacher."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Output, SpikingNetwork
from qpsnn_jax.numerics.losses import distillation_loss
from qpsnn_jax.numerics.ranges import passes

Rescale = tuple[tuple[float, ...], tuple[float, ...]]


class Distillation(NamedTuple):
    r"""The part of a teacher in the loss of :func:`qpsnn_jax.make_train_step`.

    .. math:: (1 - w)\,L + w\,L_{KD} + \sum_l m_l \,\mathrm{mean}\,(Ũ_l - Ũ_l^{teacher})^2

    Attributes:
        graph: the teacher, with the input, the classes and the time steps of the network that is trained; its other
            layers, widths and bits may differ.
        weight: w, in [0, 1], of :func:`qpsnn_jax.distillation_loss`; 1 - w is left of the loss on labels.
        temperature: of :func:`qpsnn_jax.distillation_loss`.
        membranes: weights m by the names of neurons that both networks have, in the same shape.
        rescale: factors and shifts, of each input channel, by which images normalized for the network are normalized
            for the teacher: images · factor + shift; None where both have the same mean and std.
    """

    graph: Graph
    weight: float = 0.5
    temperature: float = 2.0
    membranes: Mapping[str, float] = {}
    rescale: Rescale | None = None

    def check(self, student: Graph, *, widths: bool = True) -> None:
        """Check that the teacher fits a network.

        Args:
            student: the network that is trained.
            widths: whether membranes must have one shape in both; not while ``student`` is still to be pruned.

        Raises:
            ValueError: it does not, or a weight is out of range; the message names the difference.
        """
        teacher = self.graph
        for what, own, given in (
            ("classes", student.classes, teacher.classes),
            ("time steps", student.timesteps, teacher.timesteps),
            ("input", (student.input.shape, student.input.frames), (teacher.input.shape, teacher.input.frames)),
        ):
            if own != given:
                raise ValueError(f"the {what} of the teacher must be those of the network, {own}, not {given}.")
        if not passes(self.weight, lambda x: 0 <= x <= 1):
            raise ValueError(f"the weight of distillation must be from 0 to 1, got {self.weight}.")
        if not passes(self.temperature, lambda x: 0 < x < math.inf):
            raise ValueError(f"the temperature of distillation must be positive, got {self.temperature}.")
        for name, weight in self.membranes.items():
            if not passes(weight, lambda x: 0 <= x < math.inf):
                raise ValueError(f"the weight of the membranes of {name!r} must not be negative, got {weight}.")
        for name in self.membranes:
            for graph, whose in ((student, "network"), (teacher, "teacher")):
                if name not in graph.neurons:
                    raise ValueError(f"membranes name {name!r}, which are not neurons of the {whose}.")
            own, given = (graph.values[name].shape for graph in (student, teacher))
            if widths and own != given:
                raise ValueError(f"membranes of {name!r} have the shape {given} in the teacher and {own} here.")

    def targets(self, variables: Any, images: Array, precision: Precision) -> Output:
        """Currents and membranes of the teacher, in evaluation mode."""
        network = SpikingNetwork(self.graph, precision)
        if self.rescale is not None:
            factor, shift = (jnp.broadcast_to(jnp.asarray(x, images.dtype), images.shape) for x in self.rescale)
            images = images * factor + shift
        output: Any = network.apply(variables, images, capture=dict.fromkeys(self.membranes, membranes_of))
        return output

    def losses(self, currents: Array, membranes: Mapping[str, Array], targets: Output) -> tuple[Array, Array]:
        """L_KD and the weighted sum over membranes, scalars in float32 at least."""
        distilled = jnp.mean(distillation_loss(currents, targets.currents, temperature=self.temperature))
        parts = [
            weight * jnp.mean(jnp.square(membranes[name] - targets.captured[name]))
            for name, weight in self.membranes.items()
        ]
        wide = np.promote_types(currents.dtype, np.float32)
        return distilled.astype(wide), sum(parts, jnp.zeros((), currents.dtype)).astype(wide)


def membranes_of(trace: Any) -> Array:
    """The membranes of a layer of neurons, for ``capture``."""
    return trace.membranes
