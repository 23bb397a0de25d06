"""Networks of depthwise-separable convolutions, for two tasks of MLPerf Tiny: MobileNetV1 and DS-CNN."""

from collections.abc import Mapping

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Dense, GlobalAveragePool, Input, Node, Quantizer
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled

MOBILENET_LABELS = ("stem", "early", "late")
DS_CNN_LABELS = ("stem", "blocks")
# Channels and stride of each pointwise convolution and the depthwise one before it.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
_LATE = 512
_DS_CNN = ((64, 1),) * 4


def mobilenet(
    *,
    bits: int | Quantizer | None = 4,
    timesteps: int = 4,
    classes: int = 2,
    input_shape: tuple[int, int, int] = (96, 96, 3),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spiking MobileNetV1: a stem, and 13 pairs of a depthwise 3×3 and a pointwise 1×1 convolution.

    Every convolution is followed by batch-norm and LIF. MLPerf Tiny detects persons in 96×96 pictures with ``width``
    0.25. Padding is the same on all sides.

    Args:
        bits: of every convolution but the stem; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``.
        width: multiplies the widths 32 to 1024.
        ratios: pruning ratio by label: ``stem``, ``early`` (pointwise convolutions of less than 512 channels), ``late``
            (the others); kept = int(width·(1 - ratio)). A depthwise convolution loses the channels of its input. The
            last convolution feeds the readout and is never pruned.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph with nodes named ``blocks.0.depthwise.conv`` and so on.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        Howard et al., MobileNets, 2017; Banbury et al., MLPerf Tiny Benchmark, 2021.
    """
    ratio = checked_ratios(ratios, MOBILENET_LABELS)
    labels = ["early" if base < _LATE else "late" for base, _ in _MOBILENET]
    stem = kept_channels(scaled(32, width), ratio["stem"])
    nodes = [Input("image", input_shape), *conv_bn("image", "stem.conv", "stem.bn", stem, strides=(2, 2), label="stem")]
    return _separable(nodes, stem, _MOBILENET, labels, ratio, width, quantizer_of(bits), timesteps, classes, lif)


def ds_cnn(
    *,
    bits: int | Quantizer | None = 4,
    timesteps: int = 4,
    classes: int = 12,
    input_shape: tuple[int, int, int] = (49, 10, 1),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spiking DS-CNN for keywords: a 10×4 stem, and four pairs of a depthwise 3×3 and a pointwise 1×1 convolution.

    Every convolution is followed by batch-norm and LIF. MLPerf Tiny reads 49 frames of 10 spectral coefficients.

    Args:
        bits: of every convolution but the stem; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``, of time, coefficients and channels.
        width: multiplies the width 64.
        ratios: pruning ratio by label: ``stem``, ``blocks`` (the first three pointwise convolutions); kept =
            int(width·(1 - ratio)). A depthwise convolution loses the channels of its input. The last convolution feeds
            the readout and is never pruned.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph with nodes named as :func:`mobilenet`'s.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        Zhang et al., Hello Edge, 2017; Banbury et al., MLPerf Tiny Benchmark, 2021.
    """
    ratio = checked_ratios(ratios, DS_CNN_LABELS)
    stem = kept_channels(scaled(64, width), ratio["stem"])
    large = {"kernel": (10, 4), "strides": (2, 2), "padding": (5, 1)}
    nodes = [Input("image", input_shape), *conv_bn("image", "stem.conv", "stem.bn", stem, label="stem", **large)]
    labels = ["blocks"] * len(_DS_CNN)
    return _separable(nodes, stem, _DS_CNN, labels, ratio, width, quantizer_of(bits), timesteps, classes, lif)


def _separable(
    nodes: list[Node],
    channels: int,
    blocks: tuple[tuple[int, int], ...],
    labels: list[str],
    ratio: Mapping[str, float],
    width: float,
    quantizer: Quantizer | None,
    timesteps: int,
    classes: int,
    lif: LIF,
) -> Graph:
    """A stem of so many channels without its neurons, then the pairs of convolutions and a readout of the mean."""
    tip, label = "stem.lif", "stem"
    nodes = [*nodes, neuron(tip, nodes[-1].name, lif)]
    for index, (base, stride) in enumerate(blocks):
        name, last = f"blocks.{index}", index == len(blocks) - 1
        own = {"strides": (stride, stride), "groups": channels, "quantizer": quantizer, "label": label}
        nodes += _unit(f"{name}.depthwise", tip, channels, lif, **own)
        label = None if last else labels[index]
        channels = kept_channels(scaled(base, width), ratio[label] if label else 0.0)
        own = {"kernel": (1, 1), "quantizer": quantizer, "label": label}
        nodes += _unit(f"{name}.pointwise", f"{name}.depthwise.lif", channels, lif, **own)
        tip = f"{name}.pointwise.lif"
    nodes += [GlobalAveragePool("pool", tip), Dense("fc", "pool", classes)]
    return Graph(tuple(nodes), timesteps)


def _unit(name: str, source: str, features: int, lif: LIF, **options) -> list[Node]:
    norm = f"{name}.bn"
    return [*conv_bn(source, f"{name}.conv", norm, features, **options), neuron(f"{name}.lif", norm, lif)]
