"""Checkpoints written here under the released names, from a network's own variables."""

import contextlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import state_dict
from small_networks import random_variables

from qpsnn_jax.export.torch_file import float32_array, read_state_dict
from qpsnn_jax.export.torch_import import import_torch
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Conv, Quantizer
from qpsnn_jax.model.zoo import resnet20, vgg16

over = pytest.mark.parametrize
RELEASED = {
    "bits": Quantizer(2, "mean", "channel", "scaled"),
    "lif": LIF("", "", fire=">"),
    "timesteps": 3,
    "width": 1 / 16,
}
NETWORKS = {
    "resnet20": resnet20(**RELEASED, classes=100, ratios={"stem": 0.3, "outputs": 0.3, "first": 0.2, "middle": 0.6}),
    "vgg16": vgg16(**RELEASED, classes=20, ratios={"early": 0.3, "late": 0.6}),
    "vgg16 at 64": vgg16(**RELEASED, input_shape=(64, 64, 1)),
}
SETTINGS = {"bits": 2, "timesteps": 3}


def checkpoint(name: str) -> tuple[Graph, dict, dict[str, np.ndarray]]:
    graph = NETWORKS[name]
    variables = random_variables(graph)
    variables["scales"] = jax.tree.map(np.ones_like, variables["scales"])
    return graph, variables, state_dict(graph, variables)


def same(imported: tuple, graph: Graph, variables: dict):
    """An equal graph with equal variables gives equal outputs."""
    assert imported[0] == graph
    assert jax.tree.structure(imported[1]) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, imported[1], variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(imported[1])} == {np.dtype(np.float32)}


@over("name", NETWORKS)
def test_round_trip(name: str):
    graph, variables, tensors = checkpoint(name)
    before = {k: v.copy() for k, v in tensors.items()}
    imported = import_torch(tensors, **SETTINGS)
    same(imported, graph, variables)
    for tensor in tensors.values():
        tensor[...] = 0
    same(imported, graph, variables)
    # Modules listed twice, a wrapper's prefix, double precision and bookkeeping change nothing.
    twice = {("conv1_s.layer.module.weight" if k == "conv1.weight" else k): v for k, v in before.items()}
    counters = {k.replace("running_mean", "num_batches_tracked"): np.asarray(7) for k in before if "running_mean" in k}
    wrapped = {f"module.{k}": v.astype(np.float64) for k, v in (twice | counters | before).items()}
    same(import_torch(wrapped, **SETTINGS), graph, variables)


class Tensor:
    """The methods of a PyTorch tensor that the import uses."""

    is_quantized = is_meta = False
    layout = "torch.strided"

    def __init__(self, array: np.ndarray):
        self.array, self.steps = array, ()

    def is_complex(self):
        return np.iscomplexobj(self.array)

    def float(self):
        self.steps += ("float",)
        return self

    def detach(self):
        self.steps += ("detach",)
        return self

    def cpu(self):
        self.steps += ("cpu",)
        return self

    def numpy(self):
        assert self.steps[-3:] == ("detach", "cpu", "float")
        return self.array


def test_tensors():
    graph, variables, tensors = checkpoint("resnet20")
    same(import_torch({k: Tensor(v) for k, v in tensors.items()}, **SETTINGS), graph, variables)


ODD = {
    "complex": np.zeros((3, 3), np.complex64),
    "bool": np.zeros((3, 3), bool),
    "text": np.asarray([["a"] * 3] * 3),
    "objects": np.full((3, 3), None, object),
    "void": np.zeros((3, 3), "V2"),
    "NaN": np.full((3, 3), np.nan, np.float32),
    "too large for float32": np.full((3, 3), 1e300),
    "complex tensor": Tensor(np.zeros((3, 3), np.complex64)),
    "quantized tensor": type("Quantized", (Tensor,), {"is_quantized": True})(np.zeros(3)),
    "meta tensor": type("Meta", (Tensor,), {"is_meta": True})(np.zeros(3)),
    "sparse tensor": type("Sparse", (Tensor,), {"layout": "torch.sparse_csr"})(np.zeros(3)),
    "nothing": None,
    "text alone": "weights",
}


