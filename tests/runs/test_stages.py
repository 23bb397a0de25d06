"""Whole runs of a small network: stages, commands, what they save, what raises, and what is never overwritten."""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cifar_folder import prepare
from small_runs import checksums, contents, records

from qpsnn_jax.model.costs import cost
from qpsnn_jax.pruning import select
from qpsnn_jax.runs import programs, stages, teachers
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.config import build_graph, load_config
from qpsnn_jax.runs.controls import read_controls
from qpsnn_jax.runs.directory import STAGES, check_run, load_network, make_run, open_run, read_config, save_network
from qpsnn_jax.runs.evaluation import evaluate, normalizer
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runtime.settings import as_dict
from qpsnn_jax.training.recalibration import recalibrate
from qpsnn_jax.training.state import init_variables

DONE = [name for name in STAGES if name != "masked"]  # without a sparsity
CONTROL_NAMES = ["baseline", "random", "random_recalibrated", "scratch"]


@pytest.fixture
def copy(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "copy")


@pytest.fixture
def lazy(monkeypatch):
    """Training again fails."""

    def fail(*_, **__):
        raise AssertionError("a complete stage was computed again")

    for name in ("fit", "evaluate", "score_network", "_trained_network"):
        monkeypatch.setattr(stages, name, fail)


def failed(capsys, arguments, match, status=2):
    assert main([str(argument) for argument in arguments]) == status
    *before, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("run: ") for line in before)  # where it is, once it has begun
    assert len(before) <= 1
    assert error.startswith("qpsnn: error: ")
    assert match in error


def cells(table: str, name: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_kept_channels_are_those_with_the_highest_scores(small_run, small_report):
    keep = json.loads((small_run / "pruned" / "stage.json").read_text())["keep"]
    assert {name: len(kept) for name, kept in keep.items()} == {"conv1": int(10 * 0.7), "conv2": int(20 * 0.45)}
    whole, pruned, final = (load_network(small_run / name)[0] for name in ("quantized", "pruned", "finetuned"))
    assert whole == build_graph(read_config(small_run))
    assert pruned == final
    kept, moved = (load_network(small_run / name)[1] for name in ("pruned", "recalibrated"))
    jax.tree.map(np.testing.assert_array_equal, kept["params"], moved["params"])
    assert any(not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (kept, moved)), strict=True))
    with np.load(small_run / "pruned" / "scores.npz") as scores:
        chosen = select(whole, dict(scores), small_report["config"]["prune"]["ratios"])
    assert {name: kept.tolist() for name, kept in chosen.items()} == keep
    weights = [9 * (i * o + o * 16) for i, o in ((10, 20), (7, 9))]
    assert small_report["stages"][1]["connection_ratio"] == weights[1] / weights[0]


def test_averaged_weights_are_recalibrated_when_asked(small_config, tmp_path):
    """Weights, checkpoints and epochs are as without; the moments and the result are those of what is saved."""
    config, found = load_config(small_config), {}
    data = load_data(config)
    for images in (0, 200):
        training = dataclasses.replace(config.train, epochs=1, ema_decay=0.9, recalibrate_images=images)
        run = stages.prepare_run(dataclasses.replace(config, train=training), tmp_path / str(images), data)
        found[images] = stages.train(run, training), load_network(run.directory / "quantized")
    (plain, (graph, averaged)), (result, (_, moved)) = found[0], found[200]
    jax.tree.map(np.testing.assert_array_equal, averaged["params"], moved["params"])
    batches = [np.asarray(normalizer(data)(jnp.asarray(data.train.images[i : i + 128]))) for i in (0, 128)]
    wanted = recalibrate(graph, averaged, batches)["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), moved["batch_stats"], wanted)
    apart = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), averaged["batch_stats"], wanted)
    assert max(jax.tree.leaves(apart)) > 0.01
    assert result.accuracy_last == evaluate(graph, moved, data.test, data).accuracy != plain.accuracy_last


