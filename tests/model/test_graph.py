import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpsnn_jax.model.graph import Graph, from_json, to_json
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
    GlobalAveragePool,
    Input,
    MaxPool,
    Node,
    Quantizer,
    Shortcut,
    Value,
)
from qpsnn_jax.model.zoo import resnet20, vgg16
from qpsnn_jax.runtime.naming import NotImportedError

over = pytest.mark.parametrize
IMAGE, CONV, SPIKES = Input("image", (9, 8, 2)), Conv("conv", "image", 4), LIF("lif", "conv")
QUANTIZED = Conv("q", "lif", 6, (3, 2), (2, 1), (1, 0), Quantizer(3, "mse", "channel", "scaled"), bias=True, label="a")


def grouped(name: str, features: int, groups: int, dilation: tuple[int, int] = (1, 1)) -> Conv:
    return Conv(name, "lif", features, padding=(1, 1), groups=groups, dilation=dilation)


@over(("kernel", "dilation"), [((5, 5), (1, 1)), ((1, 3), (1, 4)), ((7, 1), (2, 1))])
def test_an_odd_kernel_keeps_the_size_of_its_input(kernel, dilation):
    conv = Conv("conv", "image", 4, kernel, dilation=dilation)
    graph = Graph((Input("image", (9, 12, 1)), conv), 1)
    assert graph.values["conv"].shape == (9, 12, 4)
    assert from_json(to_json(graph)) == graph
    assert Conv("even", "image", 4, (2, 4)).padding == (0, 1)


class Foreign(Node):
    pass


def graph(*nodes: Node, timesteps: int = 3) -> Graph:
    return Graph((IMAGE, CONV, SPIKES, *nodes), timesteps)


def every_kind() -> Graph:
    return graph(
        QUANTIZED,
        BatchNorm("bn", "q", 0.8, 1e-3),
        Shortcut("shortcut", "lif", (2, -1, 0, 1, -1, 3), 2),
        AveragePool("narrow", "shortcut", (1, 2), (1, 1)),
        Conv("wide", "narrow", 6, padding=(1, 3)),
        Add("add", "bn", "wide"),
        LIF("soft", "add", 0.7, 0.8, ">", "soft", True, "arctan"),
        MaxPool("max", "soft"),
        Flatten("flatten", "max"),
        Dense("hidden", "flatten", 5, label="h"),
        GlobalAveragePool("mean", "soft"),
        Dense("fc", "mean", 5, Quantizer(), bias=False),
        Add("out", "hidden", "fc"),
    )


def test_inferred_values():
    expected = {
        "image": ((9, 8, 2), False, False),
        "conv": ((9, 8, 4), False, False),
        "lif": ((9, 8, 4), True, True),
        "q": ((5, 7, 6), True, False),
        "bn": ((5, 7, 6), True, False),
        "shortcut": ((5, 4, 6), True, True),
        "narrow": ((5, 3, 6), True, False),
        "wide": ((5, 7, 6), True, False),
        "add": ((5, 7, 6), True, False),
        "soft": ((5, 7, 6), True, True),
        "max": ((2, 3, 6), True, True),
        "flatten": ((36,), True, True),
        "hidden": ((5,), True, False),
        "mean": ((6,), True, False),
        "fc": ((5,), True, False),
        "out": ((5,), True, False),
    }
    whole = every_kind()
    assert whole.values == {name: Value(*value) for name, value in expected.items()}
    assert list(whole.by_name) == list(expected)
    assert (whole.input, whole.output.name, whole.classes) == (IMAGE, "out", 5)
    assert whole.output.inputs == ("hidden", "fc")
    assert Graph((Input("frames", (4, 4, 2), frames=True),)).values["frames"].timed


