"""NIR: its equations give the network's spikes, it is read back unchanged, and what it cannot express raises."""

import dataclasses
import sys
import warnings
from itertools import pairwise
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import GRAPHS, moments, pixels_of, variables_of
from nir_oracle import run as run_nir
from pages import blocks
from small_networks import images_of, random_variables, residual_graph

from qpsnn_jax.data import Arrays, DataSet, load
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.nir.builder import DT
from qpsnn_jax.export.nir.file import read_nir, write_nir
from qpsnn_jax.export.nir.reader import READINGS, import_nir
from qpsnn_jax.export.nir.writer import nir_graph, translate
from qpsnn_jax.export.pretrained import names, pretrained
from qpsnn_jax.export.unfolding import unfold
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import (
    LIF,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    Input,
    MaxPool,
    Quantizer,
    Result,
    Shortcut,
    Unary,
)
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs import evaluation
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.directory import load_network
from qpsnn_jax.runs.exported import read_run, write_run
from qpsnn_jax.runs.statistics import as_trained, trained_statistics

nir = pytest.importorskip("nir", reason="nir is not installed (the extra nir)")

EXPRESSIBLE = [name for name in GRAPHS if name != "sew_resnet18"]


def ours(graph, variables, images):
    """Currents ``b t classes``, and how many spikes every neuron and max-pool gave."""
    names = [node.name for node in graph.nodes if isinstance(node, LIF | MaxPool)]
    run = jax.jit(lambda tree, x: SpikingNetwork(graph).apply(tree, x, capture=names))
    currents, captured, _ = run(variables, images)
    return np.asarray(currents), {name: int(np.sum(getattr(x, "spikes", x))) for name, x in captured.items()}


def shown(graph, images):
    """The images at every step."""
    images = np.asarray(images)
    return images if graph.input.frames else np.repeat(images[:, None], graph.timesteps, 1)


def same_documents(one, other):
    assert set(one.nodes) == set(other.nodes)
    assert set(one.edges) == set(other.edges)
    for name, node in one.nodes.items():
        theirs = vars(other.nodes[name])
        for field, value in vars(node).items():
            if field not in ("metadata", "input_type", "output_type"):
                np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[field]), err_msg=f"{name} {field}")


def test_nirs_equations_give_our_currents_and_spikes(tmp_path):
    graph, variables = GRAPHS["dense"], variables_of("dense")
    images = normalize(jnp.asarray(pixels_of(graph, 4)), *moments(graph))
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables, *moments(graph)))
    document = read_nir(tmp_path / "a.nir")
    currents, spikes = ours(graph, variables, images)
    outputs, counts = run_nir(document, shown(graph, images))
    assert min(spikes.values()) > 0
    assert counts == spikes
    np.testing.assert_allclose(outputs, currents, atol=1e-5)
    back, restored = import_nir(document)
    again, counts = ours(back, restored, images)
    assert (back.timesteps, back.input) == (graph.timesteps, graph.input)
    assert counts == spikes
    np.testing.assert_allclose(again, currents, atol=1e-6)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_what_is_imported_is_exported_alike(name, tmp_path):
    graph = GRAPHS[name]
    document = nir_graph(graph, variables_of(name), *moments(graph))
    write_nir(tmp_path / "a.nir", document)
    back, variables = import_nir(read_nir(tmp_path / "a.nir"))
    same_documents(nir_graph(back, variables), document)
    carrying = {
        node.name for node in graph.nodes if isinstance(node, Shortcut) and node.source != (*range(len(node.source)),)
    }
    assert carrying <= {node.name for node in back.nodes if isinstance(node, Shortcut)}
    for kind in (LIF, MaxPool):
        names = [{node.name for node in side.nodes if isinstance(node, kind)} for side in (graph, back)]
        assert names[0] == names[1]


@pytest.mark.parametrize("name", names())
def test_pretrained_networks_are_exported(name, tmp_path):
    """As files read back: with the same spikes."""
    graph, variables = pretrained(name)
    images = images_of(graph, 2)
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables))
    back, restored = import_nir(read_nir(tmp_path / "a.nir"))
    (currents, spikes), (again, counts) = ours(graph, variables, images), ours(back, restored, images)
    assert counts == spikes
    np.testing.assert_allclose(again, currents, atol=1e-5)


def test_flattened_maps_have_neurons_of_their_own():
    """NIR's neurons stand in the order c h w; our flattened maps in the order h w c."""
    tau = tuple(np.linspace(0.1, 0.9, 4 * 4 * 2).tolist())
    flat = (Flatten("flat", "conv1"), LIF("lif1", "flat", tau=tau, threshold=0.3), Dense("fc", "lif1", 3))
    graph = _graph(Conv("conv1", "image", 2), *flat)
    decay = 1 - DT / nir_graph(graph, random_variables(graph)).nodes["lif1"].tau
    np.testing.assert_allclose(decay, np.reshape(tau, (4, 4, 2)).transpose(2, 0, 1), rtol=1e-6)


@pytest.mark.parametrize("threshold", [1.0, 0.7, 3e-3])
def test_neurons_are_half_of_ours(threshold):
    for fire, below in ((">", 0), (">=", 1)):
        graph = _graph(Conv("conv1", "image", 2), LIF("lif1", "conv1", threshold=threshold, fire=fire), *READOUT)
        node = nir_graph(graph, random_variables(graph)).nodes["lif1"]
        assert set((node.tau / DT).ravel()) == {2.0}
        assert (node.r == 1).all()
        assert not node.v_leak.any()
        assert not node.v_reset.any()
        expected = np.float32(threshold) - below * (
            np.float32(threshold) - np.nextafter(np.float32(threshold), np.float32(0))
        )
        assert node.v_threshold.dtype == np.float32
        assert set((2 * node.v_threshold).ravel()) == {expected}


