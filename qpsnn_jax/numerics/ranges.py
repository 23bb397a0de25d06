"""Ranges of options that may be traced."""

from collections.abc import Callable
from typing import Any

from jax.core import Tracer


def passes(number: Any, test: Callable[[Any], Any]) -> bool:
    """Whether a scalar passes a test of its range, as one that is traced is taken to."""
    return isinstance(number, Tracer) or bool(test(number))
