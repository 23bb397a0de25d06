"""ONNX: the float network's currents from onnxruntime, for every kind of network and any batch."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import GRAPHS, float_run, folded_of, moments, pixels_of, variables_of
from small_networks import random_variables

from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.onnx import onnx_model
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, AveragePool, Conv, Dense, Flatten, Input
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.pruning.masks import mask_by, weight_magnitude
from qpsnn_jax.runs.cli.main import main


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra onnx)")


@pytest.mark.parametrize("name", GRAPHS)
def test_same_currents(name, onnxruntime):
    graph, pixels = GRAPHS[name], pixels_of(GRAPHS[name], 5)
    expected = float_run(name, 5)[graph.output.name].mean(1)
    model = onnx_model(folded_of(name)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch in (5, 2):
        (found,) = session.run(None, {"pixels": pixels[:batch]})
        np.testing.assert_allclose(found, expected[:batch], atol=1e-4)


def masked():
    """Codes of 1, 2, 3 and 8 bits under masks, which are stored as the odd integers."""
    graph = GRAPHS["mixed"]
    layers = [node.name for node in graph.nodes if isinstance(node, Conv) and node.quantizer is not None]
    graph, variables = mask_by(weight_magnitude, graph, variables_of("mixed"), sparsity=0.5, layers=layers)
    return fold(graph, variables, *moments(graph))


# Codes of 2, 4 and 8 bits and in float32; of events; of 1 to 8 bits with 8 in the first and last layers; and masks.
STORED = ("resnet20", "resnet20 pruned", "resnet20 >", "vggsnn", "mixed", "masked")


@pytest.mark.parametrize("name", STORED)
def test_other_types_opsets_and_batches_compute_the_same(name, onnxruntime):
    folded, pixels = masked() if name == "masked" else folded_of(name), pixels_of(GRAPHS.get(name, GRAPHS["mixed"]), 3)

    def run(**options):
        model = onnx_model(folded, **options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (currents,) = session.run(None, {"pixels": pixels})
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used
        assert session.get_inputs()[0].shape[0] == options.get("batch", "b")
        return currents, {k: kinds & set(v) for k, v in {2: (25, 26), 4: (21, 22), 8: (2, 3, 5)}.items()}, model

    expected, kinds, _ = run()
    assert (5 in kinds[8]) == (name == "masked")
    assert np.ptp(expected) > 0
    for options in ({"bits": 4}, {"bits": 8}, {"bits": 8, "opset": 17, "batch": 3}, {"opset": 25}):
        found, kinds, model = run(**options)
        np.testing.assert_array_equal(found, expected)
        if options.get("bits", 2) > 2:
            assert not kinds[2]
        if options.get("bits") == 8:
            assert not kinds[4]
            assert kinds[8]
            assert model.opset_import[0].version == options.get("opset", 13)


def test_the_opset_is_the_first_with_the_integers(onnxruntime):
    del onnxruntime
    opsets = {name: onnx_model(folded_of(name)).opset_import[0].version for name in STORED[:3]}
    assert list(opsets.values()) == [25, 21, 13]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits of weights in ONNX must be 2, 4 or 8, got 3"),
        ({"opset": 24}, "opset 24 of ONNX has no integers of so few bits: take 25, or 8 bits"),
        ({"bits": 4, "opset": 20}, "opset 20 of ONNX .* take 21, or 8 bits"),
        ({"bits": 8, "opset": 12}, "opset must be an integer, 13 or more, got 12"),
        ({"opset": 999}, "opset 999 is unknown to the installed package onnx, whose last is "),
        ({"batch": 0}, "batch must be an integer, 1 or more, got 0"),
    ],
)
def test_options_that_cannot_be(options, message, onnxruntime):
    del onnxruntime
    with pytest.raises(ValueError, match=message):
        onnx_model(folded_of("resnet20"), **options)


def test_a_pool_of_single_values_keeps_its_strides(onnxruntime):
    nodes = (
        Input("image", (6, 5, 1)),
        Conv("conv", "image", 4),
        LIF("lif", "conv", threshold=0.1),
        AveragePool("pool", "lif", (1, 1), (2, 2)),
        Flatten("flat", "pool"),
        Dense("fc", "flat", 3),
    )
    graph = Graph(nodes, 2)
    variables, pixels = random_variables(graph), pixels_of(graph, 4)
    network = fold(graph, variables, *moments(graph))
    session = onnxruntime.InferenceSession(onnx_model(network).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels})
    images = normalize(jnp.asarray(pixels), *moments(graph))
    expected = np.asarray(jax.jit(SpikingNetwork(graph).apply)(variables, images).currents).mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize(
    ("name", "kind"), [("resnet20", "UINT2"), ("resnet20 pruned", "UINT4"), ("resnet20 >", "UINT8")]
)
def test_codes_are_stored_in_few_bits(name, kind, onnxruntime):
    del onnxruntime
    import onnx

    model, folded = onnx_model(folded_of(name, 8)), folded_of(name, 8)
    codes = [t for t in model.graph.initializer if t.data_type == getattr(onnx.TensorProto, kind)]
    sizes = [layer.kernel.size for layer in list(folded.neurons)[1:]]
    assert [int(np.prod(t.dims)) for t in codes] == sizes
    assert any(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"


def test_export_and_verify_a_run(small_run, tmp_path, capsys, onnxruntime):
    out = tmp_path / "small.onnx"
    assert main(["export", str(small_run), "--format", "onnx", "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixels": np.zeros((3, 8, 8, 1), np.uint8)})[0].shape == (3, 10)
    options, other = ["--onnx-bits", "8", "--onnx-opset", "14", "--onnx-batch", "2"], tmp_path / "other.onnx"
    assert main(["export", str(small_run), "--format", "onnx", "--out", str(other), *options]) == 0
    session = onnxruntime.InferenceSession(other.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 8, 8, 1]
    capsys.readouterr()
    assert main(["verify", str(small_run), "--format", "onnx"]) == 0
    assert (
        "onnxruntime gives the predictions of the float network on 100.00 % of the images; currents differ by at most"
        in capsys.readouterr().out
    )


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="needs the package onnx: pip install"):
        onnx_model(folded_of("dense"))
