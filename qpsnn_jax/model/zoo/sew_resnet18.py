"""SEW-ResNet18: residual blocks that add spikes."""

from collections.abc import Mapping

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, Dense, GlobalAveragePool, Input, MaxPool, Node, Quantizer
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled

LABELS = ("stem", "outputs", "middle")
_STAGES = (64, 128, 256, 512)
_BLOCKS = 2


def sew_resnet18(
    *,
    bits: int | Quantizer | None = 8,
    timesteps: int = 4,
    classes: int = 1000,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spike-element-wise ResNet18 with the ADD connection: the spikes of a block are added to its input spikes.

    A 7×7 full-precision stem with stride 2 and a 3×3 max-pool, four stages of two basic blocks
    QConv-BN-LIF-QConv-BN-LIF, ADD, a full-precision readout. Where a stage changes width, the
    shortcut is a quantized 1×1 convolution with batch-norm and LIF. The sums are small integers, not 0 and 1.

    Args:
        bits: of every convolution but the stem; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``.
        width: multiplies the widths 64 to 512.
        ratios: pruning ratio by label: ``stem`` (including the outputs of stage 1, to which it is added), ``outputs``
            (stages 2 and 3), ``middle`` (first convolution of every block); kept = int(width·(1 - ratio)). The outputs
            of stage 4 feed the readout and are never removed.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph with nodes named as in the usual ResNet18, ``layer1.0.conv1`` and so on.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        Fang et al., Deep Residual Learning in Spiking Neural Networks, NeurIPS 2021; QP-SNN (ICLR 2025), section 5.
    """
    quantizer, ratio = quantizer_of(bits), checked_ratios(ratios, LABELS)
    stem = kept_channels(scaled(_STAGES[0], width), ratio["stem"])
    large = {"kernel": (7, 7), "strides": (2, 2)}
    nodes: list[Node] = [
        Input("image", input_shape),
        *conv_bn("image", "conv1", "bn1", stem, label="stem", **large),
        neuron("lif1", "bn1", lif),
        MaxPool("pool1", "lif1", (3, 3), (2, 2), (1, 1)),
    ]
    tip = "pool1"
    for stage, base in enumerate(_STAGES, 1):
        label = ("stem", "outputs", "outputs", None)[stage - 1]
        outputs = kept_channels(scaled(base, width), ratio[label] if label else 0.0)
        middle = kept_channels(scaled(base, width), ratio["middle"])
        for block in range(_BLOCKS):
            name = f"layer{stage}.{block}"
            widens = stage > 1 and block == 0
            nodes += _block(name, tip, middle, outputs, 2 if widens else 1, widens, quantizer, label, lif)
            tip = f"{name}.add"
    nodes += [GlobalAveragePool("pool", tip), Dense("fc", "pool", classes)]
    return Graph(tuple(nodes), timesteps)


def _block(
    name: str,
    source: str,
    middle: int,
    outputs: int,
    stride: int,
    widens: bool,
    quantizer: Quantizer | None,
    label: str | None,
    lif: LIF,
) -> list[Node]:
    strides = (stride, stride)
    first = {"strides": strides, "quantizer": quantizer, "label": "middle"}
    nodes: list[Node] = [
        *conv_bn(source, f"{name}.conv1", f"{name}.bn1", middle, **first),
        neuron(f"{name}.lif1", f"{name}.bn1", lif),
        *conv_bn(f"{name}.lif1", f"{name}.conv2", f"{name}.bn2", outputs, quantizer=quantizer, label=label),
        neuron(f"{name}.lif2", f"{name}.bn2", lif),
    ]
    residual = source
    if widens:
        residual = f"{name}.downsample.lif"
        narrow = {"kernel": (1, 1), "strides": strides, "quantizer": quantizer, "label": label}
        nodes += [
            *conv_bn(source, f"{name}.downsample.conv", f"{name}.downsample.bn", outputs, **narrow),
            neuron(residual, f"{name}.downsample.bn", lif),
        ]
    return [*nodes, Add(f"{name}.add", f"{name}.lif2", residual)]