INTEGER = "must be an integer from 1 to 1048576"
MISTAKES = [
    (LIF, ("conv", "lif"), "node 'conv': another node has the same name"),
    (LIF, ("params", "lif"), "node 'params': a name must be text and none of params, batch_stats, scales"),
    (LIF, ("", "lif"), "node '': a name must be text"),
    (LIF, (3, "lif"), "node 3: a name must be text"),
    (LIF, ("x", "nowhere"), "node 'x': its input 'nowhere' is not an earlier node"),
    (LIF, ("x", "x"), "node 'x': its input 'x' is not an earlier node"),
    (Add, ("x", "lif", "nowhere"), "node 'x': its input 'nowhere'"),
    (Add, ("x", "image", "lif"), r"node 'x': adds 'image' of shape \(9, 8, 2\) to 'lif' of \(9, 8, 4\)"),
    (Concatenate, ("x", ("lif", "nowhere")), "node 'x': its input 'nowhere'"),
    (Concatenate, ("x", "lif"), "node 'x': sources must be a tuple of names"),
    (Concatenate, ("x", ()), "node 'x': sources must be a tuple of names"),
    (MaxPool, ("x", "lif", (10, 2)), r"node 'x': a window of \(10, 2\) does not fit an input of 9×8"),
    (AveragePool, ("x", "lif", (2, 9)), "node 'x': a window"),
    (
        Conv,
        ("x", "lif", 4, (3, 11), (1, 1), (1, 1)),
        r"node 'x': a window of \(3, 11\) does not fit .* padding \(1, 1\)",
    ),
    (Dense, ("x", "lif", 4), "node 'x': needs a flat input.*Flatten"),
    *((Conv, ("x", "lif", n), f"node 'x': features {INTEGER}") for n in (0, -2, 2.5, "4", True, 1 << 21)),
    *((Dense, ("x", "lif", n), f"node 'x': features {INTEGER}") for n in (0, None, 10**400)),
    *((Conv, ("x", "lif", 4, k), "node 'x': kernel must be a tuple of 2") for k in ((3,), 3, [3, 3])),
    *((Conv, ("x", "lif", 4, k), f"node 'x': kernel {INTEGER}") for k in ((0, 3), (3, 1.5), (3, True))),
    *((Conv, ("x", "lif", 4, (3, 3), k), "node 'x': strides must") for k in ((1, 0), (1, 1, 1), 2)),
    (Conv, ("x", "lif", 4, (3, 3), (1, 1), (0, -1)), "node 'x': padding must be an integer from 0"),
    (Conv, ("x", "lif", 4, (3, 3), (1, 1), 1), "node 'x': padding must be a tuple of 2"),
    (grouped, ("x", 4, 3), "node 'x': groups of 3 do not divide its 4 features"),
    (grouped, ("x", 6, 3), "node 'x': groups of 3 do not divide the 4 channels of 'lif'"),
    (grouped, ("x", 4, 0), f"node 'x': groups {INTEGER}"),
    (grouped, ("x", 4, 1, (1, 0)), f"node 'x': dilation {INTEGER}"),
    (grouped, ("x", 4, 1, (1, 5)), r"node 'x': a window .* padding \(1, 1\) and dilation \(1, 5\)"),
    (Conv, ("x", "lif", 4, (3, 3), (1, 1), (1, 1), 4), "node 'x': quantizer must be a Quantizer or None, got 4"),
    *((kind, ("x", "lif", (0, 2)), "node 'x': window must") for kind in (MaxPool, AveragePool)),
    *((kind, ("x", "lif", (2, 2), (0, 2)), "node 'x': strides must") for kind in (MaxPool, AveragePool)),
    *(
        (MaxPool, ("x", "lif", (2, 2), (1, 1), p), "node 'x': padding .* smaller than the window")
        for p in ((2, 0), (1, 9))
    ),
    *((Shortcut, ("x", "lif", s), "node 'x': source must be .* 0 to 3") for s in ((0, 4), (9,))),
    *((Shortcut, ("x", "lif", s), "node 'x': source must be an integer from -1") for s in ((-2,), (0, 1.5))),
    *((Shortcut, ("x", "lif", s), "node 'x': source must be a tuple") for s in ((), [0, 1])),
    *((Shortcut, ("x", "lif", (0,), s), "node 'x': stride must be") for s in (0, 1.5)),
    *((BatchNorm, ("x", "lif", m), "node 'x': momentum must be a number from 0 to 1") for m in (-0.1, 1.1, math.nan)),
    *((BatchNorm, ("x", "lif", 0.9, e), "node 'x': epsilon must be a number from 0") for e in (-1e-5, math.inf, "1")),
    *((LIF, ("x", "lif", t), "node 'x': tau must be a number") for t in (math.nan, math.inf, -math.inf, True, "1")),
    *((LIF, ("x", "lif", 0.5, t), "node 'x': threshold must be a number") for t in (math.nan, math.inf)),
    (Attention, ("x", "lif", "lif", "lif", 3), "node 'x': needs query, key and value of one shape .* heads of 3"),
    (Attention, ("x", "lif", "lif", "lif", 0), f"node 'x': head_features {INTEGER}"),
    (Attention, ("x", "lif", "lif", "lif", 2, math.nan), "node 'x': factor must be a number"),
    (Input, ("x", (4, 4, 1)), "exactly one Input"),
]


