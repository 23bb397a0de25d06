"""Programs that are lowered for a TPU from a CPU, and run on the CPU all the same."""

from collections.abc import Callable
from typing import Any

import jax
from jax import export

ANYWHERE = [export.DisabledSafetyCheck.platform()]


def lower_for(platform: str, function: Callable[..., Any], *operands: Any) -> export.Exported:
    """The program of a function as ``platform`` gets it; ``call`` of it runs anywhere."""
    return export.export(jax.jit(function), platforms=[platform], disabled_checks=ANYWHERE)(*operands)


def lowered_for_tpu(function: Callable[..., Any], *operands: Any) -> Any:
    """The result of a function by the program that a TPU gets."""
    return jax.jit(lower_for("tpu", function, *operands).call)(*operands)
