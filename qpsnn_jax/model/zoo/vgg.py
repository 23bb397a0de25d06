"""The paper's spiking VGG-16, and VGGSNN for event frames."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, AveragePool, Dense, Flatten, Input, MaxPool, Node, Quantizer
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, quantizer_of, scaled

LABELS = ("early", "late")


@dataclass(frozen=True)
class Plan:
    """A VGG: the channels of each convolution, or None for a max-pool; the first ``early`` ones are labelled early."""

    places: tuple[int | None, ...]
    early: int
    frames: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the convolutions."""
        return tuple(base for base in self.places if base is not None)

    def label(self, convolution: int) -> str | None:
        """Pruning label of a convolution; the last one feeds the readout and is never pruned."""
        if convolution == len(self.widths) - 1:
            return None
        return "early" if convolution < self.early else "late"


VGG16 = Plan((64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512), early=7)
VGGSNN = Plan((64, 128, None, 256, 256, None, 512, 512, None, 512, 512), early=3, frames=True)


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
            int(width·(1 - ratio)). The last convolution feeds the readout and is never pruned.
        lif: the options of every neuron (its names are ignored).

    Returns:
        A graph whose convolutions are named by their place in the released checkpoints, ``features.0.conv`` and so on.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        QP-SNN (ICLR 2025), section 5 and table 9.
    """
    widths = _kept(VGG16, width, ratios)
    return vgg_of_widths(VGG16, widths, quantizer_of(bits), timesteps, classes, input_shape, lif)


def vggsnn(
    *,
    bits: int | Quantizer | None = 2,
    timesteps: int = 10,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (48, 48, 2),
    width: float = 1.0,
    ratios: Mapping[str, float] | None = None,
    lif: LIF = LIF("", ""),  # noqa: B008 (frozen)
    binary: bool = False,
) -> Graph:
    """VGGSNN: eight convolutions with batch-norm and LIF on event frames ``b t h w 2``, average-pool and one readout.

    Args:
        bits: of every convolution but the first; a :class:`Quantizer` for other options; None for full precision.
        timesteps: T, the number of frames.
        classes: outputs.
        input_shape: ``(h, w, c)`` of a frame; height and width at least 16.
        width: multiplies the widths 64 to 512.
        ratios: pruning ratio by label: ``early`` (the first three convolutions), ``late`` (the next four); kept =
            int(width·(1 - ratio)). The last convolution feeds the readout and is never pruned.
        lif: the options of every neuron (its names are ignored).
        binary: whether the frames are of 0 and 1 (:class:`~qpsnn_jax.model.nodes.Input`).

    Returns:
        A graph whose nodes are named as VGG-16's.

    Raises:
        ValueError: an argument is out of range; the message names it or the node.

    References:
        QP-SNN (ICLR 2025), section 5; Deng et al., ICLR 2022.
    """
    widths = _kept(VGGSNN, width, ratios)
    graph = vgg_of_widths(VGGSNN, widths, quantizer_of(bits), timesteps, classes, input_shape, lif)
    return Graph((replace(graph.input, binary=binary), *graph.nodes[1:]), timesteps)


def vgg_of_widths(
    plan: Plan,
    widths: tuple[int, ...],
    quantizer: Quantizer | None,
    timesteps: int,
    classes: int,
    input_shape: tuple[int, int, int],
    lif: LIF,
) -> Graph:
    """A VGG of a plan with the channels of its convolutions given.

    Raises:
        ValueError: a width is not positive; the message names the node.
    """
    nodes: list[Node] = [Input("image", input_shape, plan.frames)]
    tip, convolution = "image", 0
    for place, base in enumerate(plan.places):
        name = f"features.{place}"
        if base is None:
            nodes.append(MaxPool(f"{name}.pool", tip))
            tip = f"{name}.pool"
            continue
        # The released networks give their full-precision first convolution a bias.
        options = {"quantizer": quantizer} if convolution else {"bias": True}
        label = plan.label(convolution)
        nodes += [
            *conv_bn(tip, f"{name}.conv", f"{name}.bn", widths[convolution], label=label, **options),
            neuron(f"{name}.lif", f"{name}.bn", lif),
        ]
        tip, convolution = f"{name}.lif", convolution + 1
    nodes += [AveragePool("pool", tip), Flatten("flatten", "pool"), Dense("fc", "flatten", classes)]
    return Graph(tuple(nodes), timesteps)


def _kept(plan: Plan, width: float, ratios: Mapping[str, float] | None) -> tuple[int, ...]:
    ratio = checked_ratios(ratios, LABELS)
    full = [scaled(base, width) for base in plan.widths]
    return tuple(kept_channels(n, ratio.get(plan.label(i) or "", 0.0)) for i, n in enumerate(full))
