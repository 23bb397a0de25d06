"""ImageNet as streamed files: the examples, and a whole run that stops within an epoch and resumes."""

import json
import os
import signal
from unittest import mock

import numpy as np
import pytest
from forked import Forked
from imagenet_folder import picture, write
from small_runs import checksums

from qpsnn_jax.data import load
from qpsnn_jax.data.feed import count, evaluation_batches, feed, sample
from qpsnn_jax.runs import loop, plots
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.training import checkpoint


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
    with pytest.raises(ValueError, match="train_examples must be an integer from 1 to 48"):
        load("imagenet2012", data_dir=root, train_examples=49)


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared imagenet2012"):
        load("imagenet2012", data_dir=tmp_path)


def command(root, small_config, workers):
    settings = {"data.name": "imagenet2012", "data.size": 32, "data.data_dir": root, "data.workers": workers}
    settings |= {"data.train_examples": "none", "data.test_examples": "none", "data.flip": "true"}
    settings |= {"data.crop_padding": 0, "prune.score_batch_size": 16, "run.checkpoint_steps": 2}
    settings |= {"train.epochs": 2, "finetune.epochs": 1, "train.batch_size": 8, "finetune.batch_size": 8}
    settings |= {"network.name": "small_runs:tiny", "prune.ratios": "middle=0.55"}
    return [
        str(small_config),
        *(str(word) for name, x in settings.items() for word in (f"--{name}", x)),
        "--out",
    ]


@pytest.fixture(scope="module")
def whole(root, small_config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    with mock.patch.object(plots, "draw_all", return_value=[]):  # nobody looks at them
        assert main(["run", *command(root, small_config, 0), str(directory)]) == 0
    return directory


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_within_an_epoch_and_goes_on(root, small_config, whole, tmp_path, monkeypatch, workers):
    """With or without worker processes it ends like the run that was never stopped."""
    take = loop._Log.take

    def interrupted(self, values):
        if self.step == 8:
            raise KeyboardInterrupt
        return take(self, values)

    broken = tmp_path / "broken"
    monkeypatch.setattr(loop._Log, "take", interrupted)
    assert main(["train", *command(root, small_config, workers), str(broken)]) == 130
    monkeypatch.setattr(loop._Log, "take", take)
    found = checkpoint.latest(broken / "quantized")
    assert found is not None
    assert found.step == 8  # two steps into the second epoch of six
    assert main(["train", *command(root, small_config, workers), str(broken)]) == 0
    logged = [(place / "quantized" / "metrics.jsonl").read_text() for place in (broken, whole)]
    assert logged[0] == logged[1]
    assert checksums(broken / "quantized")["final/step_0"] == checksums(whole / "quantized")["final/step_0"]
    notes = [json.loads((place / "quantized" / "stage.json").read_text())["epochs"] for place in (broken, whole)]
    assert notes[0] == notes[1]


def test_a_whole_run_scores_prunes_and_finetunes(whole):
    report = json.loads((whole / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["quantized", "pruned", "recalibrated", "finetuned"]
    assert report["stages"][-1]["connection_ratio"] < 0.5


def in_a_group(arguments):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    return main(arguments)


def test_an_interrupt_at_the_terminal_stops_the_workers_in_silence(root, small_config, tmp_path):
    """The signal goes to the whole group, as from a keyboard."""
    arguments = ["train", *command(root, small_config, 1), str(tmp_path / "new"), "--train.epochs", "500"]
    process = Forked(arguments, in_a_group)
    process.wait_until(lambda: bool(list((tmp_path / "new" / "quantized").glob("step_?"))))
    os.killpg(process.process.pid, signal.SIGINT)
    _, said = process.ended(130)
    assert "Traceback" not in said
    assert "qpsnn: stopped;" in said
