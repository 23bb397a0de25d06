"""Which algorithm runs where, on simulated machines."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import spikes_and_integers
from small_networks import images_of, random_variables

from qpsnn_jax import cross_entropy, init_state, make_train_step, optimizer
from qpsnn_jax.kernels import dispatch, winograd
from qpsnn_jax.kernels.algorithm import Algorithm, ConvSpec
from qpsnn_jax.kernels.convolution import conv_spikes
from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.kernels.native import library
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Input, Quantizer

ZEN, AMX = frozenset({"avx512_bf16"}), frozenset({"amx_int8", "amx_bf16"})
SHAPES = jax.ShapeDtypeStruct((2, 8, 8, 128), jnp.float32), jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)


def on(monkeypatch, flags):
    monkeypatch.setattr(dispatch, "cpu_flags", lambda: frozenset(flags))


def with_gradients(spikes, integers, **options):
    y, pull = jax.vjp(partial(conv_spikes, bits=4, padding=(1, 1), **options), spikes, integers)
    return y, pull(y)


def marks(text):
    """Roundings to bfloat16 by bits, products of 8-bit integers, and convolutions of bfloat16."""
    convolved = re.findall(
        r"stablehlo.convolution\(.* : \(tensor<\S+x(\w+)>, tensor<\S+x(\w+)>\) -> tensor<\S+x(\w+)>", text
    )
    return "xui16" in text, "xi8>" in text, convolved.count(("bf16", "bf16", "f32"))


@pytest.mark.parametrize(
    ("platform", "options", "found"),
    [
        ("cpu", {}, (False, False, 0)),
        ("cpu", {"precision": "fast"}, (True, False, 0)),
        ("cpu", {"precision": "exact"}, (False, False, 0)),
        ("cpu", {"precision": "exact", "algorithm": "int8"}, (False, True, 0)),
        ("tpu", {}, (False, False, 1)),
        ("cuda", {}, (False, False, 1)),
        ("rocm", {}, (False, False, 1)),
        ("cuda", {"precision": "fast"}, (False, False, 3)),
        ("tpu", {"precision": "exact"}, (False, False, 0)),
        ("tpu", {"algorithm": "int8"}, (False, True, 0)),
    ],
)
def test_the_algorithm_follows_the_platform_that_is_lowered_for(monkeypatch, platform, options, found):
    on(monkeypatch, ZEN)
    exported = jax.export.export(jax.jit(partial(with_gradients, **options)), platforms=[platform])(*SHAPES)
    assert marks(exported.mlir_module()) == found


def test_exact_programs_are_the_same_on_every_machine(monkeypatch):
    texts = []
    for flags in (ZEN, AMX, set()):
        on(monkeypatch, flags)
        texts.append(jax.jit(partial(with_gradients, precision="exact")).lower(*SHAPES).as_text())
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("precision", ["auto", "fast"])
def test_processes_trace_the_same_program(monkeypatch, precision):
    """On any machines."""
    texts = []
    for flags in (AMX, set()):
        on(monkeypatch, flags)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        texts.append(jax.jit(partial(with_gradients, precision=precision)).lower(*SHAPES).as_text())
    assert texts[0] == texts[1]
    assert marks(texts[0]) == (False, False, 0)


@pytest.mark.parametrize(
    ("compiler", "precision", "devices", "flags", "options"),
    [
        (True, "auto", 1, "", {"xla_backend_optimization_level": 1}),
        (True, "auto", 1, "--xla_backend_optimization_level=3", {}),
        (True, "exact", 1, "", {}),
        (True, "auto", 8, "", {}),
        (False, "auto", 1, "", {}),
    ],
)
def test_only_what_is_around_native_kernels_is_optimized_less(
    monkeypatch, compiler, precision, devices, flags, options
):
    monkeypatch.setattr(library, "load", lambda: object() if compiler else None)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert dispatch.compiler_options(precision) == options


def test_calls_outside_jit_compile_once(monkeypatch, compilations):
    on(monkeypatch, ZEN)
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), (3, 3), 2, 64))
    with_gradients(spikes, integers)
    with compilations() as counted:
        with_gradients(spikes, integers)
    assert counted() == 0


def test_a_new_algorithm_is_one_record(monkeypatch):
    """It is preferred and exact as its record says, with the gradients of all others."""
    own = Algorithm("own", lambda x, k, spec: 2 * dispatch.SUMS[0].run(x, k, spec), preference=lambda spec, flags: 9)
    monkeypatch.setattr(dispatch, "SUMS", (*dispatch.SUMS, own))
    spikes, integers = (jnp.asarray(x, jnp.float32) for x in spikes_and_integers((6, 6), (3, 3), 2, 5))
    plain, by_plain = with_gradients(spikes, integers, precision="exact")
    for options in ({}, {"algorithm": "own"}):
        found, by = with_gradients(spikes, integers, **options)
        np.testing.assert_array_equal(found, 2 * plain)
        np.testing.assert_allclose(by[1], 2 * by_plain[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "kernel", "algorithm"),
    [
        ({"amx_int8", "native"}, (3, 3, 64, 64), "int8"),
        ({"amx_int8"}, (3, 3, 8, 64), "float32"),
        ({"amx_int8", "native"}, (3, 3, 8, 64), "skipping"),
        (ZEN, (3, 3, 512, 512), "float32"),
        ({"avx2", "native"}, (3, 3, 512, 512), "skipping"),
    ],
)
def test_the_algorithm_follows_the_processor(flags, kernel, algorithm):
    spec = ConvSpec(Geometry((8, 8), kernel[:2], (1, 1), (1, 1)), *kernel[2:], 2)
    assert dispatch.select_algorithm(dispatch.SUMS, spec, frozenset(flags)).name == algorithm


@pytest.mark.parametrize(
    ("flags", "bits", "channels", "algorithm"),
    [
        ({"native", "fast", *ZEN}, 4, 128, "winograd"),
        ({"native", "fast", *ZEN}, 2, 128, "skipping"),
        ({"native", "fast", *ZEN}, 2, 256, "winograd"),
        ({"native", *ZEN}, 2, 256, "skipping"),
        ({"fast", *ZEN}, 2, 128, "winograd"),
    ],
)
def test_gradients_of_few_bits_are_rounded_only_in_wide_layers(flags, bits, channels, algorithm):
    spec = ConvSpec(Geometry((8, 8), (3, 3), (1, 1), (1, 1)), channels, channels, bits)
    assert dispatch.select_algorithm(dispatch.INPUT_GRADS, spec, frozenset(flags)).name == algorithm


@pytest.mark.parametrize(
    ("flags", "shape", "kernel", "strides", "padding", "dtype", "rounded"),
    [
        ({"avx512_bf16"}, (8, 8), (3, 3, 64, 128), (1, 1), (1, 1), jnp.float32, True),
        ({"amx_bf16"}, (7, 3), (3, 3, 128, 256), (1, 1), (0, 2), jnp.float32, True),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (2, 2), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (1, 1, 128, 128), (1, 1), (0, 0), jnp.float32, False),
        ({"avx512_bf16"}, (2, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (3, 1), jnp.float32, False),
        ({"avx2"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 48, 128), (1, 1), (1, 1), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (5, 5, 128, 128), (1, 1), (2, 2), jnp.float32, False),
        ({"avx512_bf16"}, (8, 8), (3, 3, 128, 128), (1, 1), (1, 1), jnp.bfloat16, False),
    ],
)
def test_gradients_are_rounded_where_that_is_fast(monkeypatch, flags, shape, kernel, strides, padding, dtype, rounded):
    on(monkeypatch, flags)
    spikes, integers = (jax.ShapeDtypeStruct(size, dtype) for size in ((1, *shape, kernel[2]), kernel))
    for precision in ("auto", "fast"):
        run = partial(conv_spikes, bits=8, strides=strides, padding=padding, precision=precision)
        text = str(
            jax.make_jaxpr(lambda *operands, run=run: jax.vjp(run, *operands)[1](run(*operands)))(spikes, integers)
        )
        assert ("u16" in text) == (rounded and precision == "fast")


select = dispatch.select_algorithm


def two_convolutions(quantizer):
    """A strided and a plain convolution of spikes, which every algorithm can compute."""
    nodes = (
        Input("image", (6, 6, 2)),
        Conv("stem", "image", 6),
        LIF("lif0", "stem"),
        Conv("conv1", "lif0", 8, strides=(2, 2), quantizer=quantizer),
        BatchNorm("bn1", "conv1"),
        LIF("lif1", "bn1"),
        Conv("conv2", "lif1", 8, quantizer=quantizer),
        BatchNorm("bn2", "conv2"),
        LIF("lif2", "bn2"),
        Flatten("flat", "lif2"),
        Dense("fc", "flat", 3),
    )
    return Graph(nodes, timesteps=2)


def losses(monkeypatch, name, *, rounded=False):
    """The losses of 16 steps from each of four seeds, with weights of 4 bits, which every algorithm takes."""

    def chosen(algorithms, spec, flags):
        found = {algorithm.name: algorithm for algorithm in algorithms if algorithm.supports(spec)}
        return found.get(name, algorithms[0]) if algorithms is dispatch.SUMS else select(algorithms, spec, flags)

    monkeypatch.setattr(dispatch, "select_algorithm", chosen)
    on(monkeypatch, {"avx512_bf16"})
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(winograd, "NARROWEST", 1)
    graph, tx = two_convolutions(Quantizer(4)), optimizer("adam", 0.01)
    step = make_train_step(graph, tx, loss=cross_entropy, precision="fast" if rounded else "auto")
    images, labels = images_of(graph, 4), np.arange(4, dtype=np.int32) % 3
    states = [init_state(random_variables(graph, seed), tx, jax.random.key(seed)) for seed in range(4)]
    steps = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, images, labels), state, length=16))
    lowered = steps.lower(states[0])
    text = lowered.as_text()
    assert ("xi8>" in text, "xui16>" in text) == (name == "int8", rounded)
    compiled = lowered.compile()
    return np.stack([compiled(state)[1]["loss"] for state in states])


# The same losses, until gradients that were rounded have moved the weights.
ALGORITHMS = [("int8", False, 5), ("bfloat16", False, 5), ("float32", True, 1)]


def test_training_by_any_algorithm_is_training_in_float32(monkeypatch):
    exact = losses(monkeypatch, "float32")
    ends = exact[:, -6:].mean(axis=1)
    for algorithm, rounded, same in ALGORITHMS:
        fast = losses(monkeypatch, algorithm, rounded=rounded)
        np.testing.assert_allclose(fast[:, :same], exact[:, :same], rtol=1e-5)
        # Then rounding elsewhere in the program may grow; the mean of four seeds stays within three deviations of it.
        noise = ends.std(ddof=1) * np.sqrt(2 / len(ends))
        assert abs(fast[:, -6:].mean() - ends.mean()) <= 3 * noise, (algorithm, rounded)
