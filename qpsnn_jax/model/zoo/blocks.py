"""Building blocks shared by the networks of the zoo."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Neuron, Node, Quantizer
from qpsnn_jax.model.nodes.checks import LARGEST
from qpsnn_jax.runtime.checks import finite


def kept_channels(width: int, ratio: float, of: str = "channels") -> int:
    """Channels that remain when a fraction ``ratio`` of ``width`` is removed, ``int(width · (1 - ratio))``.

    Where several are removed at a time, ``width`` is the number of such units, and ``of`` their name in errors.

    The ratio is the decimal number that it prints as: 0.8 of 10 channels leaves 2, where binary arithmetic gives 1.99….
    Algorithm 1 of the paper rounds the number dropped; only this rule reproduces its published sizes.

    Raises:
        ValueError: ``ratio`` outside [0, 1), or no channel would remain.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"a pruning ratio must be at least 0 and below 1, got {ratio}.")
    # A billionth more, for ratios like 2/3 that have no end.
    kept = int(width * (1 - Decimal(str(ratio))) + Decimal("1e-9"))
    if kept < 1:
        raise ValueError(f"a pruning ratio of {ratio} leaves none of {width} {of}; lower it.")
    return kept


def scaled(width: int, multiplier: float) -> int:
    """``width · multiplier`` rounded to an integer.

    Raises:
        ValueError: the multiplier is not positive, leaves no channel or gives too many.
    """
    multiplier = finite("width", multiplier, -1e30, 1e30)
    if not 0 < multiplier <= LARGEST / width or round(width * multiplier) < 1:
        raise ValueError(
            f"width must be positive and give 1 to {LARGEST} channels where 1 gives {width}, got {multiplier}."
        )
    return round(width * multiplier)


def checked_ratios(ratios: Mapping[str, float] | None, labels: tuple[str, ...]) -> dict[str, float]:
    """Ratio by label, by default 0.

    Raises:
        ValueError: ratios that are not by label, a label that the network does not have, or a ratio outside [0, 1).
    """
    if not isinstance(ratios, Mapping | None):
        raise ValueError(f"ratios must be given by label, such as {{{labels[0]!r}: 0.5}}, got {ratios!r}.")
    ratios = {label: finite(f"ratio of {label!r}", ratio, -1e30, 1e30) for label, ratio in (ratios or {}).items()}
    for label, ratio in ratios.items():
        if label not in labels:
            raise ValueError(f"ratios name {label!r}; this network has {', '.join(labels)}.")
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio of {label!r} must be at least 0 and below 1, got {ratio}.")
    return {label: ratios.get(label, 0.0) for label in labels}


def quantizer_of(bits: int | Quantizer | None) -> Quantizer | None:
    """The quantizer for a bit width; a Quantizer and None (full precision) pass through."""
    return bits if bits is None or isinstance(bits, Quantizer) else Quantizer(bits)


def conv_bn(source: str, conv: str, bn: str, features: int, **options) -> tuple[Node, ...]:
    """Convolution and batch-norm; the result is the node ``bn``."""
    return (Conv(conv, source, features, **options), BatchNorm(bn, conv))


def neuron(name: str, source: str, like: LIF) -> LIF:
    """A neuron with the options of ``like``.

    Raises:
        ValueError: ``like`` is no neuron.
    """
    if not isinstance(like, Neuron):
        raise ValueError(f"lif must be a neuron with the options, such as LIF('', '', tau=0.25), got {like!r}.")
    return replace(like, name=name, input=source)
