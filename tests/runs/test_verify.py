"""`qpsnn verify` compares both networks, `qpsnn infer` classifies files; invalid input is one sentence."""

import dataclasses
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import compiler
from exported import GRAPHS, folded_of, pixels_of
from PIL import Image
from small_networks import random_variables

import qpsnn_jax.runs.exported
from qpsnn_jax.data import DataSet, load
from qpsnn_jax.data.dataset import Arrays
from qpsnn_jax.export import agreement
from qpsnn_jax.export.images import classify, read_pixels
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Conv, Dense, Flatten, Input, Quantizer
from qpsnn_jax.model.precision import with_layer_bits
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.pruning.bits import allocate_bits, bit_sensitivity
from qpsnn_jax.runs import plots, verify, verify_c
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import load_network, read_config, read_stage
from qpsnn_jax.runs.evaluation import sensitivity_batches
from qpsnn_jax.runs.exported import Exported, read_run
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.records import read_checked, write_checked, write_result
from qpsnn_jax.runs.report import write_report


def test_verify_prints_the_agreement(small_run, capsys):
    compiler("gcc")
    command = ["verify", str(small_run), "--format", "c", "--test-examples", "60"]
    assert main([*command, "--cc", "gcc -O1", "--early-exit", "0.9"]) == 0
    text = capsys.readouterr().out
    assert "60 test images; the integer network gives the same prediction on 100.00 %" in text
    assert re.search(r"lif3 +0\.00e\+00", text)
    assert "the C program gives the logits of the integer network, at once and step by step, on 100.00 %" in text
    margin, accuracy, steps, *shares = (cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1])
    assert (margin, accuracy[-1]) == ("0.9", "%")
    first, second = (float(share.split()[0]) / 100 for share in shares)
    assert first > 0 < second
    assert float(steps) == pytest.approx(first + 2 * second, abs=0.01)
    assert main([*command, "--early-exit", "inf"]) == 2
    assert "the threshold of early exit must be a finite number, got inf." in capsys.readouterr().err
    assert main([*command[:2], "--format", "nir", "--early-exit", "1"]) == 2
    assert "--early-exit is for --format c" in capsys.readouterr().err
    assert main([*command, "--cc", "absent-cc"]) == 2
    assert "the compiler 'absent-cc' cannot be run" in capsys.readouterr().err
    assert main([*command, "--cc", "gcc -fno-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err
    for cc in ("", " ", "'"):
        assert main([*command, "--cc", cc]) == 2
        assert f"cc must be a C compiler and its options, got {cc!r}" in capsys.readouterr().err


def _other_classes(folded):
    *layers, readout = folded.layers
    return dataclasses.replace(folded, layers=(*layers, dataclasses.replace(readout, kernel=-readout.kernel)))


def _corrupted_packed(change):
    load = verify.load_packed
    change.setattr(verify, "load_packed", lambda path: load(path)._replace(folded=_other_classes(load(path).folded)))


def _corrupted_c(change):
    change.setattr(verify_c, "_DRIVER", verify_c._DRIVER.replace("(long)logits[k]", "(long)logits[k] + 1"))


def _corrupted_onnx(change):
    make = verify.onnx_model
    change.setattr(verify, "onnx_model", lambda folded, **options: make(_other_classes(folded), **options))


def _corrupted_nir(change):
    read = verify.read_nir

    def corrupted(path):
        document = read(path)
        document.nodes["fc"].weight = -document.nodes["fc"].weight
        return document

    change.setattr(verify, "read_nir", corrupted)


def _corrupted_stablehlo(change):
    make = verify.stablehlo

    def corrupted(graph, variables, *statistics, **options):
        fc = {name: -leaf for name, leaf in variables["params"]["fc"].items()}
        return make(graph, {**variables, "params": {**variables["params"], "fc": fc}}, *statistics, **options)

    change.setattr(verify, "stablehlo", corrupted)


CORRUPTED = {
    "packed": (_corrupted_packed, (), "the integer network must give 99.9 % of the predictions, and gives"),
    "c": (_corrupted_c, ("cc",), "the C program must give every logit, and differs on 100.00 %"),
    "onnx": (_corrupted_onnx, ("onnx", "onnxruntime"), "onnxruntime must give 99.9 % of the predictions, and gives"),
    "nir": (_corrupted_nir, ("nir",), "the NIR graph must give 99.9 % of the predictions, and gives"),
    "stablehlo": (_corrupted_stablehlo, (), "StableHLO must give 99.9 % of the predictions, and gives"),
}


@pytest.mark.parametrize("form", CORRUPTED)
def test_an_export_that_disagrees_is_status_1(form, small_run, capsys, monkeypatch):
    corrupt, needed, message = CORRUPTED[form]
    for name in needed:
        _ = compiler("gcc") if name == "cc" else pytest.importorskip(name, reason=f"{name} is not installed")
    command = ["verify", str(small_run), "--format", form, "--test-examples", "20", "--cc", "gcc -O1"]
    # A batch that does not divide the images.
    command += ["--onnx-bits", "8", "--onnx-batch", "7"] if form == "onnx" else []
    assert main(command) == 0
    captured = capsys.readouterr()
    assert " on 100.00 %" in captured.out
    assert captured.err == ""
    corrupt(monkeypatch)
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"qpsnn: the export disagrees with the network: {message}")
    assert captured.err.count("\n") == 1
    assert "%" in captured.out


@pytest.fixture
def exact(small_run, monkeypatch):
    """The config of the small run in ``precision="exact"``; what computes a network raises its last argument."""
    config = read_config(small_run)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, precision="exact"))
    monkeypatch.setattr(qpsnn_jax.runs.exported, "read_config", lambda *_: config)

    def seen(*arguments, **_):
        raise RuntimeError(str(arguments[-1]))

    for place, name in ((agreement, "SpikingNetwork"), (verify, "mean_currents"), (plots, "SpikingNetwork")):
        monkeypatch.setattr(place, name, seen)
    # StableHLO is written in "exact" always.
    monkeypatch.setattr(verify, "stablehlo", lambda *_, **__: jax.export.export(jax.jit(jnp.sin))(1.0))
    return config


