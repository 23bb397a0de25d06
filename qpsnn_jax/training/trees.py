"""Trees of arrays in a training step: whether all are finite, which of two is taken, their moving average."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.runtime.compiling import fast_compile_jit

Variables = dict[str, Any]


@fast_compile_jit
def all_finite(tree: Any) -> Array:
    """Whether no number in a tree of arrays is NaN or infinite, computed on the devices of the arrays."""
    return all_finite_in(tree)


def all_finite_in(tree: Any) -> Array:
    """:func:`all_finite` as a part of another program."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def any_change(changes: Any) -> Array:
    """Whether an update of the parameters changes any of them."""
    return jnp.any(jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(changes)]))


def select(condition: Array, yes: Any, no: Any) -> Any:
    """One of two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def updated_ema(ema: Variables, variables: Variables, decay: float) -> Variables:
    """An exponential moving average after a step."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, {name: variables[name] for name in ema})
