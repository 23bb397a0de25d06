"""Random damage to every kind of file that is read: the right result or one sentence, nothing else."""

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from damage import damaged, hostile, result_or_error, strange_array, text_of
from event_files import aedat2, atis
from event_files import draw as draw_events
from exported import moments
from PIL import Image as Picture
from random_graphs import graph_of, integer_graph_of, pixels_of, variables_of
from seeds import seeds

from qpsnn_jax.data.sources.events import read_aedat, read_atis
from qpsnn_jax.data.sources.frames import frames_by_count
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.images import read_pixels
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.nir.file import read_nir, write_nir
from qpsnn_jax.export.nir.reader import import_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.export.torch_file import float32_array, read_state_dict
from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.model.nodes import LIF
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import make_run, read_config
from qpsnn_jax.runs.metrics import write_metrics
from qpsnn_jax.runs.records import StageResult, read_arrays, read_result, write_arrays, write_result
from qpsnn_jax.training import checkpoint


@cache
def packed_network() -> Folded:
    """A small network on grey pictures."""
    graph = integer_graph_of(SEED)
    assert graph.input.shape[2] in (1, 3)
    assert not graph.input.frames
    return fold(graph, variables_of(graph, SEED), *moments(graph))


def has_other_neurons(graph: Graph) -> bool:
    """Whether a packed file of the network has what version 1 has not."""
    neurons = [node for node in graph.nodes if isinstance(node, LIF)]
    return any(isinstance(node.tau, tuple) for node in neurons) and any(node.reset != "hard" for node in neurons)


SEED = next(
    seed
    for seed, graph in ((seed, integer_graph_of(seed)) for seed in range(199))
    if graph.input.shape[2] == 3 and not graph.input.frames and has_other_neurons(graph)
)


