"""A network as data: a frozen, hashable graph of a few kinds of nodes, checked when it is built.

Everything the project does (run, prune, cost, export) is a reading of a :class:`Graph` together with its variables.
Nodes name their inputs; they stand in the order in which they are computed; the last one is the output. Shapes are
those of one example at one time step, ``(h, w, c)`` or ``(features,)``.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.numerics.neurons import Reset
from qpsnn_jax.numerics.quantization import STE, Gamma, Granularity
from qpsnn_jax.numerics.surrogate import SURROGATES, Fire


@dataclass(frozen=True)
class Quantizer:
    """How a layer's weights are quantized: the options of :func:`qpsnn_jax.quantize`.

    Raises:
        ValueError: bits outside 1 to 8 or an unknown option.
    """

    bits: int = 2
    gamma: Gamma = "mean"
    granularity: Granularity = "layer"
    ste: STE = "clipped"

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise ValueError(f"bits must be between 1 and 8, got {self.bits!r}.")
        _one_of("gamma", self.gamma, ("none", "max", "percentile", "mean", "mse"))
        _one_of("granularity", self.granularity, ("layer", "channel"))
        _one_of("ste", self.ste, ("clipped", "plain", "scaled"))


@dataclass(frozen=True)
class Node:
    """A named computation; ``inputs`` are the names of the nodes it reads."""

    name: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return ()


@dataclass(frozen=True)
class Unary(Node):
    """A node with one input."""

    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return (self.input,)


@dataclass(frozen=True)
class Input(Node):
    """The images, or with ``frames`` event frames that carry a time axis of their own.

    Args:
        shape: ``(h, w, c)`` of one image or frame.
        frames: whether the time axis comes with the data; otherwise the image is shown at every step.
    """

    shape: tuple[int, int, int]
    frames: bool = False


@dataclass(frozen=True)
class Conv(Unary):
    """Convolution, weights ``h w i o``.

    Args:
        features: output channels.
        kernel, strides, padding: height and width; padding is that many zeros on each side.
        quantizer: None keeps full precision.
        bias: whether a bias is added.
        label: which pruning ratio the output channels go by; None keeps them all.
    """

    features: int
    kernel: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: Pair = (1, 1)
    quantizer: Quantizer | None = None
    bias: bool = False
    label: str | None = None


@dataclass(frozen=True)
class Dense(Unary):
    """Fully connected layer on a flat input, weights ``i o``."""

    features: int
    quantizer: Quantizer | None = None
    bias: bool = True
    label: str | None = None


@dataclass(frozen=True)
class BatchNorm(Unary):
    """Batch normalization over everything but the channels; running statistics decay by ``momentum``."""

    momentum: float = 0.9
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LIF(Unary):
    """Leaky integrate-and-fire neurons: the options of :func:`qpsnn_jax.lif`; ``surrogate`` by its name."""

    tau: float = 0.5
    threshold: float = 1.0
    fire: Fire = ">="
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: str = "triangular"

    def __post_init__(self) -> None:
        for name in ("tau", "threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}.")
        _one_of("fire", self.fire, (">=", ">"))
        _one_of("reset", self.reset, ("hard", "soft"))
        _one_of("surrogate", self.surrogate, tuple(SURROGATES))


@dataclass(frozen=True)
class MaxPool(Unary):
    """Maximum over windows; of spikes, their OR. Padding never wins."""

    window: Pair = (2, 2)
    strides: Pair = (2, 2)
    padding: Pair = (0, 0)


@dataclass(frozen=True)
class AveragePool(Unary):
    """Mean over windows; padding counts as zeros."""

    window: Pair = (2, 2)
    strides: Pair = (2, 2)
    padding: Pair = (0, 0)


@dataclass(frozen=True)
class GlobalAveragePool(Unary):
    """Mean over height and width, ``h w c`` to ``c``."""


@dataclass(frozen=True)
class Flatten(Unary):
    """``h w c`` to ``h·w·c``, channels fastest."""


@dataclass(frozen=True)
class Shortcut(Unary):
    """Parameter-free shortcut (option A): strided slice, each output channel a named input channel or zeros.

    Args:
        source: for every output channel the input channel it carries, or -1 for zeros. Naming the channels keeps
            their identity when the two ends are pruned differently.
        stride: of the slice, in both directions.
    """

    source: tuple[int, ...]
    stride: int = 1


@dataclass(frozen=True)
class Add(Node):
    """Sum of two nodes of equal shape."""

    first: str
    second: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes it reads."""
        return (self.first, self.second)


