"""Networks that come with the package: their cards are true, and their names stand wherever a run does."""

import ast
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SHARED
from forked import Forked
from small_runs import contents

from experiments.publish import main as publish_command
from experiments.publish import publish
from qpsnn_jax import cost, fold, load_network, load_packed, pretrained, with_layer_bits
from qpsnn_jax.data import load
from qpsnn_jax.export import pretrained as package
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.pretrained import Card, cards, names, packed_path
from qpsnn_jax.runs import pretrained as runs
from qpsnn_jax.runs.cli.joining import join
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.records import read_checked, write_checked

_PLACES = {"digits": None, "cifar10": SHARED / "data" / "tfds", "nmnist": SHARED / "data" / "nmnist"}


@pytest.mark.parametrize("name", names())
def test_a_card_tells_what_the_network_classifies(name):
    card, packed = cards()[name], load_packed(packed_path(name))
    data = packed.notes["config"]["data"]["name"]
    place = _PLACES[data]
    if place is not None and not place.exists():
        pytest.skip(f"{data} is not there")
    options = {"test_examples": card.first_images, "train_examples": 1, "timesteps": packed.folded.timesteps}
    test = load(data, data_dir=place and str(place), seed=card.seed, **options).test
    found = IntegerNetwork.of(packed.folded)(test.images).argmax(1)
    assert (found == test.labels).sum() == card.first_correct
    assert card.seeds[str(card.seed)] == pytest.approx(card.accuracy, abs=5e-5)
    assert abs(card.first_correct / card.first_images - card.accuracy) < 0.1
    assert len(packed.class_names) in (0, packed.folded.readout.kernel.shape[3])