@pytest.mark.parametrize("fire", [">=", ">"])
def test_a_membrane_at_the_threshold(fire):
    """Currents of 1 and of 2/3 reach a threshold of 1 exactly, at once and after the second step."""
    graph, variables = tie(fire)
    images = jnp.ones((1, 2, 2, 1))
    _, spikes = ours(graph, variables, images)
    document = nir_graph(graph, variables)
    assert run_nir(document, shown(graph, images))[1] == spikes
    assert ours(*import_nir(document), images)[1] == spikes
    assert spikes == {"lif1": {">=": 4 * (4 + 2), ">": 4 * (2 + 1)}[fire]}


def tie(fire):
    """A neuron that stands at its threshold at once, one that gets there in the second step."""
    nodes = (Conv("conv1", "image", 2, (1, 1), padding=(0, 0)), LIF("lif1", "conv1", threshold=0.75, fire=fire))
    graph = Graph((Input("image", (2, 2, 1)), *nodes, Flatten("flat", "lif1"), Dense("fc", "flat", 3)), 4)
    variables = random_variables(graph)
    variables["params"]["conv1"]["kernel"] = np.array([0.75, 0.5], np.float32).reshape(1, 1, 1, 2)
    return graph, variables


def sums_graph():
    """On frames, in full precision: sums of spikes that convolutions, pools and other sums read, as in SEW blocks."""
    return Graph(
        (
            Input("image", (6, 6, 2), frames=True),
            Conv("conv1", "image", 4),
            BatchNorm("bn1", "conv1"),
            LIF("lif1", "bn1"),
            Conv("conv2", "lif1", 4, bias=True),
            LIF("lif2", "conv2"),
            Add("add1", "lif1", "lif2"),
            Conv("conv3", "add1", 4),
            BatchNorm("bn3", "conv3"),
            LIF("lif3", "bn3"),
            Add("add2", "add1", "lif3"),
            AveragePool("pool", "add2", (2, 2), (2, 2), (1, 1)),
            Conv("conv4", "pool", 5, (1, 1), padding=(0, 0)),
            LIF("lif4", "conv4"),
            Flatten("flatten", "lif4"),
            Dense("fc", "flatten", 3, bias=False),
        ),
        3,
    )


def test_sums_and_average_pools_between_layers():
    graph = sums_graph()
    variables, images = random_variables(graph), images_of(graph, 4)
    document = nir_graph(graph, variables)
    currents, spikes = ours(graph, variables, images)
    outputs, counts = run_nir(document, shown(graph, images))
    assert counts == spikes
    np.testing.assert_allclose(outputs, currents, atol=1e-5)
    back, restored = import_nir(document)
    again, counts = ours(back, restored, images)
    assert counts == spikes
    np.testing.assert_allclose(again, currents, atol=1e-5)
    assert sum(isinstance(node, Add) for node in back.nodes) == 2


def _graph(*nodes):
    return Graph((Input("image", (4, 4, 1)), *nodes), 2)


