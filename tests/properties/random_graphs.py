"""Random valid graphs of every kind of node, with variables like trained ones, from a seed.

Maps have 3 to 8 pixels a side and channels are few, so that NumPy runs hundreds of them in a second.
"""

import math
from typing import Any

import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Input,
    MaxPool,
    Node,
    Quantizer,
    Shortcut,
    SumPool,
)
from qpsnn_jax.pruning import channel_groups

SURROGATES = ("triangular", "rectangular", "sigmoid", "arctan")
# Not "mse", which takes seconds to compile.
GAMMAS = ("none", "max", "percentile", "mean")


class Growing:
    """A graph as it grows; every method adds nodes and returns the name of the last.

    With ``integers`` each layer of neurons is what the integer network expresses, with ``nir`` neurons reset to zero,
    windows are square and those of max-pools 2×2.
    """

    def __init__(self, seed: int, *, integers: bool = False, nir: bool = False) -> None:
        self.draw, self.integers, self.nir, self.nodes = np.random.default_rng(seed), integers, nir, list[Node]()
        self.timesteps = self.number(1, 4)
        h, w = self.pair(3, 8)
        self.add(Input, shape=(h, w, self.number(1, 3)), frames=self.chance(0.4))

    def chance(self, share: float) -> bool:
        return bool(self.draw.random() < share)

    def number(self, least: int, most: int) -> int:
        return int(self.draw.integers(least, most + 1))

    def pair(self, least: int, most: int) -> tuple[int, int]:
        first = self.number(least, most)
        return first, first if self.nir else self.number(least, most)

    def one_of(self, *choices: Any) -> Any:
        return choices[self.draw.integers(len(choices))]

    def add(self, kind: type[Node], *inputs: str, **fields: Any) -> str:
        name = f"{kind.__name__.lower()}{len(self.nodes)}"
        self.nodes.append(kind(name, *inputs, **fields))
        return name

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), self.timesteps)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph().values[name].shape

    def quantizer(self, share: float = 0.7) -> Quantizer | None:
        if not self.chance(share):
            return None
        bits, rule, each = self.number(1, 8), self.one_of(*GAMMAS), self.one_of("layer", "channel")
        return Quantizer(bits, rule, each, self.one_of("clipped", "plain", "scaled"))

    def label(self) -> str | None:
        return self.one_of("a", "b", None)

    def groups(self, channels: int, features: int) -> dict[str, int]:
        """Groups that divide both, in half of the cases of which that is possible more than one."""
        divisors = [n for n in range(2, channels + 1) if channels % n == 0 == features % n]
        more = divisors and self.chance(0.5)
        return {"groups": self.one_of(*divisors)} if more else {}

    def windows(self, shape: tuple[int, ...], most: int = 3) -> tuple[tuple[int, int], ...]:
        """Window, strides and padding that fit a map; no window lies in the padding alone."""
        chosen = []
        for size in shape[: 1 if self.nir else 2]:
            window = self.number(1, min(most, size + 1))
            least = max(0, -(-(window - size) // 2))
            chosen.append((window, self.number(1, 2), self.number(least, max(least, window - 1))))
        window, strides, padding = zip(*(chosen * 2)[:2], strict=True)
        return window, strides, padding

    def neurons(self, source: str) -> str:
        options = {"threshold": float(self.one_of(1.0, 0.7, 0.3)), "fire": self.one_of(">=", ">")}
        if not (self.integers or self.nir):
            options |= {"tau": self.one_of(0.5, 0.25, 0.9, 1.0), "reset": self.one_of("hard", "soft", "delayed")}
            options |= {"surrogate": self.one_of(*SURROGATES), "detach_reset": self.chance(0.3)}
        channels = self.shape(source)[-1]
        if self.integers and not self.nir:
            options |= self.shifting(channels)
        elif not self.integers:
            options["tau"] = options.get("tau", self.one_of(0.5, 0.9, 1.0))
            if self.chance(0.2):
                options["tau"] = tuple(self.draw.choice((0.5, 0.8, 0.9), channels).tolist())
            if self.chance(0.2):
                options["threshold"] = tuple(self.draw.choice((1.0, 0.7, 0.3), channels).tolist())
        return self.add(LIF, source, **options)

    def shifting(self, channels: int) -> dict[str, Any]:
        """Leaks by shifts, resets, and numbers for each channel."""
        leaks, options = (0.5, 0.75, 0.25, 1.0, 0.0, 0.875), {"reset": self.one_of("hard", "hard", "soft", "delayed")}
        if self.chance(0.5):
            options["tau"] = float(self.one_of(*leaks))
        elif self.chance(0.3):
            options["tau"] = tuple(self.draw.choice(leaks, channels).tolist())
        if self.chance(0.2):
            options["threshold"] = tuple(self.draw.choice((1.0, 0.7, 0.3), channels).tolist())
        return options

    def norm(self, source: str) -> str:
        return self.add(BatchNorm, source, epsilon=self.one_of(1e-5, 1e-3)) if self.chance(0.7) else source

    def weights(self, source: str, features: int | None = None, *, quantizer: Quantizer | None = None) -> str:
        """A convolution or a dense layer of any shape."""
        shape, fields = self.shape(source), {"features": features or self.number(1, 6), "label": self.label()}
        masked = self.chance(0.25)
        fields |= {"quantizer": quantizer, "bias": self.chance(0.4), "masked": masked}
        if len(shape) == 1:
            return self.add(Dense, source, **fields)
        kernel, strides, padding = self.windows(shape)
        fields |= self.groups(shape[-1], fields["features"])
        dilation = self.pair(1, 2) if self.chance(0.3) else (1, 1)
        if all(n + 2 * p > d * (k - 1) for n, k, p, d in zip(shape, kernel, padding, dilation, strict=False)):
            fields["dilation"] = dilation
        return self.add(Conv, source, kernel=kernel, strides=strides, padding=padding, **fields)

    def unit(self, source: str) -> str:
        """Weights, perhaps batch-norm, perhaps neurons."""
        last = self.norm(self.weights(source, quantizer=self.quantizer()))
        return self.neurons(last) if self.chance(0.8) else last

    def same(self, source: str, features: int, stride: int, quantizer: Quantizer | None) -> str:
        """A convolution whose map is that of a strided slice, and perhaps batch-norm."""
        kernel = tuple(2 * k + 1 for k in self.pair(0, 1))
        fields = {"kernel": kernel, "strides": (stride, stride), "padding": (kernel[0] // 2, kernel[1] // 2)}
        fields |= {"quantizer": quantizer, "bias": self.chance(0.4), "label": self.label()}
        fields |= self.groups(self.shape(source)[-1], features)
        return self.norm(self.add(Conv, source, features=features, **fields))

    def shortcut(self, source: str, features: int, stride: int) -> str:
        channels = self.shape(source)[-1]
        carried = tuple(int(i) for i in self.draw.integers(-1, channels, features))
        return self.add(Shortcut, source, source=carried, stride=stride)

    def residual(self, source: str) -> str:
        """A convolution and a shortcut around it, or the very map."""
        channels, plain = self.shape(source)[-1], self.chance(0.4)
        features, stride = (channels, 1) if plain else (self.number(1, 6), self.number(1, 2))
        quantizer = self.quantizer(1.0 if self.integers else 0.7)
        main = self.same(source, features, stride, quantizer)
        around = source if plain else self.shortcut(source, features, stride)
        total = self.add(Add, *((main, around) if self.chance(0.5) else (around, main)))
        return self.neurons(total) if self.integers or self.chance(0.7) else total

    def pool(self, source: str) -> str:
        window, strides, padding = self.windows(self.shape(source))
        kind = MaxPool if self.integers else self.one_of(MaxPool, AveragePool, SumPool)
        if kind is MaxPool and self.nir and min(self.shape(source)[:2]) > 1:
            window, padding = (2, 2), self.one_of((0, 0), (1, 1))
        return self.add(kind, source, window=window, strides=strides, padding=padding)

    def attention(self, source: str) -> str:
        """Query, key and value; sometimes two attentions of other heads over the same channels."""
        heads = self.one_of((1,), (2,), (3,), (2, 3), (4, 6))
        features = math.lcm(*heads) * (self.number(1, 2) if len(heads) == 1 else 1)
        three = [self.neurons(self.same(source, features, 1, self.quantizer())) for _ in range(3)]
        made = [self.add(Attention, *three, head_features=d, factor=self.one_of(0.125, 0.5)) for d in heads]
        return self.neurons(self.norm(made[0] if len(made) == 1 else self.add(Add, *made)))

    def hidden(self, source: str) -> str:
        """A dense layer on a flattened map, sometimes as wide as the map and added to it."""
        flat = self.add(Flatten, source) if len(self.shape(source)) == 3 else source
        size = self.shape(flat)[0]
        if self.integers or size > 60 or not self.chance(0.3):
            last = self.norm(self.weights(flat, quantizer=self.quantizer(1.0 if self.integers else 0.7)))
            return self.neurons(last) if self.integers or self.chance(0.7) else last
        return self.add(Add, self.norm(self.weights(flat, size, quantizer=self.quantizer())), flat)

    def concatenated(self, source: str) -> str:
        """With earlier maps of its size, or with itself; with integers of neurons alone."""
        values = self.graph().values
        fit = [n for n, v in values.items() if v.shape[:-1] == values[source].shape[:-1] and v.shape[-1] < 20]
        if self.integers:
            fit = [name for name in fit if values[name].spiking and name != self.nodes[0].name]
        others = [self.one_of(*fit) for _ in range(self.number(0, 2))] if fit else []
        sources = [source, *others]
        self.draw.shuffle(sources)
        return self.add(Concatenate, sources=tuple(sources))

    def joined(self, source: str) -> str:
        """The sum with an earlier value of equal shape, or with itself."""
        values = self.graph().values
        names = [name for name, value in values.items() if value.shape == values[source].shape]
        return self.add(Add, source, self.one_of(*names))


def graph_of(seed: int, *, nir: bool = False) -> Graph:
    """Any graph: real-valued and spiking maps mixed, dead branches among them, with one to five blocks."""
    grow = Growing(seed, nir=nir)
    trunk = grow.nodes[0].name
    for _ in range(grow.number(1, 5)):
        if grow.chance(0.2):
            trunk = grow.one_of(*(node.name for node in grow.nodes))
        blocks = [grow.unit, grow.joined] + ([] if nir else [grow.concatenated])
        if len(grow.shape(trunk)) == 3:
            blocks += [grow.unit, grow.residual, grow.residual, grow.pool, grow.hidden]
            blocks += [] if nir else [grow.attention]
        trunk = grow.one_of(*blocks)(trunk)
    if grow.chance(0.15):
        return grow.graph()
    if len(grow.shape(trunk)) == 3:
        trunk = grow.add(grow.one_of(Flatten, GlobalAveragePool), trunk)
    last = grow.weights(trunk, grow.number(2, 5), quantizer=grow.quantizer(0.3))
    if grow.chance(0.2):
        grow.neurons(last)
    return grow.graph()


def integer_graph_of(seed: int, *, nir: bool = False) -> Graph:
    """A graph that integers express: quantized layers of neurons, max-pools, sums, and a readout or rates of spikes."""
    grow = Growing(seed, integers=True, nir=nir)
    trunk = grow.neurons(grow.norm(grow.weights(grow.nodes[0].name)))
    steps = [_layer, _layer, Growing.residual, _pool, _summed, Growing.hidden]
    steps += [] if nir else [Growing.concatenated]
    for _ in range(grow.number(1, 4)):
        if len(grow.shape(trunk)) == 1:
            trunk = grow.hidden(trunk)
            continue
        trunk = grow.one_of(*steps)(grow, trunk)
    shape, rates = grow.shape(trunk), not nir and grow.chance(0.3)
    if len(shape) == 3:
        trunk = _averaged(grow, trunk, shape) if not rates and grow.chance(0.6) else grow.add(Flatten, trunk)
    if not rates:
        grow.weights(trunk, grow.number(2, 5), quantizer=grow.quantizer(0.4))
    elif grow.shape(trunk) == (1,) or grow.chance(0.8):
        grow.neurons(grow.norm(grow.weights(trunk, grow.number(2, 5), quantizer=grow.quantizer(1.0))))
    return grow.graph()


def _layer(grow: Growing, trunk: str) -> str:
    return grow.neurons(grow.norm(grow.weights(trunk, quantizer=grow.quantizer(1.0))))


def _pool(grow: Growing, trunk: str) -> str:
    return grow.pool(trunk) if grow.graph().values[trunk].spiking else trunk


def _summed(grow: Growing, trunk: str) -> str:
    """Spikes of a layer and of what it reads, added as they are."""
    channels = grow.shape(trunk)[-1]
    return grow.add(Add, grow.neurons(grow.same(trunk, channels, 1, grow.quantizer(1.0))), trunk)


def _averaged(grow: Growing, trunk: str, shape: tuple[int, ...]) -> str:
    if grow.chance(0.5):
        return grow.add(GlobalAveragePool, trunk)
    window, strides = grow.pair(1, min(3, *shape[:2])), grow.pair(1, 2)
    return grow.add(Flatten, grow.add(AveragePool, trunk, window=window, strides=strides))


def channels_of(graph: Graph, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Channels to keep, in most groups some."""
    keep = {}
    for group in channel_groups(graph).values():
        if draw.random() < 0.8:
            units = draw.permutation(group.size // group.unit)[: draw.integers(1, group.size // group.unit + 1)]
            keep[group.name] = (units[:, None] * group.unit + np.arange(group.unit)).ravel()
    return keep


def live(graph: Graph) -> Graph:
    """The graph without the nodes that its output does not need."""
    needed, kept = {graph.output.name, graph.input.name}, []
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return Graph(tuple(reversed(kept)), graph.timesteps)


def variables_of(graph: Graph, seed: int) -> dict[str, Any]:
    """Float32 variables with batch-norm factors of both signs, and here and there a filter or a factor of zeros."""
    draw = np.random.default_rng(seed + 1)
    params, stats, scales, masks = {}, {}, {}, {}
    for node in graph.nodes:
        if isinstance(node, Conv | Dense):
            window = node.kernel if isinstance(node, Conv) else ()
            shape = (*window, graph.values[node.input].shape[-1] // node.groups, node.features)
            kernel = draw.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
            by_channel = node.quantizer is not None and node.quantizer.granularity == "channel"
            # Alone in a layer with one γ, a filter of zeros is zero; beside others it is the level next to zero.
            if draw.random() < 0.2 and (node.quantizer is None or by_channel):
                kernel[..., draw.integers(node.features)] = 0
            params[node.name] = {"kernel": kernel}
            if node.masked:
                masks[node.name] = {"mask": draw.random(shape) < draw.choice([0.1, 0.5, 1])}
            if node.bias:
                params[node.name]["bias"] = draw.normal(size=node.features) * 0.2
            if node.quantizer is not None:
                scales[node.name] = {"gain": draw.uniform(0.8, 1.6, node.features if by_channel else 1)}
        elif isinstance(node, BatchNorm):
            channels = graph.values[node.name].shape[-1]
            factor = draw.uniform(0.5, 2.0, channels) * np.where(draw.random(channels) < 0.3, -1, 1)
            factor[draw.random(channels) < 0.05] = 0
            params[node.name] = {"scale": factor, "bias": draw.normal(size=channels) * 0.4 + 0.3}
            moments = {"mean": draw.normal(size=channels) * 0.2, "var": draw.uniform(0.1, 0.6, channels)}
            stats[node.name] = moments
    tree = {"params": params, "batch_stats": stats, "scales": scales, "masks": masks}
    return _float32(tree)


def _float32(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _float32(leaf) for name, leaf in tree.items()}
    return np.asarray(tree, np.float32)


def images_of(graph: Graph, seed: int, batch: int = 3) -> np.ndarray:
    """Normalized images ``b h w c`` or frames ``b t h w c``, float32."""
    steps = (graph.timesteps,) if graph.input.frames else ()
    draw = np.random.default_rng(seed + 2)
    return draw.normal(size=(batch, *steps, *graph.input.shape)).astype(np.float32)


def pixels_of(graph: Graph, seed: int, batch: int = 3) -> np.ndarray:
    """Pixels uint8, the first image black and the second white."""
    steps = (graph.timesteps,) if graph.input.frames else ()
    pixels = np.random.default_rng(seed + 2).integers(0, 256, (batch, *steps, *graph.input.shape), np.uint8)
    pixels[0], pixels[1] = 0, 255
    return pixels
