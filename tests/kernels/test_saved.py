"""Four spikes in a byte for the backward pass: what is lowered for a TPU computes what everything else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_accelerators import lower_for, lowered_for_tpu

from experiments.scaling import KEEPS_BARRIERS
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.neurons import lif_trace
from qpsnn_jax.kernels.pooling import pool_tiles
from qpsnn_jax.kernels.products import einsum_spikes
from qpsnn_jax.kernels.saved import Saved, when_needed
from qpsnn_jax.numerics.surrogate import triangular

DRAW = np.random.default_rng(0)
SPIKES = jnp.asarray(DRAW.random((4, 6, 6, 3)) < 0.5, jnp.float32)
ODD = jnp.asarray(2 * DRAW.integers(0, 4, (3, 3, 3, 4)) - 3, jnp.float32)


def round_trip(x):
    saved = Saved.of(x)
    return saved.restore(), saved.numbers


@pytest.mark.parametrize("width", [0, 1, 3, 4, 6, 9])
def test_spikes_are_restored_with_their_nans(width):
    given = jnp.asarray(DRAW.random((2, 3, width, 5)) < 0.5, jnp.float32).at[:1, 0, :3, 0].set(jnp.nan)
    found, numbers = lowered_for_tpu(round_trip, given)
    np.testing.assert_array_equal(found, given)
    assert (numbers.dtype, numbers.shape) == (jnp.uint8, (2, 3, -(-width // 4), 5))
    for i in range(width):
        pair = (numbers[:, :, i // 4] >> 2 * (i % 4)) & 3
        np.testing.assert_array_equal(pair, jnp.where(jnp.isnan(given[:, :, i]), 2, given[:, :, i]))
    for empty in (given[:0], given[..., :0]):
        assert lowered_for_tpu(round_trip, empty)[0].shape == empty.shape
    found, numbers = jax.jit(round_trip)(given)
    np.testing.assert_array_equal(found, given)
    assert not numbers.any()  # of a CPU, which keeps the spikes


def test_spikes_are_restored_in_a_batch_along_any_axis():
    for shape, axis in (((4, 5), 0), ((4, 5), 1), ((4, 6, 5), 2), ((4, 6, 5, 3), 3), ((4, 6, 5, 3), 2)):
        given = jnp.asarray(DRAW.random(shape) < 0.5, jnp.float32)
        found, _ = lowered_for_tpu(jax.vmap(round_trip, axis, axis), given)
        np.testing.assert_array_equal(found, given)

    def of_a_layer(x, k):
        """Each its own gradient by a dense kernel, whose spikes ``b c`` are one to a byte."""
        return jax.vmap(jax.grad(lambda k, x: jnp.sum(einsum_spikes("bi,io->bo", x, k, exact=True) ** 3)), (None, 0))(
            k, x
        )

    x, k = SPIKES.reshape(4, 12, 9), ODD.reshape(9, 12)
    expected = jnp.stack([jax.grad(lambda k, x=x: jnp.sum((x @ k) ** 3))(k) for x in x])
    for found in (lowered_for_tpu(of_a_layer, x, k), of_a_layer(x, k)):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)

    def gradients(x, cotangents):
        """Of a batch of cotangents, of which the saved spikes are not part."""
        pull = jax.vjp(lambda k: conv_spikes(x, k, bits=2, precision="auto"), ODD)[1]
        return jax.vmap(pull)(cotangents)[0]

    cotangents = jnp.asarray(DRAW.normal(size=(2, 4, 4, 4, 4)), jnp.float32)
    found = lowered_for_tpu(gradients, SPIKES, cotangents)
    np.testing.assert_allclose(found, gradients(SPIKES, cotangents), rtol=1e-6, atol=1e-5)


def every_transform(precision):
    """Gradients of every order and under every transform, of a convolution and a pool."""

    def loss(x, k):
        pooled = pool_tiles(x, (2, 2), precision != "exact")
        sums = conv_spikes(x, k, bits=2, precision=precision)
        return jnp.sum(sums**3) + jnp.sum(convolve(pooled, k / 8, precision=precision, spikes=True) ** 3)

    def product(x, k):
        return jax.grad(lambda x: jnp.vdot(jax.grad(loss, 1)(x, k), k))(x)

    def on_a_mesh(x, k):
        mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (jax.P("devices"), jax.P()), "out_specs": jax.P()}
        return jax.grad(lambda k: jax.shard_map(lambda x, k: loss(x, k), mesh=mesh, **specs, check_vma=False)(x, k))(k)

    def results(x, k):
        yield from jax.grad(loss, (0, 1))(x, k)
        yield product(x, k)
        yield jax.grad(jax.checkpoint(loss), 1)(x, k)
        yield jax.vmap(jax.grad(loss, 1), (-1, None))(jnp.stack([x, 1 - x], -1), k)
        yield on_a_mesh(x, k)

    return lambda x, k: list(results(x, k))


def test_gradients_of_saved_spikes_under_every_transform():
    found = lowered_for_tpu(every_transform("auto"), SPIKES, ODD)
    for got, wanted in zip(found, jax.jit(every_transform("exact"))(SPIKES, ODD), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-5 * np.abs(wanted).max())


def test_what_waits_for_the_cotangent_waits_on_accelerators_alone():
    def run(x, y):
        (x,), y = when_needed((x,), y)
        return x + y

    programs = {name: lower_for(name, run, 1.0, 2.0).mlir_module() for name in ("cpu", "cuda")}
    assert {name: "optimization_barrier" in text for name, text in programs.items()} == {"cpu": False, "cuda": True}
    assert jax.jvp(run, (1.0, 2.0), (3.0, 4.0)) == (3.0, 7.0)


def layers(kernels, x):
    """The sum of the spikes of the last of some layers, ``b t h w c``."""
    for kernel in kernels:
        sums = conv_spikes(x.reshape(-1, *x.shape[2:]), kernel, bits=2, padding=(1, 1))
        options = {"tau": 0.5, "threshold": 1.0, "surrogate": triangular, "fire": ">=", "reset": "hard"}
        x = lif_trace(sums.reshape(x.shape), **options, detach_reset=False)[1].spikes
    return jnp.sum(x)


def test_a_gradient_takes_two_fifths_less_memory(monkeypatch):
    kernels = [jnp.ones((3, 3, 16, 16))] * 12
    x, temporary = jnp.ones((4, 2, 8, 8, 16)), []
    for patched in (False, True):
        if patched:  # the spikes themselves are saved
            monkeypatch.setattr(Saved, "of", lambda spikes: spikes)
        exported = lower_for("tpu", jax.grad(layers), kernels, x)
        compiled = jax.jit(exported.call, compiler_options=KEEPS_BARRIERS).lower(kernels, x).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[0] < 0.6 * temporary[1]
