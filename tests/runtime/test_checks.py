"""Checks of single numbers: valid ones, and one short sentence for others."""

import numpy as np
import pytest

from qpsnn_jax.runtime.checks import finite, integer


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_integers_of_any_kind_are_plain(value):
    assert type(integer("n", value, 0)) is int
    assert integer("n", value, 3, 3) == 3


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, np.float32(3), np.array([3]), 2, 5, 10**40, b"3"])
def test_other_integers_raise(value):
    with pytest.raises(ValueError, match="^n must be an integer from 3 to 4, got .*") as caught:
        integer("n", value, 3, 4)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5)])
def test_numbers_of_any_kind_are_plain(value):
    assert type(finite("x", value, 0, 1)) is float
    assert finite("x", value, 0.5, 0.5) == 0.5
    assert finite("x", 1, 0, 1) == 1


OTHERS = [True, "0.5", None, float("nan"), float("inf"), -0.1, 2, 10**400, 0.5j, np.complex64(0.5), np.array(0.5j)]


@pytest.mark.parametrize("value", [*OTHERS, np.full((99, 99), 0.5), np.array("0.5"), np.zeros((), "V3"), [0.5]])
def test_other_numbers_raise(value):
    with pytest.raises(ValueError, match="^x must be a number from 0 to 1, got .*") as caught:
        finite("x", value, 0, 1)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)
