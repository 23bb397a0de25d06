"""The index of a mask: read back, its bits counted one by one, and damage."""

import math
from itertools import combinations

import numpy as np
import pytest

from qpsnn_jax.numerics.sparsity import (
    Index,
    highest_n_of_m,
    index_of,
    lowest_removed,
    needs_index,
    read_index,
    stored_bits,
    write_index,
)

DRAW = np.random.default_rng(0)
SCORES = DRAW.normal(size=(3, 3, 8, 5))
MASKS = {
    "bitmap": DRAW.random((3, 3, 8, 5)) < 0.6,
    "n_of_m": highest_n_of_m(SCORES, 2, 4),
    "runs": DRAW.random((3, 3, 8, 25)) < 0.03,
    "full": np.ones((2, 5)),
    "empty": np.zeros((4, 6)),
}


def runs_of(mask: np.ndarray, bits: int) -> list[int]:
    """The numbers of an index of runs, weight by weight."""
    numbers, gap = [], 0
    for left in mask.ravel():
        if left or (gap := gap + 1) == 2**bits - 1:
            numbers.append(gap)
            gap = 0
    while numbers and numbers[-1] == 2**bits - 1:  # nothing follows
        numbers.pop()
    return numbers


@pytest.mark.parametrize("name", MASKS)
def test_an_index_is_read_back_and_is_the_smallest_of_all(name):
    mask = MASKS[name]
    index = index_of(mask)
    assert name in ("full", "empty", index.kind)
    numbers = write_index(mask, index)
    assert numbers.dtype == np.uint8
    assert numbers.max(initial=0) < 2**index.bits
    np.testing.assert_array_equal(read_index(numbers, index, mask.shape), mask != 0)
    sizes = [mask.size, *(bits * len(runs_of(mask, bits)) for bits in range(1, 9))]
    if name == "n_of_m":
        sizes.append(mask.size // 4 * 3)  # 6 choices of 2 of 4 take 3 bits
    assert index.size == min(sizes)
    if index.kind == "runs":
        assert numbers.tolist() == runs_of(mask, index.bits)


def test_the_number_of_a_choice_is_its_rank():
    index = Index("n_of_m", 3, 6, 2, 4)
    mask = np.zeros((4, 6))
    words = sorted(sum(1 << i for i in chosen) for chosen in combinations(range(4), 2))
    for column, word in enumerate(words):
        mask[:, column] = [word >> i & 1 for i in range(4)]
    np.testing.assert_array_equal(write_index(mask, index), range(6))


@pytest.mark.parametrize(
    ("bits", "left", "has_zero"), [(2, 30, False), (2, 36, False), (32, 34, True), (1.6, 12, True)]
)
def test_stored_bits_are_those_of_the_weights_that_are_left_and_of_their_index(bits, left, has_zero):
    mask = np.zeros(36)
    mask[DRAW.permutation(36)[:left]] = 1
    mask = mask.reshape(6, 6)
    choices = [math.ceil(left * bits) + index_of(mask).size]
    if has_zero or left == 36:
        choices.append(math.ceil(36 * bits))
    assert stored_bits(mask, bits, has_zero=has_zero) == min(choices)
    assert needs_index(mask, bits, has_zero=has_zero) == (min(choices) == choices[0] and choices[0] not in choices[1:])


def test_masks_leave_the_highest_scores():
    mask = lowest_removed(SCORES, 0.3)
    assert mask.dtype == np.float32
    assert int((mask == 0).sum()) == math.floor(0.3 * SCORES.size)
    assert SCORES[mask == 0].max() < SCORES[mask == 1].min()
    np.testing.assert_array_equal(lowest_removed(np.zeros((2, 4)), 0.5), [[0] * 4, [1] * 4])
    for place in np.ndindex(3, 3, 2, 5):
        group = SCORES[place[0], place[1], 4 * place[2] : 4 * place[2] + 4, place[3]]
        own = MASKS["n_of_m"][place[0], place[1], 4 * place[2] : 4 * place[2] + 4, place[3]]
        assert set(np.flatnonzero(own)) == set(np.argsort(group)[2:])
    np.testing.assert_array_equal(highest_n_of_m(np.zeros((4, 1)), 1, 4).ravel(), [1, 0, 0, 0])


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (2, 3)])
def test_n_of_m_that_cannot_be_raises(n, m):
    with pytest.raises(ValueError, match="n_of_m must be|do not divide its 8 input channels"):
        highest_n_of_m(SCORES, n, m)


@pytest.mark.parametrize(
    ("index", "numbers", "shape"),
    [
        (Index("bitmap", 1, 7), [1] * 7, (2, 4)),
        (Index("bitmap", 1, 8), [1] * 7, (2, 4)),
        (Index("n_of_m", 3, 2, 2, 4), [0, 6], (4, 2)),
        (Index("n_of_m", 3, 2, 2, 4), [0, 5], (2, 4)),
        (Index("runs", 2, 3), [3, 3, 2], (2, 4)),
        (Index("runs", 2, 3), [3, 3, 3], (2, 4)),
    ],
)
def test_an_index_of_no_mask_raises(index, numbers, shape):
    with pytest.raises(ValueError, match="index"):
        read_index(np.array(numbers, np.uint8), index, shape)
