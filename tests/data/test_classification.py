"""Image classification sets of TFDS by their names: tiny ones made here in TFDS's layout, and the real CIFAR-10."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data import DataInfo, DataRequest, describe, load
from qpsnn_jax.data.inspection import check
from qpsnn_jax.data.prepare import prepare
from qpsnn_jax.data.sources import classification
from qpsnn_jax.data.sources.classification import prepared_set
from qpsnn_jax.runs.cli.main import main

FEATURES = "tensorflow_datasets.core.features"
TRAIN, TEST = 20, 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def described(kind):
    """A feature in TFDS's JSON: a shape is an image, a number of classes a label."""
    if isinstance(kind, tuple):
        shape = {"dimensions": [str(n) for n in kind]}  # -1 is None
        return {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": {"shape": shape, "dtype": "uint8"}}
    label = {"classLabel": {"numClasses": str(kind)}}
    return {"pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel", **label}


def encoded(image):
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def write(root, name, features, splits, names=(), supervised=None):
    """Write a data set; ``splits`` are lists of examples, each with a value for every feature."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    stem, infos = name.partition("/")[0], []
    for split, examples in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{stem}-{split}.array_record-00000-of-00001"), "group_size:1")
        for example in examples:
            message = tf_example_pb2.Example()
            for feature, value in example.items():
                place = message.features.feature[feature]
                if isinstance(value, bytes):
                    place.bytes_list.value.append(value)
                else:
                    place.int64_list.value.append(int(value))
            writer.write(message.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "shardLengths": [str(len(examples))], "filepathTemplate": template})
    info = {"name": stem, "version": "1.0.0", "fileFormat": "array_record", "splits": infos}
    if supervised:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    inner = {feature: described(kind) for feature, kind in features.items()}
    tree = {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": inner}}
    (folder / "features.json").write_text(json.dumps(tree))
    if names:
        (folder / "label.labels.txt").write_text("\n".join(names))
    return folder


def images(number, shape=(7, 5, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)


def pairs(pixels, classes=3):
    return [{"image": encoded(image), "label": row % classes} for row, image in enumerate(pixels)]


def by_content(arrays):
    return {image.tobytes(): label for image, label in zip(arrays.images, arrays.labels.tolist(), strict=True)}


@pytest.fixture
def clothes(tmp_path):
    """Grey images of 7×5 pixels under the name of a data set that the package does not list."""
    truth = images(TRAIN), images(TEST, seed=1)
    splits = dict(zip(("train", "test"), map(pairs, truth), strict=True))
    write(tmp_path, "fashion_mnist", {"image": (7, 5, 1), "label": 3}, splits, ("shirt", "coat", "bag"))
    return tmp_path, truth


def test_a_set_is_what_it_says_of_itself(clothes):
    root, truth = clothes
    assert describe("fashion_mnist", DataRequest(root)) == DataInfo((7, 5, 1), 3)
    data = load("fashion_mnist", data_dir=root)
    assert (data.name, data.class_names) == ("fashion_mnist", ("shirt", "coat", "bag"))
    for arrays, pixels in zip((data.train, data.test), truth, strict=True):
        assert by_content(arrays) == {image.tobytes(): row % 3 for row, image in enumerate(pixels)}
    np.testing.assert_allclose(data.mean, [(truth[0] / 255).mean()], rtol=1e-12)
    np.testing.assert_allclose(data.std, [(truth[0] / 255).std()], rtol=1e-12)
    few = load("fashion_mnist", data_dir=root, train_examples=6, test_examples=3)
    np.testing.assert_array_equal(few.train.images, data.train.images[:6])
    assert np.bincount(few.train.labels).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="size must be None for images of a fixed size"):
        describe("fashion_mnist", DataRequest(root, size=8))


def test_pictures_of_any_size_become_squares(tmp_path):
    pixels = [images(1, (6 + row % 3, 9, 3), seed=row)[0] for row in range(TRAIN)]
    write(tmp_path, "flowers", {"image": (-1, -1, 3), "label": 3}, {"train": pairs(pixels)})
    assert describe("flowers", DataRequest(tmp_path)) == DataInfo((32, 32, 3), 3, resizable=True, split_by_seed=True)
    data = load("flowers", data_dir=tmp_path, size=6)
    assert (data.shape, data.class_names) == ((6, 6, 3), ())
    # A fifth of the only split is for testing.
    assert (len(data.train.labels), len(data.test.labels)) == (16, 4)
    whole = by_content(data.train) | by_content(data.test)
    assert whole[np.ascontiguousarray(pixels[0][:, 1:7]).tobytes()] == 0


def test_features_may_have_other_names_and_validation_stands_in_for_a_test(tmp_path):
    examples = [{"photo": encoded(image), "kind": row % 2} for row, image in enumerate(images(8))]
    features = {"photo": (7, 5, 1), "kind": 2}
    write(tmp_path, "things/small", features, {"train": examples[:6], "validation": examples[6:]})
    data = load("things/small", data_dir=tmp_path)
    assert (len(data.train.labels), len(data.test.labels)) == (6, 2)
    with pytest.raises(ValueError, match="holds several data sets; choose things/small"):
        load("things", data_dir=tmp_path)


def test_supervised_features_are_taken_where_there_are_more(tmp_path):
    examples = [{"image": encoded(image), "coarse": 0, "label": row % 2} for row, image in enumerate(images(6))]
    features = {"image": (7, 5, 1), "coarse": 1, "label": 2}
    write(tmp_path, "both", features, {"train": examples, "test": examples}, supervised=("image", "label"))
    assert load("both", data_dir=tmp_path).classes == 2
    write(tmp_path, "neither", features, {"train": examples, "test": examples})
    with pytest.raises(ValueError, match=r"neither is not an image classification set: .* 2 are ClassLabel"):
        load("neither", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("features", "splits", "words"),
    [
        ({"label": 2}, {"train": [{"label": 0}]}, "is not an image classification set: of its features"),
        ({"image": (7, 5, 4), "label": 3}, {"train": []}, "what is read is uint8 of 1 or 3 channels"),
        ({"image": (7, 5, 1), "label": 3}, {"test": pairs(images(3))}, "has no split train; it has test"),
        ({"image": (7, 5, 1), "label": 2}, {"train": pairs(images(3))}, "labels from 0 to 2 in its split train"),
        (
            {"image": (7, 6, 1), "label": 3},
            {"train": pairs(images(30))},
            "30 pictures .* train example 0: an image has",
        ),
    ],
)
def test_a_set_that_is_not_for_this_is_one_sentence(features, splits, words, tmp_path):
    write(tmp_path, "odd", features, splits)
    with pytest.raises(ValueError, match=words) as caught:
        load("odd", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda name, root: load(name, data_dir=root), prepare, check])
def test_unknown_names_are_told_from_sets_that_are_not_prepared(call, tmp_path, monkeypatch):
    monkeypatch.setattr("qpsnn_jax.data.prepare.find_spec", lambda name: None)
    for name in ("fashion_mnst", "../cifar10", ""):
        with pytest.raises(ValueError, match=f"there is no data set '{name}'; choose one of digits, cifar10"):
            call(name, tmp_path)
    with pytest.raises(ValueError, match="fashion_mnist") as caught:
        call("fashion_mnist", tmp_path)
    assert "pip install tensorflow" in str(caught.value)


def test_a_damaged_shard_is_one_sentence(clothes):
    shard = clothes[0] / "fashion_mnist" / "1.0.0" / "fashion_mnist-test.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a readable fashion_mnist in array_record format"):
        load("fashion_mnist", data_dir=clothes[0])


def test_a_set_is_checked_and_costed_by_its_name(clothes, capsys):
    place = str(clothes[0])
    report = check("fashion_mnist", place)
    assert [split.counts for split in report.splits] == [{0: 7, 1: 7, 2: 6}, {0: 4, 1: 3, 2: 3}]
    assert report.problems == ()
    command = ["cost", "digits", "--data.name", "fashion_mnist", "--data.data_dir", place]
    assert main(command) == 0
    assert main([*command, "--network.name", "vgg16"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_real_cifar10_by_the_general_reader(tfds_dir, monkeypatch):
    """Only its test split, because decoding takes time."""
    whole = classification.read_description("cifar10", tfds_dir)
    assert whole.splits == ("train", "test")
    monkeypatch.setattr(classification, "read_description", lambda *_: whole._replace(splits=("test", None)))
    data = prepared_set("cifar10", DataRequest(tfds_dir))
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert (data.class_names, data.shape) == (tuple(names.split()), (32, 32, 3))
    assert (len(data.train.labels), np.bincount(data.test.labels).tolist()) == (8000, [200] * 10)
    np.testing.assert_allclose(data.mean, (0.4942, 0.4851, 0.4504), atol=0.005)