STEM = (Conv("conv1", "image", 2), LIF("lif1", "conv1"))
READOUT = (Flatten("flatten", "lif1"), Dense("fc", "flatten", 3))
INVALID = {
    "leak": (
        _graph(Conv("conv1", "image", 2), LIF("lif1", "conv1", tau=(0.5, 1.0)), *READOUT),
        "node 'lif1': NIR has decay factors τ from 0 to below 1",
    ),
    "soft reset": (
        resnet20(width=1 / 8, lif=LIF("", "", reset="soft")),
        "node 'lif1': NIR's neurons have a hard reset",
    ),
    "threshold": (
        _graph(Conv("conv1", "image", 2), LIF("lif1", "conv1", threshold=0.0), *READOUT),
        "node 'lif1': the threshold must be",
    ),
    "attention": (
        _graph(*STEM, Attention("product", "lif1", "lif1", "lif1", 2), Flatten("flatten", "product"), READOUT[1]),
        "node 'product': NIR has no attention",
    ),
    "large max-pool": (GRAPHS["sew_resnet18"], r"node 'pool1': only a max-pool over 2×2 spikes .* got \(3, 3\)"),
    "max-pool of currents": (
        _graph(Conv("conv1", "image", 2), MaxPool("pool", "conv1"), LIF("lif1", "pool"), *READOUT),
        "node 'pool': NIR has no max-pool, and this one is not of spikes",
    ),
    "batch-norm of spikes": (
        _graph(*STEM, BatchNorm("bn", "lif1"), Flatten("flatten", "bn"), READOUT[1]),
        "node 'bn': NIR has no batch-norm",
    ),
    "batch-norm of a layer that others read": (
        _graph(
            Conv("conv1", "image", 2), BatchNorm("bn", "conv1"), Add("add", "bn", "conv1"), LIF("lif1", "add"), *READOUT
        ),
        "node 'bn': NIR has no batch-norm",
    ),
    "oblong kernel": (
        _graph(Conv("conv1", "image", 2, (1, 3), padding=(0, 1)), LIF("lif1", "conv1"), *READOUT),
        "node 'conv1': a kernel of 1×3 is not square",
    ),
    "twice the same": (
        _graph(*STEM, Add("add", "lif1", "lif1"), Flatten("flatten", "add"), READOUT[1]),
        "node 'add': adds 'lif1' to itself",
    ),
    "no readout": (_graph(*STEM), "node 'lif1': the last node must be a dense readout, or"),
    "maps as the output": (_graph(*STEM, READOUT[0]), "node 'flatten': .* or neurons of one position"),
    "name of a folder": (
        _graph(Conv("stem/conv", "image", 2), LIF("lif1", "stem/conv"), *READOUT),
        "node 'stem/conv': NIR files take no /",
    ),
    "name of the output": (
        _graph(Conv("output", "image", 2), LIF("lif1", "output"), *READOUT),
        "node 'output': NIR files take no /",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_nir_cannot_say_raises(name):
    graph, message = INVALID[name]
    with pytest.raises(ValueError, match=message):
        nir_graph(graph, random_variables(graph))


def test_statistics_that_do_not_fit():
    graph = sums_graph()
    for statistics in (((0.5,), (0.5,)), ((0.5, 0.5), None), ((0.5, 0.5), (0.5, 0.0))):
        with pytest.raises(ValueError, match="mean and std need 2 finite numbers"):
            nir_graph(graph, random_variables(graph), *statistics)


def _neurons(shape, **changes):
    zeros = np.zeros(shape)
    fields = {"tau": zeros + 5e-4, "r": zeros + 2, "v_leak": zeros, "v_threshold": zeros + 0.3, "v_reset": zeros}
    return nir.LIF(**(fields | changes))


def _foreign(middle=None, edges=(), **changes):
    """A network of another tool: flat layers, a leak of 0.8, weights of its own."""
    draw = np.random.default_rng(5)
    nodes = {
        "in": nir.Input(np.array([2, 3, 4])),
        "flat": nir.Flatten({"input": np.array([2, 3, 4])}, 0, -1),
        "first": nir.Affine(draw.normal(size=(6, 24)), draw.normal(size=6)),
        "cells": middle or _neurons((6,), **changes),
        "last": nir.Linear(draw.normal(size=(3, 6))),
        "out": nir.Output(np.array([3])),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes, [*pairwise(names), *edges], type_check=False)


def test_a_network_of_another_tool():
    document = _foreign()
    graph, variables = import_nir(document, timesteps=5, frames=True)
    (cells,) = (node for node in graph.nodes if isinstance(node, LIF))
    assert (cells.tau, cells.threshold, cells.fire) == pytest.approx((0.8, 0.75, ">"))
    document.metadata = {"dt": 2.5e-4, "timesteps": 7}
    assert import_nir(document)[0].by_name["cells"].tau == pytest.approx(0.5)
    assert import_nir(document, dt=1e-4, timesteps=5, frames=True)[0] == graph
    images = images_of(graph, 6)
    assert images.shape == (6, 5, 3, 4, 2)
    currents, spikes = ours(graph, variables, images)
    outputs, counts = run_nir(document, np.asarray(images))
    assert 0 < spikes["cells"] < 6 * 5 * 6
    assert counts == spikes
    np.testing.assert_allclose(outputs, currents, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words(padding):
    draw = np.random.default_rng(6)
    conv = nir.Conv2d((6, 6), draw.normal(size=(4, 2, 3, 3)), 1, padding, 1, 1, draw.normal(size=4))
    size = {"same": 6, "valid": 4}[padding]
    nodes = {
        "in": nir.Input(np.array([2, 6, 6])),
        "conv": conv,
        "cells": _neurons((4, size, size)),
        "last": nir.Conv2d((size, size), draw.normal(size=(3, 4, size, size)), 1, 0, 1, 1, np.zeros(3)),
        "out": nir.Output(np.array([3, 1, 1])),
    }
    graph, _ = import_nir(nir.NIRGraph(nodes, list(pairwise(nodes))), timesteps=1)
    assert graph.values["cells"].shape == (size, size, 4)


def _conv(**changes):
    fields = {"input_shape": (3, 4), "weight": np.ones((2, 2, 1, 1)), "stride": 1, "padding": 0, "dilation": 1}
    return nir.Conv2d(**(fields | {"groups": 1, "bias": np.zeros(2)} | changes))


FOREIGN = {
    "steps": (lambda: (_foreign(), {}), "does not say how many steps"),
    "kind": (lambda: _foreign(nir.Threshold(np.ones(6))), "node 'cells': NIR's Threshold cannot be read"),
    "thresholds": (
        lambda: _spikes_out((2, 3, 3), v_threshold=np.arange(18.0).reshape(2, 3, 3)),
        "node 'cells': its neurons of one channel differ in v_threshold",
    ),
    "reset": (lambda: _foreign(v_reset=np.ones(6)), "node 'cells': only neurons that reset to zero"),
    "reset of IF": (
        lambda: _foreign(nir.IF(r=np.ones(6), v_threshold=np.ones(6), v_reset=np.ones(6))),
        "node 'cells': only neurons that reset to zero",
    ),
    "fast": (lambda: _foreign(tau=np.full(6, 5e-5)), "node 'cells': only neurons .* tau 5e-05 with dt 0.0001"),
    "cycle": (lambda: _foreign(edges=[("cells", "first")]), "node '(first|cells)': it is part of a cycle"),
    "spikes of a map out": (lambda: _spikes_out((2, 3, 3)), "node 'out': its input must be one layer"),
    "dead end": (lambda: _with("side", _neurons((6,)), ("first", "side")), "node 'side': no edge starts at it"),
    "nothing read": (lambda: _with("side", _neurons((6,)), ("side", "last")), "node 'side': no edge leads to it"),
    "edge to nothing": (lambda: _foreign(edges=[("cells", "absent")]), "an edge from 'cells' to 'absent'"),
    "two inputs": (lambda: _with("in2", nir.Input(np.array([6])), ("in2", "last")), "exactly one Input"),
    "channels": (
        lambda: _with("side", _conv(weight=np.ones((2, 3, 1, 1))), ("in", "side"), ("side", "flat")),
        "node 'side': weights of shape .* do not fit 2 channels",
    ),
    "matrix": (
        lambda: _with("side", nir.Linear(np.ones((6, 7))), ("flat", "side"), ("side", "cells")),
        r"node 'side': a matrix of shape \(6, 7\) does not fit",
    ),
    "rows alone": (
        lambda: _with("side", nir.Flatten({"input": np.array([2, 3, 4])}, 1, -1), ("in", "side"), ("side", "first")),
        "node 'side': NIR's Flatten to several axes cannot be read",
    ),
    "even window": (
        lambda: _with("side", _conv(weight=np.ones((2, 2, 2, 2)), padding="same"), ("in", "side"), ("side", "flat")),
        "node 'side': its padding is not the same on both sides",
    ),
}


NUMBERS = {
    "no steps": ({"timesteps": 0}, "timesteps of the NIR graph must be an integer from 1 to"),
    "steps of 2.7": ({"timesteps": 2.7}, "timesteps of the NIR graph must be an integer from 1 to .*2.7"),
    "many steps": ({"timesteps": np.asarray([1, 2])}, r"timesteps of the NIR graph must .* got array\(\[1, 2\]\)"),
    "text for steps": ({"timesteps": b"2"}, "timesteps of the NIR graph must be an integer"),
    "frames": ({"timesteps": 2, "frames": np.ones(3)}, "frames of the NIR graph must be an integer from 0 to 1"),
    **{
        f"dt of {dt}": ({"timesteps": 2, "dt": dt}, "dt of the NIR graph must be a number from 1e-12 to 1e")
        for dt in (0, float("nan"), -1, 1e-310, "1e-4", np.full(2, 1e-4), True)
    },
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_file_are_checked_like_those_that_are_given(name):
    notes, message = NUMBERS[name]
    document = _foreign()
    for options in ({}, notes):
        document.metadata = {} if options else notes
        with pytest.raises(ValueError, match=message) as caught:
            import_nir(document, **options)
        assert "\n" not in str(caught.value)


def test_text_for_a_number_names_the_node_and_the_field():
    words = {"groups": "groups must be an integer", "stride": "stride must be an", "bias": "bias must be numbers"}
    for field, message in words.items():
        document = _with("side", _conv(), ("in", "side"), ("side", "flat"))
        setattr(document.nodes["side"], field, np.asarray(b"text"))
        with pytest.raises(ValueError, match=f"node 'side': {message}"):
            import_nir(document, timesteps=2)


@pytest.mark.parametrize("beta", np.arange(0, 100, 7) / 100)
def test_neurons_are_computed_as_snntorch_wrote_them(beta):
    """θ = 1 stays 1: in float64 from float32 fields, half of all β would give 0.99999994."""
    one, dt = np.float32(1), np.float32(DT)
    tau = dt / (one - np.float32(beta))
    fields = {"tau": np.full(6, tau), "r": np.full(6, tau / dt), "v_threshold": np.ones(6, np.float32)}
    zeros = np.zeros(6, np.float32)
    graph, _ = import_nir(_foreign(v_leak=zeros, v_reset=zeros, **fields), timesteps=2)
    (cells,) = (node for node in graph.nodes if isinstance(node, LIF))
    assert cells.threshold == 1
    assert cells.tau == pytest.approx(np.float32(beta), abs=1e-7)
    assert beta not in (0, 0.5) or cells.tau == beta


def test_a_leak_of_half_goes_there_and_back():
    tau, zeros = np.full(6, np.float32(DT) / np.float32(0.5)), np.zeros(6, np.float32)
    fields = {"tau": tau, "r": zeros + 2, "v_leak": zeros, "v_reset": zeros, "v_threshold": zeros + 1}
    nodes = {
        "in": nir.Input(np.array([6])),
        "first": nir.Affine(np.eye(6), np.ones(6)),
        "cells": _neurons((6,), **fields),
        "last": nir.Linear(np.ones((3, 6))),
        "out": nir.Output(np.array([3])),
    }
    graph, variables = import_nir(nir.NIRGraph(nodes, list(pairwise(nodes))), timesteps=2)
    back, _ = import_nir(nir_graph(graph, variables))
    assert [node for node in back.nodes if isinstance(node, LIF)] == [LIF("cells", "first", 0.5, 1.0, ">")]


def test_invented_names_give_way_to_those_of_the_file():
    draw = np.random.default_rng(5)
    nodes = {
        "in": nir.Input(np.array([6])),
        "sum.0": nir.Affine(draw.normal(size=(6, 6)), draw.normal(size=6)),
        "last.flat": nir.Affine(draw.normal(size=(6, 6)), draw.normal(size=6)),
        "cells": _neurons((6,)),
        "last": nir.Linear(draw.normal(size=(3, 6))),
        "out": nir.Output(np.array([3])),
    }
    edges = [("in", "sum.0"), ("in", "last.flat"), ("sum.0", "cells"), ("last.flat", "cells"), ("cells", "last")]
    graph, variables = import_nir(nir.NIRGraph(nodes, [*edges, ("last", "out")]), timesteps=4)
    assert {"sum.0_", "last.flat_"} < set(graph.by_name)
    images = images_of(graph, 5)
    outputs, counts = run_nir(nir.NIRGraph(nodes, [*edges, ("last", "out")]), shown(graph, images))
    currents, spikes = ours(graph, variables, images)
    assert counts == spikes
    np.testing.assert_allclose(outputs, currents, atol=1e-5)


def test_what_the_output_does_not_need_is_left_out(tmp_path):
    graph = _graph(*STEM, Conv("dead", "lif1", 3), LIF("unread", "dead"), *READOUT)
    variables = random_variables(graph)
    write_nir(str(tmp_path / "a.nir"), nir_graph(graph, variables))
    back, restored = import_nir(read_nir(str(tmp_path / "a.nir")))
    assert not {"dead", "unread"} & set(back.by_name)
    images = images_of(graph, 4)
    needed = dataclasses.replace(graph, nodes=tuple(n for n in graph.nodes if n.name not in ("dead", "unread")))
    np.testing.assert_allclose(ours(back, restored, images)[0], ours(needed, variables, images)[0], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Wire(Unary):
    """The same again: a kind of node from outside the package."""

    def infer(self, inputs):
        return inputs[0]

    def run(self, leaves, inputs, context):
        return Result(inputs[0])


def test_a_node_from_outside_raises_with_the_line_to_write_and_written_once_it_is_there():
    graph = _graph(*STEM, Wire("wire", "lif1"), Flatten("flatten", "wire"), READOUT[1])
    variables = random_variables(graph)
    line = "@qpsnn_jax.export.nir.writer.translate.register."
    with pytest.raises(ValueError, match=f"node 'wire': NIR has no wire; register what it becomes with {line}"):
        nir_graph(graph, variables)

    @translate.register(Wire)
    def _(node, build, sources):
        return sources[0]

    assert "wire" not in nir_graph(graph, variables).nodes


def test_a_kind_of_nir_from_outside_is_read_once_its_reading_is_there(monkeypatch):
    document = _foreign(nir.Threshold(np.full(6, 0.5)))
    with pytest.raises(ValueError, match=r"add a reading as qpsnn_jax.export.nir.reader.READINGS\['Threshold'\]"):
        import_nir(document, timesteps=2)

    def threshold(reader, found):
        return reader.add(LIF(found.name, found.source, 0.0, 0.5))

    monkeypatch.setitem(READINGS, "Threshold", threshold)
    assert import_nir(document, timesteps=2)[0].by_name["cells"] == LIF("cells", "first", 0.0, 0.5)


def _with(name, node, *edges):
    document = _foreign(edges=edges)
    document.nodes[name] = node
    return document


def _spikes_out(shape=(6,), **changes):
    nodes = {"in": nir.Input(np.array(shape)), "cells": _neurons(shape, **changes), "out": nir.Output(np.array(shape))}
    return nir.NIRGraph(nodes, [("in", "cells"), ("cells", "out")])


def _by_channel():
    """Neurons that differ by channel and rest at different potentials, after pooled sums, with spikes as the output."""
    draw, column = np.random.default_rng(7), np.array([0.2, 0.5, 0.9])[:, None, None]
    ones = np.ones((3, 2, 3))
    nodes = {
        "in": nir.Input(np.array([2, 4, 6])),
        "conv": nir.Conv2d((4, 6), draw.normal(size=(3, 2, 3, 3)), 1, 1, 1, 1, draw.normal(size=3)),
        "whole": nir.IF(
            r=np.full((3, 4, 6), 1e4), v_threshold=np.ones((3, 4, 6)) * column, v_reset=np.zeros((3, 4, 6))
        ),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "cells": _neurons((3, 2, 3), tau=ones * 2e-4 / column, v_threshold=ones * column, v_leak=ones * column / 5),
        "flat": nir.Flatten({"input": np.array([3, 2, 3])}, 0, -1),
        "last": nir.Affine(draw.normal(size=(5, 18)), draw.normal(size=5)),
        "fired": _neurons((5,), v_threshold=np.linspace(0.1, 0.6, 5)),
        "out": nir.Output(np.array([5])),
    }
    return nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)


def _at_rest_after_a_pool():
    """Neurons that would fire at one spike in their window, if they did not rest below zero."""
    draw = np.random.default_rng(7)
    zeros, ones = np.zeros((3, 4, 6)), np.ones((3, 2, 3))
    nodes = {
        "in": nir.Input(np.array([2, 4, 6])),
        "conv": nir.Conv2d((4, 6), draw.normal(size=(3, 2, 3, 3)), 1, 1, 1, 1, draw.normal(size=3)),
        "whole": nir.IF(r=zeros + 1e4, v_threshold=zeros + 2, v_reset=zeros),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "cells": _neurons((3, 2, 3), tau=ones * 2e-4, v_threshold=ones * 0.1, v_leak=ones * -0.4),
        "flat": nir.Flatten({"input": np.array([3, 2, 3])}, 0, -1),
        "last": nir.Affine(draw.integers(-3, 4, (5, 18)) / 4, np.zeros(5)),
        "out": nir.Output(np.array([5])),
    }
    return nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)


def _neurons_at_the_end(*edges, middle=True):
    """Neurons at rest above zero whose spikes are the output, and that may read others."""
    draw = np.random.default_rng(3)
    nodes = {
        "in": nir.Input(np.array([4])),
        "a": nir.Affine(draw.normal(size=(3, 4)), draw.normal(size=3)),
        "l1": _neurons((3,), v_leak=np.full(3, 0.1)),
        **({"b": nir.Linear(draw.normal(size=(3, 3)))} if middle else {}),
        "l2": _neurons((3,), v_leak=np.array([0.1, 0.0, -0.1])),
        "out": nir.Output(np.array([3])),
    }
    return nir.NIRGraph(nodes, [*pairwise(nodes), *edges], type_check=False)


def _sum_at_the_end():
    return _neurons_at_the_end(("l1", "l2"))


def _sum_of_layers_at_the_end():
    return _neurons_at_the_end(("a", "l2"), ("l1", "l2"))


def _neurons_after_neurons():
    return _neurons_at_the_end(middle=False)


ENDS = [_neurons_at_the_end, _sum_at_the_end, _sum_of_layers_at_the_end, _neurons_after_neurons]


@pytest.mark.parametrize("make", [_by_channel, _at_rest_after_a_pool, _spikes_out, *ENDS])
def test_spikes_out_by_nirs_equations(make, tmp_path):
    """Read, run, written again and read again."""
    document = make()
    graph, variables = import_nir(document, timesteps=6, frames=True)
    images = np.abs(images_of(graph, 4))
    currents, spikes = ours(graph, variables, images)
    outputs, counts = run_nir(document, images)
    np.testing.assert_array_equal(outputs, currents)
    assert counts == spikes
    assert all(n > 0 for n in counts.values())
    write_nir(tmp_path / "again.nir", nir_graph(graph, variables))
    again, restored = import_nir(read_nir(tmp_path / "again.nir"))
    assert ours(again, restored, images)[1] == spikes
    assert run_nir(read_nir(tmp_path / "again.nir"), images)[1] == spikes


def test_unfolded_networks_that_end_in_spikes_are_exported_again(tmp_path):
    """Integers end in neurons of one position, which are flattened behind them."""
    dense = (Flatten("flatten", "lif1"), Dense("fc", "flatten", 3, Quantizer(2)))
    graph = _graph(*STEM, *dense, LIF("lif2", "fc", threshold=0.3))
    graph, variables = unfold(fold(graph, random_variables(graph), *moments(graph)), moments(graph)[1])
    assert isinstance(graph.output, Flatten)
    images = images_of(graph, 8)
    currents, spikes = ours(graph, variables, images)
    assert all(n > 0 for n in spikes.values())
    for file in ("once.nir", "twice.nir"):
        write_nir(tmp_path / file, nir_graph(graph, variables))
        graph, variables = import_nir(read_nir(tmp_path / file))
        again, counts = ours(graph, variables, images)
        np.testing.assert_array_equal(again, currents)
        assert counts == spikes


PUBLIC = {"scnn_mnist": (5, 1.0), "lif_norse": (60, 1e-4), "two_lif_neurons": (40, 1e-3)}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_by_nirs_equations(name, nir_files):
    """Of other programs; the neurons of scnn_mnist add their input once a step, so its unit of time is a step."""
    (steps, dt), document = PUBLIC[name], read_nir(nir_files / f"{name}.nir")
    graph, variables = import_nir(document, timesteps=steps, frames=True, dt=dt)
    images = np.random.default_rng(0).integers(0, 3, (2, steps, *graph.input.shape)).astype(np.float32)
    currents, spikes = ours(graph, variables, images)
    outputs, counts = run_nir(document, images, dt)
    np.testing.assert_array_equal(outputs, currents)
    assert {node: spikes[node] for node in counts} == counts
    assert sum(counts.values()) > 10


def test_a_recurrent_public_file_is_named(nir_files):
    with pytest.raises(ValueError, match=r"node 'lif1\.(lif|w_rec)': it is part of a cycle"):
        import_nir(read_nir(nir_files / "braille_cuba.nir"), timesteps=2)


def _cuba(**fields):
    """CubaLIF with the numbers of the public file, in two layers that are not recurrent."""
    draw = np.random.default_rng(0)

    def cells(n):
        numbers = {"tau_syn": 2e-4, "tau_mem": 2.2e-4, "r": 2.2, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
        full = {field: np.full(n, value) for field, value in (numbers | {"w_in": 2.0}).items()}
        return nir.CubaLIF(**full | {field: np.resize(value, n) for field, value in fields.items()})

    nodes = {
        "in": nir.Input(np.array([4])),
        "fc1": nir.Affine(draw.normal(size=(6, 4)), draw.normal(size=6) / 4),
        "lif1": cells(6),
        "fc2": nir.Affine(draw.normal(size=(3, 6)), draw.normal(size=3) / 4),
        "lif2": cells(3),
        "out": nir.Output(np.array([3])),
    }
    return nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)


def test_a_node_defined_in_a_page_reads_cubalif(monkeypatch):
    with pytest.raises(ValueError, match="node 'lif1': NIR's CubaLIF cannot be read; add a reading as"):
        import_nir(_cuba(), timesteps=20)
    monkeypatch.setitem(READINGS, "CubaLIF", None)
    (block,) = (block for block in blocks("notebooks/extend.md") if "CubaLIF" in block.text)
    exec(compile(block.text, "notebooks/extend.md", "exec"), {})
    graph, variables = import_nir(_cuba(), timesteps=20, frames=True)
    images = images_of(graph, 3)
    outputs, counts = run_nir(_cuba(), images)
    network = SpikingNetwork(graph)

    def loss(params):
        found = network.apply({**variables, "params": params}, images, capture=list(counts))
        return jnp.mean((found.currents - 1) ** 2), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(found.currents, outputs)
    assert {name: int(trace.spikes.sum()) for name, trace in found.captured.items()} == counts
    assert min(counts.values()) > 10
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    for wrong in ({"tau_mem": [2e-4, 3e-4]}, {"v_leak": 0.1}, {"v_reset": -0.1}):
        with pytest.raises(ValueError, match="node 'lif1': its neurons differ, or do not rest and reset at zero"):
            import_nir(_cuba(**wrong), timesteps=20)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_graph_cannot_say_raises(name):
    make, message = FOREIGN[name]
    made = make()
    document, options = made if isinstance(made, tuple) else (made, {"timesteps": 2})
    with pytest.raises(ValueError, match=message):
        import_nir(document, **options)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.nir").write_text("no network")
    with pytest.raises(ValueError, match=r"text.nir is not a NIR file, which is HDF5"):
        read_nir(tmp_path / "text.nir")
    nir.write(tmp_path / "node.nir", nir.Linear(np.ones((2, 2))))
    with pytest.raises(
        ValueError, match=r"node.nir (is HDF5 that nir \S+ cannot read|holds a NIR Linear, not a graph)"
    ):
        read_nir(tmp_path / "node.nir")
    import h5py

    with h5py.File(tmp_path / "other.nir", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(ValueError, match=r"other.nir is HDF5 that nir \S+ cannot read as a graph \(KeyError: "):
        read_nir(tmp_path / "other.nir")
    (tmp_path / "pointer.nir").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"pointer.nir is a Git LFS pointer in place of the file"):
        read_nir(str(tmp_path / "pointer.nir"))
    with pytest.raises(FileNotFoundError):
        read_nir(tmp_path / "absent.nir")


def test_files_that_declare_more_than_they_hold(tmp_path, monkeypatch):
    """They are refused before anything is read; what compresses well is not."""
    import h5py

    shape = (2**18,)
    nir.write(tmp_path / "a.nir", _spikes_out(shape))
    assert (tmp_path / "a.nir").stat().st_size < 2**17
    assert read_nir(tmp_path / "a.nir").nodes["cells"].tau.shape == shape

    def none_is_read(*_):
        raise AssertionError

    monkeypatch.setattr(nir, "read", none_is_read)
    for field, message in (("tau", r"/cells/tau' declares 2,400,000,000 bytes"), ("r", r"/tau' in two places")):
        with h5py.File(tmp_path / "a.nir", "a") as file:
            cells = file["node/nodes/cells"]
            del cells[field]
            if field == "tau":
                cells.create_dataset("tau", (1, 300_000_000), np.float64, chunks=(1, 1024))
            else:
                del cells["tau"]
                cells["tau"] = np.ones(6)
                cells["r"] = cells["tau"]
        with pytest.raises(ValueError, match=rf"a\.nir is damaged: it.* .*{message}"):
            read_nir(tmp_path / "a.nir")
    with h5py.File(tmp_path / "a.nir", "w") as file:
        for name in "abcde":
            file.create_dataset(name, (2**15, 2**13), np.uint8, chunks=(2**15, 2**13), compression="gzip")
            file[name].id.write_direct_chunk((0, 0), bytes(2**18))
    reason = r"a\.nir declares 1,342,177,280 bytes up to its data set '/e', too many"
    with pytest.raises(ValueError, match=reason):
        read_nir(tmp_path / "a.nir")


def test_texts_that_are_longer_than_the_file(tmp_path):
    nir.write(tmp_path / "a.nir", _foreign())
    data = bytearray((tmp_path / "a.nir").read_bytes())
    data[data.index(b"GCOL") + 8 + 3] = 0x40
    (tmp_path / "a.nir").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.nir is damaged: it declares 1,073,745,920 bytes of texts, and has"):
        read_nir(tmp_path / "a.nir")


def test_many_neurons_at_rest_above_zero_need_few_parameters():
    n = 4000
    neurons = {"tau": np.full(n, 5e-4), "r": np.ones(n), "v_leak": np.linspace(0.1, 0.2, n), "v_threshold": np.ones(n)}
    nodes = {
        "in": nir.Input(np.array([n])),
        "cells": nir.LIF(**neurons),
        "last": nir.Linear(np.ones((1, n))),
        "out": nir.Output(np.array([1])),
    }
    _, variables = import_nir(nir.NIRGraph(nodes, list(pairwise(nodes))), timesteps=1)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3 * n


def test_a_small_window_on_a_large_map():
    weight = np.ones((3, 1, 3, 3))
    size = 2**20
    nodes = {
        "in": nir.Input(np.array([1, size, size])),
        "last": nir.Conv2d((size, size), weight, size, 0, 1, 1, np.zeros(3)),
        "out": nir.Output(np.array([3, 1, 1])),
    }
    with pytest.raises(ValueError, match="node 'last': as one window on a map of 1048576×1048576 it would have 3,298,"):
        import_nir(nir.NIRGraph(nodes, list(pairwise(nodes))), timesteps=1)


def test_export_and_verify_a_run(small_run, tmp_path, capsys):
    out = tmp_path / "folder" / "small.nir"
    assert main(["export", str(small_run), "--format", "nir", "--out", str(out)]) == 0
    assert f"{out.stat().st_size:,} bytes" in capsys.readouterr().out
    notes = read_nir(out).metadata
    assert (int(notes["timesteps"]), bool(notes["frames"]), float(notes["dt"])) == (2, False, DT)
    assert 0 < notes["mean"] < 1
    assert 0 < notes["std"] < 1
    assert main(["verify", str(small_run), "--format", "nir"]) == 0
    text = capsys.readouterr().out
    assert "100 test images; the NIR graph gives the same prediction on 100.00 %" in text
    assert "accuracy of the float network and of the NIR graph" in text
    assert "lif3                 0.00e+00" in text
    for command in (["export", "--out", str(tmp_path / "new")], ["verify"]):
        words = [command[0], str(small_run), *command[1:], "--format", "nir", "--stem-bits", "8"]
        assert main(words) == 2
        assert "--stem-bits and --readout-bits are for packed, c and onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out.parent]
    assert list(out.parent.iterdir()) == [out]


def test_what_has_no_integer_form_goes_by_nir(small_run, tmp_path):
    graph, run = sums_graph(), read_run(small_run)
    run = dataclasses.replace(
        run, graph=graph, variables=random_variables(graph), mean=(0.5, 0.5), std=(0.25, 0.25), data=None
    )
    with pytest.raises(ValueError, match="node 'conv2' reads spikes with full-precision weights"):
        write_run(run, tmp_path / "new" / "a.qpsnn", "packed")
    assert not (tmp_path / "new").exists()
    assert write_run(run, tmp_path / "new" / "a.nir", "nir").endswith(" bytes")
    assert import_nir(read_nir(tmp_path / "new" / "a.nir"))[0].timesteps == graph.timesteps


def test_the_missing_package_is_named(monkeypatch):
    for found in (None, ModuleType("nir")):
        monkeypatch.setitem(sys.modules, "nir", found)
        with pytest.raises(ValueError, match="needs the package nir: pip install"):
            nir_graph(residual_graph(), {})


def test_import_on_the_command_line(small_run, tmp_path, capsys):
    assert main(["export", str(small_run), "--format", "nir", "--out", str(tmp_path / "a.nir")]) == 0
    command = ["import-nir", str(tmp_path / "a.nir"), "--out", str(tmp_path / "back")]
    assert main(command) == 0
    assert "10 classes, full precision" in capsys.readouterr().out
    assert load_network(tmp_path / "back")[0] == import_nir(read_nir(tmp_path / "a.nir"))[0]
    classes = []
    data = load("digits", test_examples=100)
    images = normalize(jnp.asarray(data.test.images), data.mean, data.std)
    for network in (small_run, tmp_path / "back"):
        graph, variables = load_network(network)
        classes.append(np.argmax(np.mean(SpikingNetwork(graph).apply(variables, images).currents, axis=1), axis=-1))
    np.testing.assert_array_equal(*classes)
    assert main(command) == 2
    assert "exists; choose another --out." in capsys.readouterr().err
    assert main(["import-nir", str(tmp_path / "absent.nir"), "--out", str(tmp_path / "new")]) == 2
    assert "absent.nir" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_imported_networks_keep_the_statistics_of_their_pixels(tmp_path, capsys):
    """The file's mean and std, not those of the data set that it is evaluated on."""
    graph = GRAPHS["dense"]
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables_of("dense"), (0.25,) * 2, (0.75,) * 2))
    out = tmp_path / "back"
    assert main(["import-nir", str(tmp_path / "a.nir"), "--out", str(out)]) == 0
    load_network(out)
    assert trained_statistics(out) == ((0.25, 0.25), (0.75, 0.75))
    images = Arrays(np.zeros((4, *graph.input.shape), np.uint8), np.zeros(4, np.int32))
    other = DataSet("other", images, images, graph.classes, (0.5, 0.5), (0.1, 0.2))
    found = as_trained(other, trained_statistics(out))
    assert (found.mean, found.std) == ((0.25, 0.25), (0.75, 0.75))
    assert read_run(out).mean == (0.25, 0.25)
    assert main(["export", str(out), "--format", "stablehlo", "--out", str(tmp_path / "a.mlir")]) == 0
    assert main(["verify", str(out), "--format", "nir"]) == 2
    assert "so the test images are unknown; name the data set" in capsys.readouterr().err


def test_statistics_that_are_given_win_over_those_of_the_file(tmp_path, capsys, monkeypatch):
    layers = (Conv("conv1", "image", 2), LIF("lif1", "conv1"), Flatten("flatten", "lif1"), Dense("fc", "flatten", 10))
    graph = Graph((Input("image", (8, 8, 1)), *layers), 2)
    document = nir_graph(graph, random_variables(graph), (0.25,), (0.75,))
    write_nir(tmp_path / "a.nir", document)
    out = tmp_path / "back"
    command = ["import-nir", str(tmp_path / "a.nir"), "--out", str(out), "--mean", "0.5", "--std"]
    assert main([*command, "0.1,0.1"]) == 2
    assert "--std must be one number, or 1 for the input channels, got 2." in capsys.readouterr().err
    assert main([*command, "0.125"]) == 0
    assert capsys.readouterr().err == ""
    assert read_run(out).mean == (0.5,)
    assert read_run(out, data="digits", compared=True).test_data.std == (0.125,)
    seen = []
    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, **options: seen.append(given) or real(*given, **options))
    assert main(["evaluate", str(out), "--data", "digits", "--test-examples", "10"]) == 0
    assert [(given[3].mean, given[3].std) for given in seen] == [((0.5,), (0.125,))]


