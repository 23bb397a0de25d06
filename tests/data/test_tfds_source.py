"""CIFAR through TFDS: a tiny folder in TFDS's layout made here, and all of CIFAR-10 if it is available."""

import logging
import os
import shutil

import numpy as np
import pytest
from cifar_folder import prepare

from qpsnn_jax.data import load
from qpsnn_jax.data.dataset import balanced_order, subset
from qpsnn_jax.data.sources import tfds


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    truth = {name: prepare(root / name / "3.0.2", name, k) for name, k in (("cifar10", 10), ("cifar100", 100))}
    return root, truth


@pytest.fixture
def broken(small, tmp_path):
    """A copy that a test may damage, and the file of its first test shard."""
    shutil.copytree(small[0], tmp_path / "tfds")
    return tmp_path / "tfds", tmp_path / "tfds" / "cifar10" / "3.0.2" / "cifar10-test.array_record-00000-of-00002"


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_reads_every_example_in_the_order_of_ids(small, name, classes):
    root, truth = small
    data = load(name, data_dir=root, seed=3)
    assert (data.name, data.classes, len(data.mean), len(data.std)) == (name, classes, 3, 3)
    for split in ("train", "test"):
        images, labels = truth[name][split]
        order = balanced_order(labels, 3)
        got = getattr(data, split)
        assert (got.images.dtype, got.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(got.images, images[order])
        np.testing.assert_array_equal(got.labels, labels[order])


def test_subsets_are_the_beginning_of_the_whole(small):
    whole, few = load("cifar10", data_dir=small[0]), load("cifar10", data_dir=small[0], train_examples=20)
    np.testing.assert_array_equal(few.train.images, whole.train.images[:20])
    assert np.bincount(few.train.labels).tolist() == [2] * 10
    assert len(few.test.images) == 20


def test_newest_version_is_taken(small, broken):
    root = broken[0]
    shutil.copytree(root / "cifar10" / "3.0.2", root / "cifar10" / "3.0.10")
    shutil.rmtree(root / "cifar10" / "3.0.2")
    (root / "cifar10" / "3.0.2").mkdir()
    (root / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{")
    assert len(load("cifar10", data_dir=root).train.images) == 60


def test_leaves_the_log_level_unchanged(small, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        load("cifar10", data_dir=str(small[0]))
        assert logging.getLogger("absl").level == logging.INFO
    assert not caplog.records


def test_too_many_examples_raise(small):
    with pytest.raises(ValueError, match="train_examples must be an integer from 1 to 60"):
        load("cifar10", data_dir=small[0], train_examples=61)
    with pytest.raises(ValueError, match="test_examples must be an integer from 1 to 20"):
        load("cifar10", data_dir=small[0], test_examples=0)


def error_of(root, name="cifar10"):
    with pytest.raises(ValueError) as caught:
        load(name, data_dir=root)
    message = str(caught.value)
    assert "\n" not in message
    assert f"qpsnn data prepare {name} --data-dir" in message
    assert "pip install tensorflow" in message
    return message


def test_missing_folder_raises(tmp_path):
    assert f"{tmp_path / 'nowhere'} does not exist" in error_of(tmp_path / "nowhere")


def test_folder_without_the_data_set_raises(tmp_path):
    assert f"{tmp_path} holds no prepared cifar100" in error_of(tmp_path, "cifar100")


@pytest.mark.parametrize("keep", [0, 1000, 65536])
def test_truncated_shard_raises(broken, keep):
    root, shard = broken
    shard.write_bytes(shard.read_bytes()[:keep])
    assert "is not a readable cifar10" in error_of(root)


def test_missing_shard_raises(broken):
    root, shard = broken
    shard.unlink()
    assert "is not a readable cifar10" in error_of(root)


def test_changed_bytes_raise(broken):
    root, shard = broken
    content = bytearray(shard.read_bytes())
    content[1000:1100] = bytes(100)
    shard.write_bytes(content)
    assert "is not a readable cifar10" in error_of(root)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_description_raises(broken, file):
    root, shard = broken
    (shard.parent / file).write_text("{")
    assert "is not a readable cifar10" in error_of(root)


def test_other_file_format_raises(tmp_path):
    prepare(tmp_path / "cifar10" / "3.0.2", "cifar10", 10, "tfrecord")
    assert "array_record" in error_of(tmp_path)


def test_the_real_cifar10(tfds_dir, monkeypatch):
    found = []
    monkeypatch.setattr(tfds, "subset", lambda labels, *asked: found.append(labels) or subset(labels, *asked))
    data = load("cifar10", data_dir=tfds_dir, train_examples=2000, test_examples=500)
    assert [np.bincount(labels).tolist() for labels in found] == [[5000] * 10, [1000] * 10]  # it is complete
    assert (data.train.images.shape, data.test.images.shape) == ((2000, 32, 32, 3), (500, 32, 32, 3))
    assert np.bincount(data.train.labels).tolist() == [200] * 10
    assert np.bincount(data.test.labels).tolist() == [50] * 10
    pixels = data.train.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=0.01)
    assert len({image.tobytes() for image in data.train.images}) == 2000


def test_a_truncated_shard_of_the_real_cifar10_raises(tfds_dir, tmp_path):
    source = tfds_dir / "cifar10" / "3.0.2"
    copy = tmp_path / "cifar10" / "3.0.2"
    copy.mkdir(parents=True)
    for file in source.iterdir():
        os.symlink(file.resolve(), copy / file.name)
    shard = copy / "cifar10-train.array_record-00000-of-00003"
    content = shard.read_bytes()[:4_000_000]
    shard.unlink()
    shard.write_bytes(content)
    assert "is not a readable cifar10" in error_of(tmp_path)
