"""Products of spikes on GPUs and TPUs: of bfloat16 numbers, exact, also in what is lowered for them from a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import gradients_by_sums, spikes_and_integers
from on_accelerators import lowered_for_tpu

from qpsnn_jax.kernels.accelerators import narrow
from qpsnn_jax.kernels.algorithm import ConvSpec
from qpsnn_jax.kernels.convolution import conv_spikes
from qpsnn_jax.kernels.dispatch import CONVOLUTION
from qpsnn_jax.kernels.products import einsum_spikes

OPTIONS = {"strides": (2, 1), "padding": (1, 0)}


def operands(channels=40, bits=8):
    """Sums of up to 360 integers, which need 17 bits, are not exact where they are rounded to bfloat16 on the way."""
    return tuple(jnp.asarray(x, jnp.float32) for x in spikes_and_integers((5, 4), (3, 3), bits, channels))


def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))


def test_sums_are_exact_and_gradients_too_unless_they_are_to_be_fast():
    spikes, integers = operands()
    shape = jax.eval_shape(partial(conv_spikes, bits=8, **OPTIONS), spikes, integers).shape
    cotangent = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def both(precision):
        def run(*given):
            y, pull = jax.vjp(partial(conv_spikes, bits=8, precision=precision, **OPTIONS), *given)
            return y, pull(cotangent)

        return lowered_for_tpu(run, spikes, integers)

    wanted = gradients_by_sums(spikes, integers, cotangent, **OPTIONS)
    of_rounded = gradients_by_sums(spikes, integers, rounded(cotangent), **OPTIONS)
    y, grads = both("auto")
    np.testing.assert_array_equal(y, conv_spikes(spikes, integers, bits=8, precision="exact", **OPTIONS))
    for each, exact in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(each, exact, rtol=1e-5, atol=1e-4)
    _, grads = both("fast")
    for each, expected, exact in zip(grads, of_rounded, wanted, strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-3)
        assert np.abs(each - exact).max() > 1e-2


@pytest.mark.parametrize(("odd", "groups"), [(True, 4), (False, 1), (False, 4)])
def test_other_integers_and_groups_are_exact_too(odd, groups):
    spikes, integers = operands()
    integers = (
        integers[:, :, ::groups, :4]
        if odd
        else integers[:, :, ::groups, :4] - (jnp.arange(4.0) % 2).reshape(1, 1, 1, 4)
    )
    run = partial(conv_spikes, bits=8, odd=odd, groups=groups)
    (found,) = lowered_for_tpu(lambda *given: (run(*given),), spikes, integers)
    np.testing.assert_array_equal(found, run(spikes, integers, precision="exact"))


def test_products_of_spikes():
    draw = np.random.default_rng(0)
    spikes, integers = (draw.random((6, 300)) < 0.5) * 1.0, draw.integers(-255, 256, (300, 7))
    given = jnp.asarray(spikes, jnp.float32), jnp.asarray(integers, jnp.float32)
    cotangent = jnp.asarray(draw.normal(size=(6, 7)), jnp.float32)

    def both(precision):
        def run(*given):
            product = partial(einsum_spikes, "bi,io->bo", exact=True, precision=precision)
            y, pull = jax.vjp(product, *given)
            return y, pull(cotangent)

        return lowered_for_tpu(run, *given)

    for precision, ct in (("auto", cotangent), ("fast", rounded(cotangent))):
        y, (by_spikes, by_integers) = both(precision)
        np.testing.assert_array_equal(y, spikes @ integers)
        np.testing.assert_allclose(by_spikes, np.asarray(ct) @ integers.T, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(by_integers, spikes.T @ np.asarray(ct), rtol=1e-5, atol=1e-4)


def test_every_product_within_is_narrow():
    """That of a dense matrix too, for maps smaller than the kernel."""
    x, k = jnp.ones((2, 2, 3, 4)), jnp.ones((5, 5, 4, 3))
    spec = ConvSpec.of(x, k, 8, (1, 1), (2, 2))
    text = jax.jit(lambda x, k: narrow(CONVOLUTION[0]).run(x, k, spec)).lower(x, k).as_text()
    assert "(tensor<2x24xbf16>, tensor<24x18xbf16>) -> tensor<2x18xf32>" in text
    assert "convolution" not in text
