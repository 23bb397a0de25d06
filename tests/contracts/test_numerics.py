"""What every numeric function promises: the same under jit, vmap, grad and dtype. One table, run over all of them."""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.kernels import convolution, plain
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.numerics import losses, neurons, quantization, surrogate
from qpsnn_jax.pruning import rank, scores

DRAW = np.random.default_rng(0)
LABELS = np.array([0, 2])
SPIKES = (DRAW.random((3, 2, 4, 6, 5, 3)) < 0.4).astype(np.float32)
COUNTS = SPIKES.sum(2).astype(np.uint8)
CODES = DRAW.integers(0, 16, (4, 5))
ALGORITHMS = ("float32", "bfloat16", "int8", "winograd", "popcount")
F32, BF16 = jnp.float32, jnp.bfloat16


def normal(*shape: int) -> np.ndarray:
    return DRAW.normal(size=(3, *shape)).astype(np.float32)


@dataclass(frozen=True)
class Contract:
    """A function of one array, three inputs for it, and what it promises."""

    name: str
    function: Callable
    batch: np.ndarray
    grad: bool = True
    forward: bool = False
    floats: tuple = (F32, BF16)
    out: jnp.dtype | None = None
    tolerance: float = 1e-5

    def __str__(self) -> str:
        return self.name


MAPS = normal(2, 5, 4, 3)
CURRENTS, WEIGHTS, READOUT = normal(2, 4, 3, 5), normal(3, 3, 2, 4), normal(2, 4, 5)
DISTANCE, KERNEL, GAMMAS = normal(4, 6), normal(4, 5)[0], np.abs(normal(1, 5))


def neuron_table() -> list[Contract]:
    options = {"reset": "soft", "fire": ">", "detach_reset": True, "surrogate": surrogate.sigmoid}
    return [
        Contract("triangular", surrogate.triangular, DISTANCE, forward=True),
        Contract("rectangular", surrogate.rectangular, DISTANCE, grad=False, forward=True),
        Contract("sigmoid", surrogate.sigmoid, DISTANCE, forward=True),
        Contract("arctan", surrogate.arctan, DISTANCE, forward=True),
        Contract("fire_step", surrogate.fire_step, DISTANCE),
        Contract("lif", neurons.lif, CURRENTS),
        Contract("lif-soft", lambda x: neurons.lif(x, **options), CURRENTS),
        Contract("lif_trace", neurons.lif_trace, CURRENTS),
        Contract("lif_step", lambda u: neurons.lif_step(u, u / 2), DISTANCE),
    ]


def quantizer_table() -> list[Contract]:
    q, per_channel = quantization, {"granularity": "channel"}
    return [
        Contract("quantize", lambda w: q.quantize(w, 3), WEIGHTS),
        Contract("quantize-scaled", lambda w: q.quantize(w, 8, ste="scaled", gamma="max", **per_channel), WEIGHTS),
        Contract("quantize-mse", lambda w: q.quantize(w, 3, gamma="mse", **per_channel), WEIGHTS, tolerance=1e-4),
        Contract("quantize-learned", lambda g: q.quantize(jnp.asarray(KERNEL, g.dtype), 2, gamma=g), GAMMAS),
        Contract("integer_weights", lambda w: q.integer_weights(w, 3, gamma="max", **per_channel), WEIGHTS),
        Contract("gamma_of-none", lambda w: q.gamma_of(w, 3, "none"), WEIGHTS, grad=False),
        Contract("gamma_of-max", lambda w: q.gamma_of(w, 3, "max"), WEIGHTS),
        Contract("gamma_of-percentile", lambda w: q.gamma_of(w, 3, "percentile", "channel"), WEIGHTS),
        Contract("gamma_of-mean", lambda w: q.gamma_of(w, 3, "mean", "channel"), WEIGHTS),
        Contract("gamma_of-mse", lambda w: q.gamma_of(w, 3, "mse"), WEIGHTS, grad=False, tolerance=1e-4),
        Contract("codes", lambda w: q.codes(w, 3, gamma="percentile"), WEIGHTS, grad=False),
        Contract("dequantize", lambda scale: q.dequantize(q.Codes(jnp.asarray(CODES), scale), 4), GAMMAS),
    ]


def convolution_table() -> list[Contract]:
    three = np.round(3 * normal(3, 3, 3, 2)[0])
    odd, flipped = np.clip(2 * three + 1, -7, 7), three.swapaxes(2, 3)
    square, strided = Geometry((5, 4), (3, 3), (1, 1), (1, 1)), Geometry((5, 4), (3, 2), (1, 2), (1, 0))
    cotangent = normal(2, 5, 2, 2)[0]

    def conv(**options: str) -> Callable:
        return lambda s: conv_spikes(s, jnp.asarray(odd, s.dtype), bits=3, padding=(1, 1), **options)

    return [
        Contract("conv_spikes", conv(), SPIKES[:, 0]),
        Contract("conv_spikes-exact", conv(precision="exact"), SPIKES[:, 0], forward=True),
        *(Contract(f"conv_spikes-{name}", conv(algorithm=name), SPIKES[:, 0]) for name in ALGORITHMS),
        Contract("convolve", lambda k: convolve(jnp.asarray(SPIKES[0, 0], k.dtype), k), normal(2, 2, 3, 4)),
        Contract(
            "convolution", lambda x: plain.convolution(x, jnp.asarray(three, x.dtype), square), MAPS, forward=True
        ),
        Contract("input_grad", lambda y: plain.input_grad(y, jnp.asarray(flipped, y.dtype), square), MAPS),
        Contract("kernel_grad", lambda x: plain.kernel_grad(x, jnp.asarray(cotangent, x.dtype), strided), MAPS),
    ]


