"""The contract of every numeric function, as one table of functions of one array."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.kernels import neurons as native
from qpsnn_jax.kernels import plain
from qpsnn_jax.kernels.affine import Affine
from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.kernels.moments import channel_moments
from qpsnn_jax.numerics import early_exit, gamma, learned, levels, losses, neurons, quantization, surrogate
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.pruning import rank, scores
from qpsnn_jax.training.dual import next_price
from qpsnn_jax.training.timesteps import merge_frames

DRAW = np.random.default_rng(0)
LABELS = np.array([0, 2])
SPIKES = (DRAW.random((3, 2, 4, 6, 5, 3)) < 0.4).astype(np.float32)
COUNTS = SPIKES.sum(2).astype(np.uint8)
PIXELS = np.arange(3 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 4, 3)
CODES = DRAW.integers(0, 16, (3, 3, 2, 4))
ALGORITHMS = ("float32", "bfloat16", "int8", "skipping")
F32, BF16, F16 = jnp.float32, jnp.bfloat16, jnp.float16


def normal(*shape: int) -> np.ndarray:
    return DRAW.normal(size=(3, *shape)).astype(np.float32)


@dataclass(frozen=True)
class Contract:
    """A function of one array, three inputs for it, and what it promises.

    ``grad``: it has a gradient that is not 0; ``forward``: it can be differentiated in forward mode too, else that
    raises. ``floats``: dtypes that it keeps, or turns into ``out``. ``explicit``: it takes an input that is sharded
    over an explicit mesh. ``narrows``: it may compute in narrower dtypes, which hold its small integers exactly.
    """

    name: str
    function: Callable
    batch: np.ndarray
    grad: bool = True
    forward: bool = True
    floats: tuple = (F32, BF16, F16)
    out: jnp.dtype | None = None
    tolerance: float = 1e-5
    explicit: bool = True
    narrows: bool = False

    def __str__(self) -> str:
        return self.name


MAPS = normal(2, 5, 4, 3)
CURRENTS, WEIGHTS, READOUT = normal(2, 4, 3, 5), normal(3, 3, 2, 4), normal(2, 4, 5)
# Of one shape, so that the functions share programs outside jit.
DISTANCE, KERNEL, GAMMAS = normal(3, 3, 2, 4), normal(3, 3, 2, 4)[0], np.abs(normal(1, 1, 1, 4))


def neuron_table() -> list[Contract]:
    options = {"reset": "soft", "fire": ">", "detach_reset": True, "surrogate": surrogate.sigmoid}
    numbers = {"tau": 0.5, "threshold": 1.0}
    return [
        Contract("triangular", surrogate.triangular, DISTANCE),
        Contract("rectangular", surrogate.rectangular, DISTANCE, grad=False),
        Contract("sigmoid", surrogate.sigmoid, DISTANCE),
        Contract("arctan", surrogate.arctan, DISTANCE),
        Contract("fire_step", surrogate.fire_step, DISTANCE, forward=False),
        Contract("lif", neurons.lif, CURRENTS, forward=False),
        Contract("lif-soft", lambda x: neurons.lif(x, **options), CURRENTS, forward=False),
        Contract("lif-delayed", lambda x: neurons.lif(x, reset="delayed"), CURRENTS, forward=False),
        Contract("lif_trace", neurons.lif_trace, CURRENTS, forward=False),
        Contract("lif_trace-native", lambda x: native.lif_trace(x, **options, **numbers), CURRENTS, forward=False),
        Contract(
            "lif_trace-affine",
            lambda x: native.lif_trace(Affine(x, x.max((0, 1, 2)), x.min((0, 1, 2)), x), **options, **numbers),
            CURRENTS,
            forward=False,
        ),
        Contract("channel_moments", lambda x: jnp.stack(channel_moments(x)), CURRENTS, forward=False, floats=(F32,)),
        Contract("lif_step", lambda u: neurons.lif_step(u, u / 2), DISTANCE, forward=False),
    ]


def quantizer_table() -> list[Contract]:
    q, per_channel = quantization, {"granularity": "channel"}
    custom = partial(Contract, forward=False)
    return [
        custom("quantize", lambda w: q.quantize(w, 3), WEIGHTS),
        Contract(
            "quantize-scaled",
            lambda w: q.quantize(w, 8, ste="scaled", gamma="max", **per_channel),
            WEIGHTS,
            forward=False,
        ),
        Contract(
            "quantize-mse",
            lambda w: q.quantize(w, 3, gamma="mse", **per_channel),
            WEIGHTS,
            forward=False,
            tolerance=1e-4,
        ),
        Contract(
            "quantize-learned", lambda g: q.quantize(jnp.asarray(KERNEL, g.dtype), 2, gamma=g), GAMMAS, forward=False
        ),
        custom("quantize-ternary", lambda w: q.quantize(w, 2, levels=3, gamma="mse", **per_channel), WEIGHTS),
        Contract("gamma_of-ternary", lambda w: gamma.gamma_of(w, 2, "mse", levels=3), WEIGHTS),
        Contract(
            "integer_weights", lambda w: q.integer_weights(w, 3, gamma="max", **per_channel), WEIGHTS, forward=False
        ),
        Contract(
            "quantization_stats",
            lambda w: jnp.stack(levels.quantization_stats(w, 3, gamma="max", **per_channel)),
            WEIGHTS,
            grad=False,
            out=F32,
        ),
        Contract("scale_gradient", lambda g: learned.scale_gradient(g, 0.5), GAMMAS),
        Contract("round_leak", learned.round_leak, GAMMAS),
        Contract("lsq_gamma", lambda g: learned.lsq_gamma(-g, count=20, bits=3), GAMMAS),
        Contract("gamma_of-none", lambda w: gamma.gamma_of(w, 3, "none"), WEIGHTS, grad=False),
        Contract("gamma_of-max", lambda w: gamma.gamma_of(w, 3, "max"), WEIGHTS),
        Contract("gamma_of-percentile", lambda w: gamma.gamma_of(w, 3, "percentile", "channel"), WEIGHTS),
        Contract("gamma_of-mean", lambda w: gamma.gamma_of(w, 3, "mean", "channel"), WEIGHTS),
        Contract("gamma_of-mse", lambda w: gamma.gamma_of(w, 3, "mse"), WEIGHTS, grad=False, tolerance=1e-4),
        Contract("codes", lambda w: q.codes(w, 3, gamma="percentile"), WEIGHTS, grad=False, out=F32),
        Contract("dequantize", lambda scale: q.dequantize(q.Codes(jnp.asarray(CODES), scale), 4), GAMMAS),
    ]


def convolution_table() -> list[Contract]:
    three = np.round(3 * normal(3, 3, 3, 2)[0])
    odd, flipped = np.clip(2 * three + 1, -7, 7), three.swapaxes(2, 3)
    square, strided = Geometry((5, 4), (3, 3), (1, 1), (1, 1)), Geometry((5, 4), (3, 2), (1, 2), (1, 0))
    cotangent, alone = normal(2, 5, 2, 2)[0], partial(Contract, explicit=False)

    def conv(**options: str | bool) -> Callable:
        return lambda s: conv_spikes(s, jnp.asarray(odd, s.dtype), bits=3, padding=(1, 1), **options)

    return [
        Contract("conv_spikes", conv(), SPIKES[:, 0], forward=False, narrows=True),
        Contract("conv_spikes-exact", conv(precision="exact"), SPIKES[:, 0]),
        alone("conv_spikes-any integers", conv(odd=False), SPIKES[:, 0], forward=False, narrows=True),
        *(
            alone(f"conv_spikes-{name}", conv(algorithm=name), SPIKES[:, 0], forward=False, narrows=True)
            for name in ALGORITHMS
        ),
        alone(
            "convolve-groups", lambda k: convolve(jnp.asarray(SPIKES[0, 0], k.dtype), k, groups=3), normal(2, 2, 1, 6)
        ),
        alone("convolve", lambda k: convolve(jnp.asarray(SPIKES[0, 0], k.dtype), k), normal(2, 2, 3, 4)),
        Contract("convolution", lambda x: plain.convolution(x, jnp.asarray(three, x.dtype), square), MAPS),
        Contract("input_grad", lambda y: plain.input_grad(y, jnp.asarray(flipped, y.dtype), square), MAPS),
        Contract(
            "kernel_grad",
            lambda x: plain.kernel_grad(x, jnp.asarray(cotangent, x.dtype), strided),
            MAPS,
            explicit=False,
        ),
    ]


def score_and_loss_table() -> list[Contract]:
    return [
        Contract("next_price", lambda p: next_price(p, 0.5, 0.1), GAMMAS),
        Contract("merge_frames", lambda x: merge_frames(x, 2), CURRENTS),
        Contract("singular_values", scores.singular_values, normal(2, 3, 5, 4, 2), out=F32),
        Contract("svs_scores", scores.svs_scores, SPIKES, grad=False, out=F32),
        Contract("svs_ranks", lambda s: scores.svs_ranks(s, threshold="absolute"), SPIKES, grad=False),
        Contract("spike_counts", scores.spike_counts, SPIKES, grad=False, floats=()),
        Contract("count_ranks", scores.count_ranks, COUNTS, grad=False, floats=()),
        Contract("svs_ranks-exact", lambda s: scores.svs_ranks(s, threshold="exact"), SPIKES, grad=False),
        Contract("matrix_ranks", lambda s: rank.matrix_ranks(s, largest=1), SPIKES, grad=False),
        Contract("sca_scores", scores.sca_scores, normal(2, 3, 4, 4, 5)),
        Contract("magnitude_scores", scores.magnitude_scores, WEIGHTS),
        Contract("normalize", lambda p: normalize(p, (0.5,) * 3, (0.2, 0.25, 0.3)), PIXELS, grad=False, floats=()),
        Contract("random_scores", lambda n: scores.random_scores(jax.random.key(n), 5), np.arange(3), False, floats=()),
        Contract("early_exit", lambda o: early_exit.early_exit(o, 1.0), READOUT, grad=False),
        Contract("cross_entropy", lambda o: losses.cross_entropy(o, LABELS, label_smoothing=0.1), READOUT),
        Contract(
            "distillation_loss",
            lambda o: losses.distillation_loss(o, jnp.asarray(READOUT[1], o.dtype), temperature=2.0),
            READOUT[[0, 2, 0]],
        ),
        Contract("temporal_cross_entropy", lambda o: losses.temporal_cross_entropy(o, LABELS, weight=0.1), READOUT),
    ]


TABLE = [*neuron_table(), *quantizer_table(), *convolution_table(), *score_and_loss_table()]


def total(contract: Contract) -> Callable:
    """A scalar of every output, weighted unevenly so that no gradient cancels."""

    def scalar(x: jax.Array) -> jax.Array:
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(contract.function(x))]
        return sum(jnp.dot(leaf, np.linspace(1, 2, leaf.size).astype(leaf.dtype)) for leaf in leaves)

    return scalar
