"""Files of masked networks: a stored index damaged on purpose, and NIR, whose weights are zero where masks are."""

import copy
import itertools
import json
import struct
import zlib

import jax
import numpy as np
import pytest
from nir_oracle import run as run_nir
from small_networks import images_of, random_variables

from qpsnn_jax import Graph, Quantizer, SpikingNetwork, mask_by, weight_at_random
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input
from qpsnn_jax.runs.cli.main import main

Q = Quantizer(2)
WHOLE = Graph(
    (
        Input("image", (3, 3, 1)),
        Conv("stem", "image", 8),
        LIF("lif0", "stem", threshold=0.3),
        Conv("bitmap", "lif0", 8, quantizer=Q),
        LIF("lif1", "bitmap", threshold=0.3),
        Conv("n_of_m", "lif1", 8, quantizer=Q),
        LIF("lif2", "n_of_m", threshold=0.3),
        Flatten("flat", "lif2"),
        Dense("runs", "flat", 6, quantizer=Q),
        LIF("lif3", "runs", threshold=0.3),
        Dense("fc", "lif3", 3),
    ),
    timesteps=2,
)


@pytest.fixture(scope="module")
def masked():
    graph, variables = WHOLE, random_variables(WHOLE)
    for layer, share in (("bitmap", 0.4), ("runs", 0.95)):
        options = {"sparsity": share, "layers": [layer]}
        graph, variables = mask_by(weight_at_random(jax.random.key(0)), graph, variables, **options)
    return mask_by(weight_at_random(jax.random.key(1)), graph, variables, n_of_m=(2, 4), layers=["n_of_m"])


@pytest.fixture(scope="module")
def packed(masked, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "masked.qpsnn"
    write_packed(path, fold(*masked, (0.4,), (0.3,)), {})
    return path.read_bytes()


def parts(data: bytes) -> tuple[dict, bytearray]:
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[28 : 28 + length]), bytearray(data[28 + length :])


def sealed(document: dict, payload: bytes, version: int = 2) -> bytes:
    """Lengths and the checksum are right."""
    header = json.dumps(document).encode()
    start = struct.pack("<8sIIQ", b"QPSNN\r\n\x1a", version, len(header), len(payload))
    return start + struct.pack("<I", zlib.crc32(start + header + payload)) + header + payload


def kernels(document: dict) -> dict[str, dict]:
    """By the kind of their index, which the names of the layers say too."""
    found = [layer["kernel"] for layer in document["layers"] if "kernel" in layer]
    return {kernel["index"]["kind"]: kernel for kernel in found if "index" in kernel}


