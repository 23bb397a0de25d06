"""Tiny ImageNet from a small folder in the official layout, and the same data through a TFDS builder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data import load
from qpsnn_jax.data.dataset import balanced_order

CLASSES = [f"n{90000000 - 7 * i}" for i in range(200)]  # not in sorted order, as in the official file
TRAIN, TEST = 2, 1


def picture(wnid, seed):
    rng = np.random.default_rng(int(wnid[1:]) * 10 + seed)
    pixels = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 5, (64, 64, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("L") if seed == 1 and wnid == CLASSES[5] else Image.fromarray(pixels)


def write(root):
    """Write the official layout with two training images and one validation image of each class."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    annotations = []
    for index, wnid in enumerate(CLASSES):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        boxes = ""
        for number in range(TRAIN):
            picture(wnid, number).save(images / f"{wnid}_{number}.JPEG")
            boxes += f"{wnid}_{number}.JPEG\t0\t0\t63\t63\n"
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        picture(wnid, TRAIN).save(folder / "val" / "images" / f"val_{index}.JPEG")
        annotations.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    write(path)
    return path


@pytest.fixture
def broken(root, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy" / "tiny-imagenet-200"


def decoded(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_reads_every_image_in_the_order_of_its_class(root):
    data = load("tiny_imagenet", data_dir=root, seed=3)
    assert (data.name, data.classes, len(data.mean), len(data.std)) == ("tiny_imagenet", 200, 3, 3)
    assert (data.train.images.shape, data.test.images.shape) == ((400, 64, 64, 3), (200, 64, 64, 3))
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int32)
    folder, names = root / "tiny-imagenet-200", sorted(CLASSES)
    order = balanced_order(np.repeat(np.arange(200, dtype=np.int32), 2), 3)
    for row in (0, 1, 57, 399):
        wnid, number = names[order[row] // 2], order[row] % 2
        assert data.train.labels[row] == order[row] // 2
        np.testing.assert_array_equal(
            data.train.images[row], decoded(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        )
    assert sorted(data.test.labels.tolist()) == list(range(200))
    index = CLASSES.index(names[data.test.labels[4]])
    np.testing.assert_array_equal(data.test.images[4], decoded(folder / "val" / "images" / f"val_{index}.JPEG"))


def test_subsets_are_the_beginning_of_the_whole(root):
    whole, few = (
        load("tiny_imagenet", data_dir=root),
        load("tiny_imagenet", data_dir=root, train_examples=200, test_examples=10),
    )
    np.testing.assert_array_equal(few.train.images, whole.train.images[:200])
    np.testing.assert_array_equal(few.test.images, whole.test.images[:10])
    assert sorted(few.train.labels.tolist()) == list(range(200))


def test_tfds_prepares_the_same_data_without_tensorflow(root, tmp_path):
    from qpsnn_jax.data.sources.tiny_imagenet_builder import build

    folder = build(root / "tiny-imagenet-200", tmp_path)
    assert folder == tmp_path / "tiny_imagenet" / "1.0.0"
    packed, direct = (
        load("tiny_imagenet", data_dir=tmp_path, seed=1, train_examples=50),
        load("tiny_imagenet", data_dir=root, seed=1, train_examples=50),
    )
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(packed, split).images, getattr(direct, split).images)
        np.testing.assert_array_equal(getattr(packed, split).labels, getattr(direct, split).labels)


def test_builder_leaves_nothing_behind_when_an_image_is_damaged(broken, tmp_path):
    from qpsnn_jax.data.sources.tiny_imagenet_builder import build

    (broken / "val" / "images" / "val_7.JPEG").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"val_7\.JPEG is not a picture in one of the formats"):
        build(broken, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def error_of(folder):
    with pytest.raises(ValueError) as caught:
        load("tiny_imagenet", data_dir=folder.parent)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder_raises(tmp_path):
    assert "tiny-imagenet-200 does not exist; unpack http" in error_of(tmp_path / "tiny-imagenet-200")
    with pytest.raises(ValueError, match="data_dir must be given: unpack http"):
        load("tiny_imagenet", data_dir=None)


@pytest.mark.parametrize("file", ["wnids.txt", "val/val_annotations.txt", "val/images/val_3.JPEG"])
def test_missing_file_is_named(broken, file):
    (broken / file).unlink()
    assert f"{broken / file} is missing" in error_of(broken)


def test_class_that_is_gone_or_short_is_named(broken):
    images = broken / "train" / CLASSES[3] / "images"
    next(images.iterdir()).unlink()
    assert f"{images} holds 1 images where another class has 2" in error_of(broken)
    shutil.rmtree(images.parent)
    assert f"{images} holds 0 images where another class has 2" in error_of(broken)


def test_wrong_number_of_classes_raises(broken):
    (broken / "wnids.txt").write_text("\n".join(CLASSES[:199]))
    assert "wnids.txt must name 200 classes, got 199" in error_of(broken)


@pytest.mark.parametrize("line", ["val_0.JPEG", "val_0.JPEG\tn1\t0\t0\t1\t1"])
def test_damaged_annotations_raise(broken, line):
    file = broken / "val" / "val_annotations.txt"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([line, *rows[1:]]))
    assert "val_annotations.txt must hold a file name and a known class" in error_of(broken)
    file.write_text("\n".join(rows[:-1]))
    assert "must name each image in" in error_of(broken)
    file.write_bytes(b"\xff\xfe")
    assert "val_annotations.txt is missing or unreadable" in error_of(broken)


def corrupt(path, kind):
    content = path.read_bytes()
    if kind == "size":
        Image.new("RGB", (32, 64)).save(path)
    else:
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "foreign": b"GIF89a nothing"}[kind])


@pytest.mark.parametrize("kind", ["empty", "truncated", "foreign", "size"])
def test_damaged_image_is_named(broken, kind):
    path = Path(broken / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_1.JPEG")
    corrupt(path, kind)
    assert error_of(broken).startswith(f"{path} ")