@pytest.mark.parametrize("form", ["packed", "nir", "stablehlo"])
def test_an_export_is_compared_in_the_precision_of_the_run(form, small_run, exact):
    if form == "nir":
        pytest.importorskip("nir", reason="nir is not installed")
    run = qpsnn_jax.runs.exported.read_run(small_run, compared=True, test_examples=5)
    with pytest.raises(RuntimeError, match="^exact"):
        verify.verify(run, form)


def test_spikes_are_drawn_in_the_precision_of_the_run(small_run, exact):
    stage = read_stage(small_run, "finetuned")
    with pytest.raises(RuntimeError, match="^exact"):
        write_report(exact, small_run, load_data(exact), [stage], [])


def test_networks_that_end_in_spikes_are_verified():
    """Neurons without a leak and with a soft reset, from pixels to the rates of the C program."""
    compiler("gcc")
    options = {"tau": 1.0, "reset": "soft"}
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("conv", "image", 3, bias=True),
        LIF("lif1", "conv", **options, threshold=(0.5, 1.0, 1.5)),
        Flatten("flat", "lif1"),
        Dense("fc", "flat", 4, Quantizer(2)),
        LIF("lif2", "fc", **options),
    )
    graph, draw = Graph(nodes, 3), np.random.default_rng(0)
    images = Arrays(draw.integers(0, 256, (40, 4, 4, 1), np.uint8), draw.integers(0, 4, 40))
    data = DataSet("small", images, images, 4, (0.5,), (0.25,))
    exported = Exported(graph, random_variables(graph), data.mean, data.std, {}, data=data)
    verdict = verify.verify(exported, "c", cc="gcc -O1", early_exit=1.0)
    assert verdict.failures == ""
    assert re.search(r"lif2 +0\.00e\+00", verdict.text)
    assert "at once and step by step, on 100.00 %" in verdict.text


def test_rounded_weights_may_disagree_more(small_run, capsys):
    command = ["verify", str(small_run), "--format", "packed", "--stem-bits", "8", "--readout-bits", "8"]
    assert main(command) == 0
    same = float(re.search(r"gives the same prediction on ([0-9.]+) %", capsys.readouterr().out)[1])
    assert same >= 90


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "small.qpsnn"
    assert main(["export", str(small_run), "--format", "packed", "--out", str(file)]) == 0
    return file


