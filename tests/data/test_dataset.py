"""Normalization against the textbook formula, the order of examples against its definition, and invalid data sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpsnn_jax.data.dataset import Arrays, DataSet, balanced_order
from qpsnn_jax.numerics.normalization import normalize

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def pixels(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (2, 4, 5, 6, 3), (3,)])
def test_normalize_is_the_formula(shape):
    images = pixels(shape)
    expected = (images.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)
    result = normalize(jnp.asarray(images), MEAN, STD)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_normalize_under_jit_and_vmap():
    images = jnp.asarray(pixels((4, 5, 6, 3)))
    direct = normalize(images, MEAN, STD)
    np.testing.assert_allclose(jax.jit(lambda x: normalize(x, MEAN, STD))(images), direct, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: normalize(x, MEAN, STD))(images), direct, rtol=1e-6, atol=1e-6)


def test_normalize_takes_host_arrays():
    images = pixels((2, 5, 6, 3))
    np.testing.assert_array_equal(normalize(images, MEAN, STD), normalize(jnp.asarray(images), MEAN, STD))


def test_normalizing_twice_raises():
    images = jnp.asarray(pixels((2, 5, 6, 3)))
    with pytest.raises(ValueError, match="normalize only once"):
        normalize(normalize(images, MEAN, STD), MEAN, STD)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), STD), (MEAN, (0.2,)), (MEAN, (0.2, 0.0, 0.1)), ((0.1, float("nan"), 0.1), STD), ((), ())]
)
def test_statistics_that_do_not_fit_raise(mean, std):
    with pytest.raises(ValueError, match="mean and std need 3 finite numbers"):
        normalize(jnp.asarray(pixels((2, 5, 6, 3))), mean, std)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 100))
def test_every_beginning_is_stratified(labels, seed):
    labels = np.asarray(labels)
    order = balanced_order(labels, seed)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    have = np.cumsum(np.eye(5)[labels[order]], axis=0)
    fair = np.bincount(labels, minlength=5) / len(labels) * np.arange(1, len(labels) + 1)[:, None]
    largest_in_a_round = np.ceil(np.bincount(labels).max() / (len(labels) // np.unique(labels).size))
    assert np.abs(have - fair).max() <= largest_in_a_round + 1


def test_equal_classes_are_exact():
    labels = np.repeat(np.arange(10), 50)
    order = balanced_order(labels, 1)
    for size in (10, 40, 250):
        assert np.bincount(labels[order[:size]]).tolist() == [size // 10] * 10


def test_order_depends_on_the_seed():
    labels = np.repeat(np.arange(10), 50)
    assert not np.array_equal(balanced_order(labels, 0), balanced_order(labels, 1))
    assert np.array_equal(balanced_order(labels, 0), balanced_order(labels, 0))


def arrays(images=(6, 4, 5, 1), labels=(0, 1, 2, 0, 1, 2), dtype=np.uint8):
    return Arrays(np.zeros(images, dtype), np.asarray(labels))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (arrays(labels=(0, 1, 2, 0, 1, 3)), arrays(), "training labels must be from 0 to 2, got 3 at example 5"),
        (arrays(), arrays(labels=(0, -1, 2, 0, 1, 2)), "test labels must be from 0 to 2, got -1 at example 1"),
        (arrays(labels=(0, 1)), arrays(), "training labels must be 6 integers, got int64 of shape"),
        (arrays(labels=(0.0,) * 6), arrays(), "training labels must be 6 integers, got float64"),
        (arrays(dtype=np.float32), arrays(), "training images must be uint8 n h w c or n t h w c, n at least 1"),
        (arrays(images=(6, 4, 5)), arrays(), "training images must be uint8"),
        (arrays(), arrays(images=(0, 4, 5, 1), labels=()), "test images must be uint8"),
        (arrays(), arrays(images=(6, 4, 4, 1)), r"training images have the shape \(4, 5, 1\) and test images"),
        (arrays(images=(6, 4, 5, 3)), arrays(images=(6, 4, 5, 3)), "mean and std need 3 finite numbers"),
    ],
)
def test_a_data_set_whose_parts_do_not_fit_raises_by_name(train, test, words):
    with pytest.raises(ValueError, match=f"^spots: {words}"):
        DataSet("spots", train, test, 3, (0.5,), (0.25,))
