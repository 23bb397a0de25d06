"""The benchmarks run, at a width that takes seconds, and their networks compute the same everywhere."""

import json
import shutil
from contextlib import nullcontext

import jax
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

from experiments.benchmarks import edge, gpu, memory, networks, speed, svs
from qpsnn_jax.graph import Quantizer

WIDTH = 1 / 8


def test_edge_program_is_timed_and_right():
    if shutil.which("cc") is None:
        pytest.skip("cc is not on this machine")
    row = edge.program("cc -O1", 2, WIDTH, "narrow", 2, True, 0.0)
    assert row.name == "narrow"
    assert row.latency > 0
    assert 0 < row.memory < 100
    assert 20_000 < row.file_bytes < 60_000
    assert "working memory 13 kB" in row.note


def test_ranks_are_timed_and_right(tmp_path, capsys):
    arguments = ["--images", "2", "--repeats", "1", "--steps", "1", "--width", "0.0625"]
    assert svs.main([*arguments, "--json", str(tmp_path / "svs.json")]) == 0
    found = json.loads((tmp_path / "svs.json").read_text())
    assert found["wrong"] == 0
    assert found["maps_an_image"] == {"32": 52, "16": 96, "8": 192}
    assert all(seconds > 0 for row in found["seconds_a_map"].values() for seconds in row.values())
    assert "exact elimination" in capsys.readouterr().out


def test_a_wrong_rank_is_noticed(monkeypatch):
    maps = np.ones((1, 8, 8, 3), np.uint8)
    assert svs.wrong_ranks(maps) == 0
    monkeypatch.setattr(svs, "_ranks", lambda maps: np.array([[1, 2, 1]]))
    assert svs.wrong_ranks(maps) == 1


def test_torch_computes_what_xla_does():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    graph, variables = networks.network(None, pruned=False, width=WIDTH)
    image = np.random.default_rng(0).normal(size=(1, *graph.input.shape)).astype(np.float32)
    expected = networks.in_xla(graph, variables, image)()
    for channels_last in (False, True):
        found = networks.in_torch(graph, variables, image, channels_last=channels_last)()
        assert np.median(np.abs(found - expected)) < 0.2 * np.std(expected)


def small_case(monkeypatch):
    """A network in place of the paper's, which take minutes to compile."""
    graph = residual_graph(Quantizer(2))
    case = speed.Case(graph, random_variables(graph), np.asarray(images_of(graph, 4)), np.array([0, 1, 2, 0], np.int32))
    monkeypatch.setattr(speed, "make_case", lambda name, batch, width: case)
    monkeypatch.setattr(memory, "make_case", lambda name, batch, width: case)
    return case


def test_sides_are_timed_and_compute_the_same(monkeypatch, tmp_path, capsys):
    case = small_case(monkeypatch)
    ours = ["--sides", "qpsnn_jax", "plain XLA", "--batches", "4", "--repeats", "2"]
    assert speed.main([*ours, "--json", str(tmp_path / "speed.json")]) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["work"], row["side"]) for row in found] == [
        (work, side) for work in ("training", "inference") for side in ("qpsnn_jax", "plain XLA")
    ]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in found)
    assert "| plain XLA |" in capsys.readouterr().out
    monkeypatch.setitem(speed.WORK["inference"], "plain XLA", lambda case: lambda: 1e3)
    assert speed.main([*ours, "--work", "inference"]) == 1
    assert speed.products(case.graph, "inference") < speed.products(case.graph, "training")


def test_plain_xla_is_without_the_fast_forms(monkeypatch):
    case = small_case(monkeypatch)
    monkeypatch.setattr("qpsnn_jax.convolution._fastest_form", lambda kernel: "int8")
    texts = []
    for within in (nullcontext, speed.plain):
        with within():
            run = jax.jit(lambda tree, images: speed.SpikingNetwork(case.graph).apply(tree, images))
            texts.append(run.lower(case.variables, case.images).as_text())
    assert ["xi8>" in text for text in texts] == [True, False]


def test_a_step_in_torch_is_a_step_in_jax(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    case = speed.make_case("resnet20", 4, WIDTH)
    for name in ("qpsnn_jax", "PyTorch"):
        run = speed.WORK["training"][name](case)
        losses = [run() for _ in range(4)]
        if name == "qpsnn_jax":
            expected = losses
    np.testing.assert_allclose(losses, expected, rtol=0.05)
    assert memory.in_torch(case) > 4 * sum(leaf.size for leaf in jax.tree.leaves(case.variables["params"]))


def test_memory_is_counted(monkeypatch, capsys):
    case = small_case(monkeypatch)
    assert memory.main(["--networks", "vgg16", "--batch", "4"]) == 0
    assert "| vgg16 | 0 MB |" in capsys.readouterr().out
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(case.variables["params"]))
    assert weights < memory.in_jax(case, jax.jit) < 100 * weights


def test_what_the_gpu_script_did_not_reach_says_so(capsys):
    assert gpu.main(["--minutes", "0", "--networks", "vgg16", "--batches", "4"]) == 1
    told = capsys.readouterr().out
    assert told.count("not yet run") == 1 + len(gpu.WAYS) + 3


def test_the_gpu_script_measures_on_any_device(monkeypatch):
    case = small_case(monkeypatch)
    for name, way in gpu.WAYS.items():
        if way.library == "jax":
            found = gpu._train(way, case, 1)
            assert found["seconds"] > 0, name
            assert found["peak"] > 0, name
    assert gpu._score(case)["images"] == 640
    limits = {name: rate for each in gpu._limits(1e-6, 1) for name, rate in each.items()}
    assert len(limits) == 5
    assert min(limits.values()) > 0
    assert gpu._attempt(lambda: 1 / 0) == "ZeroDivisionError: division by zero"
    rows = {f"vgg16 4 {name}": {"seconds": 0.5, "peak": 2e9} for name in gpu.WAYS} | limits | {"device": "it"}
    given = gpu.argparse.Namespace(networks=["vgg16"], batches=[4], width=0.0625)
    told = "\n".join(gpu._report(given, rows | {"scoring": "OutOfMemory: it is"}))
    assert told.count("| 8 | ") == len(gpu.WAYS)
    assert "scoring: OutOfMemory: it is" in told
