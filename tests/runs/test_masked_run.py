"""A run that removes channels and masks single weights: its stages, resumed, in rounds, and by the command line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_runs import checksums, contents

from qpsnn_jax import Config, DataSettings, NetworkSettings, Pruning, RunSettings, Training, load_network
from qpsnn_jax.pruning import bits
from qpsnn_jax.runs import programs
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.config import check_config
from qpsnn_jax.runs.controls import CONTROLS
from qpsnn_jax.runs.directory import open_run, read_stage
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.masking import mask_weights
from qpsnn_jax.runs.rounds import run_stages
from qpsnn_jax.runs.stages import finetune, prepare_run

TRAIN = Training(epochs=0, batch_size=32, optimizer="adam", learning_rate=0.01)
CONFIG = Config(
    NetworkSettings("small_runs:tiny", timesteps=2),
    DataSettings("digits", train_examples=64, test_examples=20),
    TRAIN,
    Pruning("magnitude", {"middle": 0.5}, sparsity=0.7, score_batches=1, score_batch_size=32),
    dataclasses.replace(TRAIN, epochs=2),
    RunSettings(checkpoint_epochs=1),
)


def with_pruning(**changes) -> Config:
    return dataclasses.replace(CONFIG, prune=dataclasses.replace(CONFIG.prune, **changes))


def mask_of(place) -> np.ndarray:
    return np.asarray(load_network(place)[1]["masks"]["conv2"]["mask"])


@pytest.fixture(scope="module")
def data():
    return load_data(CONFIG)


@pytest.fixture(scope="module")
def masked_run(data, tmp_path_factory):
    """A finished run without a report. Not to be changed; copy it."""
    directory = tmp_path_factory.mktemp("masked") / "run"
    with open_run(directory, CONFIG):
        run_stages(CONFIG, prepare_run(CONFIG, directory, data))
    return directory


@pytest.fixture
def copy(masked_run, tmp_path):
    return shutil.copytree(masked_run, tmp_path / "copy")


def test_channels_go_first_and_then_the_smallest_weights_that_are_left(masked_run):
    graph, pruned = load_network(masked_run / "pruned")
    assert "masks" not in pruned
    magnitudes = np.abs(np.asarray(pruned["params"]["conv2"]["kernel"]))
    assert magnitudes.shape == (3, 3, 4, 3)
    smallest = np.argsort(magnitudes, axis=None)[:75]  # 70 % of 108
    expected = np.ones(108)
    expected[smallest] = 0
    for name in ("masked", "recalibrated", "finetuned"):
        found, variables = load_network(masked_run / name)
        assert [node.name for node in found.nodes if getattr(node, "masked", False)] == ["conv2"]
        np.testing.assert_array_equal(variables["masks"]["conv2"]["mask"].ravel(), expected)
    assert not graph.by_name["conv2"].masked
    stages = {name: read_stage(masked_run, name) for name in ("quantized", "pruned", "masked", "finetuned")}
    assert [stage.connection_ratio for stage in stages.values()] == [1, 108 / 216, 33 / 216, 33 / 216]
    assert stages["masked"].params == stages["pruned"].params - 75
    assert stages["masked"].size_bytes < stages["pruned"].size_bytes


def test_a_run_that_was_stopped_masks_and_trains_the_same(masked_run, copy, capsys):
    """Stopped before its masks, and after the first epoch of fine-tuning, whose checkpoint holds the masks."""
    assert (
        "variables/masks/conv2/mask" in json.loads((copy / "finetuned" / "step_2" / "meta.json").read_text())["arrays"]
    )
    for name in ("masked", "recalibrated"):
        shutil.rmtree(copy / name)
    (copy / "finetuned" / "stage.json").unlink()
    for name in ("step_4", "final"):
        shutil.rmtree(copy / "finetuned" / name)
    assert main(["finetune", str(copy)]) == 0
    assert "\n| masked " in capsys.readouterr().out
    for name in ("masked", "recalibrated", "finetuned"):
        assert checksums(copy / name) == checksums(masked_run / name)
    report = json.loads((copy / "report.json").read_text())
    names = ["quantized", "pruned", "masked", "recalibrated", "finetuned"]
    assert [stage["name"] for stage in report["stages"]] == names
    assert report["config"]["prune"]["sparsity"] == 0.7


@pytest.mark.parametrize("criterion", ["rate", "gradient", "random", f"{__name__}:first_rows"])
def test_n_of_m_by_other_criteria(criterion, copy, data):
    shutil.rmtree(copy / "masked")
    config = with_pruning(sparsity=None, n_of_m="1:4", weight_criterion=criterion)
    run = prepare_run(config, copy, data)
    assert mask_weights(run, dataclasses.replace(config.prune, rounds=2)) is None  # only in the last round
    stage = mask_weights(run, config.prune)
    mask = mask_of(copy / "masked")
    np.testing.assert_array_equal(mask.sum(2), np.ones((3, 3, 3)))
    assert stage.connection_ratio == 27 / 216
    assert mask[:, :, 0].all() == (criterion == f"{__name__}:first_rows")


def first_rows(graph, variables, layers):
    return {name: -np.indices(variables["params"][name]["kernel"].shape)[2] for name in layers}


def test_rounds_arrive_at_the_sparsity(copy, data):
    shutil.rmtree(copy / "masked")
    pruning = with_pruning(sparsity=0.75, rounds=2).prune
    run = prepare_run(CONFIG, copy, data)
    mask_weights(run, pruning)
    assert mask_of(copy / "masked").sum() == 54  # half of 108
    shutil.rmtree(copy / "masked")
    mask_weights(run, pruning, done=1)
    assert mask_of(copy / "masked").sum() == 27


def test_the_control_from_scratch_has_the_masks(copy, data):
    config = dataclasses.replace(CONFIG, finetune=TRAIN)
    (stage,) = CONTROLS["scratch"](config, prepare_run(config, copy, data))
    assert stage.params == read_stage(copy, "masked").params
    np.testing.assert_array_equal(mask_of(copy / "controls" / "scratch"), mask_of(copy / "masked"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_of_m": "2:4"}, "sparsity must be none with an n_of_m, got 0.7 and 2:4."),
        ({"sparsity": None, "n_of_m": "4:2"}, "n_of_m must be two integers n:m such as 2:4, 0 < n < m, got '4:2'."),
        ({"sparsity": None, "n_of_m": "2/4"}, "n_of_m must be two integers n:m such as 2:4"),
        (
            {"sparsity": None, "n_of_m": "2:3"},
            "prune.n_of_m 2:3 does not divide the 4 input channels of node 'conv2' after pruning; change prune.ratios",
        ),
        (
            {"sparsity": None, "n_of_m": "2:4", "ratios": {}, "budget": "3kB"},
            "prune.n_of_m 2:4 and a budget, which leaves any width, need a prune.multiple_of 4.",
        ),
        ({"sparsity": 1.0}, "sparsity must be a number at least 0 and below 1, or none, got 1.0."),
    ],
)
def test_settings_that_cannot_be_raise(changes, message):
    with pytest.raises(ValueError) as caught:
        check_config(with_pruning(**changes))
    assert message in str(caught.value)


def one_layer(*, bits, timesteps, classes, input_shape, width, ratios, lif):
    from qpsnn_jax.model.graph import Graph
    from qpsnn_jax.model.nodes import Dense, Flatten, Input

    del bits, width, ratios, lif
    return Graph((Input("image", input_shape), Flatten("flat", "image"), Dense("fc", "flat", classes)), timesteps)


def test_a_network_without_a_layer_to_mask_and_a_criterion_that_is_none_raise(data, tmp_path):
    network = NetworkSettings(f"{__name__}:one_layer", timesteps=1)
    with pytest.raises(ValueError, match=r"prune.sparsity finds no layer to mask: all read the image or are the last."):
        check_config(dataclasses.replace(with_pruning(ratios={}), network=network))
    for changes in ({"criterion": "no_such:rule"}, {"weight_criterion": "no_such:rule"}):
        with pytest.raises(ValueError, match="'no_such:rule' cannot be found"):
            prepare_run(with_pruning(**changes), tmp_path, data)
    with pytest.raises(ValueError, match="weight_criterion math:pi must be a function"):
        prepare_run(with_pruning(weight_criterion="math:pi"), tmp_path, data)


def test_another_sparsity_is_another_run(copy, capsys):
    before = contents(copy)
    path = copy.with_suffix(".py")
    path.write_text(f"from {__name__} import with_pruning\nconfig = with_pruning(sparsity=0.5)\n")
    assert main(["run", str(path), "--out", str(copy)]) == 2
    assert "(prune.sparsity is 0.7 there and 0.5 here); choose another --out." in capsys.readouterr().err
    assert contents(copy) == before


def test_the_commands_count_and_export_what_masks_leave(masked_run, tmp_path, capsys, monkeypatch):
    def said(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    stage = read_stage(masked_run, "finetuned")
    assert stage is not None
    assert f"| {stage.params:,} " in said("evaluate", masked_run)
    assert f" {stage.params:,} " in said("cost", masked_run)
    # 33 weights of 8 bits instead of 2 are 25 bytes more, 108 of them would be 81.
    monkeypatch.setattr(bits, "bit_sensitivity", lambda *_, **__: {"conv2": {1: 2.0, 2: 1.5, 8: 0.0}})
    assert "--network.layer_bits conv2=8" in said("bits", masked_run, "--budget", f"{stage.size_bytes + 30}B")
    file = tmp_path / "network.qpsnn"
    said("export", masked_run, "--format", "packed", "--out", file)
    assert "at 2 bits, 31 % left, of lif1" in said("info", file)
    for format_ in ("packed", "onnx", "nir", "c"):
        assert "100.00 %" in said("verify", masked_run, "--format", format_)


class StoppedError(Exception):
    """The training step is about to be compiled."""


def test_a_price_on_operations_takes_account_of_masks(copy, data, monkeypatch):
    shutil.rmtree(copy / "finetuned")
    penalties = {}

    def stop(*_, penalty, **__):
        penalties.update(penalty)
        raise StoppedError

    monkeypatch.setattr(programs, "make_train_step", stop)
    with pytest.raises(StoppedError):
        finetune(prepare_run(CONFIG, copy, data), dataclasses.replace(TRAIN, epochs=1, sops_target="1kSOPs"))
    # A spike in the middle of the map reaches every weight of its channel.
    np.testing.assert_array_equal(penalties["lif1"].keywords["reached"][4, 4], mask_of(copy / "masked").sum((0, 1, 3)))