@dataclass(frozen=True)
class Attention(Node):
    """Spiking self-attention without softmax, ``factor · (Q Kᵀ) V`` in each head, over the positions of ``h w c``.

    Args:
        query, key, value: nodes of equal shape; channels fall into heads of ``head_features``, one after the other.
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

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of query, key and value."""
        return (self.query, self.key, self.value)


class Value(NamedTuple):
    """What a node yields: shape of one example at one step, whether it has a time axis, whether it is 0 or 1."""

    shape: tuple[int, ...]
    timed: bool
    spiking: bool


KINDS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Input,
        Conv,
        Dense,
        BatchNorm,
        LIF,
        MaxPool,
        AveragePool,
        GlobalAveragePool,
        Flatten,
        Shortcut,
        Add,
        Attention,
    )
}


@dataclass(frozen=True)
class Graph:
    """A network: nodes in order of computation and the number of time steps T.

    Raises:
        ValueError: at construction, naming the node, if names repeat, an input is missing, shapes do not fit, or
            there is not exactly one input.
    """

    nodes: tuple[Node, ...]
    timesteps: int = field(default=2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not (isinstance(self.timesteps, int) and self.timesteps >= 1):
            raise ValueError(f"timesteps must be a whole number of at least 1, got {self.timesteps!r}.")
        if not self.nodes or [isinstance(n, Input) for n in self.nodes].count(True) != 1:
            raise ValueError("a graph needs exactly one Input node.")
        _ = self.values

    @cached_property
    def values(self) -> dict[str, Value]:
        """Shape, timing and spiking of every node's output, by name."""
        values: dict[str, Value] = {}
        for node in self.nodes:
            if node.name in values:
                raise ValueError(f"node {node.name!r}: the name is used twice.")
            for name in node.inputs:
                if name not in values:
                    raise ValueError(f"node {node.name!r}: its input {name!r} is not an earlier node.")
            try:
                values[node.name] = _infer(node, [values[name] for name in node.inputs])
            except ValueError as error:
                raise ValueError(f"node {node.name!r}: {error}") from None
        return values

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> Input:
        """The node that stands for the images."""
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    @property
    def classes(self) -> int:
        """Features of the output."""
        return self.values[self.output.name].shape[-1]


def to_json(graph: Graph) -> str:
    """The graph as JSON text; :func:`from_json` restores an equal graph."""
    nodes = [{"kind": type(node).__name__, **dataclasses.asdict(node)} for node in graph.nodes]
    return json.dumps({"timesteps": graph.timesteps, "nodes": nodes})


def from_json(text: str) -> Graph:
    """A graph from the text written by :func:`to_json`.

    Raises:
        ValueError: the text is not such a graph.
    """
    try:
        document = json.loads(text)
        return Graph(tuple(_node(entry) for entry in document["nodes"]), document["timesteps"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the text does not describe a graph: {type(error).__name__}, {error}") from None


def _node(entry: dict[str, Any]) -> Node:
    kind = KINDS[entry["kind"]]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "kind"}
    if fields.get("quantizer") is not None:
        fields["quantizer"] = Quantizer(**fields["quantizer"])
    return kind(**fields)


def _infer(node: Node, inputs: list[Value]) -> Value:
    if isinstance(node, Conv | Dense) and not isinstance(node.quantizer, Quantizer | None):
        raise ValueError(f"quantizer must be a Quantizer or None, got {node.quantizer!r}.")
    match node:
        case Input():
            _whole(3, shape=node.shape)
            return Value(node.shape, node.frames, spiking=False)
        case Conv():
            _whole(1, features=node.features)
            _whole(2, kernel=node.kernel)
            size = _windows(inputs[0], node.kernel, node.strides, node.padding)
            return Value((*size, node.features), inputs[0].timed, spiking=False)
        case Dense():
            _whole(1, features=node.features)
            if len(inputs[0].shape) != 1:
                raise ValueError(f"needs a flat input, got the shape {inputs[0].shape}; put a Flatten before it.")
            return Value((node.features,), inputs[0].timed, spiking=False)
        case BatchNorm():
            return inputs[0]._replace(spiking=False)
        case LIF():
            return Value(inputs[0].shape, timed=True, spiking=True)
        case MaxPool() | AveragePool():
            size = _windows(inputs[0], node.window, node.strides, node.padding)
            channels = inputs[0].shape[-1]
            return Value((*size, channels), inputs[0].timed, isinstance(node, MaxPool) and inputs[0].spiking)
        case GlobalAveragePool():
            return Value(_image(inputs[0])[2:], inputs[0].timed, spiking=False)
        case Flatten():
            h, w, c = _image(inputs[0])
            return inputs[0]._replace(shape=(h * w * c,))
        case Shortcut():
            _whole(1, stride=node.stride)
            h, w, c = _image(inputs[0])
            if not (isinstance(node.source, tuple) and node.source and set(node.source) <= {-1, *range(c)}):
                raise ValueError(f"source must be a tuple of channels of its input, 0 to {c - 1}, or -1 for zeros.")
            size = (-(-h // node.stride), -(-w // node.stride), len(node.source))
            return inputs[0]._replace(shape=size)
        case Add():
            first, second = inputs
            if first.shape != second.shape:
                raise ValueError(f"adds {node.first!r} of shape {first.shape} to {node.second!r} of {second.shape}.")
            return Value(first.shape, first.timed or second.timed, spiking=False)
        case Attention():
            _whole(1, head_features=node.head_features)
            shapes = {value.shape for value in inputs}
            if len(shapes) != 1 or _image(inputs[0])[-1] % node.head_features:
                raise ValueError(
                    f"needs query, key and value of one shape whose channels fall into heads of {node.head_features}, "
                    f"got {', '.join(str(value.shape) for value in inputs)}."
                )
            return Value(inputs[0].shape, any(value.timed for value in inputs), spiking=False)
    raise ValueError(f"unknown kind {type(node).__name__}.")


def _image(value: Value) -> tuple[int, int, int]:
    if len(value.shape) != 3:
        raise ValueError(f"needs an input of shape (h, w, c), got {value.shape}.")
    h, w, c = value.shape
    return h, w, c


def _windows(value: Value, window: Pair, strides: Pair, padding: Pair) -> Pair:
    _whole(2, window=window, strides=strides)
    _whole(2, least=0, padding=padding)
    h, w, _ = _image(value)
    output = Geometry((h, w), window, strides, padding).output_hw
    if min(output) < 1:
        raise ValueError(f"a window of {window} does not fit an input of {h}×{w} with padding {padding}.")
    return output


def _whole(count: int, least: int = 1, **fields: Any) -> None:
    """Refuses a field that is not ``count`` whole numbers of at least ``least``; one number stands without a tuple."""
    wanted = "a whole number" if count == 1 else f"a tuple of {count} whole numbers"
    for name, value in fields.items():
        numbers = (value,) if count == 1 else value
        fits = isinstance(numbers, tuple) and len(numbers) == count
        if not (fits and all(isinstance(n, int) and n >= least for n in numbers)):
            raise ValueError(f"{name} must be {wanted} of at least {least}, got {value!r}.")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