@over(("kind", "fields", "message"), MISTAKES)
def test_mistakes_name_the_node(kind, fields: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        graph(kind(*fields))


def test_a_concatenation_of_different_maps_names_the_node():
    half = MaxPool("half", "lif")
    with pytest.raises(ValueError, match=r"node 'x': concatenates maps of different sizes, \(4, 4, 4\), \(9, 8, 4\)"):
        graph(half, Concatenate("x", ("half", "lif")))
    joined = graph(half, Concatenate("x", ("half", "half"))).values["x"]
    assert joined == Value((4, 4, 8), timed=True, spiking=True)


@over("strange", ["conv", None, Conv, {"kind": "Conv"}])
def test_what_is_no_node(strange):
    with pytest.raises(ValueError, match="nodes must be nodes such as"):
        graph(strange)


def test_what_a_node_must_write():
    with pytest.raises(TypeError, match="Foreign.*infer.*run"):
        Foreign("x")


def test_integers_and_numbers_of_numpy():
    nodes = Graph(
        (
            Input("image", tuple(np.array([9, 8, 2]))),
            Conv("conv", "image", np.int64(4), (np.int8(3), 3), quantizer=Quantizer(np.uint8(2))),
            Shortcut("shortcut", "conv", tuple(np.arange(3)), np.int32(2)),
            LIF("lif", "shortcut", np.float32(0.5), np.float64(2)),
        ),
        np.int64(3),
    )
    plain = (
        Input("image", (9, 8, 2)),
        Conv("conv", "image", 4, quantizer=Quantizer(2)),
        Shortcut("shortcut", "conv", (0, 1, 2), 2),
        LIF("lif", "shortcut", 0.5, 2.0),
    )
    assert nodes == Graph(plain, 3)
    assert to_json(nodes) == to_json(Graph(plain, 3))


@over("kind", [MaxPool, AveragePool, GlobalAveragePool, Flatten, lambda *a: Conv(*a, 3), lambda *a: Shortcut(*a, (0,))])
def test_flat_inputs_raise_where_an_image_is_needed(kind):
    with pytest.raises(ValueError, match=r"node 'x': needs an input of shape \(h, w, c\), got \(288,\)"):
        graph(Flatten("flat", "lif"), kind("x", "flat"))


@over("shape", [(4, 4), (4, 0, 1), (4, 4, 1, 1), [4, 4, 1], (4, 4, 1.0), 4])
def test_input_shapes(shape):
    with pytest.raises(ValueError, match="node 'image': shape must be (a tuple of 3 integers|an integer from 1)"):
        Graph((Input("image", shape),))


@over("nodes", [(), (LIF("a", "b"),), (IMAGE, Input("other", (4, 4, 1)))])
def test_exactly_one_input(nodes: tuple):
    with pytest.raises(ValueError, match="exactly one Input"):
        Graph(nodes)


@over("timesteps", [0, -1, 1.5, "2", None, True, 10**20])
def test_timesteps(timesteps):
    with pytest.raises(ValueError, match="timesteps must be an integer from 1 to 1048576"):
        graph(timesteps=timesteps)


@over("bits", [0, 9, -1, 2.0, "2", None, True])
def test_bits(bits):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8"):
        Quantizer(bits)


@over("options", [{"gamma": "median"}, {"granularity": "row"}, {"ste": "none"}])
def test_quantizer_options(options: dict):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be one of"):
        Quantizer(**options)


@over("options", [{"fire": "<"}, {"reset": "zero"}, {"surrogate": "step"}])
def test_neuron_options(options: dict):
    with pytest.raises(ValueError, match=f"node 'lif': {next(iter(options))} must be one of"):
        LIF("lif", "conv", **options)


GRAPHS = {
    "every kind": every_kind(),
    "frames": Graph((Input("frames", (4, 4, 2), frames=True), LIF("lif", "frames")), 10),
    "resnet20": resnet20(width=1 / 8, ratios={"outputs": 0.35}),
    "vgg16": vgg16(width=1 / 8, bits=None),
}


@over("name", GRAPHS)
def test_json_round_trip(name: str):
    whole = GRAPHS[name]
    again = from_json(to_json(whole))
    assert again == whole
    assert hash(again) == hash(whole)
    assert again.values == whole.values
    assert to_json(again) == to_json(whole)


def test_equality_is_by_value():
    assert graph() == graph()
    assert graph() != graph(timesteps=4)
    assert graph(QUANTIZED) != graph(dataclasses.replace(QUANTIZED, quantizer=Quantizer(4)))
    assert Graph(list(graph().nodes), 3) == graph()


def altered(**fields) -> str:
    document = json.loads(to_json(graph(QUANTIZED)))
    document["nodes"][-1] |= fields
    return json.dumps(document)


GARBAGE = {
    "empty": "",
    "prose": "a network",
    "truncated": to_json(every_kind())[:-40],
    "bytes": b"\xff\xfe\xff",
    "nothing": None,
    "null": "null",
    "number": "3",
    "list": "[]",
    "text": '"nodes"',
    "no nodes": '{"timesteps": 2}',
    "no timesteps": '{"nodes": [{"kind": "Input", "name": "x", "shape": [4, 4, 1]}]}',
    "empty nodes": '{"nodes": [], "timesteps": 2}',
    "nodes of text": '{"nodes": "abc", "timesteps": 2}',
    "nested": "[" * 100_000,
    "unknown kind": altered(kind="Izhikevich"),
    "other kind": altered(kind="Attention"),
    "listed kind": altered(kind=["Conv"]),
    "base kind": altered(kind="Node"),
    "foreign field": altered(colour="red"),
    "text for a number": altered(features="4"),
    "bits": altered(quantizer={"bits": 9}),
    "quantizer field": altered(quantizer={"levels": 4}),
    "quantizer number": altered(quantizer=2),
    "input": altered(input="nowhere"),
    "kernel": altered(kernel=[3]),
}


@over("name", GARBAGE)
def test_text_that_is_not_a_graph(name: str):
    unknown = name in ("unknown kind", "base kind")
    message = "which is not imported; import its module first" if unknown else "the text does not describe a graph: "
    with pytest.raises(ValueError, match=message) as caught:
        from_json(GARBAGE[name])
    assert type(caught.value) is (NotImportedError if unknown else ValueError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.integers(0, 2000), st.integers(1, 60), st.sampled_from(["", "0", '"', "[", "-1", "null"]))
def test_damaged_text_is_a_graph_or_a_value_error(start: int, length: int, patch: str):
    text = to_json(every_kind())
    with contextlib.suppress(ValueError):
        assert isinstance(from_json(text[:start] + patch + text[start + length :]), Graph)


def test_options_of_neurons_by_channel_may_be_arrays():
    node = LIF("lif", "conv", tau=np.array([0.5, 0.75]), threshold=np.array(1.0))  # pyright: ignore[reportArgumentType]
    assert node == LIF("lif", "conv", tau=(0.5, 0.75))
    with pytest.raises(ValueError, match="tau"):
        LIF("lif", "conv", tau=np.array([0.5, np.nan]))  # pyright: ignore[reportArgumentType]
