"""The benchmarks run, at a width that takes seconds, and their networks compute the same everywhere."""

import json
import shutil

import numpy as np
import pytest

from experiments.benchmarks import edge, networks, svs

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
