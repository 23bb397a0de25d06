"""Programs that run a single time."""

from collections.abc import Callable
from typing import Any

import jax


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """``jax.jit(function)(*arguments)``, compiled without optimization: sooner, to run slower."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)