def test_every_stage_can_be_loaded_and_is_what_the_report_says(small_run, small_report):
    config = read_config(small_run)
    data = load_data(config)
    for stage in small_report["stages"]:
        graph, variables = load_network(small_run / stage["name"])
        result = evaluate(graph, variables, data.test, data)
        costs = cost(graph, result.activity)
        assert result.accuracy == stage["accuracy_last"] <= stage["accuracy_best"] <= 1
        assert (costs.params, costs.size_bytes) == (stage["params"], stage["size_bytes"])
        assert costs.sops_total == pytest.approx(stage["sops_total"])
        assert stage["sops_total"] == pytest.approx(2 * stage["sops_per_step"])
        assert costs.energy_mj == pytest.approx(stage["energy_mj"])
        assert costs.firing_rates == pytest.approx(stage["firing_rates"])
    final, variables = load_network(small_run)
    expected, others = load_network(small_run / "finetuned" / "final")
    assert final == expected
    jax.tree.map(np.testing.assert_array_equal, variables, others)


def test_the_accuracy_of_a_stage_is_that_of_its_last_epoch(small_run, small_report):
    for stage in small_report["stages"]:
        epochs = json.loads((small_run / stage["name"] / "stage.json").read_text())["epochs"]
        accuracies = [epoch["test_accuracy"] for epoch in epochs] or [stage["accuracy_last"]]
        assert stage["accuracy_last"] == accuracies[-1]
        assert stage["accuracy_best"] == max(accuracies)
        assert len(epochs) == {"quantized": 4, "pruned": 0, "recalibrated": 0, "finetuned": 2}[stage["name"]]


@pytest.mark.usefixtures("lazy")
def test_the_same_command_again_changes_nothing(small_config, copy, capsys):
    before = contents(copy)
    assert main(["run", str(small_config), "--out", str(copy)]) == 0
    assert contents(copy) == before
    assert cells(capsys.readouterr().out, "finetuned")[0] == "finetuned"


def test_the_stages_one_by_one_are_the_run(small_config, small_run, small_report, tmp_path, capsys):
    directory = tmp_path / "steps"
    report = (small_run / "report.md").read_text()
    failed(capsys, ["prune", tmp_path], "is not the directory of a run")
    assert main(["train", str(small_config), "--out", str(directory)]) == 0
    assert cells(capsys.readouterr().out, "quantized")[:-1] == cells(report, "quantized")[:-1]
    failed(capsys, ["finetune", directory], "has no complete stage 'pruned' yet; run `qpsnn prune` first.")
    assert main(["score", str(directory)]) == 0
    assert "conv2                   20 channels" in capsys.readouterr().out
    assert main(["prune", str(directory)]) == 0
    out = capsys.readouterr().out
    for name in ("pruned", "recalibrated"):
        assert cells(out, name)[:-1] == cells(report, name)[:-1]
    assert main(["finetune", str(directory)]) == 0
    assert cells(capsys.readouterr().out, "finetuned")[:-1] == cells(report, "finetuned")[:-1]
    assert records(json.loads((directory / "report.json").read_text())) == records(small_report)
    for name in DONE:
        assert checksums(directory / name) == checksums(small_run / name)
    assert set(contents(directory)) >= {name for name in contents(small_run) if name.startswith(("report", "plots"))}


def test_later_stages_need_earlier_ones(small_config, tmp_path, capsys):
    config = load_config(small_config)
    make_run(tmp_path / "run", config)
    for command in ("score", "prune"):
        failed(capsys, [command, tmp_path / "run"], "has no complete stage 'quantized' yet; run `qpsnn train` first.")
    failed(capsys, ["evaluate", tmp_path / "run"], "does not hold a complete network")


def test_evaluate_gives_the_numbers_of_the_report(small_run, capsys):
    report = (small_run / "report.md").read_text()
    for name in DONE:
        for place in (small_run / name, small_run / name / "final", small_run / name / "final" / "step_0"):
            assert main(["evaluate", str(place)]) == 0
            found = cells(capsys.readouterr().out, place.name)
            expected = cells(report, name)
            assert [found[1], *found[3:-1]] == [expected[1], *expected[3:-1]]
    assert main(["evaluate", str(small_run)]) == 0
    assert cells(capsys.readouterr().out, small_run.name)[3:-1] == cells(report, "finetuned")[3:-1]


def test_evaluate_takes_other_data(small_run, tmp_path, capsys):
    outside = shutil.copytree(small_run / "finetuned" / "final", tmp_path / "alone")
    failed(capsys, ["evaluate", outside], "does not belong to a run; name a data set with --data")
    assert main(["evaluate", str(outside), "--data", "digits", "--test-examples", "7"]) == 0
    accuracy = float(cells(capsys.readouterr().out, "alone")[1].removesuffix("%"))
    assert accuracy * 7 / 100 == pytest.approx(round(accuracy * 7 / 100), abs=1e-3)
    failed(capsys, ["evaluate", outside, "--data", "digits", "--test-examples", "0"], "test_examples")


