"""Random graphs through every export: each spikes as the float network does, or says by name what it cannot express."""

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import reference
from compilers import agrees, compiler
from exported import moments
from membranes import membranes_of
from random_graphs import channels_of, graph_of, integer_graph_of, live, pixels_of, variables_of
from seeds import seeds

from qpsnn_jax.export.constants import Constants
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Neurons, Rates, Readout
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.integer_network import IntegerNetwork, currents
from qpsnn_jax.export.nir.file import read_nir, write_nir
from qpsnn_jax.export.nir.reader import import_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.export.onnx import onnx_model
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.export.reading import summed_weights, weights_of
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, MaxPool
from qpsnn_jax.pruning import prune

SANITIZERS = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@cache
def folded_of(seed: int) -> Folded:
    """A random graph; every third with 8 bits at both ends."""
    graph, bits = integer_graph_of(seed), 8 if seed % 3 == 2 else 32
    return fold(graph, variables_of(graph, seed), *moments(graph), stem_bits=bits, readout_bits=bits)


def normalized(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.asarray(x) for x in moments(graph))
    return (pixels / 255.0 - mean) / std


def result_or_error(export: Callable[[], Any], graph: Graph) -> tuple[Any, str]:
    """The result of an export, or None and its sentence, which names a node."""
    try:
        return export(), ""
    except ValueError as error:
        said = str(error)
    assert not {*re.findall(r"'([^']*)'", said)}.isdisjoint(graph.by_name), said
    return None, said


def spikes_agree(found: Any, membranes: Any, node: LIF, tolerance: Any) -> None:
    """Spikes that are those of the membranes, but where one is as good as at the threshold."""
    above = membranes >= node.threshold if node.fire == ">=" else membranes > node.threshold
    clear = np.abs(membranes - node.threshold) > tolerance
    assert clear.mean() > 0.9 or clear.size < 100
    np.testing.assert_array_equal(found[clear], above[clear], err_msg=node.name)


@seeds(16)
def test_whole_numbers_spike_as_the_float_network_does(seed):
    graph = integer_graph_of(seed) if seed % 4 else graph_of(seed)
    variables, pixels = variables_of(graph, seed), pixels_of(graph, seed)
    if seed % 4 == 2:
        graph, variables = prune(graph, variables, channels_of(graph, np.random.default_rng(seed)))
    network, said = result_or_error(lambda: IntegerNetwork.of(fold(graph, variables, *moments(graph))), graph)
    if network is None:
        assert seed % 4 == 0 or re.search("exceeds 3[12] bits", said)
        return
    folded = network.folded
    logits, maps = network(pixels, [layer.name for layer in folded.layers[:-1]])
    spikes = {name: maps[name].reshape(*maps[name].shape[:2], *graph.values[name].shape) for name in maps}
    expected = reference.run(
        graph, variables, normalized(graph, pixels), spikes=spikes, kernels=kernels(graph, variables)
    )
    for layer in folded.neurons:
        constants, membranes = network.neurons[layer.name], charged(network, layer, pixels, maps)
        assert ((constants.low <= membranes) & (membranes <= constants.high)).all()
        tolerance = 1e-4 + rounding(layer, constants, folded)
        spikes_agree(spikes[layer.name], expected.membranes[layer.name], graph.by_name[layer.name], tolerance)
    for name in spikes:
        np.testing.assert_array_equal(spikes[name], expected.values[name], err_msg=name)
    found, output = logits * network.readout.unit, expected.values[graph.output.name].mean(1)
    np.testing.assert_allclose(found, output, atol=1e-5 + unit_of_logits(network, maps))


def charged(network: IntegerNetwork, layer: Neurons, pixels: np.ndarray, maps: dict[str, np.ndarray]) -> np.ndarray:
    """The membranes of a layer in integers, before the reset."""
    folded, constants = network.folded, network.neurons[layer.name]
    maps = maps | {folded.image.name: pixels if folded.image.frames else pixels[:, None]}
    return membranes_of(layer, constants, currents(layer, constants, maps), folded.timesteps)


def unit_of_logits(network: IntegerNetwork, maps: dict[str, np.ndarray]) -> float:
    """The rounding error of a logit in integers: of its bias, and of each weight that was not an integer."""
    readout = network.folded.readout
    if isinstance(readout, Rates):
        return 0
    reads = readout.kernel.dtype == np.float32 and maps[readout.source].sum((1, 2, 3, 4)).max() * np.prod(
        readout.window
    )
    return network.readout.unit * (1 + int(reads)) / 2


def kernels(graph: Graph, variables: Any) -> dict[str, np.ndarray]:
    """Quantized weights as the package has them, next to those that NumPy finds."""
    weights, found = weights_of(graph, variables), {}
    for name, (_, scale) in weights.codes.items():
        node: Any = graph.by_name[name]
        found[name] = summed_weights(weights, node) * scale
        kernel, gain = (
            np.asarray(variables[c][name][k], np.float64) for c, k in (("params", "kernel"), ("scales", "gain"))
        )
        mask = variables["masks"][name]["mask"] if node.masked else 1
        expected, step = mask * reference.quantized(node.quantizer, kernel, gain), 2 * scale
        # Float32 may round a weight that lies between two levels to the other.
        away = np.abs(found[name] - expected)
        assert np.mean(away > 1e-3 * step) < 0.02
        assert (away <= 1.001 * step).all()
    return found


