"""The base class of nodes: named computations with shapes, arrays, a way to run and costs.

A new kind of node is a frozen dataclass that derives from :class:`Node`, :class:`Unary` or
:class:`~qpsnn_jax.model.nodes.neurons.Neuron`, in this package or outside it. It defines ``infer`` and ``run``; the
other methods have defaults for a node without arrays that carries its inputs' channels. Graphs, networks, pruning and
costs use only these methods and do not depend on the kinds of nodes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.affine import Numbers
from qpsnn_jax.kernels.dispatch import Precision

Leaves = dict[str, Array]
Channels = Literal["carried", "made", "mapped", "fixed"]

KINDS: dict[str, type["Node"]] = {}
"""Classes of nodes by name, for :func:`qpsnn_jax.model.graph.from_json`; a class is added when it is defined."""


class Value(NamedTuple):
    """The output of a node: shape of one example at one step, whether it has a time axis, whether it is 0 or 1."""

    shape: tuple[int, ...]
    timed: bool
    spiking: bool


Values = Sequence[Value]


class Leaf(NamedTuple):
    """An array of a node; float32 after initialization.

    ``init`` is one of :mod:`jax.nn.initializers`, or any function of a key, a shape and a dtype. ``axes`` names for
    each axis the node whose channels it holds (the node itself or one of its inputs), or None. ``collection`` is
    ``params``, ``batch_stats``, ``scales`` or ``masks``; only params are random. ``bits`` is the storage of a number.
    ``derive`` takes the place of ``init`` for an array that starts from those listed before it.
    """

    shape: tuple[int, ...]
    init: Callable[..., Array]
    axes: tuple[str | None, ...]
    collection: str = "params"
    bits: float = 32
    derive: Callable[[Leaves], Array] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def storage(self) -> int:
        """Bits of all of them, rounded up."""
        return math.ceil(self.size * self.bits - 1e-6)

    def start(self, key: Array, before: Leaves) -> Array:
        """Its first value, float32, where ``before`` are the node's leaves that stand before it."""
        return self.init(key, self.shape, jnp.float32) if self.derive is None else self.derive(before)


class Context(NamedTuple):
    """The context in which a node runs: inputs, number of time steps T, whether batch statistics are used, precision.

    If the output or any input has a time axis, all inputs have one when the node runs, and ``inputs`` say so. ``state``
    is what the node returned as its state at the step before the first, or None at rest. With ``affine`` the node may
    return an :class:`~qpsnn_jax.kernels.affine.Affine`, which the node that reads it computes.
    """

    inputs: tuple[Value, ...]
    timesteps: int
    train: bool = False
    precision: Precision = "auto"
    state: Any = None
    affine: bool = False


class Result(NamedTuple):
    """The result of a node: ``output`` ``b [t] …``, what ``capture`` receives if that is more, leaves and its state."""

    output: Numbers
    trace: Any = None
    updates: Mapping[str, Array] | None = None
    state: Any = None


class Activity(NamedTuple):
    """Measured activity: by input the share of images and steps in which each value is not 0, and the node's own.

    ``own`` is the mean of :meth:`Node.measure`. Activity that was not measured is None. ``mask`` is that of a masked
    layer, 0 where a weight is removed, if it is known.
    """

    inputs: tuple[np.ndarray | None, ...]
    own: np.ndarray | None
    mask: np.ndarray | None = None


class Count(NamedTuple):
    """The operations of a node for one image over all time steps, as in :class:`qpsnn_jax.model.costs.NodeCost`.

    ``removed`` is the number of weights that a mask removes, ``saved_bits`` by how much the others take less storage;
    ``buffer_bits`` are of numbers that are no arrays of the network.
    """

    dense: int = 0
    macs: float | None = 0.0
    acs: float | None = 0.0
    firing_rate: float | None = None
    connections: int = 0
    updates: int = 0
    traffic_bits: int = 0
    removed: int = 0
    saved_bits: int = 0
    buffer_bits: int = 0


