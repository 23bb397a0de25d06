"""Stability of scores: the measures by hand, and the command on a small run."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from experiments import scores


def test_the_measures_of_known_scores():
    # Two batches that agree on the order of four channels, and two that disagree.
    agree = np.array([[1.0, 2, 3, 4], [2.0, 4, 6, 9]])
    disagree = np.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])
    found = scores.stability({"a": agree, "b": disagree}, {"a": agree, "b": agree})
    opposite = (1 * 4 + 2 * 3) * 2 / 30
    same = (2 + 8 + 18 + 36) / np.sqrt(30 * (4 + 16 + 36 + 81))
    assert found["cosine_least"] == pytest.approx(opposite)
    assert found["cosine"] == pytest.approx((opposite + same) / 2)
    assert found["spearman"] == pytest.approx((1 - 1) / 2)
    assert found["jaccard"] == pytest.approx((1 + 0) / 2)
    # The means of the batches that disagree are all equal, so the first two channels are kept, and ties decide on all.
    assert found["jaccard_exact"] == pytest.approx((1 + 0) / 2)
    assert found["tied"] == pytest.approx((0 + 1) / 2)


def test_what_is_kept_and_what_ties_decide():
    assert scores.kept(np.array([1.0, 3, 3, 3])) == {1, 2}
    assert scores.tied(np.array([1.0, 3, 3, 3])) == 0.75
    assert scores.tied(np.array([1.0, 2, 3, 3])) == 0
    assert scores.kept(np.array([5.0])) == {0}


def test_permuted_channels_show_what_cosines_are_by_nature():
    rows = np.random.default_rng(0).uniform(5, 6, (6, 40))
    found = scores.stability({"a": rows}, {"a": rows})
    assert found["cosine_permuted"] > 0.99  # of positive vectors without any relation
    assert abs(found["cosine"] - found["cosine_permuted"]) < 0.01
    assert found["jaccard"] == pytest.approx(1 / 3, abs=0.1)  # of random halves


def test_the_command_on_a_run(small_run, tmp_path, monkeypatch):
    kinds = {name: scores.criteria()[name] for name in ("SVS, exact", "SVS, ε = 0.1")}
    monkeypatch.setattr(scores, "criteria", lambda: kinds)
    out = tmp_path / "scores.json"
    words = [str(small_run), "--batches", "2", "--batch-size", "8", "--out", str(out)]
    found = CliRunner().invoke(scores.main, words)
    assert found.exit_code == 0, found.output
    assert "| SVS, exact" in found.output
    assert json.loads(out.read_text())["measures"]["SVS, exact"]["jaccard_exact"] == 1
    wrong = CliRunner().invoke(scores.main, [str(tmp_path)])
    assert wrong.exit_code == 2
    assert "is not the directory of a run" in wrong.output