def test_cost_gives_the_numbers_of_the_report(small_config, small_run, small_report, capsys):
    whole, *_, final = small_report["stages"]
    for arguments, stage, measured in (
        (["cost", str(small_config)], whole, False),
        (["cost", str(small_config), "--pruned"], final, False),
        (["cost", str(small_config), "--pruned", "--prune.multiple_of", "64"], whole, False),
        (["cost", str(small_run)], final, True),
        (["cost", str(small_run / "quantized")], whole, True),
    ):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        total = next(line for line in lines if line.startswith("total")).replace(",", "").split()
        assert int(total[1]) == stage["params"]
        assert float(total[2]) * 1000 == stage["size_bytes"]
        assert (total[5] != "–") == measured
        if measured:
            assert float(total[5]) == pytest.approx(stage["sops_total"], abs=0.5)
            energy = next(line for line in lines if "µJ" in line)
            assert float(energy.split()[0]) == pytest.approx(1000 * stage["energy_mj"], abs=5e-4)
        layers = [line.replace(",", "").split() for line in lines[1 : lines.index("")] if not line.startswith("total")]
        assert sum(int(cells[4]) for cells in layers) == int(total[3])  # the lines add up
    assert main(["cost", str(small_config), "--network.width", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    total = next(line for line in lines if line.startswith("total"))
    assert int(total.split()[1].replace(",", "")) > 2 * whole["params"]
    failed(capsys, ["cost", small_run, "--network.width", "2"], "finished network, so --network.width cannot be set")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_wherever_its_data_lie(small_config, copy, capsys, lazy):
    command = ["run", str(small_config), "--out", str(copy)]
    assert main([*command, "--data.data_dir", "elsewhere", "--data.workers", "3", "--run.checkpoint_epochs", "9"]) == 0
    failed(capsys, [*command, "--run.seed", "1"], "holds another run (run.seed is 0 there and 1 here)")


def test_the_controls_stand_in_the_same_table(small_config, small_report, copy, capsys, monkeypatch):
    before = contents(copy)
    command = ["run", str(small_config), "--out", str(copy), "--compare"]
    assert main(command) == 0
    out = capsys.readouterr().out
    report = json.loads((copy / "report.json").read_text())
    assert report["stages"] == small_report["stages"]
    assert [control["name"] for control in report["controls"]] == CONTROL_NAMES
    assert all(set(control) == set(report["stages"][0]) for control in report["controls"])
    for name in (*DONE, *CONTROL_NAMES):
        assert cells(out, name) == cells((copy / "report.md").read_text(), name)
    # Each is as small as the pruned network, and its results match its name.
    assert {control["params"] for control in report["controls"]} == {report["stages"][-1]["params"]}
    places = [copy / "controls" / name for name in ("baseline", "random")]
    configs = [as_dict(read_config(place)) for place in places]
    own = as_dict(read_config(copy))
    random = own | {"prune": own["prune"] | {"criterion": "random"}}
    baseline = {"network": own["network"] | {"gamma": "none"}, "prune": own["prune"] | {"criterion": "sca"}}
    assert configs == [own | baseline, random]
    keeps = [json.loads((d / "pruned" / "stage.json").read_text())["keep"] for d in (copy, *places)]
    assert keeps[0] != keeps[2] != keeps[1]
    floor = copy / "controls" / "random_recalibrated"
    assert json.loads((floor / "pruned" / "stage.json").read_text())["keep"] == keeps[2]
    assert not (floor / "finetuned").exists()
    scratch = json.loads((copy / "controls" / "scratch" / "quantized" / "stage.json").read_text())
    assert len(scratch["epochs"]) == 4 + 2
    assert {k: v for k, v in contents(copy).items() if k.startswith(STAGES)} == {
        k: v for k, v in before.items() if k.startswith(STAGES)
    }
    # And the same command again only reads.
    after = contents(copy)
    monkeypatch.setattr(programs, "make_train_step", None)
    assert main(command) == 0
    assert contents(copy) == after


def test_the_directory_of_another_run_raises(small_config, copy, capsys):
    before = contents(copy)
    for command in ("run", "train"):
        failed(
            capsys,
            [command, small_config, "--network.bits", "4", "--out", copy],
            "holds another run (network.bits is 2 there and 4 here); choose another --out.",
        )
    assert contents(copy) == before


def test_what_is_no_run_is_never_written_into(small_config, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for place in (foreign, foreign / "thesis.tex"):
        failed(capsys, ["run", small_config, "--out", place], "exists and is not the directory of a run")
    failed(capsys, ["run", small_config, "--out", foreign / "thesis.tex" / "below"], "thesis.tex")
    assert contents(foreign) == {"thesis.tex": b"years of work"}


def test_an_empty_directory_and_one_killed_at_its_start_are_taken(small_config, tmp_path):
    config = load_config(small_config)
    for name, left in (("empty", None), ("killed", "config.json.tmp")):
        (tmp_path / name).mkdir()
        if left:
            (tmp_path / name / left).write_text("{")
        with open_run(tmp_path / name, config):
            pass
        assert check_run(tmp_path / name, config)
        assert {p.name for p in (tmp_path / name).iterdir()} == {"config.json", ".lock"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"config": 3}', '{"config": {"bitz": 2}}', '{"config": {"network": {"bits": 9}}}', "[" * 100_000],
)
def test_a_damaged_config_raises(small_config, copy, capsys, text):
    (copy / "config.json").write_text(text)
    for command in (["run", small_config, "--out", copy], ["prune", copy], ["evaluate", copy]):
        failed(capsys, command, "config.json is damaged")


DAMAGES = {
    "empty": lambda data: b"",
    "another": lambda data: b'{"stage": {"name": "pruned"}}',
    "no text": lambda data: b"\xff\xfe",
    "deep": lambda data: b"[" * 100_000,
    "a digit": lambda data: data.replace(b'"params": ', b'"params": 1', 1),
    "a note": lambda data: data.replace(b'"keep"', b'"kept"', 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_raises(small_config, copy, capsys, damage):
    path = copy / "pruned" / "stage.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = contents(copy)
    failed(capsys, ["run", small_config, "--out", copy], "stage.json is damaged: it ")
    assert contents(copy) == before


def test_a_changed_setting_in_a_run_raises(small_config, copy, capsys):
    path = copy / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    for command in (["run", small_config, "--out", copy], ["finetune", copy]):
        failed(capsys, command, "config.json is damaged (it does not match its checksum).")


def test_a_damaged_record_of_a_control_costs_no_more_than_itself(copy):
    (copy / "controls").mkdir()
    (copy / "controls" / "random.json").write_text("{}")
    with pytest.raises(ValueError, match=r"random\.json is damaged: .*; delete it to redo the stage"):
        read_controls(copy)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_damaged_scores_raise(small_config, copy, capsys, kept):
    shutil.rmtree(copy / "finetuned")
    (copy / "pruned" / "stage.json").unlink()
    scores = copy / "pruned" / "scores.npz"
    scores.write_bytes(scores.read_bytes()[: int(kept * scores.stat().st_size)])
    failed(capsys, ["run", small_config, "--out", copy], "scores.npz is damaged; delete it to score again.")
    assert not (copy / "pruned" / "stage.json").exists()


def test_a_checkpoint_of_another_network_raises(small_config, copy, capsys):
    other = build_graph(load_config(small_config), ratios={"middle": 0.5})
    shutil.rmtree(copy / "pruned")
    shutil.rmtree(copy / "quantized" / "final")
    save_network(copy / "quantized" / "final", other, init_variables(other, jax.random.key(0)), {})
    before = contents(copy)
    for command in (["score", copy], ["prune", copy], ["run", small_config, "--out", copy]):
        failed(capsys, command, "holds a network that differs from the run's config")
    assert contents(copy) == before


def test_a_corrupted_checkpoint_raises(small_config, copy, capsys):
    arrays = (p for p in (copy / "quantized" / "final").rglob("d/*") if p.is_file())
    path = max(arrays, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    shutil.rmtree(copy / "pruned")
    before = contents(copy)
    for command in (["evaluate", copy / "quantized"], ["prune", copy], ["run", small_config, "--out", copy]):
        failed(
            capsys, command, f"damaged: its files do not match their checksums; delete the folder {copy}/quantized to"
        )
    assert contents(copy) == before
    shutil.rmtree(copy / "quantized")
    assert main(["run", str(small_config), "--out", str(copy)]) == 0
    assert main(["evaluate", str(copy / "quantized")]) == 0


def test_a_loss_that_is_not_finite_ends_with_status_1(small_config, tmp_path, capsys):
    wild = ["--train.optimizer", "sgd", "--train.learning_rate", "1e38"]
    assert main(["train", str(small_config), *wild, "--out", str(tmp_path / "wild")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("qpsnn: error: ")
    assert "step" in message
    assert not (tmp_path / "wild" / "quantized" / "stage.json").exists()


def test_the_criterion_decides_the_scores(small_run):
    config = read_config(small_run)
    graph, variables = load_network(small_run / "quantized")
    run = stages.prepare_run(config, small_run, load_data(config))
    scores = {
        name: stages.score_network(run, dataclasses.replace(config.prune, criterion=name), graph, variables)
        for name in ("svs", "sca", "magnitude", "random")
    }
    flat = {name: np.concatenate([np.asarray(x).ravel() for x in found.values()]) for name, found in scores.items()}
    assert all(set(found) == {"conv1", "conv2", "conv3"} for found in scores.values())
    assert all(len(values) == 10 + 20 + 16 for values in flat.values())
    assert flat["svs"].max() <= 8
    # Mean ranks of two batches of 100 images.
    np.testing.assert_allclose(flat["svs"] * 200, np.round(flat["svs"] * 200), atol=1e-3)
    assert ((flat["random"] >= 0) & (flat["random"] < 1)).all()
    kernel = np.asarray(variables["params"]["conv2"]["kernel"])
    np.testing.assert_allclose(scores["magnitude"]["conv2"], np.abs(kernel).sum((0, 1, 2)), rtol=1e-5)
    with np.load(small_run / "pruned" / "scores.npz") as stored:
        np.testing.assert_array_equal(stored["conv2"], scores["svs"]["conv2"])


def test_training_on_cifar(small_config, tmp_path, capsys):
    prepare(tmp_path / "tfds" / "cifar10" / "3.0.2", "cifar10", 10)
    settings = {"data.name": "cifar10", "data.data-dir": tmp_path / "tfds", "data.test-examples": "none"}
    settings |= {"data.train-examples": 40, "train.epochs": 1, "train.batch-size": 20, "finetune.batch-size": 20}
    settings |= {"data.flip": "true", "data.crop-padding": 2, "data.cutout": 8}
    settings |= {"network.name": "small_runs:tiny", "prune.ratios": "middle=0.5"}
    options = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    assert main(["train", str(small_config), *options, "--out", str(tmp_path / "cifar")]) == 0
    assert cells(capsys.readouterr().out, "quantized")
    assert load_network(tmp_path / "cifar" / "quantized")[0].input.shape == (32, 32, 3)


def test_a_criterion_of_ones_own_is_named(small_run, tmp_path):
    path = tmp_path / "criteria.py"
    path.write_text(
        "from qpsnn_jax import Criterion\n"
        "import jax.numpy as jnp\n"
        "rate = Criterion(lambda trace: trace.spikes.mean(1), lambda maps: maps.mean((0, 1, 2)))\n"
        "def ordered(graph, variables, key): return {'conv1': jnp.arange(10.0)}\n"
        "neither = 3\n"
    )
    config = read_config(small_run)
    graph, variables = load_network(small_run / "quantized")
    run = stages.prepare_run(config, small_run, load_data(config))

    def scores(name):
        return stages.score_network(
            run, dataclasses.replace(config.prune, criterion=f"{path}:{name}"), graph, variables
        )

    assert all(((found >= 0) & (found <= 1)).all() for found in scores("rate").values())
    assert scores("ordered")["conv1"].tolist() == list(range(10))
    with pytest.raises(ValueError, match="neither must be a Criterion or a function, got 3"):
        scores("neither")


def test_one_process_at_a_time_works_in_a_directory(small_config, copy, capsys):
    code = (
        "import sys; from pathlib import Path; from qpsnn_jax.runtime.lock import directory_lock\n"
        "with directory_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(copy)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    before = contents(copy)
    for words in (["run", small_config, "--out", copy], ["score", copy], ["finetune", copy]):
        failed(capsys, words, f"{copy} is in use by another run (process {holder.pid})")
    assert contents(copy) == before
    holder.kill()
    holder.communicate()
    assert main(["score", str(copy)]) == 0


def test_a_budget_decides_the_widths(small_run, small_report, tmp_path):
    config = read_config(small_run)
    run = stages.prepare_run(config, tmp_path, load_data(config))
    whole = small_report["stages"][0]
    pruning = dataclasses.replace(config.prune, budget=f"{0.5 * whole['sops_total']:.0f}SOPs")
    result = stages.prune_channels(run, pruning, source=small_run / "quantized")
    # The budget is met on training images; the test images fire almost alike.
    assert 0.4 < result.sops_total / whole["sops_total"] < 0.55
    keep = json.loads((tmp_path / "pruned" / "stage.json").read_text())["keep"]
    assert set(keep) == {"conv1", "conv2", "conv3"}  # no ratio removes the last ones
    assert len(keep["conv1"]) + len(keep["conv2"]) < 10 + 20


def test_a_budget_that_cannot_be_met_is_told_before_training(small_config, tmp_path, capsys):
    out = ["--out", tmp_path / "none"]
    failed(capsys, ["run", small_config, "--prune.budget", "200B", *out], "a budget of 200 bytes cannot be met")
    failed(capsys, ["run", small_config, "--prune.budget", "small", *out], "prune.budget must be a size or a number of")
    failed(capsys, ["cost", small_config, "--pruned", "--prune.budget", "4kB"], "--pruned needs ratios")
    assert not (tmp_path / "none").exists()


def test_finetuning_follows_a_stage_as_its_teacher(copy):
    shutil.rmtree(copy / "finetuned")
    config = read_config(copy)
    run = stages.prepare_run(config, copy, load_data(config))
    training = dataclasses.replace(config.finetune, epochs=1, distill="quantized")
    stages.finetune(run, training)
    steps = [json.loads(line) for line in (copy / "finetuned" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 10
    assert all(step["distillation"] > 0 for step in steps)


def test_a_teacher_sees_images_normalized_as_its_own(small_config, small_run, tmp_path):
    config = load_config(small_config)
    data = load_data(config)
    network, place = load_network(small_run), tmp_path / "imported"
    training = dataclasses.replace(config.finetune, distill=str(place))
    for statistics, rescaled in (
        ({}, None),
        ({"mean": list(data.mean), "std": list(data.std)}, None),
        ({"mean": [0.5], "std": [0.2]}, ((data.std[0] / 0.2,), ((data.mean[0] - 0.5) / 0.2,))),
    ):
        save_network(place, *network, statistics)
        taught = teachers.load_teacher(tmp_path, training, None, data)
        assert taught.rescale == (rescaled and tuple(map(pytest.approx, rescaled)))
        shutil.rmtree(place)
    named = dataclasses.replace(training, distill="digits-43kb")
    assert teachers.load_teacher(tmp_path, named, None, data).rescale is None


def test_a_teacher_that_does_not_fit_is_told_before_training(small_config, small_run, tmp_path, capsys):
    out = ["--out", tmp_path / "none"]
    words = ["run", small_config, *out, "--finetune.distill"]
    failed(capsys, [*words, tmp_path / "absent"], "finetune.distill: ")
    failed(capsys, [*words, "finetuned"], "finetune.distill: the stage finetuned comes only after this training")
    failed(capsys, ["train", small_config, *out, "--train.distill", "quantized"], "train.distill: the stage quantized")
    failed(capsys, [*words, small_run, "--network.timesteps", "3"], "the time steps of the teacher must be those of")
    for teacher in ("quantized", small_run):
        wrong = [*words, teacher, "--finetune.distill_membranes", "lif9=1"]
        failed(capsys, wrong, "finetune.distill: membranes name 'lif9', which are not neurons of the network")
    wrong = ["train", small_config, *out, "--train.distill", small_run, "--train.distill_membranes"]
    failed(capsys, [*wrong, "lif1=1"], "train.distill: membranes of 'lif1' have the shape")
    config = load_config(small_config)
    # The shape may fit once the network is pruned.
    finetuning = dataclasses.replace(config.finetune, distill=str(small_run), distill_membranes={"lif1": 1.0})
    stages.prepare_run(dataclasses.replace(config, finetune=finetuning), tmp_path / "none", load_data(config))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("masked", {}, "there is no stage masked without masks in every round"),
        ("masked", {"n_of_m": "2:4", "ratios": {}, "rounds": 2}, "there is no stage masked without masks in every"),
        ("masked", {"sparsity": 0.5, "rounds": 2}, None),
        ("masked", {"n_of_m": "2:4", "ratios": {}}, None),
        ("recalibrated", {"recalibrate": "never"}, "the stage recalibrated needs prune.recalibrate always, got never"),
        ("recalibrated", {"recalibrate": "auto"}, "the stage recalibrated needs prune.recalibrate always, got auto"),
        ("recalibrated", {"recalibrate": "always"}, None),
    ],
)
def test_a_teacher_that_will_never_exist_is_told_before_training(small_config, tmp_path, stage, changes, message):
    config = load_config(small_config)
    finetuning = dataclasses.replace(config.finetune, distill=stage)
    config = dataclasses.replace(config, prune=dataclasses.replace(config.prune, **changes), finetune=finetuning)
    data = load_data(config)
    if message is None:
        stages.prepare_run(config, tmp_path, data)
    else:
        with pytest.raises(ValueError, match=f"finetune.distill: {message}"):
            stages.prepare_run(config, tmp_path, data)


def test_a_teacher_that_knows_the_test_images_is_refused(small_config, small_run, tmp_path, capsys, monkeypatch):
    words = ["run", small_config, "--out", tmp_path / "none", "--finetune.distill"]
    failed(capsys, [*words, small_run, "--run.seed", "1"], "has run.seed 0 and so was trained on test images of this")
    failed(capsys, [*words, small_run / "quantized", "--run.seed", "1"], "choose a teacher of run.seed 1.")
    config = load_config(small_config)
    other = tmp_path / "other"
    make_run(other, dataclasses.replace(config, data=dataclasses.replace(config.data, name="fashion_mnist")))
    failed(capsys, [*words, other], "was trained on fashion_mnist, and this run has digits")
    data = load_data(config)
    named = dataclasses.replace(data, class_names=tuple("abcdefghij"))
    monkeypatch.setattr(teachers, "read_class_names", lambda _: tuple("0123456789"))
    taught = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, distill=str(small_run)))
    with pytest.raises(ValueError, match="this run has a, b, c, d, e, f, g, h, i, j; choose another teacher"):
        stages.prepare_run(taught, tmp_path / "none", named)


def test_a_teacher_of_other_pictures_is_refused(small_config, tmp_path):
    """Of which some may be test images of the run."""
    config = load_config(small_config)
    of = {name: dataclasses.replace(config.data, name="folder", data_dir=str(tmp_path / name)) for name in "ab"}
    make_run(tmp_path / "run", dataclasses.replace(config, data=of["a"]))
    (tmp_path / "a").mkdir()
    taught = dataclasses.replace(config.finetune, distill=str(tmp_path / "run"))
    data = load_data(config)
    with pytest.raises(ValueError, match=r"was trained on the pictures in .*/a, some of which may be test images"):
        teachers.check_teachers(dataclasses.replace(config, data=of["b"], finetune=taught), build_graph(config), data)


def test_membranes_that_ratios_narrow_are_refused_before_training(small_config, tmp_path, capsys):
    words = ["run", small_config, "--out", tmp_path / "none", "--finetune.distill", "quantized"]
    failed(capsys, [*words, "--finetune.distill_membranes", "lif1=0.1"], "membranes of 'lif1' have the shape")
    assert not (tmp_path / "none").exists()


def test_the_controls_are_checked_before_training(small_config, small_run, tmp_path, capsys):
    words = ["run", small_config, "--out", tmp_path / "none", "--compare", "--train.distill", small_run / "quantized"]
    failed(capsys, [*words, "--train.distill_membranes", "lif1=1"], "leave out one.")
    budget = ["--prune.budget", "2kB"]
    failed(capsys, [*words, "--train.distill_membranes", "lif1=1", *budget], "which are not known under a prune.budget")
    assert not (tmp_path / "none").exists()


def test_the_report_does_not_wait_for_the_controls(small_config, copy, capsys, monkeypatch):
    def fail(*_):
        raise ValueError("no control")

    monkeypatch.setattr("qpsnn_jax.runs.controls.run_controls", fail)
    (copy / "report.md").unlink()
    failed(capsys, ["run", small_config, "--out", copy, "--compare"], "no control")
    assert (copy / "report.md").exists()
