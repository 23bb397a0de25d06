"""What a GPU or a TPU is given, lowered from a CPU: a network with all kinds of layers, and its training step."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from on_accelerators import lower_for
from small_networks import images_of, random_variables

from qpsnn_jax import SpikingNetwork, init_state, make_train_step
from qpsnn_jax.kernels import dispatch
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv,
    Dense,
    Flatten,
    Input,
    MaxPool,
    Quantizer,
)

TWO, POINT = Quantizer(2), {"kernel": (1, 1), "padding": (0, 0)}
GRAPH = Graph(
    (
        Input("image", (8, 8, 2)),
        Conv("stem", "image", 4),
        LIF("lif0", "stem"),
        Conv("strided", "lif0", 8, strides=(2, 2), quantizer=TWO),
        BatchNorm("bn1", "strided"),
        LIF("lif1", "bn1"),
        Conv("grouped", "lif1", 6, groups=2, quantizer=Quantizer(8)),
        LIF("lif2", "grouped"),
        Conv("masked", "lif2", 7, quantizer=Quantizer(4), masked=True),
        LIF("lif3", "masked"),
        Concatenate("both", ("lif2", "lif3")),
        MaxPool("pool", "both"),
        Conv("ternary", "pool", 8, **POINT, quantizer=Quantizer(2, levels=3)),
        LIF("lif4", "ternary"),
        *(Conv(name, "lif4", 8, **POINT, quantizer=TWO) for name in ("query", "key", "value")),
        *(LIF(f"{name}.lif", name) for name in ("query", "key", "value")),
        Attention("attention", "query.lif", "key.lif", "value.lif", 4),
        LIF("lif5", "attention", tau="learned"),
        Conv("float", "lif5", 8),
        Add("add", "float", "lif4"),
        AveragePool("average", "lif4", (1, 1), (1, 1)),
        Conv("of averages", "average", 8, **POINT, quantizer=TWO),
        Add("sum", "add", "of averages"),
        LIF("lif6", "sum"),
        Flatten("flat", "lif6"),
        Dense("hidden", "flat", 5, quantizer=TWO),
        LIF("lif7", "hidden"),
        Dense("readout", "lif7", 3),
    ),
    timesteps=2,
)
# Those on spikes with quantized weights, once for each shape; "grouped" has a product for each tap.
CONVOLUTIONS, PRODUCTS = ("strided", "masked", "ternary", "query"), ("hidden", *["attention"] * 2, *["grouped"] * 9)
TYPES = ("bf16", "bf16", "f32")
NARROW = {("convolution", *TYPES): len(CONVOLUTIONS), ("dot_general", *TYPES): len(PRODUCTS)}


def products(text: str) -> Counter:
    """How many convolutions and products of matrices have operands and sums of which types."""
    found = re.findall(
        r"stablehlo\.(convolution|dot_general)[ (].*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text
    )
    return Counter((kind, *(each.split("x")[-1] for each in types)) for kind, *types in found)


@pytest.fixture(scope="module")
def operands():
    tx = optax.sgd(0.1, momentum=0.9)
    state = init_state(random_variables(GRAPH), tx, jax.random.key(0))
    return state, images_of(GRAPH, 4), jnp.arange(4) % 3


@pytest.fixture(scope="module")
def steps():
    tx = optax.sgd(0.1, momentum=0.9)
    return {name: jax.jit(make_train_step(GRAPH, tx, precision=name)) for name in ("auto", "fast")}


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    """One that would have its own algorithms for narrow layers."""
    monkeypatch.setattr(dispatch, "cpu_flags", lambda: frozenset({"avx512_bf16", "amx_int8"}))


def check(text: str, times: int) -> None:
    """It has so many products of bfloat16, and nothing of a CPU."""
    found = products(text)
    assert {kind: n for kind, n in found.items() if "bf16" in kind} == {kind: times * n for kind, n in NARROW.items()}
    assert found["convolution", "f32", "f32", "f32"] >= 2  # of the image and of averages
    for mark in ("custom_call", "xui16>", "xi8>"):
        assert mark not in text


@pytest.mark.parametrize(
    ("platform", "precision", "times"), [("tpu", "auto", 1), ("cuda", "auto", 1), ("tpu", "fast", 3)]
)
def test_training_multiplies_spikes_in_bfloat16(steps, operands, platform, precision, times):
    check(lower_for(platform, steps[precision], *operands).mlir_module(), times)


def test_inference_multiplies_spikes_in_bfloat16(operands):
    state, images, _ = operands
    run = jax.jit(lambda variables, images: SpikingNetwork(GRAPH).apply(variables, images).currents)
    for platform in ("tpu", "cuda"):
        check(lower_for(platform, run, state.variables, images).mlir_module(), 1)
    on_cpu = products(run.lower(state.variables, images).as_text())
    assert not any("bf16" in kind for kind in on_cpu)