class Kind(NamedTuple):
    """A kind of file: its writer, its reader, and whether a checksum detects every change."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sure: bool = False


def classes(path: Path) -> list[int]:
    """The logits of a packed network for two pictures."""
    folded = load_packed(path).folded
    shape = (folded.timesteps, *folded.image.shape) if folded.image.frames else folded.image.shape
    if np.prod(shape) > 10_000:
        return []
    return IntegerNetwork.of(folded)(np.full((2, *shape), 200, np.uint8)).tolist()


def write_picture(path: Path) -> None:
    h, w, _ = packed_network().image.shape
    Picture.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)).save(path)


def read_picture(path: Path) -> np.ndarray:
    pixels = read_pixels(packed_network(), path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == packed_network().image.shape
    return pixels


def read_recording(path: Path) -> Any:
    events = read_atis(path) if path.suffix == ".bin" else read_aedat(path)
    assert len({len(field) for field in events[:4]}) == 1
    assert (events.x < events.size[1]).all()
    assert (events.y < events.size[0]).all()
    return np.asarray(frames_by_count(events, 2, events.size)).sum() if len(events.t) else 0


def write_checkpoint(path: Path) -> None:
    graph = integer_graph_of(SEED)
    saved = checkpoint.save(path.parent, 7, graph, variables_of(graph, SEED), {"note": 1})
    saved.rename(path)


def read_checkpoint(path: Path) -> Any:
    found = checkpoint.read(path)
    like = variables_of(integer_graph_of(SEED), 0)
    return found.graph, found.notes, checkpoint.restore(found, like)


def write_nir_file(path: Path) -> None:
    graph = integer_graph_of(NIR_SEED, nir=True)
    write_nir(path, nir_graph(graph, variables_of(graph, NIR_SEED), *moments(graph)))


RESULT = StageResult("pruned", 0.5, None, 700, 300, 0.25, {"lif": 0.125}, 100.0, 200.0, 3e-4, 1.5)
METRICS = [{"loss": 1 / step, "accuracy": step / 8} for step in range(1, 6)]
TENSORS = {"conv.weight": np.ones((4, 3, 3, 3), np.float32), "bn.running_mean": np.arange(4.0), "bn.steps": np.array(7)}


def write_stage(path: Path) -> None:
    write_result(path, RESULT, epochs=[], class_names=["cat", "dog"])


def write_run(path: Path) -> None:
    make_run(path, Config())


def write_all_metrics(path: Path) -> None:
    with write_metrics(path) as hooks:
        hooks.start(0, len(METRICS))
        for step, values in enumerate(METRICS):
            hooks.metrics(step + 1, values)


def read_metrics(path: Path) -> list[bytes]:
    """The kept lines when training resumes after all of them; those that are damaged are not."""
    with warnings.catch_warnings(), write_metrics(path) as hooks:
        warnings.simplefilter("ignore", UserWarning)
        hooks.start(len(METRICS), 10)
    lines = (path / "metrics.jsonl").read_bytes().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert set(steps) <= set(range(1, len(METRICS) + 1))
    return lines


def read_tensors(path: Path) -> Any:
    return {name: float32_array(name, tensor) for name, tensor in read_state_dict(path).items()}


def write_safetensors(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed (its extra)")
    safetensors.save_file(TENSORS, path)


NIR_SEED = 1
KINDS = (
    Kind("stage.json", write_stage, read_result, sure=True),
    Kind("run", write_run, read_config, sure=True),
    Kind("metrics", write_all_metrics, read_metrics),
    Kind("activity.npz", lambda path: write_arrays(path, TENSORS), lambda path: read_arrays(path, "measure again")),
    Kind("state.npz", lambda path: np.savez(path, **TENSORS), read_tensors),
    Kind("state.safetensors", write_safetensors, read_tensors),
    Kind("a.qpsnn", lambda path: write_packed(path, packed_network(), {"a": 1}), classes, sure=True),
    Kind("a.nir", write_nir_file, lambda path: import_nir(read_nir(path))),
    Kind("checkpoint", write_checkpoint, read_checkpoint, sure=True),
    Kind("a.npy", lambda path: np.save(path, pixels_of(integer_graph_of(SEED), 0)[2]), read_picture),
    *(Kind(f"a.{kind}", write_picture, read_picture) for kind in ("png", "jpg", "bmp", "gif", "webp")),
    Kind("a.bin", lambda path: path.write_bytes(atis(draw_events(0, 40, 34, 34))), read_recording),
    Kind("a.aedat", lambda path: path.write_bytes(aedat2(draw_events(0, 40, 128, 128))), read_recording),
)


def names_its_place(said: str, path: Path) -> bool:
    """A sentence about a file names the file or its fault."""
    return path.name in said or said.startswith(("node ", "layer ", "tensor ")) or "the NIR graph" in said


def over(kinds: list[Kind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def files_of(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()] or [path]


@over(list(KINDS))
@seeds(2)
def test_damaged_bytes(kind, seed, tmp_path):
    draw, path = np.random.default_rng(seed), tmp_path / kind.name
    kind.write(path)
    right, files = kind.read(path), files_of(path)
    for _ in range(40):
        file = files[draw.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(damaged(draw, whole))
        read, said = result_or_error(lambda: kind.read(path))
        if said:
            assert names_its_place(said, path), said
        elif kind.sure:
            same(read, right)
        file.write_bytes(whole)
    same(kind.read(path), right)


def same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def sealed(version: int, document: bytes, payload: bytes) -> bytes:
    """A packed file whose lengths and checksum are right."""
    start = struct.pack("<8sIIQ", b"QPSNN\r\n\x1a", version, len(document), len(payload))
    return start + struct.pack("<I", zlib.crc32(start + document + payload)) + document + payload


def hostile_packed(draw: np.random.Generator, path: Path) -> None:
    data = path.read_bytes()
    version, length = struct.unpack_from("<II", data, 8)
    document = hostile(draw, json.loads(data[28 : 28 + length]))
    path.write_bytes(sealed(version, text_of(draw, document), data[28 + length :]))


def hostile_checkpoint(draw: np.random.Generator, path: Path) -> None:
    file = path / "meta.json"
    meta = json.loads(file.read_text())
    crc = meta.pop("crc32_meta")
    meta = hostile(draw, meta)
    crc = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    file.write_bytes(text_of(draw, meta | {"crc32_meta": crc} if isinstance(meta, dict) else meta))


def hostile_nir(draw: np.random.Generator, path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        names = list[str]()
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for _ in range(draw.integers(1, 3)):
            name = names[draw.integers(len(names))]
            if name in file:
                old = np.asarray(file[name])
                del file[name]
                if draw.random() < 0.8:
                    file[name] = strange_array(draw, old)


def hostile_npy(draw: np.random.Generator, path: Path) -> None:
    np.save(path, strange_array(draw, np.load(path)))


def hostile_npz(draw: np.random.Generator, path: Path) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    name = draw.choice(sorted(arrays))
    np.savez(path, **(arrays | {name: strange_array(draw, arrays[name])}))


def hostile_record(draw: np.random.Generator, path: Path) -> None:
    """A document with a valid checksum."""
    file = path / "config.json" if path.is_dir() else path
    document = json.loads(file.read_text())
    del document["crc32"]
    document = hostile(draw, document)
    if isinstance(document, dict):
        document = document | {"crc32": zlib.crc32(json.dumps(document, sort_keys=True).encode())}
    file.write_bytes(text_of(draw, document))


def hostile_metrics(draw: np.random.Generator, path: Path) -> None:
    file = path / "metrics.jsonl"
    lines = hostile(draw, [json.loads(line) for line in file.read_text().splitlines()])
    file.write_bytes(b"".join(text_of(draw, line) + b"\n" for line in lines))


HOSTILE = {"a.qpsnn": hostile_packed, "checkpoint": hostile_checkpoint, "a.nir": hostile_nir, "a.npy": hostile_npy}
HOSTILE |= {"stage.json": hostile_record, "run": hostile_record, "metrics": hostile_metrics}
HOSTILE |= {"activity.npz": hostile_npz, "state.npz": hostile_npz}


@over([kind for kind in KINDS if kind.name in HOSTILE])
@seeds(2)
def test_hostile_values(kind, seed, tmp_path):
    draw, path = np.random.default_rng(seed), tmp_path / kind.name
    kind.write(path)
    whole = {file: file.read_bytes() for file in files_of(path)}
    for _ in range(40):
        HOSTILE[kind.name](draw, path)
        _, said = result_or_error(lambda: kind.read(path))
        assert not said or names_its_place(said, path), said
        for file, data in whole.items():
            file.write_bytes(data)


@seeds(2)
def test_hostile_graphs(seed):
    draw = np.random.default_rng(seed)
    for _ in range(200):
        graph = graph_of(int(draw.integers(10_000)))
        text = text_of(draw, hostile(draw, json.loads(to_json(graph))))
        read, _ = result_or_error(lambda text=text: from_json(text.decode("latin-1")))
        assert read is None or from_json(to_json(read)) == read
