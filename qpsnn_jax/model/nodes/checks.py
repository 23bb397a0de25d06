"""Checks of a node's fields. Errors name the node and the field; valid numbers are stored as Python's own."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.model.nodes.base import Node, Value
from qpsnn_jax.runtime.checks import finite, integer

LARGEST = 1 << 20
"""The largest size of any kind. A larger one is taken for a mistake."""


def integer_fields(node: Node, *fields: str) -> None:
    """Check that each field is an integer from 1 to :data:`LARGEST`.

    Raises:
        ValueError: one is not.
    """
    for name in fields:
        _store(node, name, integer(_where(node, name), getattr(node, name), 1, LARGEST))


def tuple_fields(node: Node, count: int, *fields: str, least: int = 1) -> None:
    """Check that each field is a tuple of ``count`` integers from ``least`` to :data:`LARGEST`.

    Raises:
        ValueError: one is not.
    """
    for name in fields:
        value, where = getattr(node, name), _where(node, name)
        if not (isinstance(value, tuple) and len(value) == count):
            raise ValueError(f"{where} must be a tuple of {count} integers, got {value!r}.")
        _store(node, name, tuple(integer(where, n, least, LARGEST) for n in value))


def float_fields(node: Node, *fields: str, least: float = -1e30, most: float = 1e30, each: bool = False) -> None:
    """Check that each field is a finite number from ``least`` to ``most``, or with ``each`` a tuple of such numbers.

    Raises:
        ValueError: one is not.
    """
    for name in fields:
        value, where = getattr(node, name), _where(node, name)
        checked = tuple(finite(where, x, least, most) for x in value) if each else finite(where, value, least, most)
        _store(node, name, checked)


def flag_fields(node: Node, *fields: str) -> None:
    """Each field is True or False.

    Raises:
        ValueError: one is not.
    """
    for name in fields:
        value = getattr(node, name)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{_where(node, name)} must be True or False, got {value!r}.")
        _store(node, name, bool(value))


def name_field(node: Node, field: str, allowed: Iterable[str], *, or_function: bool = False) -> None:
    """Check that a field is one of the names ``allowed``, or with ``or_function`` a function.

    Raises:
        ValueError: it is neither.
    """
    one_of(_where(node, field), getattr(node, field), allowed, or_function=or_function)


def one_of(name: str, value: object, allowed: Iterable[str], *, or_function: bool = False) -> None:
    """Check that ``value`` is one of the names ``allowed``, or with ``or_function`` a function.

    Raises:
        ValueError: it is neither.
    """
    names = tuple(allowed)
    if not ((or_function and callable(value)) or (isinstance(value, str) and value in names)):
        more = ", or a function" if or_function else ""
        raise ValueError(f"{name} must be one of {', '.join(names)}{more}; got {value!r}.")


def image_shape(value: Value) -> tuple[int, int, int]:
    """Height, width and channels of an input.

    Raises:
        ValueError: the input is flat.
    """
    if len(value.shape) != 3:
        raise ValueError(f"needs an input of shape (h, w, c), got {value.shape}.")
    h, w, c = value.shape
    return h, w, c


def output_hw(value: Value, window: Pair, strides: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    """Height and width of the output of a window that slides over an input.

    Raises:
        ValueError: the input is flat, or smaller than the window.
    """
    h, w, _ = image_shape(value)
    size = Geometry((h, w), window, strides, padding, dilation).output_hw
    if min(size) < 1:
        spread = "" if dilation == (1, 1) else f" and dilation {dilation}"
        raise ValueError(f"a window of {window} does not fit an input of {h}×{w} with padding {padding}{spread}.")
    return size


def _where(node: Node, field: str) -> str:
    return f"node {node.name!r}: {field}" if node.name else field


def _store(node: Node, field: str, value: Any) -> None:
    object.__setattr__(node, field, value)
