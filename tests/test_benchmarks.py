"""The benchmarks run, at a width that takes seconds, and their networks compute the same everywhere."""

import shutil

import numpy as np
import pytest

from experiments.benchmarks import edge, networks

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


def test_torch_computes_what_xla_does():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    graph, variables = networks.network(None, pruned=False, width=WIDTH)
    image = np.random.default_rng(0).normal(size=(1, *graph.input.shape)).astype(np.float32)
    expected = networks.in_xla(graph, variables, image)()
    for channels_last in (False, True):
        found = networks.in_torch(graph, variables, image, channels_last=channels_last)()
        assert np.median(np.abs(found - expected)) < 0.2 * np.std(expected)
