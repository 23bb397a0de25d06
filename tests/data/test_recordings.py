"""Event data sets from folders written here in the layouts of N-MNIST and CIFAR10-DVS, and from real N-MNIST."""

import numpy as np
import pytest
from conftest import SHARED
from event_files import AEDAT2_HEADER, aedat2, atis, draw

from qpsnn_jax.data import load
from qpsnn_jax.data.dataset import balanced_order
from qpsnn_jax.numerics.normalization import normalize

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
T, SIZE = 3, 11


def frames_of(rows, sensor, by="count"):
    """Count the events one by one."""
    frames = np.zeros((T, SIZE, SIZE, 2), int)
    first, last = min(t for *_, t in rows), max(t for *_, t in rows)
    for index, (x, y, p, t) in enumerate(rows):
        step = index * T // len(rows) if by == "count" else (t - first) * T // (last - first + 1)
        frames[step, y * SIZE // sensor, x * SIZE // sensor, p] += 1
    return frames


@pytest.fixture(scope="module")
def small_nmnist(tmp_path_factory):
    """4 + 2 recordings of each digit, and the events of each file."""
    root, truth = tmp_path_factory.mktemp("nmnist"), {}
    for part, number in (("Train", 4), ("Test", 2)):
        for digit in range(10):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for index in range(number):
                rows = draw(len(truth), 80 + 7 * digit, 34, 34)
                (folder / f"{index:05d}.bin").write_bytes(atis(rows))
                truth[part, digit, index] = rows
    (root / "Train" / "0" / "._00000.bin").write_bytes(b"left by another system")
    (root / "Train" / "readme.txt").write_text("not a recording")
    return root, truth


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """10 recordings of each class, and the events of each file as the camera saw them."""
    root, truth = tmp_path_factory.mktemp("cifar10dvs"), {}
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(10):
            rows = draw(1000 + len(truth), 60 + label, 128, 128)
            (root / name / f"cifar10_{name}_{index}.aedat").write_bytes(aedat2(rows))
            truth[label, index] = rows
    return root, truth


def read_both(root, **options):
    return load("nmnist", data_dir=root, seed=5, timesteps=T, size=SIZE, **options)


@pytest.mark.parametrize("by", ["count", "time"])
def test_nmnist_is_every_recording_in_balanced_order(small_nmnist, by):
    root, truth = small_nmnist
    data = read_both(root, frame_binning=by)
    assert (data.name, data.classes) == ("nmnist", 10)
    for part, arrays, number in (("Train", data.train, 4), ("Test", data.test, 2)):
        files = [(part, digit, index) for digit in range(10) for index in range(number)]
        labels = np.asarray([digit for _, digit, _ in files])
        order = balanced_order(labels, 5)
        assert (arrays.images.dtype, arrays.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(arrays.labels, labels[order])
        expected = [frames_of(truth[files[index]], 34, by) for index in order]
        np.testing.assert_array_equal(arrays.images, expected)


def test_normalized_frames_are_counts(small_nmnist):
    data = read_both(small_nmnist[0])
    np.testing.assert_allclose(normalize(data.train.images, data.mean, data.std), data.train.images, rtol=1e-6)
    assert int(data.train.images.sum()) == sum(4 * (80 + 7 * digit) for digit in range(10))


def test_subsets_are_the_beginning_of_the_whole(small_nmnist):
    whole = read_both(small_nmnist[0])
    few = read_both(small_nmnist[0], train_examples=20, test_examples=10)
    np.testing.assert_array_equal(few.train.images, whole.train.images[:20])
    np.testing.assert_array_equal(few.test.labels, whole.test.labels[:10])
    assert np.bincount(few.train.labels).tolist() == [2] * 10


def test_cifar10_dvs_is_split_nine_to_one_by_seed(small_cifar):
    root, seen = small_cifar[0], []
    for seed in (0, 1):
        data = load("cifar10_dvs", data_dir=root, seed=seed, timesteps=T, size=SIZE)
        assert (data.name, data.classes) == ("cifar10_dvs", 10)
        assert np.bincount(data.train.labels).tolist() == [9] * 10
        assert np.bincount(data.test.labels).tolist() == [1] * 10
        everything = sorted(image.tobytes() for part in (data.train, data.test) for image in part.images)
        assert len(set(everything)) == 100
        seen.append((everything, data.test.images))
    assert seen[0][0] == seen[1][0]
    assert not np.array_equal(seen[0][1], seen[1][1])


def test_cifar10_dvs_is_turned_upright(small_cifar):
    """The camera's rows are the picture's columns."""
    root, truth = small_cifar
    data = load("cifar10_dvs", data_dir=root, seed=2, timesteps=T, size=SIZE, frame_binning="time")
    files = sorted(truth, key=lambda key: (key[0], f"cifar10_{CLASSES[key[0]]}_{key[1]}.aedat"))
    labels = np.asarray([label for label, _ in files])
    order = balanced_order(labels, 2)
    images = np.concatenate([data.train.images, data.test.images])
    for image, index in zip(images, order, strict=True):
        upright = [(y, x, p, t) for x, y, p, t in truth[files[index]]]
        np.testing.assert_array_equal(image, frames_of(upright, 128, "time"))


def test_cifar10_dvs_subsets(small_cifar):
    data = load("cifar10_dvs", data_dir=small_cifar[0], timesteps=T, size=SIZE, train_examples=30, test_examples=4)
    assert (len(data.train.images), len(data.test.images)) == (30, 4)
    with pytest.raises(ValueError, match="train_examples must be an integer from 1 to 90"):
        load("cifar10_dvs", data_dir=small_cifar[0], timesteps=T, size=SIZE, train_examples=91)
    with pytest.raises(ValueError, match="test_examples must be an integer from 1 to 10"):
        load("cifar10_dvs", data_dir=small_cifar[0], timesteps=T, size=SIZE, test_examples=11)


@pytest.fixture
def bare(tmp_path):
    """One recording of each digit and part, which a test may change."""
    for part in ("Train", "Test"):
        for digit in range(10):
            (tmp_path / part / str(digit)).mkdir(parents=True)
            (tmp_path / part / str(digit) / "00001.bin").write_bytes(atis(draw(digit, 20, 34, 34)))
    return tmp_path


def test_counts_beyond_255_show_255(bare):
    (bare / "Train" / "3" / "00001.bin").write_bytes(atis([(1, 1, 1, t) for t in range(900)] + [(2, 2, 0, 901)]))
    data = load("nmnist", data_dir=bare, timesteps=1)
    image = data.train.images[data.train.labels == 3][0, 0]
    assert (image[1, 1, 1], image[2, 2, 0], image.sum()) == (255, 1, 256)


def test_a_damaged_recording_raises_by_name(bare):
    path = bare / "Train" / "7" / "00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"00001\.bin is not a readable ATIS file: it is cut off.* at byte 95\."):
        load("nmnist", data_dir=bare, timesteps=2)


def test_a_recording_of_a_header_alone_raises_by_name(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for index in range(10):
            (tmp_path / name / f"cifar10_{name}_{index}.aedat").write_bytes(AEDAT2_HEADER)
    with pytest.raises(ValueError, match=r"cifar10_\w+_\d\.aedat holds no events\."):
        load("cifar10_dvs", data_dir=tmp_path, timesteps=T, size=SIZE)


def test_only_what_is_asked_for_is_read(small_cifar, tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for index in range(3):
            (tmp_path / name / f"{index}.aedat").write_bytes(AEDAT2_HEADER + b"damaged")
    labels = np.repeat(np.arange(10), 3)
    order = balanced_order(labels, 0)
    for index in (order[0], order[27]):
        (tmp_path / CLASSES[labels[index]] / f"{index % 3}.aedat").write_bytes(aedat2(draw(0, 9, 128, 128)))
    data = load("cifar10_dvs", data_dir=tmp_path, timesteps=T, size=SIZE, train_examples=1, test_examples=1)
    assert (data.train.images.sum(), data.test.images.sum()) == (9, 9)


def error_of(name, data_dir):
    with pytest.raises(ValueError) as caught:
        load(name, data_dir=data_dir, timesteps=T, size=SIZE)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("name", "place", "source"),
    [("nmnist", "Train/0", "garrickorchard.com"), ("cifar10_dvs", "airplane", "figshare.com")],
)
def test_missing_data_say_where_they_were_sought_and_are_found(name, place, source, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        message = error_of(name, folder)
        assert f"{folder / place} holds no" in message
        assert source in message
    message = error_of(name, None)
    assert "data_dir must be given" in message
    assert source in message


def test_a_missing_class_is_named(bare):
    (bare / "Test" / "6" / "00001.bin").unlink()
    assert f"{bare / 'Test' / '6'} holds no .bin recordings" in error_of("nmnist", bare)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_binning": "events"}, "frame_binning must be 'count' or 'time'"),
        ({"timesteps": 0}, "timesteps must be an integer"),
        ({"size": 0}, "height must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"train_examples": 11}, "train_examples must be an integer from 1 to 10"),
    ],
)
def test_impossible_values_raise(bare, options, words):
    with pytest.raises(ValueError, match=words):
        load("nmnist", data_dir=bare, **{"timesteps": T, "size": SIZE, **options})


@pytest.fixture(scope="module")
def nmnist_dir():
    path = SHARED / "data" / "nmnist"
    if not path.exists():
        pytest.skip("nmnist is not on this machine; set QPSNN_SHARED to the folder that holds data/nmnist")
    return path


def test_the_real_nmnist(nmnist_dir):
    data = load("nmnist", data_dir=nmnist_dir, timesteps=10)
    assert (data.train.images.shape, data.test.images.shape) == ((500, 10, 34, 34, 2), (100, 10, 34, 34, 2))
    total = sum(path.stat().st_size for path in nmnist_dir.glob("*/*/*.bin")) // 5
    assert int(data.train.images.sum()) + int(data.test.images.sum()) == total
    assert data.train.images.max() < 100


def test_real_digits_of_a_class_look_alike(nmnist_dir):
    """Nearest mean picture of a class: far above one in ten, so labels and pixels belong together."""
    data = load("nmnist", data_dir=nmnist_dir, timesteps=1, size=17, frame_binning="time")
    pictures = [x.images.reshape(len(x.images), -1).astype(float) for x in (data.train, data.test)]
    train, test = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in pictures)
    means = np.stack([train[data.train.labels == digit].mean(0) for digit in range(10)])
    assert (
        (test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1) == data.test.labels
    ).mean() > 0.6
