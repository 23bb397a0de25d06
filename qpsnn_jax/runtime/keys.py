"""Random keys: their check, and conversion of typed ones to and from integers, for code that takes only numbers."""

from typing import Any

import jax
import jax.numpy as jnp


def is_key(leaf: Any) -> bool:
    """Whether an array, or a ``ShapeDtypeStruct``, is of typed random keys (``jax.random.key``)."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_key(key: Any) -> None:
    """Check that ``key`` is a random key, typed or raw.

    Raises:
        ValueError: it is something else, such as a seed.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (is_key(key) or dtype == jnp.uint32):
        raise ValueError(f"key must be a random key, such as jax.random.key(0), got {key!r}.")


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