def test_all_of_them_are_small():
    assert names()
    assert sum(path.stat().st_size for path in package.FOLDER.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", names())
def test_the_network_to_train_on_has_the_codes_of_the_file(name):
    packed = load_packed(packed_path(name))
    graph, variables = pretrained(name)
    mean = np.asarray(packed.folded.image.mean) / 255
    folded = fold(graph, variables, mean, packed.notes["std"])
    for ours, theirs in zip(folded.neurons, packed.folded.neurons, strict=True):
        assert ours.kernel.dtype != np.uint8 or (ours.kernel == theirs.kernel).all()


@pytest.fixture
def published(small_run, tmp_path, monkeypatch):
    """The small run among the networks of the package, under the name ``tiny``."""
    folder = tmp_path / "networks"
    folder.mkdir()
    monkeypatch.setattr(package, "FOLDER", folder)
    monkeypatch.setattr(runs, "FOLDER", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return publish(small_run, name="tiny", command="qpsnn run small", folder=folder)


def test_a_card_is_measured_on_the_images_of_its_own_seed(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    document = read_checked(run / "config.json")
    document["config"]["run"]["seed"] = 3
    write_checked(run / "config.json", document)
    card = publish(run, name="tiny", command="qpsnn run small", folder=tmp_path)
    test = load("digits", seed=3).test
    right = IntegerNetwork.of(load_packed(tmp_path / "tiny.qpsnn").folded)(test.images).argmax(1) == test.labels
    assert (card.seed, card.seeds, card.test_images) == (3, {"3": card.accuracy}, len(right))
    assert (card.accuracy, card.first_correct) == (pytest.approx(right.mean()), right[: card.first_images].sum())
    assert card.accuracy != publish(small_run, name="tiny", command="", folder=tmp_path).accuracy


@pytest.mark.parametrize("seeds", ["0", "0=", "=0.9", "0=97.5", "0=nan", "0=0.9,", "1=0.9"])
def test_wrong_seeds_are_told_before_anything_is_written(small_run, tmp_path, seeds):
    with pytest.raises(ValueError, match="--seeds must"):
        publish(small_run, name="tiny", command="", seeds=seeds, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    found = CliRunner().invoke(publish_command, [str(small_run), "--name", "tiny", "--command", "x", "--seeds", seeds])
    assert found.exit_code == 2
    assert "--seeds must" in found.output


def test_the_files_of_a_network_are_written_together(small_run, tmp_path, monkeypatch):
    def fails(graph, variables):
        raise ValueError("no moments")

    monkeypatch.setattr("experiments.publish._moments", fails)
    with pytest.raises(ValueError, match="no moments"):
        publish(small_run, name="tiny", command="", seeds="0=0.5, 2=0.25", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_stands_for_a_run(published, small_run, tmp_path, capsys):
    assert isinstance(published, Card)
    graph, _ = load_network(runs.find(Path("tiny")))
    whole, _ = load_network(small_run)
    assert len(graph.neurons) == len(whole.neurons)
    assert main(["evaluate", "tiny", "--test-examples", "360"]) == 0
    assert f"| tiny | {100 * published.accuracy:.2f} %" in capsys.readouterr().out
    assert main(["pretrained"]) == 0
    assert "| tiny |" in capsys.readouterr().out
    assert main(["pretrained", "tiny"]) == 0
    assert "qpsnn run small" in capsys.readouterr().out
    np.save(tmp_path / "image.npy", np.zeros((8, 8, 1), np.uint8))
    assert main(["infer", "tiny", str(tmp_path / "image.npy")]) == 0
    assert main(["export", "tiny", "--format", "packed", "--out", str(tmp_path / "tiny.qpsnn")]) == 0
    first, second = (load_packed(p).folded for p in (packed_path("tiny"), tmp_path / "tiny.qpsnn"))
    images = load("digits", test_examples=50, train_examples=1).test.images
    np.testing.assert_array_equal(
        IntegerNetwork.of(first)(images).argmax(1), IntegerNetwork.of(second)(images).argmax(1)
    )


@pytest.mark.parametrize("name", ["cifar10-98kb", "nmnist-32kb"])
def test_export_needs_no_data(name, tmp_path, monkeypatch):
    """Mean and std of the pixels come with the network."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["export", name, "--format", "packed", "--out", str(tmp_path / "again.qpsnn")]) == 0
    again, packed = load_packed(tmp_path / "again.qpsnn"), load_packed(packed_path(name))
    assert again.class_names == packed.class_names
    np.testing.assert_allclose(again.folded.image.mean, packed.folded.image.mean)
    assert again.notes["std"] == pytest.approx(packed.notes["std"])


def test_other_code_unpacks_a_name_anew(published, monkeypatch, tmp_path):
    place = runs.find(Path("tiny"))
    assert runs.find(Path("tiny")) == place
    other = tmp_path / "unfolding.py"
    other.write_text("another version")
    monkeypatch.setattr(runs.unfolding, "__file__", str(other))
    assert runs.find(Path("tiny")) != place


def test_training_goes_on_from_a_pretrained_network(published, tmp_path, capsys):
    out = tmp_path / "more"
    assert main(["finetune", "tiny"]) == 2
    assert "name the directory of a new run with --out" in capsys.readouterr().err
    assert main(["finetune", "tiny", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    last = {stage["name"]: stage["accuracy_last"] for stage in report["stages"]}
    assert last["quantized"] == last["pruned"] == pytest.approx(published.result["accuracy_last"], abs=0.02)
    assert main(["finetune", str(out), "--out", str(tmp_path / "again")]) == 2
    assert "--out is for a pretrained network" in capsys.readouterr().err
    before = contents(out / "finetuned")
    assert main(["finetune", "tiny", "--out", str(out), "--data-dir", str(tmp_path)]) == 0
    assert contents(out / "finetuned") == before


def test_training_goes_on_in_no_other_run(published, small_run, tmp_path, capsys):
    """Neither in one of the same settings that trained its own network, nor in one of other settings."""
    run, other = shutil.copytree(small_run, tmp_path / "run"), tmp_path / "other"
    runs.start_from("tiny", other)
    document = read_checked(other / "config.json")
    document["config"]["finetune"]["epochs"] += 1
    write_checked(other / "config.json", document)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    for out, message in (
        (run, "run holds another run; choose another --out."),
        (other, "other holds another run; choose another --out."),
        (tmp_path / "notes", "notes exists and is not the directory of a run; choose another --out."),
    ):
        assert main(["finetune", "tiny", "--out", str(out)]) == 2
        assert f"{message}\n" in capsys.readouterr().err
    shutil.rmtree(run / "pruned")
    assert main(["finetune", "tiny", "--out", str(run)]) == 2
    assert "run holds another run; choose another --out.\n" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")
    assert contents(tmp_path) == {name: data for name, data in before.items() if not name.startswith("run/")}


@pytest.mark.usefixtures("no_pictures")
def test_a_name_is_a_teacher(published, small_config, tmp_path, capsys):
    words = ["run", str(small_config), "--out", str(tmp_path / "taught"), "--finetune.distill", "tiny"]
    for changes, message in (
        (["--run.seed", "1"], "finetune.distill: tiny has run.seed 0 and so was trained on test images of this run"),
        (["--network.timesteps", "3"], "finetune.distill: the time steps of the teacher must be those of"),
        (
            ["--compare", "--train.distill", "tiny", "--train.distill_membranes", "lif2=1"],
            "train.distill: membranes of 'lif2' have the shape",
        ),
    ):
        assert main([*words, *changes]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "taught").exists()
    assert main([*words, "--train.epochs", "1", "--finetune.epochs", "1"]) == 0
    steps = [
        json.loads(line) for line in (tmp_path / "taught" / "finetuned" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(step["distillation"] > 0 for step in steps)
    assert not list((tmp_path / "cache").rglob("pretrained"))


def test_a_name_of_other_data_is_no_teacher(small_config, tmp_path, capsys):
    words = ["run", str(small_config), "--out", str(tmp_path / "taught"), "--finetune.distill", "nmnist-32kb"]
    assert main(words) == 2
    assert "finetune.distill: nmnist-32kb was trained on nmnist, and this run has digits" in capsys.readouterr().err


def test_a_start_that_is_killed_leaves_no_half_run(published, tmp_path, capsys, monkeypatch):
    out = tmp_path / "more"
    with monkeypatch.context() as patched:
        real = runs.write_result

        def killed(path, *_, **__):
            real(path, *_, **__)
            raise KeyboardInterrupt

        patched.setattr(runs, "write_result", killed)
        assert main(["finetune", "tiny", "--out", str(out)]) == 130
    assert not out.exists()
    out.mkdir()  # an empty one is as good as none
    runs.start_from("tiny", out)
    assert {path.name for path in out.iterdir()} == {"config.json", "quantized", "pruned"}
    before = contents(out)
    runs.start_from("tiny", out)
    assert contents(out) == before
    assert not list(tmp_path.glob(".*unfinished"))


def begun(arguments):
    out, number, place = arguments
    join("2", int(number), place)
    runs.start_from("digits-43kb", Path(out))
    return 0


def test_several_processes_start_from_one_network(tmp_path):
    out, place = tmp_path / "more", f"localhost:{free_port()}"
    pair = [Forked([str(out), str(number), place], begun) for number in range(2)]
    for process in pair:
        process.ended(0)
    graph, _ = load_network(out / "pruned")
    assert graph == pretrained("digits-43kb")[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_bits_are_chosen_for_a_name(published, capsys):
    assert main(["bits", "tiny", "--budget", "1MB"]) == 0
    found = capsys.readouterr().out
    assert "--network.layer_bits" not in found  # its names would be those of the network before it was packed
    chosen = ast.literal_eval(found.split("with_layer_bits(graph, ")[1].strip()[:-1])
    graph, _ = pretrained("tiny")
    assert cost(with_layer_bits(graph, chosen)).size_bytes <= 1_000_000


def test_a_wrong_name_is_answered_with_the_right_ones(published, capsys, monkeypatch, tmp_path):
    assert main(["pretrained", "tinny"]) == 2
    assert "there is no pretrained network 'tinny'; did you mean tiny?" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there are tiny"):
        pretrained("resnet")
    with pytest.raises(
        ValueError, match=r"no pretrained network 'my.qpsnn' \(load_packed and unfold read a packed file"
    ):
        pretrained("my.qpsnn")
    (tmp_path / "run").mkdir()
    (tmp_path / "my.qpsnn").touch()
    for words, message in (
        (["infer", "tinny", "image.png"], "there is no pretrained network 'tinny'; did you mean tiny?"),
        (
            ["infer", str(tmp_path / "run"), "image.png"],
            "run is a directory; write its packed file first, by qpsnn export.",
        ),
        (["evaluate", "tinny"], "tinny does not exist; did you mean the pretrained network tiny?"),
        (["evaluate", str(tmp_path / "my.qpsnn")], "my.qpsnn is a file; give the directory of a run"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.expanduser", _no_home)
    assert main(["evaluate", "tiny"]) == 2
    assert "set XDG_CACHE_HOME" in capsys.readouterr().err


def _no_home(self):
    raise RuntimeError("Could not determine home directory.")