@dataclass(frozen=True)
class Node(ABC):
    """A named computation; ``inputs`` are the names of the nodes it reads (a node without inputs receives the images).

    ``channels`` defines the origin of its output channels:

    - ``carried``: they are those of its inputs, one to one, so all lose the same ones;
    - ``made``: by its weights. They can be removed; a field ``label`` names their pruning ratio. The class
      then defines :meth:`shrink`;
    - ``mapped``: without weights, so they follow the channels to which they are added. The class defines
      :meth:`shrink`;
    - ``fixed``: they are never removed.

    Which channels can only be removed together follows from ``channels``, or from :meth:`ties`.

    ``fires`` means that its trace is a :class:`~qpsnn_jax.numerics.neurons.LIFTrace`, by which pruning scores its
    channels; ``counts_operations`` that its trace has ``operations`` (``b`` or ``b t``), which :meth:`measure` returns
    instead of rates. ``uses_affine`` means that :meth:`run` takes inputs, and with ``Context.affine`` may return an
    output, that still have to be computed (:class:`~qpsnn_jax.kernels.affine.Affine`), and takes spikes that have bits
    too (:class:`~qpsnn_jax.kernels.packed.Spikes`).
    """

    name: str

    channels: ClassVar[Channels] = "carried"
    fires: ClassVar[bool] = False
    counts_operations: ClassVar[bool] = False
    uses_affine: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Adds the class to :data:`KINDS`. One with a :meth:`run` of its own uses arrays unless it says otherwise."""
        if "run" in vars(cls):
            cls.uses_affine = vars(cls).get("uses_affine", False)
        known = KINDS.setdefault(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"a node class named {cls.__name__} is already defined in {known.__module__}; rename one.")
        KINDS[cls.__name__] = cls

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return ()

    @property
    def unit(self) -> int:
        """Number of consecutive channels that are removed together."""
        return 1

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the nodes whose activity :meth:`count` needs."""
        return ()

    @abstractmethod
    def infer(self, inputs: Values) -> Value:
        """Its output for given inputs.

        Raises:
            ValueError: the inputs do not match; the graph adds the node's name to the message.
        """

    @abstractmethod
    def run(self, leaves: Leaves, inputs: Sequence[Any], context: Context) -> Result:
        """Its output ``b [t] …`` for its arrays by name and its inputs ``b [t] …``."""

    def leaves(self, inputs: Values) -> dict[str, Leaf]:
        """Its arrays by name."""
        del inputs
        return {}

    def ties(self, inputs: Values) -> Sequence[np.ndarray]:
        """For each input the pairs, ``n 2``, of a channel of the output and one of that input that go together.

        By default one to one if the channels are ``carried``, where flattened maps repeat theirs at every position.
        """
        if self.channels != "carried":
            return [np.zeros((0, 2), int) for _ in inputs]
        sizes = [(self.infer(inputs).shape[-1], value.shape[-1]) for value in inputs]
        return [np.arange(max(pair))[:, None] % pair for pair in sizes]

    def rest(self, inputs: Values, batch: int, dtype: Any) -> Any:
        """Its state before the first step, a tree of arrays ``b …``; None for a node without a state."""
        del inputs, batch, dtype

    def shrink(self, outputs: np.ndarray | None, inputs: Sequence[np.ndarray | None]) -> "Node":
        """The node with only these channels of its output and of its inputs; None for all of them."""
        del outputs, inputs
        return self

    def rescale(self, before: Leaves, after: Leaves, outputs: np.ndarray | None) -> Leaves:
        """New values for leaves that depend on removed channels, from its arrays before and after."""
        del before, after, outputs
        return {}

    def weights(self, leaves: Leaves) -> Array | None:
        """Its effective synaptic weights, up to a factor; None if it has none."""
        del leaves
        return None

    def synapses(self, inputs: Values) -> np.ndarray | None:
        """The number of synapses that a spike reaches from each position of the first input: ``h w``, or ``()``."""
        del inputs
        return None

    def count(self, inputs: Values, activity: Activity, timesteps: int) -> Count:
        """Its operations for one image; by default those of its :meth:`synapses`, with its params read once a step."""
        if (synapses := self.synapses(inputs)) is None:
            return Count()
        steps = timesteps if inputs[0].timed else 1
        bits = sum(leaf.storage for leaf in self.leaves(inputs).values() if leaf.collection == "params")
        return count_synapses(synapses, inputs[0], activity, timesteps)._replace(traffic_bits=steps * bits)

    def measure(self, value: Value, captured: Any) -> Array:
        """Its activity in one batch: for each value the share of images and steps where it is not 0."""
        return mean_nonzero(captured, value)


@dataclass(frozen=True)
class Unary(Node, ABC):
    """A node with one input."""

    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return (self.input,)


def mean_nonzero(values: Array, value: Value) -> Array:
    """Share of the batch and the steps in which each of ``b [t] …`` is not zero."""
    return jnp.mean((values != 0).astype(jnp.float32), axis=(0, 1) if value.timed else 0)


def count_synapses(synapses: np.ndarray, given: Value, activity: Activity, timesteps: int) -> Count:
    """Operations of a layer that multiplies each value of its input ``synapses`` times, ``()``, ``h w`` or all."""
    steps, nonzero = timesteps if given.timed else 1, activity.inputs[0]
    taken = synapses[..., None] if 0 < synapses.ndim < len(given.shape) else synapses
    done = None if nonzero is None else float(steps * np.sum(nonzero * taken))
    # NeuroBench's rule: a value other than 0 or 1 costs a MAC, including the averages that the readout reads. The
    # paper's energies omit the readout.
    macs, acs = (0.0, done) if given.spiking else (done, 0.0)
    return Count(steps * int(np.broadcast_to(taken, (*taken.shape[:-1], given.shape[-1])).sum()), macs, acs)