def rounding(layer: Neurons, constants: Constants, folded: Folded) -> np.ndarray:
    """The rounding error of a membrane in integers, in the units of currents, which adds up as a current does."""
    gain = np.maximum(1, constants.cell.leak.gain(folded.timesteps) / 2)
    unit = layer.threshold / np.maximum(constants.threshold - 1, 1)
    added = folded.maps[layer.residual.source].largest if layer.residual else 0
    constant = np.where(constants.live, 0, 2.0**-12 * layer.threshold)
    return gain * ((6 + added + layer.kernel[..., 0, 0].size) * unit + constant)


@seeds(16)
def test_what_is_packed_is_what_was_folded(seed, tmp_path):
    folded = folded_of(seed)
    write_packed(tmp_path / "a.qpsnn", folded, {"seed": seed})
    read = load_packed(tmp_path / "a.qpsnn")
    assert read.notes == {"seed": seed}
    assert (read.folded.image, read.folded.timesteps) == (folded.image, folded.timesteps)
    for old, new in zip(folded.layers, read.folded.layers, strict=True):
        for field in dataclasses.fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            assert type(before) is type(after)
            np.testing.assert_array_equal(np.asarray(before, object), np.asarray(after, object))
    write_packed(tmp_path / "b.qpsnn", read.folded, read.notes)
    assert (tmp_path / "b.qpsnn").read_bytes() == (tmp_path / "a.qpsnn").read_bytes()


@seeds(10)
def test_c_gives_the_same_logits_whole_and_step_by_step(seed, tmp_path):
    network, pixels = IntegerNetwork.of(folded_of(seed)), pixels_of(integer_graph_of(seed), seed)
    agrees([*compiler("gcc"), *SANITIZERS], network, pixels, tmp_path, portable=bool(seed % 2))


@seeds(16)
def test_onnx_gives_the_currents_of_the_folded_network(seed):
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra onnx)")
    folded, pixels = folded_of(seed), pixels_of(integer_graph_of(seed), seed)
    if isinstance(folded.readout, Readout) and folded.readout.window == (1, 1) != folded.readout.strides:
        pytest.skip("the model ignores the strides of a 1×1 average-pool")
    session = runtime.InferenceSession(onnx_model(folded).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels})
    network = IntegerNetwork.of(folded)
    logits, maps = network(pixels, [layer.name for layer in folded.layers[:-1]])
    clear, expected = clear_of_thresholds(network, pixels, maps), logits * network.readout.unit
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-4 + unit_of_logits(network, maps))


def clear_of_thresholds(network: IntegerNetwork, pixels: np.ndarray, maps: dict[str, np.ndarray]) -> np.ndarray:
    """Of which images no membrane is so near its threshold that float32 may decide otherwise."""
    folded = network.folded
    clear = np.ones(len(pixels), bool)
    for layer in folded.neurons:
        constants, membranes = network.neurons[layer.name], charged(network, layer, pixels, maps)
        unit = layer.threshold / np.maximum(constants.threshold - 1, 1)
        margin = np.abs(membranes - constants.threshold) * unit
        clear &= (margin > 1e-4 + rounding(layer, constants, folded)).all((1, 2, 3, 4))
    return clear


@seeds(24)
def test_nir_comes_back_with_the_same_spikes(seed, tmp_path):
    pytest.importorskip("nir", reason="nir is not installed (the extra nir)")
    # A layer that nobody reads makes the file unreadable.
    graph = integer_graph_of(seed, nir=True) if seed % 2 else live(graph_of(seed, nir=True))
    variables, images = variables_of(graph, seed), normalized(graph, pixels_of(graph, seed))
    document, _ = result_or_error(lambda: nir_graph(graph, variables, *moments(graph)), graph)
    if document is None:
        return
    write_nir(tmp_path / "a.nir", document)
    back, restored = import_nir(read_nir(tmp_path / "a.nir"))
    assert (back.input, back.timesteps) == (graph.input, graph.timesteps)
    first = reference.run(graph, variables, images, kernels=kernels(graph, variables))
    neurons = [node for node in graph.nodes if isinstance(node, LIF)]
    spikes = {
        node.name: first.values[node.name].reshape(*first.values[node.name].shape[:2], *back.values[node.name].shape)
        for node in neurons
    }
    again = reference.run(back, restored, images, spikes=spikes)
    for node in neurons:
        theirs = back.by_name[node.name]
        assert isinstance(theirs, LIF)
        scale = np.abs(again.membranes[node.name]).max(initial=1)
        spikes_agree(spikes[node.name], again.membranes[node.name], theirs, 1e-5 * scale)
    output = again.values[back.output.name]
    np.testing.assert_allclose(
        output, first.values[graph.output.name], rtol=1e-4, atol=1e-4 * max(1, np.abs(output).max())
    )
    pools = [node.name for node in graph.nodes if isinstance(node, MaxPool) and node.name in back.by_name]
    for name in pools:
        np.testing.assert_array_equal(again.values[name], first.values[name])
