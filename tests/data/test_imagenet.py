"""ImageNet as files that stream: what is read, and a whole run on it that stops within an epoch and goes on."""

import json

import numpy as np
import pytest
from imagenet_folder import picture, write

from qpsnn_jax import checkpoint, train
from qpsnn_jax.cli import main
from qpsnn_jax.data import load
from qpsnn_jax.data.feed import count, evaluation_batches, feed, sample


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write(root)
    return root


def colours(images):
    return np.asarray(images)[:, 16, 16].astype(int)


def test_every_picture_comes_with_its_label(root):
    data = load("imagenet2012", data_dir=root, size=32)
    assert (data.name, data.classes, count(data.train), count(data.test)) == ("imagenet2012", 1000, 48, 20)
    for batch in evaluation_batches(data.test):
        assert (batch.images.shape[1:], batch.images.dtype, batch.labels.dtype) == ((32, 32, 3), np.uint8, np.int32)
        expected = [picture(label)[0, 0].astype(int) for label in batch.labels]
        assert np.abs(colours(batch.images) - expected).max() <= 4  # JPEG
    batches = feed(data.train, 16, 0)
    labels = np.concatenate([next(batches).labels for _ in range(3)])
    assert sorted(labels.tolist()) == list(range(48))


@pytest.mark.parametrize("size", [None, 32])
def test_pictures_are_brought_to_the_size(root, size):
    data = load("imagenet2012", data_dir=root, size=size)
    assert next(feed(data.train, 2, 0)).images.shape == (2, size or 224, size or 224, 3)
    assert next(sample(data.train, 3, 1)).shape == (3, size or 224, size or 224, 3)


def test_subsets_are_drawn_by_seed(root):
    few = load("imagenet2012", data_dir=root, size=32, train_examples=10, test_examples=5, seed=4)
    more = load("imagenet2012", data_dir=root, size=32, train_examples=20, seed=4)
    labels = [[int(x) for b in evaluation_batches(d.train) for x in b.labels] for d in (few, more)]
    assert count(few.test) == 5
    assert labels[0] == labels[1][:10] != list(range(10))
    with pytest.raises(ValueError, match="train_examples must be a whole number from 1 to 48"):
        load("imagenet2012", data_dir=root, train_examples=49)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared imagenet2012"):
        load("imagenet2012", data_dir=tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stops_within_an_epoch_and_goes_on(root, small_config, tmp_path, capsys, monkeypatch, workers):
    settings = {"data": "imagenet2012", "size": 32, "epochs": 2, "finetune_epochs": 1, "batch_size": 8, "flip": "true"}
    settings |= {"checkpoint_steps": 2, "score_batch_size": 16, "workers": workers, "data_dir": root}
    settings |= {"train_examples": "none", "test_examples": "none", "shift": 0}
    options = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    command = ["run", str(small_config), *options, "--out"]
    if workers == 0:
        assert main([*command, str(tmp_path / "whole")]) == 0
        expected = json.loads((tmp_path / "whole" / "report.json").read_text())

    def interrupted(self, values):
        if self._step == 8:
            raise KeyboardInterrupt
        return record(self, values)

    record = train._Metrics.record
    monkeypatch.setattr(train._Metrics, "record", interrupted)
    assert main([*command, str(tmp_path / "broken")]) == 130
    monkeypatch.setattr(train._Metrics, "record", record)
    found = checkpoint.latest(tmp_path / "broken" / "quantized")
    assert found is not None
    assert found.step == 8  # two steps into the second epoch of six
    assert main([*command, str(tmp_path / "broken")]) == 0
    logged = (tmp_path / "broken" / "quantized" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, 13))
    if workers == 0:
        assert logged == (tmp_path / "whole" / "quantized" / "metrics.jsonl").read_text().splitlines()
        report = json.loads((tmp_path / "broken" / "report.json").read_text())
        for ours, theirs in zip(report["stages"], expected["stages"], strict=True):
            assert ours | {"seconds": 0} == theirs | {"seconds": 0}
        notes = [
            json.loads((tmp_path / name / "quantized" / "stage.json").read_text())["epochs"]
            for name in ("whole", "broken")
        ]
        assert notes[0] == notes[1]
    capsys.readouterr()