@over("kind", ODD)
def test_what_is_no_plain_tensor_of_numbers_is_named(kind: str):
    with pytest.raises(
        ValueError, match=r"^tensor 'fc\.module\.bias' (cannot be read as|must hold|holds) .*\.$"
    ) as caught:
        import_torch(altered("resnet20") | {"fc.module.bias": ODD[kind]}, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_half_precision_and_integers_are_converted():
    graph, variables, tensors = checkpoint("resnet20")
    halves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), tensors)
    expected = import_torch({k: v.astype(np.float32) for k, v in halves.items()}, **SETTINGS)
    same(import_torch(halves, **SETTINGS), graph, expected[1])
    whole = np.arange(100)
    counted = import_torch(tensors | {"fc.module.bias": whole}, **SETTINGS)[1]["params"]["fc"]["bias"]
    np.testing.assert_array_equal(counted, whole)
    short = {k: np.asarray(jnp.asarray(v, jnp.bfloat16)) for k, v in tensors.items()}
    same(import_torch(short, **SETTINGS), graph, jax.tree.map(lambda x: x.astype(np.float32), as_bfloat16(variables)))


def as_bfloat16(variables):
    return jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf, jnp.bfloat16)), variables)


@over("name", ["conv1.bias", "layer2.1.conv1.bias", "layer1.0.thresholds", "bn1.weight"])
def test_a_tensor_without_a_place_raises(name: str):
    with pytest.raises(ValueError, match=f"state_dict has the tensor '{name}', which does not belong to the"):
        import_torch(altered("resnet20", **{name: np.ones(1, np.float32)}), **SETTINGS)


def test_names_are_text():
    with pytest.raises(ValueError, match="state_dict must map names to tensors, got the key 3"):
        import_torch({3: np.zeros(1)}, **SETTINGS)


def test_modules_under_their_other_names_alone():
    graph, variables, tensors = checkpoint("resnet20")
    again = {k: re.sub(r"\bconv(\d)\.", r"conv\1_s.layer.module.", k) for k in tensors}
    other = {re.sub(r"\bbn(\d)\.bn\.", r"conv\1_s.bn.seqbn.module.", again[k]): v for k, v in tensors.items()}
    assert len(set(other) & set(tensors)) == 2
    same(import_torch(other, **SETTINGS), graph, variables)


def test_files_of_state_dicts(tmp_path):
    graph, variables, tensors = checkpoint("resnet20")
    np.savez(tmp_path / "a.npz", **tensors)
    same(import_torch(read_state_dict(str(tmp_path / "a.npz")), **SETTINGS), graph, variables)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-99])
    with pytest.raises(ValueError, match=r"b\.npz is not a readable file of arrays"):
        read_state_dict(tmp_path / "b.npz")
    (tmp_path / "c.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"c\.pt is a Git LFS pointer"):
        read_state_dict(tmp_path / "c.pt")
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "d.pt")


@over(
    "prefix",
    [
        "module.",
        "model.",
        "net.",
        "_orig_mod.",
        "module.net.",
        "net.module.",
        "state_dict.",
        "model_state_dict.module.",
    ],
    ids=lambda prefix: prefix[:-1],
)
def test_prefixes_of_wrappers(prefix: str):
    tensors = checkpoint("resnet20")[2]
    graph, variables = import_torch({prefix + name: tensor for name, tensor in tensors.items()}, **SETTINGS)
    same((graph, variables), *checkpoint("resnet20")[:2])


SMALL = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7), "half": np.ones(2, np.float16)}


