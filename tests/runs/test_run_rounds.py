"""Runs with several rounds of pruning: their stages, seeds and epochs, stopped in the first round and resumed."""

import dataclasses

import pytest

from qpsnn_jax import Config, DataSettings, Graph, NetworkSettings, Pruning, RunSettings, Training, load_network
from qpsnn_jax.model.nodes import LIF, Dense, GlobalAveragePool, Input
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels
from qpsnn_jax.runs.config import check_config, finetuning_parts
from qpsnn_jax.runs.controls import run_controls
from qpsnn_jax.runs.directory import open_run, read_stage
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.records import read_notes
from qpsnn_jax.runs.rounds import run_stages
from qpsnn_jax.runs.stages import prepare_run


def tiny(*, bits, timesteps, classes, input_shape, width, ratios, lif):
    """One quantized convolution, which is never pruned, after the stem, which is."""
    stem = kept_channels(8, checked_ratios(ratios, ("stem",))["stem"])
    nodes = (
        Input("image", input_shape),
        *conv_bn("image", "conv1", "bn1", stem, label="stem"),
        LIF("lif1", "bn1"),
        *conv_bn("lif1", "conv2", "bn2", 4, quantizer=bits),
        LIF("lif2", "bn2"),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps)


def config_of(rounds=2, epochs=3):
    train = Training(epochs=0, batch_size=32, optimizer="adam", learning_rate=0.01)
    return Config(
        NetworkSettings(f"{__name__}:tiny", timesteps=1),
        DataSettings("digits", train_examples=64, test_examples=20),
        train,
        Pruning("magnitude", {"stem": 0.6}, multiple_of=2, rounds=rounds, recalibrate="never"),
        dataclasses.replace(train, epochs=epochs),
        RunSettings(checkpoint_epochs=1),
    )


def test_two_rounds_stopped_in_the_first(tmp_path):
    config, seen = config_of(), []
    data = load_data(config)

    def started(done, total):
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with open_run(tmp_path, config):
        run = prepare_run(config, tmp_path, data, (Hooks(start=started),))
        with pytest.raises(KeyboardInterrupt):
            run_stages(config, run)
        stages = run_stages(config, run)
    # No training; the first round of one epoch and two steps, stopped, then done; the second, with what is left over.
    assert seen == [(0, 0), (0, 2), (0, 2), (0, 4)]
    names = ["quantized", "rounds/1/pruned", "rounds/1/finetuned", "pruned", "finetuned"]
    assert [stage.name for stage in stages] == names
    widths = [load_network(tmp_path / name)[0].by_name["conv1"].features for name in names]
    assert widths == [8, 6, 6, 4, 4]  # 5 would stay after the first round, and 3 after the last
    assert [stage.connection_ratio for stage in stages] == [1, 0.75, 0.75, 0.5, 0.5]
    assert len(read_notes(tmp_path / "rounds/1/pruned/stage.json", "keep")["conv1"]) == 6
    assert read_stage(tmp_path / "rounds/1", "finetuned") == stages[2]
    with open_run(tmp_path, config):
        assert run_stages(config, run) == stages
    assert len(seen) == 4


def test_the_control_without_training_prunes_in_one_round(tmp_path):
    config = config_of()
    with open_run(tmp_path, config):
        run = prepare_run(config, tmp_path, load_data(config), ())
        run_stages(config, run)
        run_controls(config, run)
    control = tmp_path / "controls" / "random_recalibrated"
    assert not (control / "rounds").exists()
    assert read_stage(control, "recalibrated")
    assert (tmp_path / "controls" / "random" / "rounds").exists()


def test_epochs_of_fine_tuning_are_divided():
    assert [part.epochs for part in finetuning_parts(config_of(3, 8))] == [2, 2, 4]
    assert [part.epochs for part in finetuning_parts(config_of(3, 0))] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"finetune.epochs must be at least the 3 of prune.rounds, or 0, got 2"):
        check_config(config_of(3, 2))
    config = config_of(2, 6)
    short = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, timesteps_schedule="1:0.1,1"))
    with pytest.raises(
        ValueError, match="finetune, in 2 rounds: timesteps_schedule '1:0.1,1' gives T = 1 no epoch of 3"
    ):
        finetuning_parts(short)
