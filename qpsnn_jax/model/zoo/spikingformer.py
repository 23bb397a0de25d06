"""Spikingformer: a transformer in which every matrix product reads spikes."""

from collections.abc import Mapping

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, Attention, Dense, GlobalAveragePool, Input, MaxPool, Node, Quantizer
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled
from qpsnn_jax.runtime.checks import integer

LABELS = ("patch", "stream", "attention", "hidden")
_HEAD_FEATURES = 32
_EXPANSION = 4


def spikingformer(
    *,
    bits: int | Quantizer | None = 4,
    timesteps: int = 4,
    classes: int = 100,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    blocks: int = 4,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spikingformer-4-384: a convolutional patch stem and four blocks of spiking self-attention and MLP.

    The residual stream is real-valued; every block begins with neurons that turn it into spikes (pre-activation), so
    that every quantized layer reads spikes. Linear layers are 1×1 convolutions over the 8×8 positions. The stem is
    Conv-BN (full precision), three times LIF-QConv-BN with max-pools after the last two, and a residual LIF-QConv-BN
    as position code.

    Args:
        bits: of every convolution but the first; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``.
        width: multiplies the width 384 of the stream; the result must be a multiple of the 32 channels of a head.
        ratios: pruning ratio by label: ``patch`` (stem), ``stream`` (the residual stream, one group), ``attention``
            (heads of query, key and value), ``hidden`` (middle of the MLPs); kept = int(n·(1 - ratio)).
        blocks: how many.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        Zhou et al., Spikingformer, 2023; QP-SNN (ICLR 2025), table 4.
    """
    blocks = integer("blocks", blocks, 0, 1000)
    quantizer, ratio = quantizer_of(bits), checked_ratios(ratios, LABELS)
    full = scaled(384, width)
    if full % _HEAD_FEATURES:
        raise ValueError(f"width {width} gives {full} channels, which do not divide into heads of {_HEAD_FEATURES}.")
    stream = kept_channels(full, ratio["stream"])
    attention = _HEAD_FEATURES * kept_channels(full // _HEAD_FEATURES, ratio["attention"])
    hidden = kept_channels(_EXPANSION * full, ratio["hidden"])
    stem = tuple(kept_channels(full // part, ratio["patch"]) for part in (8, 4, 2))
    nodes = _patches(input_shape, (*stem, stream), quantizer, lif)
    tip = nodes[-1].name
    for block in range(blocks):
        name = f"block{block}"
        nodes += _attention(f"{name}.attn", tip, attention, stream, quantizer, lif)
        nodes += _mlp(f"{name}.mlp", nodes[-1].name, hidden, stream, quantizer, lif)
        tip = nodes[-1].name
    nodes += [neuron("head.lif", tip, lif), GlobalAveragePool("pool", "head.lif"), Dense("fc", "pool", classes)]
    return Graph(tuple(nodes), timesteps)


def _patches(shape: tuple[int, int, int], widths: tuple[int, ...], quantizer: Quantizer | None, lif: LIF) -> list[Node]:
    nodes: list[Node] = [Input("image", shape), *conv_bn("image", "patch0.conv", "patch0.bn", widths[0], label="patch")]
    tip = "patch0.bn"
    for i, features in enumerate(widths[1:], 1):
        label = "stream" if i == len(widths) - 1 else "patch"
        nodes += _spiking_conv(f"patch{i}", tip, features, quantizer, label, lif, kernel=(3, 3))
        tip = f"patch{i}.bn"
        if i > 1:
            nodes.append(MaxPool(f"patch{i}.pool", tip))
            tip = f"patch{i}.pool"
    nodes += _spiking_conv("position", tip, widths[-1], quantizer, "stream", lif, kernel=(3, 3))
    return [*nodes, Add("position.add", tip, "position.bn")]


def _attention(name: str, source: str, features: int, stream: int, quantizer: Quantizer | None, lif: LIF) -> list[Node]:
    nodes: list[Node] = [neuron(f"{name}.lif", source, lif)]
    for part in ("query", "key", "value"):
        options = {"kernel": (1, 1), "quantizer": quantizer, "label": "attention"}
        nodes += conv_bn(f"{name}.lif", f"{name}.{part}.conv", f"{name}.{part}.bn", features, **options)
        nodes.append(neuron(f"{name}.{part}.lif", f"{name}.{part}.bn", lif))
    query, key, value = (f"{name}.{part}.lif" for part in ("query", "key", "value"))
    nodes.append(Attention(f"{name}.product", query, key, value, _HEAD_FEATURES))
    nodes += _spiking_conv(f"{name}.out", f"{name}.product", stream, quantizer, "stream", lif)
    return [*nodes, Add(f"{name}.add", source, f"{name}.out.bn")]


def _mlp(name: str, source: str, hidden: int, stream: int, quantizer: Quantizer | None, lif: LIF) -> list[Node]:
    nodes = _spiking_conv(f"{name}.in", source, hidden, quantizer, "hidden", lif)
    nodes += _spiking_conv(f"{name}.out", f"{name}.in.bn", stream, quantizer, "stream", lif)
    return [*nodes, Add(f"{name}.add", source, f"{name}.out.bn")]


def _spiking_conv(
    name: str,
    source: str,
    features: int,
    quantizer: Quantizer | None,
    label: str,
    lif: LIF,
    kernel: tuple[int, int] = (1, 1),
) -> list[Node]:
    """LIF, convolution, batch-norm; the result is ``name.bn``."""
    options = {"kernel": kernel, "quantizer": quantizer, "label": label}
    return [
        neuron(f"{name}.lif", source, lif),
        *conv_bn(f"{name}.lif", f"{name}.conv", f"{name}.bn", features, **options),
    ]