def safetensors_file(tensors: dict[str, np.ndarray]) -> bytes:
    """The format by hand: the length of a header, the header, and the bytes of all tensors."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "bfloat16": "BF16", "bool": "BOOL"}
    header, end = {}, 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values())


def test_files_of_safetensors(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed (its extra)")
    path, tensors = tmp_path / "a.safetensors", SMALL | {"short": np.asarray(jnp.asarray([1.5, -3.0], jnp.bfloat16))}
    path.write_bytes(safetensors_file(tensors))
    found = read_state_dict(path)
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype
        assert float32_array(name, found[name]).dtype == np.float32
    path.write_bytes(safetensors_file(SMALL | {"odd": np.ones(1, bool)}))
    with pytest.raises(ValueError, match=r"a\.safetensors holds tensors of the type BOOL, which cannot be read\.$"):
        read_state_dict(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a readable file of safetensors\.$"):
        read_state_dict(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"a\.safetensors needs the package safetensors .* '\.\[safetensors\]'"):
        read_state_dict(path)


class Torch:
    """``torch`` as far as files are read; ``load`` gives what it is made with."""

    def __init__(self, loaded):
        self.loaded, self.serialization, self.safe = loaded, self, []

    def safe_globals(self, safe):
        self.safe = safe
        return contextlib.nullcontext()

    def load(self, file, *, map_location, weights_only):
        assert (file.read(), map_location, weights_only) == (b"bytes", "cpu", True)
        return self.loaded


@over("wrap", ["", "net", "model_state_dict", "state_dict", "model", "state_dict net", "model model"])
def test_checkpoints_hold_a_state_dict_beside_numbers(wrap: str, tmp_path, monkeypatch):
    loaded = SMALL | ({} if wrap else {"epoch": 3, "acc": np.float64(91.2), "name": "best", "none": None})
    for key in reversed(wrap.split()):
        loaded = {"epoch": 3, key: loaded, "acc": np.float32(91.2), "optimizer": {"lr": np.float64(0.1)}}
    torch = Torch(loaded)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "a.pt").write_bytes(b"bytes")
    assert read_state_dict(tmp_path / "a.pt") == SMALL
    names = {entry[1] for entry in torch.safe if isinstance(entry, tuple)}
    assert names == {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}


@over(
    "loaded", [{}, {"epoch": 3}, {"net": {"layers": [np.zeros(2)]}}, {"net": {"epoch": 3}}, [np.zeros(2)], 3], ids=repr
)
def test_checkpoints_without_tensors(loaded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", Torch(loaded))
    (tmp_path / "a.pt").write_bytes(b"bytes")
    with pytest.raises(ValueError, match=r"a\.pt does not hold a state dict of tensors\.$"):
        read_state_dict(tmp_path / "a.pt")


def test_tensors_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    graph, variables, tensors = checkpoint("resnet20")
    given = {k: torch.from_numpy(v) for k, v in tensors.items()}
    torch.save({"state_dict": given, "acc": np.float64(91.2), "best": np.bool_(True)}, tmp_path / "a.pt")
    same(import_torch(read_state_dict(tmp_path / "a.pt"), **SETTINGS), graph, variables)
    bias = given["fc.module.bias"]
    for kind in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64):
        found = import_torch(given | {"fc.module.bias": bias.to(kind)}, **SETTINGS)[1]["params"]["fc"]["bias"]
        np.testing.assert_array_equal(found, bias.to(kind).float().numpy())
    odd = (
        bias.to(torch.complex64),
        bias.to_sparse(),
        bias.reshape(10, 10).to_sparse_csr(),
        bias.to("meta"),
        torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
    )
    for tensor in odd:
        with pytest.raises(ValueError, match=r"tensor 'fc\.module\.bias' cannot be read as plain numbers"):
            import_torch(given | {"fc.module.bias": tensor}, **SETTINGS)


def test_readout_of_flattened_features():
    _, _, tensors = checkpoint("vgg16 at 64")
    graph, variables = import_torch(tensors, **SETTINGS)
    features = np.random.default_rng(0).normal(size=graph.values["pool"].shape).astype(np.float32)
    theirs = tensors["classifier.linear1.module.weight"] @ features.transpose(2, 0, 1).ravel()
    assert graph.values["pool"].shape == (2, 2, 32)
    np.testing.assert_allclose(features.ravel() @ variables["params"]["fc"]["kernel"], theirs, rtol=1e-5, atol=1e-5)


def test_choices():
    tensors = checkpoint("resnet20")[2]
    graph, variables = import_torch(tensors, bits=8, timesteps=1, input_size=8, granularity="layer", ste="clipped")
    assert (graph.timesteps, graph.input.shape) == (1, (8, 8, 3))
    assert {n.quantizer for n in graph.nodes if isinstance(n, Conv)} == {None, Quantizer(8, "mean", "layer", "clipped")}
    assert {leaf.shape for leaf in jax.tree.leaves(variables["scales"])} == {(1,)}


def altered(name: str, **changes) -> dict[str, np.ndarray]:
    """The checkpoint with tensors replaced, or without those set to None."""
    return {k: v for k, v in (checkpoint(name)[2] | changes).items() if v is not None}


MISSING = {
    "resnet20": ["conv1.weight", "layer3.2.conv2.weight", "layer2.0.bn1.bn.running_var", "fc.module.bias"],
    "vgg16": [
        "features.convbn0.layer.module.bias",
        "features.convbn16.layer.module.weight",
        "features.convbn7.bn.bn.bias",
        "classifier.linear1.module.weight",
    ],
}


@over(("name", "tensor"), [(name, tensor) for name, tensors in MISSING.items() for tensor in tensors])
def test_missing_tensor(name: str, tensor: str):
    with pytest.raises(ValueError, match=f"state_dict lacks the tensor '{tensor}'"):
        import_torch(altered(name, **{tensor: None}), **SETTINGS)


WRONG = {
    "resnet20": [
        ("conv1.weight", (3,)),
        ("conv1.weight", ()),
        ("layer1.0.conv1.weight", (5, 9, 3, 3)),
        ("layer2.1.conv2.weight", (11, 6, 1, 1)),
        ("layer2.0.bn2.bn.running_mean", (7,)),
        ("bn1.bn.weight", (2, 1)),
        ("fc.module.weight", (100, 33)),
        ("fc.module.weight", (100,)),
        ("fc.module.bias", (99,)),
    ],
    "vgg16": [
        ("features.convbn0.layer.module.bias", (5,)),
        ("features.convbn3.layer.module.weight", (5, 2, 5, 3)),
        ("features.convbn16.bn.bn.running_var", (1,)),
        ("classifier.linear1.module.weight", (20, 33)),
        ("classifier.linear1.module.weight", (20, 2)),
        ("classifier.linear1.module.weight", (20, 32, 1)),
        ("classifier.linear1.module.bias", (20, 1)),
    ],
}


@over(("name", "tensor", "shape"), [(name, *case) for name, cases in WRONG.items() for case in cases])
def test_tensor_of_another_shape(name: str, tensor: str, shape: tuple):
    with pytest.raises(ValueError, match=f"tensor '{tensor}' has the shape .*, expected"):
        import_torch(altered(name, **{tensor: np.zeros(shape, np.float32)}), **SETTINGS)


def test_a_negative_variance_is_named():
    name = "layer2.0.bn1.bn.running_var"
    variance = checkpoint("resnet20")[2][name].copy()
    variance[1] = -1
    with pytest.raises(ValueError, match=f"^tensor '{name}' must not be negative, as it is a variance.$"):
        import_torch(altered("resnet20", **{name: variance}), **SETTINGS)


@over("given", [None, 3, [np.zeros(2)], "a.pt"], ids=repr)
def test_what_is_no_state_dict(given):
    with pytest.raises(ValueError, match="^state_dict must map names to tensors, as torch.load gives it, got "):
        import_torch(given, **SETTINGS)


def test_wrapped_in_python_with_numbers_beside():
    graph, variables, tensors = checkpoint("resnet20")
    tensors |= {"epoch": np.array(3), "note": "last"}
    same(import_torch({"model_state_dict": {"net": tensors}, "epoch": np.float64(3)}, **SETTINGS), graph, variables)


def test_a_missing_first_weight_is_named():
    tensors = checkpoint("resnet20")[2]
    del tensors["layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match="state_dict lacks the tensor 'layer1.0.conv1.weight'"):
        import_torch(tensors, **SETTINGS)


@over("tensors", [{}, {"fc.weight": np.zeros((10, 5))}, {"state_dict": {"fc.weight": np.zeros(1)}}])
def test_no_known_network(tensors: dict):
    with pytest.raises(ValueError, match="does not belong to a known network: it has neither"):
        import_torch(tensors, **SETTINGS)


@over(
    ("name", "tensor"),
    [
        ("resnet20", "layer1.3.conv1.weight"),
        ("resnet20", "layer4.0.conv1.weight"),
        ("resnet20", "features.convbn0.layer.module.weight"),
        ("vgg16", "features.convbn9.layer.module.weight"),
        ("vgg16", "features.convbn17.layer.module.weight"),
        ("vgg16", "features.convbnx.weight"),
    ],
)
def test_tensor_of_another_network(name: str, tensor: str):
    with pytest.raises(ValueError, match=f"state_dict has the tensor '{tensor}', which does not belong"):
        import_torch(altered(name, **{tensor: np.zeros((4, 4, 3, 3), np.float32)}), **SETTINGS)


@over(("settings", "message"), [({"bits": 9}, "bits"), ({"timesteps": 0}, "timesteps"), ({"input_size": 0}, "'image'")])
def test_settings(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        import_torch(checkpoint("resnet20")[2], **SETTINGS | settings)
