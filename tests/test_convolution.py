"""Every form of a convolution against plain sums of whole numbers."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, residual_graph

from qpsnn_jax import convolution, cross_entropy, init_state, init_variables, make_train_step, optimizer
from qpsnn_jax.convolution import accumulate, convolve
from qpsnn_jax.graph import Quantizer
from qpsnn_jax.hardware import cpu_flags, portable

# Maps larger than, as large as, and smaller than the kernel; with taps that see only padding.
CASES = [
    ((8, 8), (3, 3), (1, 1), (1, 1)),
    ((9, 8), (3, 3), (2, 2), (1, 1)),
    ((3, 3), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (2, 2), (1, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (2, 2), (1, 1)),
    ((2, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 4), (1, 7), (1, 1), (0, 3)),
    ((2, 2), (5, 3), (2, 1), (3, 1)),
]


def by_sums(x, kernel, strides, padding):
    x = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    y = np.zeros((x.shape[0], (h - kh) // strides[0] + 1, (w - kw) // strides[1] + 1, kernel.shape[3]), np.int64)
    for i, j in product(range(y.shape[1]), range(y.shape[2])):
        window = x[:, i * strides[0] :, j * strides[1] :][:, :kh, :kw]
        y[:, i, j] = np.einsum("bklc,klco->bo", window, kernel)
    return y


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_sums_and_gradients(shape, kernel, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (5, *shape, 4))
    weights = rng.integers(-3, 4, (*kernel, 4, 6))
    expected = by_sums(x, weights, strides, padding)

    def run(x, weights):
        return convolve(x, weights, strides=strides, padding=padding)

    got, pull = jax.vjp(jax.jit(run), jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(got, expected)
    # The sums are linear in either operand, so a gradient is right if it pairs with every change as the sums do.
    pushed = rng.integers(-3, 4, expected.shape)
    by_x, by_weights = pull(jnp.asarray(pushed, jnp.float32))
    for _ in range(3):
        step, turn = rng.integers(-3, 4, x.shape), rng.integers(-3, 4, weights.shape)
        assert np.vdot(by_x, step) == np.vdot(pushed, by_sums(step, weights, strides, padding))
        assert np.vdot(by_weights, turn) == np.vdot(pushed, by_sums(x, turn, strides, padding))


FORMS = ["float32", "bfloat16", "int8"]


def spikes_and_integers(shape, kernel, bits, channels=40):
    """Spikes, and odd integers with both ends of their range; the third channel's are zero."""
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    integers = 2 * rng.integers(0, top + 1, (*kernel, channels, 16)) - top
    integers[..., 0], integers[..., 1], integers[..., 2] = top, -top, 0
    return (rng.random((5, *shape, channels)) < 0.4).astype(np.int64), integers


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), [CASES[0], CASES[1], CASES[3]])
def test_every_form_accumulates_exactly(monkeypatch, shape, kernel, strides, padding, bits, form):
    spikes, integers = spikes_and_integers(shape, kernel, bits)
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"amx_int8"}))
    run = jax.jit(partial(accumulate, bits=bits, strides=strides, padding=padding, form=form))
    got = run(jnp.asarray(spikes, jnp.float32), jnp.asarray(integers, jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, by_sums(spikes, integers, strides, padding))


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_the_convolution(form):
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), (3, 3), 8, 5))
    options = {"strides": (2, 2), "padding": (1, 1)}
    fast, plain = partial(accumulate, bits=8, form=form, **options), partial(convolve, **options)
    key = jax.random.key(0)
    turns = tuple(jax.random.normal(key, x.shape) for x in (spikes, integers))
    y, pull = jax.vjp(fast, spikes, integers)
    pushed = jax.random.normal(key, y.shape)
    for got, wanted in zip(pull(pushed), jax.vjp(plain, spikes, integers)[1](pushed), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    tangent = jax.jvp(fast, (spikes, integers), turns)[1]
    np.testing.assert_allclose(tangent, jax.jvp(plain, (spikes, integers), turns)[1], rtol=1e-5, atol=1e-3)


def test_unknown_form():
    with pytest.raises(ValueError, match="form must be float32, bfloat16 or int8, got 'int4'"):
        accumulate(jnp.zeros((1, 3, 3, 2)), jnp.ones((3, 3, 2, 2)), bits=2, form="int4")  # pyright: ignore


@pytest.mark.parametrize(
    ("flags", "kernel", "form"),
    [
        ({"amx_int8", "avx512_vnni"}, (3, 3, 64, 64), "int8"),
        ({"amx_int8"}, (3, 3, 8, 64), "float32"),
        ({"avx512_vnni"}, (3, 3, 256, 256), "int8"),
        ({"avx512_vnni"}, (3, 3, 256, 128), "float32"),
        ({"avx2"}, (3, 3, 512, 512), "float32"),
    ],
)
def test_the_form_follows_the_processor(monkeypatch, flags, kernel, form):
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    assert convolution._fastest_form(kernel) == form


def losses(monkeypatch, form, seed):
    monkeypatch.setattr(convolution, "_fastest_form", lambda kernel: form)
    graph, tx = residual_graph(Quantizer(8)), optimizer("adam", 0.01)
    step = jax.jit(make_train_step(graph, tx, loss=cross_entropy))
    state = init_state(init_variables(graph, jax.random.key(seed)), tx, jax.random.key(seed))
    images, labels = images_of(graph, 16), jnp.arange(16) % graph.values[graph.output.name].shape[-1]
    assert ("xi8>" in step.lower(state, images, labels).as_text()) == (form == "int8")
    found = []
    for _ in range(50):
        state, metrics = step(state, images, labels)
        found.append(float(metrics["loss"]))
    return np.asarray(found)


def test_training_in_int8_is_training_in_float32(monkeypatch):
    exact, other = losses(monkeypatch, "float32", 0), losses(monkeypatch, "float32", 1)
    for form in ("int8", "bfloat16"):
        fast = losses(monkeypatch, form, 0)
        np.testing.assert_allclose(fast[:5], exact[:5], rtol=1e-5)
        # Then rounding elsewhere in the program may grow, as far as another seed at most.
        assert abs(fast[-10:].mean() - exact[-10:].mean()) <= abs(other[-10:].mean() - exact[-10:].mean()) + 1e-3


def test_a_program_for_other_machines_knows_nothing_of_this_one():
    here = cpu_flags()
    with portable():
        assert cpu_flags() == frozenset()
    assert cpu_flags() == here
