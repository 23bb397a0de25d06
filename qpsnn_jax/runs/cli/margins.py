"""The margin of early exit, as an option."""

import math
from typing import Any

import click


class _Margin(click.FloatRange):
    """A finite number of 0 or more; a range alone takes NaN, which is never outside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        margin = super().convert(value, param, ctx)
        if not math.isfinite(margin):
            raise ValueError(f"the threshold of early exit must be a finite number, got {margin}.")
        return margin


MARGIN = _Margin(0)
