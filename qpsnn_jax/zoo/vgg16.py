"""The paper's spiking VGG-16."""

from collections.abc import Mapping

from qpsnn_jax.graph import LIF, AveragePool, Dense, Flatten, Graph, Input, MaxPool, Node, Quantizer
from qpsnn_jax.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled

LABELS = ("early", "late")
# By place in the released model: the channels of a convolution, or None for a max-pool.
WIDTHS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
_EARLY = 7


def vgg16(
    *,
    bits: int | Quantizer | None = 4,
    timesteps: int = 4,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
) -> Graph:
    """Spiking VGG-16: 13 convolutions with batch-norm and LIF, max-pools between, average-pool and one readout.

    Args:
        bits: of every convolution but the first; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T.
        classes: outputs.
        input_shape: ``(h, w, c)``; height and width at least 32.
        width: multiplies the widths 64 to 512.
        ratios: pruning ratio by label: ``early`` (the first seven convolutions), ``late`` (the next five); kept =
            int(width·(1 - ratio)). The last convolution feeds the readout and stays.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph whose convolutions are named by their place in the released checkpoints, ``features.0.conv`` and so on.

    Raises:
        ValueError: an argument is out of range, naming it or the node that it breaks.

    References:
        QP-SNN (ICLR 2025), section 5 and table 9.
    """
    ratio = checked_ratios(ratios, LABELS)
    full = [scaled(base, width) for base in WIDTHS if base is not None]
    labels = [_label(i) for i in range(len(full))]
    kept = tuple(kept_channels(n, ratio.get(label or "", 0.0)) for n, label in zip(full, labels, strict=True))
    return vgg16_of_widths(
        kept, quantizer_of(bits), timesteps=timesteps, classes=classes, input_shape=input_shape, lif=lif
    )


def vgg16_of_widths(
    widths: tuple[int, ...],
    quantizer: Quantizer | None,
    *,
    timesteps: int,
    classes: int,
    input_shape: tuple[int, int, int],
    lif: LIF,
) -> Graph:
    """:func:`vgg16` with the channels of its 13 convolutions given.

    Raises:
        ValueError: a width is not positive, naming the node.
    """
    nodes: list[Node] = [Input("image", input_shape)]
    tip, convolution = "image", 0
    for place, base in enumerate(WIDTHS):
        name = f"features.{place}"
        if base is None:
            nodes.append(MaxPool(f"{name}.pool", tip))
            tip = f"{name}.pool"
            continue
        # The released network gives its full-precision first convolution a bias.
        options = {"quantizer": quantizer} if convolution else {"bias": True}
        nodes += [
            *conv_bn(tip, f"{name}.conv", f"{name}.bn", widths[convolution], label=_label(convolution), **options),
            neuron(f"{name}.lif", f"{name}.bn", lif),
        ]
        tip, convolution = f"{name}.lif", convolution + 1
    nodes += [AveragePool("pool", tip), Flatten("flatten", "pool"), Dense("fc", "flatten", classes)]
    return Graph(tuple(nodes), timesteps)


def _label(convolution: int) -> str | None:
    """The last convolution feeds the readout and is never pruned."""
    if convolution == sum(base is not None for base in WIDTHS) - 1:
        return None
    return "early" if convolution < _EARLY else "late"
