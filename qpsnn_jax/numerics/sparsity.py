"""Masks of weights, and the index by which a file stores which weights are left. Uses only NumPy.

A mask has the shape of its weights, ``… i o``, and is 0 where a weight is removed. An index is a list of numbers of few
bits, in C order of the mask. Of three kinds the one of the fewest bits is taken:

- ``bitmap``: a bit for each weight;
- ``n_of_m``: where every m consecutive inputs have n weights left, the number of that choice among all of n out of m;
- ``runs``: before each weight the number of removed ones, in k bits; the largest number stands for so many removed
  weights and no other.
"""

import math
from functools import lru_cache
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

IndexKind = Literal["bitmap", "n_of_m", "runs"]
_WIDEST = 8


class Index(NamedTuple):
    """The index of a mask: its kind, the bits of a number, how many numbers, and of ``n_of_m`` these two."""

    kind: IndexKind
    bits: int
    length: int
    n: int = 0
    m: int = 0

    @property
    def size(self) -> int:
        """Its bits."""
        return self.bits * self.length


def lowest_removed(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The mask that removes the ⌊sparsity · n⌋ weights with the lowest scores, of equal ones the first; float32."""
    mask = np.ones(scores.size, np.float32)
    mask[np.argsort(scores, axis=None, kind="stable")[: math.floor(sparsity * scores.size + 1e-9)]] = 0
    return mask.reshape(scores.shape)


def highest_n_of_m(scores: np.ndarray, n: int, m: int) -> np.ndarray:
    """The mask that leaves, of every m consecutive inputs of each output, the n with the highest scores; float32.

    Args:
        scores: ``… i o``.
        n, m: 0 < n < m; m divides the inputs.

    Raises:
        ValueError: n and m are not so.

    References:
        Mishra et al., Accelerating sparse deep neural networks, 2021 (2:4).
    """
    if not 0 < n < m:
        raise ValueError(f"n_of_m must be two integers n < m, both positive, got ({n}, {m}).")
    if scores.shape[-2] % m:
        raise ValueError(f"groups of {m} do not divide its {scores.shape[-2]} input channels.")
    grouped = _grouped(scores, m)
    ranks = np.argsort(np.argsort(-grouped, axis=-2, kind="stable"), axis=-2, kind="stable")
    return (ranks < n).astype(np.float32).reshape(scores.shape)


def index_of(mask: np.ndarray) -> Index:
    """The index of the fewest bits."""
    left = mask != 0
    found = [Index("bitmap", 1, left.size)]
    for m in range(2, _WIDEST + 1):
        if left.shape[-2] % m == 0 and left.size:
            counts = _grouped(left, m).sum(-2)
            if (n := int(counts.flat[0])) in range(1, m) and (counts == n).all():
                found.append(Index("n_of_m", (math.comb(m, n) - 1).bit_length(), counts.size, n, m))
    gaps = np.diff(np.flatnonzero(left), prepend=-1) - 1
    for bits in range(1, _WIDEST + 1):
        found.append(Index("runs", bits, int((gaps // (2**bits - 1) + 1).sum())))
    return min(found, key=lambda index: index.size)


def stored_bits(mask: np.ndarray, bits: float, *, has_zero: bool) -> int:
    """Bits of the weights that are left and of the index; without one where none is removed, or all take no more.

    Args:
        mask: of the weights.
        bits: of a weight.
        has_zero: whether a weight can be stored that is zero, so that no index is needed.
    """
    return min(_sizes(mask, bits, has_zero=has_zero))


def needs_index(mask: np.ndarray, bits: float, *, has_zero: bool) -> bool:
    """Whether weights are stored with an index, as :func:`stored_bits` counts."""
    sizes = _sizes(mask, bits, has_zero=has_zero)
    return len(sizes) == 1 or sizes[1] < sizes[0]


def needs_bitmap(mask: np.ndarray, bits: float, *, has_zero: bool) -> bool:
    """:func:`needs_index` if a bitmap were the only kind."""
    left = int(np.count_nonzero(mask))
    return left < mask.size and not (has_zero and mask.size * bits <= left * bits + mask.size)


def _sizes(mask: np.ndarray, bits: float, *, has_zero: bool) -> list[int]:
    """Bits without an index, where that is possible, and with one."""
    left = int(np.count_nonzero(mask))
    alone, indexed = (math.ceil(number * bits - 1e-6) for number in (mask.size, left))
    without = [alone] if has_zero or left == mask.size else []
    return [*without, indexed + index_of(mask).size]


def write_index(mask: np.ndarray, index: Index) -> np.ndarray:
    """The numbers of an index, uint8."""
    left = mask != 0
    if index.kind == "bitmap":
        return left.ravel().astype(np.uint8)
    if index.kind == "n_of_m":
        words = np.moveaxis(_grouped(left, index.m), -2, -1) @ (1 << np.arange(index.m))
        return np.searchsorted(_choices(index.n, index.m), words.ravel()).astype(np.uint8)
    top = 2**index.bits - 1
    gaps = np.diff(np.flatnonzero(left), prepend=-1) - 1
    numbers = np.full(index.length, top)
    numbers[np.cumsum(gaps // top + 1) - 1] = gaps % top
    return numbers.astype(np.uint8)


def read_index(numbers: np.ndarray, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    """The mask, bool, from the numbers of its index.

    Raises:
        ValueError: the numbers are of no mask of this shape.
    """
    mask = np.zeros(math.prod(shape), bool)
    if len(numbers) != index.length:
        raise ValueError(f"an index has {len(numbers)} numbers, not {index.length}")
    if index.kind == "bitmap" and index.length == mask.size:
        mask[:] = numbers != 0
    elif index.kind == "n_of_m" and index.m * index.length == mask.size and shape[-2] % index.m == 0:
        choices = _choices(index.n, index.m)
        if numbers.max(initial=0) >= len(choices):
            raise ValueError(f"an index has a choice above {len(choices) - 1}")
        groups = choices[numbers][:, None] >> np.arange(index.m) & 1
        lead = (*shape[:-2], shape[-2] // index.m)
        return np.moveaxis(groups.reshape(*lead, shape[-1], index.m), -1, -2).reshape(shape).astype(bool)
    elif index.kind == "runs":
        weight = numbers < 2**index.bits - 1
        places = np.cumsum(numbers + weight.astype(np.int64)) - 1
        if places.max(initial=0) >= mask.size:
            raise ValueError("an index goes beyond its weights")
        mask[places[weight]] = True
    else:
        raise ValueError("an index does not fit its weights")
    return mask.reshape(shape)


def _grouped(values: np.ndarray, m: int) -> np.ndarray:
    """``… i o`` as ``… i/m m o``."""
    return values.reshape(*values.shape[:-2], -1, m, values.shape[-1])


@lru_cache(maxsize=64)
def _choices(n: int, m: int) -> np.ndarray:
    """All words of m bits of which n are set, ascending."""
    return np.sort([sum(1 << place for place in chosen) for chosen in combinations(range(m), n)])
