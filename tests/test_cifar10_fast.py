"""The recipe in slices, small: a run that was stopped gives the same arrays, and its steps lower for a GPU."""

import json
import shutil

import pytest
from click.testing import CliRunner
from small_runs import array_checksums

from experiments.cifar10_fast.__main__ import main
from experiments.cifar10_fast.recipe import Recipe, count, lowered_step, read_data
from experiments.cifar10_fast.slices import Run
from qpsnn_jax import cost, load_network, load_packed
from qpsnn_jax.data import load

RECIPE = Recipe("small_runs:tiny", size=0.0005, epochs=(1, 1, 1, 2), batch_size=64, held_out=1200)
WORDS = ["--network", "small_runs:tiny", "--data", "digits", "--batch-size", "64", "--held-out", "1200"]
WORDS += ["--size", "0.0005", "--epochs", "1,1,1,2"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A run in one go, and a copy of its directory as it was before the last slice."""
    folder = tmp_path_factory.mktemp("fast")
    run = Run(RECIPE, folder / "whole", read_data(RECIPE, digits))
    for number, line in enumerate(run.slices(), 1):
        assert "held-out accuracy" in line
        if number == 4:
            shutil.copytree(folder / "whole", folder / "stopped")
    assert number == 5
    run.result(digits.test)
    return folder


def test_a_run_that_was_stopped_gives_the_same_arrays(folder, digits):
    """Its last slice is the second epoch of fine-tuning with a teacher."""
    run = Run(RECIPE, folder / "stopped", read_data(RECIPE, digits))
    assert len(list(run.slices())) == 1
    first, second = (array_checksums(folder / name / "after_3" / "step_0") for name in ("whole", "stopped"))
    assert first
    assert first == second


def test_the_pruned_network_meets_the_budget_and_is_packed(folder):
    (whole, _), (pruned, _) = (load_network(folder / "whole" / name) for name in ("whole", "after_3"))
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert cost(pruned).size_bytes == result["weight_bytes"] <= 500 < cost(whole).size_bytes
    path = folder / "whole" / "network.qpsnn"
    assert path.stat().st_size == result["file_bytes"]
    assert load_packed(path).folded.timesteps == 2
    lines = (folder / "whole" / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 1, 1, 1, 2]


def test_the_command_goes_on_with_its_own_recipe_only(folder):
    done = CliRunner().invoke(main, [*WORDS, "--out", str(folder / "whole")])
    assert done.exit_code == 0, done.output
    assert "test accuracy" in done.output
    found = CliRunner().invoke(main, [*WORDS, "--out", str(folder / "whole"), "--seed", "1"])
    assert found.exit_code == 2
    assert "holds a run of another recipe" in found.output
    assert CliRunner().invoke(main, [*WORDS]).exit_code == 2
    assert CliRunner().invoke(main, ["--out", str(folder / "x"), "--epochs", "1,2"]).exit_code == 2
    for wrong in (["--data", "nope"], ["--held-out", "0"], ["--timesteps", "0"]):
        found = CliRunner().invoke(main, [*wrong, "--out", str(folder / "x")])
        assert found.exit_code == 2, found.output
        assert wrong[1] in found.output


def test_a_step_lowers_for_a_gpu_in_bfloat16():
    text = lowered_step(RECIPE, RECIPE.phases[2], RECIPE.graph((8, 8, 1), 10), "cuda").as_text()
    operands = [line.split(" : (")[1].split(")")[0] for line in text.splitlines() if "stablehlo.convolution" in line]
    # Two of the student, two of the teacher, and the gradients; sums of spikes are exact in float32 too.
    assert len(operands) == 6
    assert sum(line.count("xbf16>") == 2 for line in operands) >= 4
    assert "custom_call" not in "".join(operands)


def test_the_count_is_that_of_the_steps(monkeypatch):
    class Lowered:
        def cost_analysis(self):
            return {"flops": 1e12}

    monkeypatch.setattr("experiments.cifar10_fast.recipe.lowered_step", lambda *_: Lowered())
    # 45,000 images are 87 batches of 512.
    said = count(Recipe(width=0.0625))
    assert "quantized, T = 1: 40 epochs of 0.087 PFLOP" in said
    assert f"all: {95 * 87e12 / 1e15:.1f} PFLOP" in said
