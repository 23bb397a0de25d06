"""Checks of single numbers, with one-sentence errors."""

import math
import operator
from typing import Any

_LONGEST = 80


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an integer, from anything with ``__index__`` (NumPy's integers too) except a bool.

    Args:
        name: of the input, for the message.
        value: the input.
        least: the smallest integer allowed.
        most: the largest integer allowed, None for no limit.

    Returns:
        A Python int.

    Raises:
        ValueError: ``value`` is not an integer, or out of range.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        allowed = f", {least} or more" if most is None else f" from {least} to {most}"
        raise ValueError(f"{name} must be an integer{allowed}, got {_shown(value)}.")
    return number


def finite(name: str, value: Any, least: float, most: float) -> float:
    """``value`` as a float, from anything with ``__float__`` except a bool or text.

    Args:
        name: of the input, for the message.
        value: the input, a scalar.
        least: the smallest number allowed.
        most: the largest number allowed.

    Returns:
        A Python float.

    Raises:
        ValueError: ``value`` is not a number, NaN, or out of range.
    """
    try:
        number = _printed(value) if _is_scalar(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {_shown(value)}.")
    return number


def fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of a shape broadcasts against one of the shape ``target``, which stays as it is."""
    return len(shape) <= len(target) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(target), strict=False)
    )


def _is_scalar(value: Any) -> bool:
    """Whether it is a real number: not text, a bool or a complex number, nor an array with axes or other values."""
    kind, axes = getattr(getattr(value, "dtype", None), "kind", "f"), getattr(value, "ndim", 0)
    return not isinstance(value, bool | str | bytes | complex) and not axes and kind in "fiu"


def _printed(value: Any) -> float:
    """The number that a value prints as: 0.8 for a 0.8 in float32, whose nearest float64 is 0.800000012."""
    narrow = getattr(getattr(value, "dtype", None), "kind", "") == "f"
    return float(str(value)) if narrow else float(value)


def _shown(value: Any) -> str:
    """The ``repr`` of a value, on one line and shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
