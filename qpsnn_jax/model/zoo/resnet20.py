"""The paper's spiking ResNet20."""

from collections.abc import Mapping

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, Dense, GlobalAveragePool, Input, Node, Quantizer, Shortcut
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled

LABELS = ("stem", "outputs", "first", "middle")
_STAGES = (128, 256, 512)
_BLOCKS = 3


def resnet20(
    *,
    bits: int | Quantizer | None = 2,
    timesteps: int = 2,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spiking ResNet20: a full-precision stem, nine quantized basic blocks in three stages, a full-precision readout.

    A block is QConv-BN-LIF-QConv-BN, plus its shortcut, LIF. Where a stage changes width, the shortcut is a strided
    slice with zero channels on both sides (option A); elsewhere it is the identity, so the outputs of a stage lose
    the same channels.

    Args:
        bits: of every convolution but the stem; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``.
        width: multiplies the widths 64 and 128, 256, 512.
        ratios: pruning ratio by label: ``stem``, ``outputs`` (stages 1 and 2), ``first`` (middle channels of the first
            block), ``middle`` (of the other eight); kept = int(width·(1 - ratio)). The outputs of stage 3 feed the
            readout and are never removed.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph whose nodes are named as in the released checkpoints, ``layer1.0.conv1`` and so on.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        QP-SNN (ICLR 2025), section 5 and table 10.
    """
    ratio = checked_ratios(ratios, LABELS)
    stem = kept_channels(scaled(64, width), ratio["stem"])
    widths = []
    for stage, base in enumerate(_STAGES, 1):
        outputs = kept_channels(scaled(base, width), ratio["outputs"] if stage < len(_STAGES) else 0.0)
        for block in range(_BLOCKS):
            middle = kept_channels(scaled(base, width), ratio["first" if (stage, block) == (1, 0) else "middle"])
            widths.append((middle, outputs))
    return resnet20_of_widths(
        stem, tuple(widths), quantizer_of(bits), timesteps=timesteps, classes=classes, input_shape=input_shape, lif=lif
    )


def resnet20_of_widths(
    stem: int,
    blocks: tuple[tuple[int, int], ...],
    quantizer: Quantizer | None,
    *,
    timesteps: int,
    classes: int,
    input_shape: tuple[int, int, int],
    lif: LIF,
) -> Graph:
    """:func:`resnet20` with every width given: ``stem``, and (middle, output) channels of the nine ``blocks``.

    Raises:
        ValueError: a width is not positive; the message names the node.
    """
    nodes: list[Node] = [
        Input("image", input_shape),
        *conv_bn("image", "conv1", "bn1", stem, label="stem"),
        neuron("lif1", "bn1", lif),
    ]
    tip, channels = "lif1", stem
    for index, (middle, outputs) in enumerate(blocks):
        stage, block = divmod(index, _BLOCKS)
        name = f"layer{stage + 1}.{block}"
        strides = 2 if stage > 0 and block == 0 else 1
        label = "middle" if index else "first"
        out_label = "outputs" if stage < len(_STAGES) - 1 else None
        first = {"strides": (strides, strides), "quantizer": quantizer, "label": label}
        nodes += [
            *conv_bn(tip, f"{name}.conv1", f"{name}.bn1", middle, **first),
            neuron(f"{name}.lif1", f"{name}.bn1", lif),
            *conv_bn(f"{name}.lif1", f"{name}.conv2", f"{name}.bn2", outputs, quantizer=quantizer, label=out_label),
        ]
        residual = tip
        if index == 0 or strides != 1 or channels != outputs:
            residual = f"{name}.shortcut"
            nodes.append(Shortcut(residual, tip, option_a_source(channels, outputs), strides))
        nodes += [Add(f"{name}.add", f"{name}.bn2", residual), neuron(f"{name}.lif2", f"{name}.add", lif)]
        tip, channels = f"{name}.lif2", outputs
    nodes += [GlobalAveragePool("pool", tip), Dense("fc", "pool", classes)]
    return Graph(tuple(nodes), timesteps)


def option_a_source(inputs: int, outputs: int) -> tuple[int, ...]:
    """Channel map of the parameter-free shortcut: inputs in the middle, as many zero channels on either side.

    When ``outputs - inputs`` is odd the extra zero channel comes last; when there are fewer outputs than inputs, the
    middle inputs are carried.
    """
    before = (outputs - inputs) // 2
    return tuple(i if 0 <= i < inputs else -1 for i in range(-before, outputs - before))
