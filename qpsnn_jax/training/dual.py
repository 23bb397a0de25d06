"""Dual ascent: the price of operations in the loss rises until a network keeps to a budget of them."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qpsnn_jax.numerics.ranges import passes


class OperationsTarget(NamedTuple):
    r"""A budget on synaptic operations in :func:`qpsnn_jax.make_train_step`, whose price λ is found by dual ascent.

    The loss has the further term :math:`λ\,\max(0, S / S^* - 1)`, with S the mean operations of an image of the batch.
    After each step

    .. math:: λ ← \max\big(0,\ λ + η\,(S / S^* - 1)\big),

    so that λ rises while the network exceeds the budget, and falls to 0 where it stays below without a price. Within
    the budget nothing is paid: λ rises far while a network cannot follow yet, as in a warm-up, and would silence it by
    the time that it has fallen again; neurons far below their threshold have no gradient to return by.

    Attributes:
        operations: S*, synaptic operations of an image over all time steps, positive.
        rate: η, positive; the change of λ in a step in which the network takes twice the budget.

    References:
        Dual ascent: Boyd et al., Distributed Optimization and Statistical Learning, 2011, section 2.1.
    """

    operations: float
    rate: float = 0.001

    def check(self) -> None:
        """Check that both numbers are positive; traced ones are not checked.

        Raises:
            ValueError: one is not; the message names it.
        """
        for name, value in self._asdict().items():
            if not passes(value, lambda x: 0 < x < math.inf):
                raise ValueError(f"the {name} of a target must be positive, got {value}.")

    def excess(self, operations: Array) -> Array:
        """:math:`S / S^* - 1`."""
        return operations / self.operations - 1


def next_price(price: Array, excess: ArrayLike, rate: ArrayLike) -> Array:
    """The price of operations after a step; see :class:`OperationsTarget`.

    Args:
        price: λ, any shape, floating.
        excess: the share by which the budget is exceeded.
        rate: η.

    Returns:
        λ, not negative, of the shape and dtype of ``price``.
    """
    change = jnp.asarray(rate, price.dtype) * jnp.asarray(excess, price.dtype)
    return jnp.maximum(price + change, 0)
