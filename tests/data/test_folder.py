"""Your own pictures: how a folder is read, the errors of an invalid one, and a run on one by its commands."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data import Arrays, DataInfo, DataRequest, Files, decoded, describe, load
from qpsnn_jax.data.feed import everything, feed
from qpsnn_jax.data.inspection import check, format_report
from qpsnn_jax.runs.cli.main import main

HEIGHT, WIDTH = 12, 20
SIDE = HEIGHT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qpsnn_jax" / "pictures"


def picture(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(root, classes, seed=0, suffix="png"):
    """Write numbered pictures of each class, of the seeds ``seed``, ``seed + 1`` … in order."""
    for name, number in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in range(number):
            Image.fromarray(picture(seed)).save(root / name / f"{row}.{suffix}")
            seed += 1
    return root


@pytest.fixture
def split(tmp_path):
    root = tmp_path / "own"
    write(root / "train", {"cat": 5, "ape": 4})
    write(root / "test", {"ape": 2, "cat": 3}, seed=100)
    return root


def square(pixels):
    """The central square of a picture that is read at its own height."""
    return np.ascontiguousarray(pixels[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT])


def by_content(arrays):
    return {image.tobytes(): label for image, label in zip(arrays.images, arrays.labels.tolist(), strict=True)}


def refusal(root, **options):
    with pytest.raises(ValueError) as caught:
        load("folder", data_dir=root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_with_a_split_is_read_as_it_lies(split):
    data = load("folder", data_dir=split, size=SIDE)
    assert (data.classes, data.class_names, data.shape) == (2, ("ape", "cat"), (SIDE, SIDE, 3))
    # Written in the order cat, ape; labels follow the names.
    truth = {square(picture(seed)).tobytes(): int(seed < 5) for seed in range(9)}
    assert by_content(data.train) == truth
    assert by_content(data.test) == {square(picture(seed)).tobytes(): int(seed >= 102) for seed in range(100, 105)}
    pixels = np.stack([square(picture(seed)) for seed in range(9)]) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-12)
    few = load("folder", data_dir=str(split), size=SIDE, train_examples=2, test_examples=1)
    np.testing.assert_array_equal(few.train.images, data.train.images[:2])
    assert few.mean == data.mean


def test_a_folder_without_a_split_is_split_by_seed(tmp_path):
    root = write(tmp_path / "own", {"train": 30, "plane": 60, "few": 2})  # a class may be called train
    one, again, other = (load("folder", data_dir=root, size=SIDE, seed=seed) for seed in (0, 0, 1))
    few, planes, trains = np.bincount(one.test.labels)
    assert few == 1
    assert 6 <= planes <= 18
    assert 3 <= trains <= 9
    np.testing.assert_array_equal(one.test.images, again.test.images)
    assert by_content(one.test) != by_content(other.test)
    label = {"few": 0, "plane": 1, "train": 2}
    names = ["train"] * 30 + ["plane"] * 60 + ["few"] * 2
    whole = {square(picture(seed)).tobytes(): label[name] for seed, name in enumerate(names)}
    assert by_content(one.train) | by_content(one.test) == whole
    assert len(by_content(one.train)) + len(by_content(one.test)) == len(whole)


def test_a_picture_that_is_added_moves_no_other(tmp_path):
    root = write(tmp_path / "own", {"cat": 40, "dog": 40})
    before = load("folder", data_dir=root, size=SIDE)
    Image.fromarray(picture(500)).save(root / "cat" / "!.png")  # the first of all
    root.rename(tmp_path / "moved")
    after = load("folder", data_dir=tmp_path / "moved", size=SIDE)
    assert len(after.train.labels) + len(after.test.labels) == 81
    for part in ("train", "test"):
        assert by_content(getattr(before, part)).items() <= by_content(getattr(after, part)).items()


def test_grey_is_one_channel(split):
    data = load("folder", data_dir=split, size=HEIGHT, grey=True)
    assert data.shape == (HEIGHT, HEIGHT, 1)
    image = Image.fromarray(picture(0)).convert("L").crop((4, 0, 16, 12))
    assert np.asarray(image).tobytes() in by_content(data.train)
    with pytest.raises(ValueError, match="grey must be False for data of 3 channels"):
        describe("cifar10", DataRequest(grey=True))


def test_nothing_is_opened_to_describe_a_folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "own" / name).mkdir(parents=True)
    assert describe("folder", DataRequest(tmp_path / "own")) == DataInfo(
        (32, 32, 3), 3, resizable=True, split_by_seed=True
    )


def test_a_folder_with_a_split_is_not_split_by_seed(split):
    assert not describe("folder", DataRequest(split)).split_by_seed


def test_what_is_no_picture_of_the_folder_does_not_count(split, tmp_path):
    (split / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (split / "train" / ".DS_Store").write_bytes(b"x")
    (split / "train" / "cat" / "._0.png").write_bytes(b"x")
    (split / "train" / ".ipynb_checkpoints").mkdir()
    (split / "train" / "cat" / "notes.txt").write_text("x")
    (split / "labels.csv").write_text("x")
    os.mkfifo(split / "train" / "cat" / "pipe.png")
    assert len(load("folder", data_dir=split).train.labels) == 9


def test_links_and_names_in_any_script(split, tmp_path):
    (split / "train" / unicodedata.normalize("NFC", "éléphant 象")).mkdir()
    composed = split / "train" / unicodedata.normalize("NFC", "éléphant 象")
    Image.fromarray(picture(50)).save(composed / "ñ.PNG")
    separate = write(tmp_path / "elsewhere", {"x": 2}, seed=60) / "x"
    (split / "test" / unicodedata.normalize("NFD", "éléphant 象")).symlink_to(separate)
    data = load("folder", data_dir=split, size=SIDE)
    assert data.class_names == ("ape", "cat", unicodedata.normalize("NFC", "éléphant 象"))
    assert np.bincount(data.test.labels).tolist() == [2, 3, 2]
    (split / "train" / unicodedata.normalize("NFD", "éléphant 象")).mkdir()
    assert "two folders that are both called éléphant 象" in refusal(split)


def test_all_unreadable_pictures_are_named_at_once(split):
    bad = {
        split / "train" / "cat" / "empty.png": b"",
        split / "train" / "ape" / "text.jpg": b"no picture",
        split / "test" / "ape" / "cut.png": (split / "test" / "ape" / "0.png").read_bytes()[:300],
    }
    for path, content in bad.items():
        path.write_bytes(content)
    (split / "test" / "cat" / "lost.png").symlink_to(split / "nowhere.png")
    message = refusal(split)
    assert message.startswith("folder has 4 pictures that cannot be read: ")
    assert all(str(path) in message for path in bad)
    assert f"{split / 'test' / 'cat' / 'lost.png'}: No such file" in message
    report = check("folder", split)
    assert [split.examples for split in report.splits] == [9, 5]
    assert all(str(path) in report.problems[0] for path in bad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "is not a folder; give one that holds train/CLASS/ and test/CLASS/, or CLASS/ alone"),
        (lambda root: root.mkdir(), "holds no classes; it must hold"),
        (lambda root: write(root, {"cat": 3}), "holds the class cat alone; it must hold .* two classes at least"),
        (lambda root: write(root, {"cat": 3, "dog": 0}), "dog holds no pictures"),
        (lambda root: write(root, {"cat": 3, "dog": 3, "cat/kitten": 1}), "kitten is a folder within a class"),
        (lambda root: write(root, {"cat": 3, "dog": 3, ".": 1}), "0.png lies in no class"),
        (lambda root: write(root, {"train/cat": 3, "train/dog": 3}), "holds train and no test; add test, or give"),
        (lambda root: write(root, {"train/a": 1, "train/b": 1, "test/c": 1}), "c is a class that .*train lacks"),
        (lambda root: write(root, {"train/a": 1, "train/b": 1, "test": 0}), "test holds no classes"),
        (lambda root: write(root, {"a": 1, "b": 1}), "has too few pictures to be split by seed"),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_one_sentence(make, words, tmp_path):
    make(tmp_path / "own")
    with pytest.raises(ValueError, match=words):
        load("folder", data_dir=tmp_path / "own")


def test_a_folder_must_be_named():
    with pytest.raises(ValueError, match="data_dir must be given: a folder that holds train/CLASS/"):
        load("folder")


def test_pictures_are_decoded_once(split, cache, monkeypatch):
    first = load("folder", data_dir=split, size=SIDE)
    with monkeypatch.context() as patched:
        patched.setattr("qpsnn_jax.data.sources.folder.read_square", None)
        again = load("folder", data_dir=split, size=SIDE)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert [path.name.startswith("unfinished") for path in cache.iterdir()] == [False]
    kept = next(cache.iterdir()) / "pixels.npy"
    kept.write_bytes(kept.read_bytes()[:-1])
    np.testing.assert_array_equal(load("folder", data_dir=split, size=SIDE).train.images, first.train.images)
    Image.fromarray(picture(7777)).save(split / "train" / "cat" / "0.png")
    assert by_content(load("folder", data_dir=split, size=SIDE).train) != by_content(first.train)


def test_a_failed_decoding_leaves_nothing(split, cache):
    (split / "train" / "cat" / "0.png").write_bytes(b"")
    refusal(split)
    assert list(cache.iterdir()) == []


def test_a_large_folder_is_streamed(split, monkeypatch):
    whole = load("folder", data_dir=split, size=SIDE)
    monkeypatch.setattr(decoded, "_IN_MEMORY", 8 * SIDE * SIDE * 3)
    data = load("folder", data_dir=split, size=SIDE)
    assert isinstance(data.train, Files)
    assert isinstance(data.test, Arrays)
    np.testing.assert_array_equal(everything(data.train).images, whole.train.images)
    np.testing.assert_array_equal(everything(data.train).labels, whole.train.labels)
    batches = feed(data.train, 9, 0)
    batch = next(batches)
    batches.close()
    assert by_content(Arrays(np.asarray(batch.images), np.asarray(batch.labels))) == by_content(whole.train)


def test_the_report_counts_classes_by_name(split):
    (split / "test" / "ape").rename(split / "apes")
    lines = format_report(check("folder", split)).splitlines()
    assert lines[1].startswith("  train: 9 images, 2 classes of 4 to 5, mean ")
    assert lines[2] == "    ape 4, cat 5"
    assert lines[-1] == "  problem: test holds no picture of ape."


def config_file(folder: Path, network: str, **pruning) -> Path:
    """A config of one epoch of training and one of fine-tuning on pictures of 8×8."""
    path = folder / "own.py"
    path.write_text(
        "from qpsnn_jax import Config, DataSettings, NetworkSettings, Pruning, Training\n"
        "train = Training(epochs=1, batch_size=16)\n"
        f"data, prune = DataSettings('folder', size=8), Pruning(**{pruning!r})\n"
        f"config = Config(NetworkSettings({network!r}), data, train, prune, train)\n"
    )
    return path


def test_every_command_takes_a_folder(split, small_network, tmp_path, capsys):
    write(split / "train", {"cat": 16, "ape": 16})
    config = config_file(tmp_path, small_network)
    run, place, packed = tmp_path / "run", ["--data.data_dir", str(split)], str(tmp_path / "own.qpsnn")
    assert main(["cost", str(config), *place]) == 0
    assert main(["train", str(config), *place, "--out", str(run)]) == 0
    moved = tmp_path / "moved"
    split.rename(moved)
    data_dir = ["--data-dir", str(moved)]
    assert main(["evaluate", str(run)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["evaluate", str(run), *data_dir]) == 0
    assert main(["evaluate", str(run), "--data", "folder", *data_dir]) == 0
    assert main(["train", str(config), "--data.data_dir", str(moved), "--out", str(run)]) == 0
    assert main(["cost", str(run)]) == 0
    assert main(["verify", str(run), "--format", "packed", *data_dir]) == 0
    assert main(["export", str(run), "--format", "packed", "--out", packed, *data_dir]) == 0
    assert main(["data", "check", "folder", *data_dir]) == 0
    capsys.readouterr()
    assert main(["info", packed]) == 0
    assert "classes ape, cat" in capsys.readouterr().out
    assert main(["infer", packed, str(moved / "test" / "cat")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("class 0 (ape), " in line or "class 1 (cat), " in line for line in lines)
    (moved / "train" / "cat").rename(moved / "train" / "bat")
    (moved / "test" / "cat").rename(moved / "test" / "bat")
    assert main(["evaluate", str(run), *data_dir]) == 2
    assert "was trained on the classes ape, cat; folder has ape, bat." in capsys.readouterr().err


def test_every_stage_finds_pictures_that_were_moved(tmp_path, small_network):
    root = write(tmp_path / "own", {"ape": 40, "cat": 40})
    config = config_file(tmp_path, small_network, ratios={"middle": 0.5}, score_batches=1, score_batch_size=16)
    run = str(tmp_path / "run")
    assert main(["train", str(config), "--data.data_dir", str(root), "--out", run]) == 0
    moved = str(root.rename(tmp_path / "moved"))
    for command in ("score", "prune", "finetune"):
        assert main([command, run]) == 2
        assert main([command, run, "--data-dir", moved]) == 0


def test_a_run_goes_on_with_the_data_that_it_started_with(tmp_path, small_network, capsys):
    root = write(tmp_path / "own", {"ape": 40, "cat": 40})
    config = config_file(tmp_path, small_network)
    run = tmp_path / "run"
    assert main(["train", str(config), "--data.data_dir", str(root), "--out", str(run)]) == 0
    moved = root.rename(tmp_path / "moved")
    again = ["train", str(config), "--data.data_dir", str(moved), "--out", str(run)]
    of_run = [str(run), "--data-dir", str(moved)]
    others = [["evaluate", *of_run], ["verify", *of_run, "--format", "packed"]]
    for command in (again, *others):
        assert main(command) == 0
    exporting = ["export", *of_run, "--format", "packed", "--out", str(tmp_path / "own.qpsnn")]
    trained = len(load("folder", data_dir=moved, size=8).train.labels)
    numbers = iter(range(1000, 2000))
    while len(load("folder", data_dir=moved, size=8).train.labels) == trained:
        Image.fromarray(picture(next(numbers))).save(moved / "cat" / f"more{next(numbers)}.png")
    capsys.readouterr()
    for command in (again, *others, exporting):
        assert main(command) == 2
        assert f"{run} started with other data: " in capsys.readouterr().err
    assert not (tmp_path / "own.qpsnn").exists()
    assert main(["evaluate", *of_run, "--data", "folder"]) == 0  # named, they may be others
    (run / "data.json").write_text("{}")
    assert main(again) == 2
    assert "data.json is damaged" in capsys.readouterr().err
