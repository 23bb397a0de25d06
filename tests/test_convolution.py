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


ROUNDED = [((6, 6), (3, 3), (1, 1)), ((5, 7), (1, 3), (0, 1)), ((6, 6), (5, 3), (2, 0)), ((4, 4), (1, 1), (0, 0))]


def rounding(monkeypatch):
    """On a machine whose gradients are products of bfloat16, whatever the width."""
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(convolution, "_NARROWEST_ROUNDED", 1)


@pytest.mark.parametrize(("shape", "kernel", "padding"), ROUNDED)
def test_gradients_in_bfloat16_are_those_of_what_was_rounded(monkeypatch, shape, kernel, padding):
    rounding(monkeypatch)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers(shape, kernel, 8, 5))
    y, pull = jax.vjp(jax.jit(partial(accumulate, bits=8, padding=padding)), spikes, integers)
    pushed = jax.random.normal(jax.random.key(0), y.shape)
    rounded = pushed.astype(jnp.bfloat16).astype(jnp.float32)
    plain = jax.vjp(partial(convolve, padding=padding), spikes, integers)[1]
    for got, wanted, unrounded in zip(pull(pushed), plain(rounded), plain(pushed), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-3)
        assert np.abs(got - unrounded).max() > 1e-3  # or nothing was rounded


def test_gradients_in_bfloat16_under_every_transformation(monkeypatch):
    rounding(monkeypatch)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), (3, 3), 8, 5))
    fast, plain = partial(accumulate, bits=8, padding=(1, 1)), partial(convolve, padding=(1, 1))
    both = jnp.stack([spikes, 1 - spikes])
    turn = jax.random.normal(jax.random.key(0), integers.shape)
    pushed = jax.random.normal(jax.random.key(1), plain(spikes, integers).shape)

    def pulled(run, spikes, integers):
        return jax.vjp(run, spikes, integers)[1](pushed)

    def total(run, integers):
        return jnp.sum(jax.vmap(run, (0, None))(both, integers) * pushed[None])

    def loss(run, integers):
        return jnp.mean(jnp.square(run(spikes, integers)))

    def checks(run):
        yield jax.jvp(partial(run, spikes), (integers,), (turn,))[1]
        yield from jax.vmap(partial(pulled, run), (0, None))(both, integers)
        yield jax.grad(partial(total, run))(integers)
        # The second derivative passes through the rounded gradients.
        yield jax.jvp(jax.grad(partial(loss, run)), (integers,), (turn,))[1]
        yield jax.grad(lambda k: jnp.vdot(jax.grad(partial(loss, run))(k), turn))(integers)

    for got, wanted in zip(checks(fast), checks(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("flags", "shape", "kernel", "strides", "padding", "dtype", "rounded"),
    [
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, True),
        ({"amx_bf16"}, (8, 8), (1, 1, 128, 256), (1, 1), (0, 0), jnp.float32, True),
        ({"avx2"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 64, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (2, 2), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (2, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (3, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.bfloat16, False),
    ],
)
def test_gradients_are_rounded_where_that_is_fast(monkeypatch, flags, shape, kernel, strides, padding, dtype, rounded):
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    spikes, integers = jnp.zeros((1, *shape, kernel[2]), dtype), jnp.zeros(kernel, dtype)
    run = partial(accumulate, bits=8, strides=strides, padding=padding, form="float32")
    text = str(jax.make_jaxpr(lambda *operands: jax.vjp(run, *operands)[1](run(*operands)))(spikes, integers))
    assert ("u16" in text) == rounded


def test_unknown_form():
    with pytest.raises(ValueError, match="form must be float32, bfloat16 or int8, got 'int4'"):
        accumulate(jnp.zeros((1, 3, 3, 2)), jnp.ones((3, 3, 2, 2)), bits=2, form="int4")  # pyright: ignore


@pytest.mark.parametrize(
    ("flags", "kernel", "form"),
    [
        ({"amx_int8", "avx512_vnni"}, (3, 3, 64, 64), "int8"),
        ({"amx_int8"}, (3, 3, 8, 64), "float32"),
        ({"avx512_vnni"}, (3, 3, 64, 256), "int8"),
        ({"avx512_vnni"}, (3, 3, 32, 256), "float32"),
        ({"avx2"}, (3, 3, 512, 512), "float32"),
    ],
)
def test_the_form_follows_the_processor(monkeypatch, flags, kernel, form):
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    assert convolution._fastest_form(kernel) == form


def losses(monkeypatch, form, seed, *, rounded=False):
    monkeypatch.setattr(convolution, "_fastest_form", lambda kernel: form)
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset({"avx512_bf16"} if rounded else ()))
    monkeypatch.setattr(convolution, "_NARROWEST_ROUNDED", 1)
    graph, tx = residual_graph(Quantizer(8)), optimizer("adam", 0.01)
    step = jax.jit(make_train_step(graph, tx, loss=cross_entropy))
    state = init_state(init_variables(graph, jax.random.key(seed)), tx, jax.random.key(seed))
    images, labels = images_of(graph, 16), jnp.arange(16) % graph.values[graph.output.name].shape[-1]
    text = step.lower(state, images, labels).as_text()
    assert ("xi8>" in text, "xui16>" in text) == (form == "int8", rounded)
    found = []
    for _ in range(50):
        state, metrics = step(state, images, labels)
        found.append(float(metrics["loss"]))
    return np.asarray(found)


def test_training_in_int8_is_training_in_float32(monkeypatch):
    exact, other = losses(monkeypatch, "float32", 0), losses(monkeypatch, "float32", 1)
    # The same losses, until gradients that were rounded have moved the weights.
    for form, rounded, same in (("int8", False, 5), ("bfloat16", False, 5), ("int8", True, 1)):
        fast = losses(monkeypatch, form, 0, rounded=rounded)
        np.testing.assert_allclose(fast[:same], exact[:same], rtol=1e-5)
        # Then rounding elsewhere in the program may grow, as far as another seed at most.
        assert abs(fast[-10:].mean() - exact[-10:].mean()) <= abs(other[-10:].mean() - exact[-10:].mean()) + 1e-3


def test_a_program_for_other_machines_knows_nothing_of_this_one():
    here = cpu_flags()
    with portable():
        assert cpu_flags() == frozenset()
    assert cpu_flags() == here