def test_a_file_that_does_not_say_how_long_a_step_is(tmp_path, capsys):
    """Neurons with r = 1 add all of their input once a step in some programs, and 10⁻⁴ of it in others."""
    document = _foreign(nir.IF(r=np.ones(6), v_threshold=np.ones(6)))
    with pytest.warns(
        UserWarning, match=r"node 'cells': with r = 1 and a step of dt = 0\.0001, .* give dt=1 \(--dt 1\)"
    ):
        import_nir(document, timesteps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (cells,) = (n for n in import_nir(document, timesteps=2, dt=1)[0].nodes if isinstance(n, LIF))
        import_nir(_foreign(nir.IF(r=np.full(6, 1e4), v_threshold=np.ones(6))), timesteps=2)
    assert (cells.tau, cells.threshold) == (1.0, 1.0)
    nir.write(tmp_path / "a.nir", document)
    command = ["import-nir", str(tmp_path / "a.nir"), "--timesteps", "2", "--frames"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().err.startswith("qpsnn: warning: node 'cells': with r = 1")
    assert main([*command, "--dt", "1", "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("qpsnn: images will be normalized by the mean and std of the data set that they are")
    assert said.count("\n") == 1
    assert load_network(tmp_path / "b")[0].input.frames


def test_time_constants_in_steps():
    """Of sinabs, a number of steps; taken for seconds, the neurons would never fire."""
    document = _foreign(tau=np.array([20.0, 20, 20, 20, 20, 30]), r=np.ones(6))
    message = r"node 'cells': with tau = 20 to 30 and a step of dt = 0\.0001, .* 5e-06 of its input .* \(--dt 1\)"
    with pytest.warns(UserWarning, match=message):
        import_nir(document, timesteps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_nir(document, timesteps=2, dt=1)[0].by_name["cells"].tau == pytest.approx(
            (0.95,) * 5 + (29 / 30,)
        )
        import_nir(_foreign(tau=np.full(6, 0.05), r=np.ones(6)), timesteps=2)
        document.metadata = {"dt": 1e-4}
        import_nir(document, timesteps=2)


@pytest.mark.parametrize(("name", "warned"), [("lif_norse", False), ("two_lif_neurons", False), ("scnn_mnist", True)])
def test_public_files_in_steps_warn(name, warned, nir_files):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_nir(read_nir(nir_files / f"{name}.nir"), timesteps=2)
    assert bool(caught) == warned
