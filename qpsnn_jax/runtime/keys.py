"""Conversion of typed random keys to and from integer arrays, for code that takes only arrays of numbers."""

from typing import Any

import jax
import jax.numpy as jnp


def is_key(leaf: Any) -> bool:
    """Whether an array, or a ``ShapeDtypeStruct``, is of typed random keys (``jax.random.key``)."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_to_data(leaf: Any) -> Any:
    """The integers of keys, as arrays or shapes; other leaves are returned unchanged."""
    if not is_key(leaf):
        return leaf
    return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)


def data_to_key(data: Any, like: Any) -> Any:
    """Keys of the implementation of ``like`` from their integers; ``data`` unchanged if ``like`` holds no keys."""
    if not is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