def test_infer_classifies_a_folder(exported, tmp_path, capsys):
    images = load("digits", test_examples=5).test.images
    for i, image in enumerate(images[:4]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "4.npy", images[4])
    (tmp_path / "notes.txt").write_text("no image")
    assert main(["infer", str(exported), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    network = IntegerNetwork.of(load_packed(exported).folded)
    expected = network(images)
    assert [int(re.search(r"class (\d)", line)[1]) for line in lines] == expected.argmax(-1).tolist()
    currents = [float(re.search(r"current (\S+)", line)[1]) for line in lines]
    np.testing.assert_allclose(currents, expected.max(-1) * network.readout.unit, atol=1e-3)


def test_infer_takes_the_middle_square_of_a_picture_of_any_size(exported, tmp_path, capsys):
    folded = load_packed(exported).folded
    for size in ((48, 32), (8, 8), (3, 5)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8))
        picture.save(tmp_path / "a.png")
        assert main(["infer", str(exported), str(tmp_path / "a.png")]) == 0
        side, (w, h) = min(size), size
        left, top = (w - side) // 2, (h - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(read_pixels(folded, tmp_path / "a.png")[..., 0], np.asarray(square))
    capsys.readouterr()


def test_infer_raises_for_what_does_not_fit(exported, tmp_path, capsys):
    names = ("empty", "text.png", "picture.tiff", "floating.npy")
    empty, text, foreign, floating = (tmp_path / name for name in names)
    empty.mkdir()
    for path in (text, foreign):
        path.write_text("no image")
    np.save(floating, np.zeros((8, 8, 1)))
    for path, message in (
        (empty, "holds no images"),
        (text, "is not a picture in one of the formats PNG, JPEG, BMP, GIF, WEBP."),
        (floating, "holds float64 (8, 8, 1)"),
        (tmp_path / "absent.png", "absent.png: No such file or directory"),
        (tmp_path / "absent", "absent: No such file or directory"),
        (foreign, "picture.tiff is not an image: its name must end in one of .png, "),
    ):
        assert main(["infer", str(exported), str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_one_bad_file_of_a_folder_is_named_and_the_others_are_classified(exported, tmp_path, capsys):
    images = load("digits", test_examples=2).test.images
    for name, image in zip("ac", images, strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / ".hidden.png").write_text("nothing")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert main(["infer", str(exported), str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert [line.split(":")[0][-5:] for line in said.out.splitlines()] == ["a.png", "c.png"]
    assert said.err.startswith(f"qpsnn: error: {tmp_path / 'b.png'} is a damaged picture (")
    assert said.err.count("\n") == 1
    assert main(["infer", str(exported), str(tmp_path / "pipe.png")]) == 2
    assert "pipe.png is not a regular file." in capsys.readouterr().err


def test_frames_come_from_arrays(tmp_path):
    folded, frames = folded_of("vggsnn"), pixels_of(GRAPHS["vggsnn"], 3)
    write_packed(tmp_path / "net.qpsnn", folded, {})
    np.save(tmp_path / "a.npy", frames[2])
    (found,) = classify(folded, tmp_path / "a.npy")
    assert found.label == IntegerNetwork.of(folded)(frames)[2].argmax()
    Image.new("RGB", (18, 16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="takes uint8 arrays of shape"):
        list(classify(folded, tmp_path / "b.png"))


def test_a_network_without_a_run_has_no_statistics(small_run, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(small_run / "finetuned" / "final", alone)
    out, ours = tmp_path / "a.qpsnn", tmp_path / "b.qpsnn"
    export = ["export", str(alone), "--format", "packed", "--out", str(out)]
    assert main(export) == 2
    message = "does not belong to a run, so the mean and std of its pixels are unknown; name the data set"
    assert message in capsys.readouterr().err
    assert main([*export, "--data", "digits"]) == 0
    whole = ["export", str(small_run), "--format", "packed", "--out", str(ours)]
    assert main([*whole, "--data", "digits"]) == 2
    assert "belongs to a run, which has a data set; leave out --data." in capsys.readouterr().err
    assert main(whole) == 0
    images = load("digits", test_examples=20).test.images
    theirs, own = (IntegerNetwork.of(load_packed(path).folded)(images) for path in (out, ours))
    np.testing.assert_array_equal(theirs, own)


def test_evaluation_with_early_exit_is_a_second_table(small_run, capsys):
    assert main(["evaluate", str(small_run), "--test-examples", "20", "--early_exit", "0.9"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, _, left, whole = ([cell.strip() for cell in row] for row in rows[-4:])
    assert head == ["margin", "accuracy", "mean steps", "leave at step 1", "leave at step 2"]
    assert (left[0], whole[0], whole[2:]) == ("0.9", "none", ["2.00", "0.0 %", "100.0 %"])
    config = read_config(small_run)
    data = load(config.data.name, seed=config.run.seed, test_examples=20)
    graph, variables = load_network(small_run)
    apply = jax.jit(SpikingNetwork(graph).apply)
    currents = apply(variables, normalize(data.test.images, data.mean, data.std)).currents
    first = np.asarray(currents[:, 0])
    clear = np.diff(np.sort(first, axis=-1)[:, -2:])[:, 0] >= 0.9
    guesses = np.where(clear, first.argmax(-1), np.asarray(currents).sum(1).argmax(-1))
    assert left[1:3] == [f"{100 * (guesses == data.test.labels).mean():.2f} %", f"{2 - clear.mean():.2f}"]
    assert main(["evaluate", str(small_run), "--early_exit", "-1"]) == 2
    assert "is not in the range x>=0" in capsys.readouterr().err
    for command in (["evaluate", str(small_run)], ["verify", str(small_run), "--format", "c"]):
        assert main([*command, "--early-exit", "nan"]) == 2
        assert "the threshold of early exit must be a finite number, got nan." in capsys.readouterr().err


def test_bits_under_a_budget_are_printed_as_a_setting(small_run, capsys):
    graph, variables = load_network(small_run)
    limit = cost(with_layer_bits(graph, {"conv2": 1, "conv3": 4})).size_bytes + 2
    assert main(["bits", str(small_run), "--budget", f"{limit}B"]) == 0
    *table, _, setting = capsys.readouterr().out.splitlines()
    config = read_config(small_run)
    losses = bit_sensitivity(graph, variables, sensitivity_batches(load_data(config)))
    chosen = allocate_bits(graph, losses, bytes=limit)
    assert setting == f"--network.layer_bits conv2={chosen['conv2']},conv3={chosen['conv3']}"
    assert [cell.strip() for cell in table[0].split("|")[1:-1]][-2:] == ["8 bits", "chosen"]
    assert main(["bits", str(small_run), "--budget", "3MSOPs"]) == 2
    assert "bits needs a run and a budget of bytes such as 20kB" in capsys.readouterr().err


def test_an_export_names_the_accuracy_of_its_own_network(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    for place, source, accuracy in (
        ("rounds/1/finetuned", "finetuned", 0.25),
        ("controls/scratch/quantized", "quantized", 0.5),
    ):
        shutil.copytree(run / source, run / place)
        result = read_stage(run, source)
        assert result is not None
        write_result(run / place / "stage.json", dataclasses.replace(result, accuracy_last=accuracy))
    own = read_stage(run, "finetuned")
    assert own is not None
    for path, stage, accuracy in (
        ("", "finetuned", own.accuracy_last),
        ("finetuned/final", "finetuned", own.accuracy_last),
        ("rounds/1", "rounds/1/finetuned", 0.25),
        ("rounds/1/finetuned", "rounds/1/finetuned", 0.25),
        ("controls/scratch/quantized/final/step_0", "controls/scratch/quantized", 0.5),
    ):
        notes = read_run(run / path, test_examples=10).notes
        assert (notes["stage"], notes["accuracy"]) == (stage, accuracy)


@pytest.mark.parametrize("name", ["folder", "fashion_mnist"])
def test_a_run_is_exported_and_evaluated_on_other_data_without_its_own(name, small_run, tmp_path, capsys):
    """Mean and std of the pixels lie in the run; the shape of the images is that of the network."""
    run = shutil.copytree(small_run, tmp_path / "run")
    document = read_checked(run / "config.json")
    document["config"]["data"] |= {"name": name, "data_dir": str(tmp_path / "gone")}
    write_checked(run / "config.json", document)
    assert main(["export", str(run), "--format", "packed", "--out", str(tmp_path / "a.qpsnn")]) == 0
    assert load_packed(tmp_path / "a.qpsnn").notes["stage"] == "finetuned"
    capsys.readouterr()
    on_digits = ["--data", "digits", "--test-examples", "100"]
    rows = []
    for words in ([str(small_run)], [str(run), *on_digits], [str(run), *on_digits, "--data-dir", str(tmp_path)]):
        assert main(["evaluate", *words]) == 0
        rows.append(capsys.readouterr().out.splitlines()[2].split("|")[2:-2])  # but the name and the seconds
    assert rows[0] == rows[1] == rows[2]
    assert main(["verify", str(run), "--format", "packed"]) == 2
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("teacher", "shared"),
    [
        (None, None),
        ("quantized", "quantized"),
        ("digits-43kb", "digits-43kb"),
        ("{}/base", "base"),
        ("{}/base/quantized/", "base/quantized"),
    ],
)
def test_a_packed_file_holds_no_path_of_this_machine(teacher, shared, small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    document = read_checked(run / "config.json")
    named = 0
    for part, values in document["config"].items():
        for field in dataclasses.fields(getattr(Config(), part)):
            if field.metadata["names"]:
                values[field.name] = f"{tmp_path}/own.py:{field.name}"
                named += 1
    document["config"]["data"]["data_dir"] = str(tmp_path)
    document["config"]["train"]["distill"] = document["config"]["finetune"]["distill"] = teacher and teacher.format(
        tmp_path
    )
    write_checked(run / "config.json", document)
    assert main(["export", str(run), "--format", "packed", "--out", str(tmp_path / "a.qpsnn")]) == 0
    assert str(tmp_path).encode() not in (tmp_path / "a.qpsnn").read_bytes()
    config = load_packed(tmp_path / "a.qpsnn").notes["config"]
    assert config["network"]["name"] == "own.py:name"
    assert json.dumps(config).count('"own.py:') == named > 4
    assert config["train"]["distill"] == config["finetune"]["distill"] == shared
