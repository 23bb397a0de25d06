"""Early exit against a loop over examples and steps."""

import jax
import numpy as np
import pytest

from qpsnn_jax import early_exit


def leave(currents, threshold):
    """Compiled, for one threshold."""
    return jax.device_get(jax.jit(lambda currents: early_exit(currents, threshold))(currents))


def by_loop(currents, threshold):
    found = []
    for example in currents:
        total = np.zeros(example.shape[-1])
        for t, current in enumerate(example, 1):
            total = total + current
            first, second = sorted(total)[-1], sorted(total)[-2]
            if first - second >= threshold or t == len(example):
                found.append((int(np.argmax(total)), t))
                break
    return found


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.5, 1e9])
def test_each_example_leaves_at_its_first_clear_step(threshold):
    currents = np.random.default_rng(0).normal(size=(40, 5, 4)).astype(np.float32)
    predictions, steps = leave(currents, threshold)
    expected = by_loop(currents, threshold)
    assert list(zip(predictions.tolist(), steps.tolist(), strict=True)) == expected
    assert {0.0: {1}, 1e9: {5}}.get(threshold, set(steps.tolist())) == set(steps.tolist())
    assert threshold in (0.0, 1e9) or len(set(steps.tolist())) > 2


@pytest.mark.parametrize("threshold", [0, 1, 3, 2**32 - 1])
def test_integers_leave_by_an_exact_margin(threshold):
    currents = np.random.default_rng(0).integers(-2, 4, (40, 5, 4), np.int32)
    currents[0, 0] = [2**31 - 1, 1 - 2**31, -(2**31), 1 - 2**31]
    predictions, steps = leave(currents, threshold)
    assert list(zip(predictions.tolist(), steps.tolist(), strict=True))[1:] == by_loop(currents[1:], threshold)
    assert (predictions[0], steps[0]) == (0, 1) or threshold == 2**32 - 1
    with pytest.raises(ValueError, match="needs an integer threshold for currents of int32"):
        early_exit(currents, 0.5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_narrow_integers_are_added_without_overflow(dtype):
    currents = np.asarray([[[100, 0], [100, 0], [0, 0]], [[100, 27], [0, 0], [0, 0]]], dtype)
    assert leave(currents, 150)[1].tolist() == [2, 3]
    assert leave(currents, -1)[1].tolist() == [1, 1]


def test_wide_integers_and_currents_without_steps_raise():
    with pytest.raises(ValueError, match="integers of up to 32 bits with sign, got uint32"):
        early_exit(np.zeros((2, 3, 4), np.uint32), 1)
    with pytest.raises(ValueError, match=r"compares two classes at some step, got currents of shape \(4,\)"):
        early_exit(np.zeros(4, np.float32), 1.0)


def test_ties_a_threshold_for_each_and_one_class():
    equal = np.zeros((2, 3, 4), np.float32)
    predictions, steps = leave(equal, np.float32([0, 0.5]))
    assert (predictions.tolist(), steps.tolist()) == ([0, 0], [1, 3])
    with pytest.raises(ValueError, match=r"compares two classes at some step, got currents of shape \(2, 3, 1\)"):
        early_exit(equal[..., :1], 1.0)