def place_of(document: dict, kind: str) -> int:
    """Where the index of this kind begins in the payload."""
    place = 0
    for layer in document["layers"]:
        kernel = layer["kernel"]
        index = kernel.get("index")
        if index and index["kind"] == kind:
            return place
        weights = kernel.get("left", int(np.prod(kernel["shape"])))
        arrays = [(weights, kernel["bits"]), (kernel["shape"][3], 32), (kernel["shape"][3], 32)]
        arrays += [(index["length"], index["bits"])] if index else []
        place += sum(-(-count * bits // 8) for count, bits in arrays)
    raise AssertionError(kind)


def complaint(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_packed(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_of_index_is_read_back(packed, masked, tmp_path):
    document, payload = parts(packed)
    assert set(kernels(document)) == {"bitmap", "n_of_m", "runs"}
    path = tmp_path / "a.qpsnn"
    path.write_bytes(sealed(document, payload))
    layers = {layer.name: layer for layer in load_packed(path).folded.layers}
    masks = {name: np.asarray(leaves["mask"]) != 0 for name, leaves in masked[1]["masks"].items()}
    by_source = {"lif1": "bitmap", "lif2": "n_of_m", "lif3": "runs"}
    for layer, name in by_source.items():
        assert layers[layer].mask.sum() == masks[name].sum()
        assert not layers[layer].kernel[~layers[layer].mask].any()


VALUES = (None, True, -1, 0, 1, 3, 7, 9, 2**31, 10**30, 0.5, "", "runs", "bitmap", [], {})


@pytest.mark.parametrize("field", ["kind", "bits", "length", "n", "m", "left", "index"])
def test_a_damaged_description_of_an_index_is_one_sentence(packed, tmp_path, field):
    document, payload = parts(packed)
    for kind, value in itertools.product(kernels(document), VALUES):
        changed = copy.deepcopy(document)
        kernel = kernels(changed)[kind]
        place = kernel if field in ("left", "index") else kernel["index"]
        if place[field] == value or (field in ("n", "m") and kind != "n_of_m" and type(value) is int):
            continue
        place[field] = value
        said = complaint(tmp_path / "a.qpsnn", sealed(changed, payload))
        assert "is damaged or does not describe a network" in said


def test_every_bit_of_an_index_matters(packed, tmp_path):
    document, payload = parts(packed)
    for kind, kernel in kernels(document).items():
        start, bits = place_of(document, kind), kernel["index"]["bits"] * kernel["index"]["length"]
        whole = load_packed_mask(tmp_path / "whole.qpsnn", packed, kind)
        for bit in range(0, bits, 7):
            changed = payload.copy()
            changed[start + bit // 8] ^= 1 << bit % 8
            path = tmp_path / "a.qpsnn"
            path.write_bytes(sealed(document, changed))
            try:
                found = load_packed_mask(path, path.read_bytes(), kind)
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017
                assert "index" in str(error)  # noqa: PT017
            else:  # as many weights elsewhere, which only the checksum can tell
                assert kind != "bitmap"
                assert found.sum() == whole.sum()
                assert (found != whole).any()


def load_packed_mask(path, data: bytes, kind: str) -> np.ndarray:
    path.write_bytes(data)
    name = {"bitmap": "lif1", "n_of_m": "lif2", "runs": "lif3"}[kind]
    return next(layer.mask for layer in load_packed(path).folded.layers if layer.name == name)


def test_an_index_past_its_weights_another_version_and_bytes_too_few(packed, tmp_path, capsys):
    document, payload = parts(packed)
    path = tmp_path / "a.qpsnn"
    start, index = place_of(document, "runs"), kernels(document)["runs"]["index"]
    ones = payload.copy()
    ones[start : start + index["bits"] * index["length"] // 8] = b"\xff" * (index["bits"] * index["length"] // 8)
    assert "index" in complaint(path, sealed(document, ones))
    start = place_of(document, "n_of_m")
    choices = payload.copy()
    choices[start : start + 3] = b"\xff" * 3  # 7 of the choices 0 to 5
    assert "an index has a choice above 5" in complaint(path, sealed(document, choices))
    assert "its version does not fit its layers" in complaint(path, sealed(document, payload, 1))
    assert "another number of bytes" in complaint(path, sealed(document, payload[:-1]))
    path.write_bytes(sealed(document, choices))
    assert main(["info", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qpsnn: error: ")


def test_nir_has_zeros_where_weights_are_masked_and_gives_our_spikes(masked):
    pytest.importorskip("nir", reason="nir is not installed (the extra nir)")
    from qpsnn_jax.export.nir.reader import import_nir
    from qpsnn_jax.export.nir.writer import nir_graph

    graph, variables = masked
    images = images_of(graph, 4)
    document = nir_graph(graph, variables)
    for name in ("bitmap", "n_of_m"):
        weights = np.asarray(document.nodes[name].weight).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(weights != 0, np.asarray(variables["masks"][name]["mask"]) != 0)

    def ours(graph, variables):
        run = jax.jit(lambda tree, x: SpikingNetwork(graph).apply(tree, x, capture=graph.neurons))
        currents, captured, _ = run(variables, images)
        return np.asarray(currents), {name: int(np.sum(trace.spikes)) for name, trace in captured.items()}

    currents, spikes = ours(graph, variables)
    assert min(spikes.values()) > 0
    outputs, counts = run_nir(document, np.repeat(np.asarray(images)[:, None], graph.timesteps, 1))
    assert counts == spikes
    np.testing.assert_allclose(outputs, currents, atol=1e-5)
    again, counts = ours(*import_nir(document))
    assert counts == spikes
    np.testing.assert_allclose(again, currents, atol=1e-6)
