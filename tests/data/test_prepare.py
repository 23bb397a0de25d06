"""Preparing and checking: exact statistics, reports, and errors about missing data."""

import numpy as np
import pytest
from cifar_folder import prepare as write_cifar
from test_tiny_imagenet import write as write_tiny_imagenet

from qpsnn_jax.data import load
from qpsnn_jax.data import prepare as module
from qpsnn_jax.data.inspection import Report, SplitReport, _chunks, check, format_report, measure
from qpsnn_jax.data.prepare import prepare


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_numpys(channels):
    images = np.random.default_rng(0).integers(0, 256, (30, 7, 5, channels), dtype=np.uint8)
    labels = (np.arange(30) % 4).tolist()
    chunks = [(list(images[i : i + 8]), labels[i : i + 8]) for i in range(0, 30, 8)]
    report = measure("train", chunks)
    assert (report.examples, report.counts) == (30, {0: 8, 1: 8, 2: 7, 3: 7})
    np.testing.assert_allclose(report.mean, (images / 255).mean((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(report.std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_statistics_of_images_of_different_sizes_count_every_pixel_once():
    images = [np.full((2, 3, 3), 10, np.uint8), np.full((6, 4, 3), 20, np.uint8)]
    report = measure("train", [(images, [0, 1])])
    values = np.repeat([10, 20], [6, 24]) / 255
    np.testing.assert_allclose(report.mean, [values.mean()] * 3)
    np.testing.assert_allclose(report.std, [values.std()] * 3)


def test_constant_images_have_no_spread():
    assert measure("train", [([np.full((4, 4, 1), 77, np.uint8)], [0])]).std == (0.0,)


def test_nothing_raises():
    with pytest.raises(ValueError, match="train holds no images"):
        measure("train", [])


def test_digits_are_whole():
    report = check("digits")
    data = load("digits")
    assert report.problems == ()
    assert [split.examples for split in report.splits] == [1437, 360]
    np.testing.assert_allclose(report.splits[0].mean, data.mean, rtol=1e-12)
    np.testing.assert_allclose(report.splits[0].std, data.std, rtol=1e-12)
    lines = format_report(report).splitlines()
    assert lines[0] == "digits"
    assert lines[1].startswith("  train: 1,437 images, 10 classes of ")
    assert lines[-1] == "  ok"


def test_report_is_laid_out():
    split = SplitReport("train", {0: 5000, 1: 5000}, (0.5, 0.25), (0.125, 1.0))
    text = format_report(Report("some", (split,), ("train is odd.",)))
    line = "  train: 10,000 images, 2 classes of 5,000, mean 0.5000 0.2500, std 0.1250 1.0000"
    assert text == f"some\n{line}\n  problem: train is odd."


def test_packed_data_are_checked(tmp_path):
    truth = write_cifar(tmp_path / "cifar10" / "3.0.2", "cifar10", 10)
    report = check("cifar10", tmp_path)
    for split in report.splits:
        images, labels = truth[split.name]
        assert split.counts == dict(enumerate(np.bincount(labels).tolist()))
        np.testing.assert_allclose(split.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(split.std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    assert report.problems[0] == "train holds 60 images where 50,000 are expected."
    assert report.problems[-1].startswith("std of train is (")
    assert prepare("cifar10", tmp_path) == tmp_path / "cifar10" / "3.0.2"
    shard = tmp_path / "cifar10" / "3.0.2" / "cifar10-test.array_record-00000-of-00002"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a readable cifar10"):
        check("cifar10", tmp_path)


def test_tiny_imagenet_is_prepared_and_checked_the_same_either_way(tmp_path):
    write_tiny_imagenet(tmp_path)
    folder = check("tiny_imagenet", tmp_path)
    assert [split.examples for split in folder.splits] == [400, 200]
    assert set(folder.splits[1].counts.values()) == {1}
    assert prepare("tiny_imagenet", tmp_path) == tmp_path / "tiny_imagenet" / "1.0.0"
    packed = check("tiny_imagenet", tmp_path)
    assert packed == folder


def test_missing_tensorflow_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Preparing cifar100 needs TensorFlow") as caught:
        prepare("cifar100", tmp_path)
    assert "pip install tensorflow" in str(caught.value)
    assert "reading the prepared data does not need it" in str(caught.value)


def test_missing_archives_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar is missing"):
        prepare("imagenet2012", tmp_path)


@pytest.mark.parametrize("call", [prepare, check])
def test_missing_data_and_unknown_names_raise(call, tmp_path):
    with pytest.raises(ValueError, match="there is no data set 'mnits'; choose one of digits, cifar10"):
        call("mnits", tmp_path)
    with pytest.raises(ValueError, match="nmnist is read from its files as distributed; there is nothing to prepare"):
        call("nmnist", tmp_path)
    with pytest.raises(ValueError, match="tiny-imagenet-200 does not exist"):
        call("tiny_imagenet", tmp_path)


def test_nothing_to_check_or_prepare(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared cifar10"):
        check("cifar10", tmp_path)
    with pytest.raises(ValueError, match="nothing to prepare"):
        prepare("digits", tmp_path)
    with pytest.raises(ValueError, match="data_dir must be given"):
        check("tiny_imagenet")


def test_the_real_cifar10(tfds_dir):
    report = measure("test", _chunks("cifar10", "test", tfds_dir))
    assert report.counts == dict.fromkeys(range(10), 1000)
    np.testing.assert_allclose(report.mean, (0.4942, 0.4851, 0.4504), atol=1e-3)