def score_and_loss_table() -> list[Contract]:
    return [
        Contract("singular_values", scores.singular_values, normal(2, 3, 5, 4, 2), out=F32),
        Contract("svs_scores", scores.svs_scores, SPIKES, grad=False, out=F32),
        Contract("svs_ranks", lambda s: scores.svs_ranks(s, threshold="absolute"), SPIKES, grad=False),
        Contract("spike_counts", scores.spike_counts, SPIKES, grad=False, floats=()),
        Contract("count_ranks", scores.count_ranks, COUNTS, grad=False, floats=()),
        Contract("svs_ranks-exact", lambda s: scores.svs_ranks(s, threshold="exact"), SPIKES, grad=False),
        Contract("matrix_ranks", lambda s: rank.matrix_ranks(s, largest=1), SPIKES, grad=False),
        Contract("sca_scores", scores.sca_scores, normal(2, 3, 4, 4, 5)),
        Contract("magnitude_scores", scores.magnitude_scores, WEIGHTS),
        Contract("random_scores", lambda n: scores.random_scores(jax.random.key(n), 5), np.arange(3), False, floats=()),
        Contract("cross_entropy", lambda o: losses.cross_entropy(o, LABELS, label_smoothing=0.1), READOUT),
        Contract("temporal_cross_entropy", lambda o: losses.temporal_cross_entropy(o, LABELS, weight=0.1), READOUT),
    ]


TABLE = [*neuron_table(), *quantizer_table(), *convolution_table(), *score_and_loss_table()]
over = pytest.mark.parametrize


def public_functions(module: ModuleType) -> set[str]:
    own = {name: f for name, f in vars(module).items() if getattr(f, "__module__", None) == module.__name__}
    return {
        name for name, f in own.items() if callable(f) and not inspect.isclass(f) and name.islower() and name[0] != "_"
    }


def assert_trees_close(got, want, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert signature(got) == signature(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def signature(tree) -> list:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def total(contract: Contract) -> Callable:
    """A scalar of every output, weighted unevenly so that no gradient cancels."""

    def scalar(x: jax.Array) -> jax.Array:
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(contract.function(x))]
        return sum(jnp.dot(leaf, jnp.linspace(1, 2, leaf.size, dtype=leaf.dtype)) for leaf in leaves)

    return scalar


def test_every_public_function_has_a_contract():
    modules = (surrogate, neurons, quantization, losses, scores, rank, convolution, plain)
    wanted = Counter(name for module in modules for name in public_functions(module))
    found = Counter(contract.name.split("-")[0] for contract in TABLE)
    assert {"lif", "quantize", "svs_scores", "fire_step"} <= wanted.keys() == found.keys()
    assert wanted <= found  # a row for each function where modules have functions of one name


@over("contract", TABLE, ids=str)
def test_jit_equals_eager(contract: Contract):
    x = jnp.asarray(contract.batch[0])
    eager, abstract = contract.function(x), jax.eval_shape(contract.function, x)
    assert_trees_close(jax.jit(contract.function)(x), eager, contract.tolerance)
    assert signature(eager) == signature(abstract)


@over("contract", TABLE, ids=str)
def test_vmap_equals_a_loop(contract: Contract):
    batch, function = jnp.asarray(contract.batch), jax.jit(contract.function)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[function(x) for x in batch])
    assert_trees_close(jax.jit(jax.vmap(contract.function))(batch), looped, contract.tolerance)


@over(("contract", "dtype"), [pytest.param(c, d, id=f"{c}-{d.__name__}") for c in TABLE for d in c.floats])
def test_dtype_is_kept(contract: Contract, dtype):
    outputs = jax.tree.leaves(jax.jit(contract.function)(jnp.asarray(contract.batch[0], dtype)))
    kept = [leaf.dtype for leaf in outputs if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert kept == [contract.out or dtype] * len(kept)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in outputs)
    assert all(leaf.dtype == jnp.int32 for leaf in outputs if jnp.issubdtype(leaf.dtype, jnp.integer))


@over("contract", [c for c in TABLE if c.grad], ids=str)
def test_gradient_is_finite_and_shaped(contract: Contract):
    x = jnp.asarray(contract.batch[0])
    gradient = jax.jit(jax.grad(total(contract)))(x)
    assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.any(gradient != 0)


@over("contract", [c for c in TABLE if c.grad and BF16 in c.floats], ids=str)
def test_gradient_keeps_bfloat16(contract: Contract):
    x = jnp.asarray(contract.batch[0], BF16)
    assert jax.eval_shape(jax.grad(lambda x: total(contract)(x).astype(F32)), x).dtype == BF16


@over("contract", [c for c in TABLE if c.forward], ids=str)
def test_forward_mode_agrees_with_reverse(contract: Contract):
    x, tangent = jnp.asarray(contract.batch[0]), jnp.asarray(contract.batch[1])
    value, tangent_out = jax.jit(lambda x, dx: jax.jvp(total(contract), (x,), (dx,)))(x, tangent)
    pulled = jnp.vdot(jax.jit(jax.grad(total(contract)))(x), tangent)
    np.testing.assert_allclose(tangent_out, pulled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value, total(contract)(x), rtol=1e-5, atol=1e-5)
