"""Every setting is checked, and every complaint names it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qpsnn_jax.data import Augmentation
from qpsnn_jax.data.augment.images import normalize_and_augment
from qpsnn_jax.model.nodes import LIF, Conv, Quantizer
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs.config import (
    Config,
    as_dict,
    augmenter,
    build_graph,
    field_types,
    from_dict,
    load_config,
    parse_value,
)
from qpsnn_jax.runs.presets import PRESETS

WRONG = {
    "size": [16, "8", 2.5],
    "frame_binning": ["events", None],
    "autoaugment": [1, "yes", None],
    "network": [3, None, "alexnet"],
    "width": ["1", None, 0, -1.0, float("nan"), float("inf"), 0.001, True],
    "timesteps": [0, 2.0, "2", True, None],
    "bits": [0, 9, -1, 2.0, "2", True],
    "gamma": ["median", None, 1],
    "granularity": ["filter", None],
    "ste": ["none", 1],
    "fire": ["=>", None],
    "surrogate": ["step", 1],
    "data": ["mnist", None, 1],
    "data_dir": [3],
    "train_examples": ["all", 1.5, True],
    "test_examples": ["all", 1.5],
    "crop_padding": [-1, 1.0],
    "roll": [-1, 1.0],
    "flip": [1, "yes", None],
    "cutout": [-1, 0.5],
    "degrees": [-1, 181, "10"],
    "scale": [1.0, -0.1],
    "translate": [-0.5, float("nan")],
    "epochs": [0, 1.5, None],
    "batch_size": [0, -4, 2.0],
    "optimizer": ["lamb", None],
    "learning_rate": [0, -0.1, float("inf"), "0.1", 10**400],
    "momentum": [1.0, -0.1, None],
    "weight_decay": [-1e-5, float("nan")],
    "warmup_epochs": [-1],
    "clip_norm": [0, -1.0, "1"],
    "loss": ["mse", None],
    "label_smoothing": [1.0, -0.1],
    "sops_penalty": [-0.1, "1", None],
    "average": [0, 1, 1.5, "0.9"],
    "criterion": ["taylor", None],
    "ratios": [0.5, "middle=0.5", {"middle": "0.5"}, {"middle": 1.0}, {"middle": -0.1}, {"head": 0.1}, {"stem": True}],
    "score_batches": [0],
    "score_batch_size": [0, 1.5],
    "finetune_epochs": [-1, 0.5],
    "finetune_optimizer": ["lamb"],
    "finetune_learning_rate": [0, -1],
    "seed": [-1, 2**31, 0.5, "0"],
    "checkpoint_epochs": [0, None],
    "checkpoint_steps": [0, 1.5],
    "workers": [-1, None, "2"],
    "fsdp": [1, "yes", None],
}


def test_every_setting_has_wrong_values_here():
    assert set(WRONG) == set(field_types())


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=lambda x: str(x)[:20]
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name.removesuffix("s")) as caught:
        Config(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [1, 8, None])
def test_bits_in_range_are_taken(bits):
    assert Config(bits=bits).bits == bits


def test_values_are_brought_to_their_types():
    config = Config(learning_rate=1, ratios={"middle": 0})
    assert isinstance(config.learning_rate, float)
    assert isinstance(config.ratios["middle"], float)


@pytest.mark.parametrize("config", [Config(), *PRESETS.values(), Config(bits=None, average=0.9, ratios={"stem": 0.1})])
def test_a_config_survives_json(config):
    text = json.dumps(as_dict(config))
    assert from_dict(json.loads(text)) == config
    assert set(as_dict(config)) == set(field_types())


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="no setting 'lr'; the settings are network, "):
        from_dict({"lr": 0.1})


def test_the_graph_follows_the_settings():
    config = Config(
        network="vgg16",
        width=0.125,
        bits=3,
        gamma="max",
        granularity="channel",
        ste="scaled",
        fire=">",
        surrogate="sigmoid",
    )
    config = dataclasses.replace(config, timesteps=5, data="cifar100", ratios={"early": 0.5})
    graph = build_graph(config)
    first, second = [node for node in graph.nodes if isinstance(node, Conv)][:2]
    lif = next(node for node in graph.nodes if isinstance(node, LIF))
    assert (graph.timesteps, graph.classes, graph.input.shape) == (5, 100, (32, 32, 3))
    assert (first.features, first.quantizer) == (8, None)
    assert second.quantizer == Quantizer(3, "max", "channel", "scaled")
    assert (lif.fire, lif.surrogate) == (">", "sigmoid")
    pruned = build_graph(config, ratios=config.ratios)
    assert pruned.values["features.0.conv"].shape[-1] == 4
    assert all(n.quantizer is None for n in build_graph(Config(bits=None)).nodes if isinstance(n, Conv))


def test_the_augmentation_follows_the_settings():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    key, mean, std = jax.random.key(0), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    expected = normalize_and_augment(key, pixels, Augmentation(crop_padding=2, flip=True, cutout=3), mean, std)
    np.testing.assert_array_equal(
        augmenter(Config(crop_padding=2, flip=True, cutout=3))(key, pixels, mean, std), expected
    )
    np.testing.assert_array_equal(augmenter(Config())(key, pixels, mean, std), normalize(pixels, mean, std))


def test_frames_are_rolled_and_take_no_cutout():
    frames = np.random.default_rng(0).integers(0, 9, (2, 3, 34, 34, 2), np.uint8)
    config = Config(data="nmnist", network="vggsnn", timesteps=3, roll=2)
    rolled = augmenter(config)(jax.random.key(0), frames, (0.0, 0.0), (1 / 255, 1 / 255))
    np.testing.assert_allclose(rolled.sum((2, 3)), frames.sum((2, 3)), rtol=1e-5)
    assert not np.array_equal(rolled, frames)
    with pytest.raises(ValueError, match="cutout must be off for recordings of events"):
        Config(data="nmnist", network="vggsnn", cutout=3)
    with pytest.raises(ValueError, match="resnet20 does not take recordings of events"):
        Config(data="nmnist")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("network", "vgg16", "vgg16"),
        ("bits", "4", 4),
        ("bits", "none", None),
        ("epochs", "7", 7),
        ("learning_rate", "1e-3", 1e-3),
        ("average", "None", None),
        ("average", "0.99", 0.99),
        ("data_dir", "some/where", "some/where"),
        ("data_dir", "none", None),
        ("flip", "True", True),
        ("flip", "false", False),
        ("gamma", "none", "none"),
        ("ratios", "stem=0.1, middle=0.6", {"stem": 0.1, "middle": 0.6}),
        ("ratios", "", {}),
    ],
)
def test_text_is_parsed_by_type(name, text, value):
    assert parse_value(name, text) == value
    assert type(parse_value(name, text)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("bits", "two", "a whole number or none"),
        ("epochs", "1.5", "a whole number"),
        ("learning_rate", "fast", "a number"),
        ("average", "some", "a number or none"),
        ("flip", "yes", "true or false"),
        ("ratios", "0.5", "ratios by label such as stem=0.1,middle=0.6"),
        ("ratios", "stem=lots", "ratios by label such as stem=0.1,middle=0.6"),
        ("ratios", "stem=0.1=0.2", "ratios by label such as stem=0.1,middle=0.6"),
    ],
)
def test_text_of_another_type_is_refused(name, text, takes):
    with pytest.raises(ValueError) as caught:
        parse_value(name, text)
    assert str(caught.value) == f"--{name} takes {takes}, got {text!r}."


def test_a_config_file_defines_config(tmp_path):
    path = tmp_path / "good.py"
    path.write_text("from qpsnn_jax import Config\nconfig = Config(bits=3)\n")
    assert load_config(path) == Config(bits=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = (\n", "has a syntax error in line 1: '(' was never closed."),
        ("x = 1\n  y = 2\n", "has a syntax error in line 2: unexpected indent."),
        ("import no_such_module\n", "fails with ModuleNotFoundError: No module named 'no_such_module'."),
        ("raise SystemExit('bye')\n", "fails with SystemExit: bye."),
        ("from qpsnn_jax import Config\nconfig = Config(bits=9)\n", ": bits must be an integer from 1 to 8, got 9."),
        (
            "from qpsnn_jax import Config\nconfig = Config(zzqx=2)\n",
            "fails with TypeError: Config.__init__() got an unexpected keyword argument 'zzqx'.",
        ),
        ("x = 1\n", "must define `config = qpsnn_jax.Config(…)`."),
        ("config = {'bits': 2}\n", "must define `config = qpsnn_jax.Config(…)`."),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"config file {path}")
    assert str(caught.value).endswith(message)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"wrong\.py") as caught:
        load_config(path)
    assert "None" not in str(caught.value)


def test_a_missing_config_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.py does not exist"):
        load_config(tmp_path / "absent.py")
