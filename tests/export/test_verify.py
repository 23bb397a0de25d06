"""`qpsnn verify` runs both sides, `qpsnn infer` classifies files; what does not fit is refused in a sentence."""

import re
import shutil

import numpy as np
import pytest
from compilers import compiler
from exported import GRAPHS, folded_of, pixels_of
from PIL import Image

from qpsnn_jax.cli import main
from qpsnn_jax.data import load
from qpsnn_jax.export.images import classify
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.packed import load_packed, write_packed


def test_verify_prints_the_agreement(small_run, capsys):
    compiler("gcc")
    command = ["verify", str(small_run), "--format", "c", "--test-examples", "60"]
    assert main([*command, "--cc", "gcc -O1"]) == 0
    text = capsys.readouterr().out
    assert "60 test images, the same prediction on 100.00 %" in text
    assert re.search(r"lif3 +0\.00e\+00", text)
    assert "the C program has the logits of the whole numbers on 100.00 %" in text
    assert main([*command, "--cc", "absent-cc"]) == 2
    assert "the compiler 'absent-cc' cannot be run" in capsys.readouterr().err
    assert main([*command, "--cc", "gcc -fno-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err


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


def test_infer_refuses_what_does_not_fit(exported, tmp_path, capsys):
    empty, text, large, floating = (tmp_path / name for name in ("empty", "text.png", "large.png", "floating.npy"))
    empty.mkdir()
    text.write_text("no image")
    Image.new("L", (9, 8)).save(large)
    np.save(floating, np.zeros((8, 8, 1)))
    for path, message in (
        (empty, "holds no images"),
        (text, "is not an image"),
        (large, "holds uint8 (8, 9, 1), and the network takes uint8 (8, 8, 1)"),
        (floating, "holds float64 (8, 8, 1)"),
        (tmp_path / "absent.png", "absent.png"),
    ):
        assert main(["infer", str(exported), str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


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
    out = str(tmp_path / "a.qpsnn")
    assert main(["export", str(alone), "--format", "packed", "--out", out]) == 2
    assert "belongs to no run, so the mean and std of its pixels are not known; give a run." in capsys.readouterr().err
