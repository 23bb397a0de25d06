"""The config of a run: its parts go together, survive JSON, and are read from Python files."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qpsnn_jax import Config, Criterion, DataSettings, NetworkSettings, Pruning, RunSettings, Training
from qpsnn_jax.data import Augmentation, DataSet, load
from qpsnn_jax.data.augment.images import normalize_and_augment
from qpsnn_jax.data.catalogue import SOURCES
from qpsnn_jax.data.settings import augmentation, make_prepare
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Conv, Dense, GlobalAveragePool, Input, Quantizer
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.numerics.surrogate import SURROGATES
from qpsnn_jax.pruning.ratios import pruned_graph
from qpsnn_jax.pruning.settings import CRITERIA, WEIGHT_CRITERIA
from qpsnn_jax.runs import controls
from qpsnn_jax.runs.config import build_graph, check_config, check_ratios, load_config
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runs.stages import prepare_run
from qpsnn_jax.runtime.naming import find
from qpsnn_jax.runtime.settings import as_dict, from_dict, settings

HUGE = 10**20
# A value beyond the bounds of every number, and of another type for the rest.
BEYOND = {
    "network.name": "alexnet",
    "network.width": 1e300,
    "network.timesteps": HUGE,
    "network.bits": 9,
    "network.levels": 4,
    "network.edge_bits": 9,
    "network.layer_bits": {"conv2": 0},
    "network.gamma": "median",
    "network.granularity": "filter",
    "network.ste": "none",
    "network.fire": "=>",
    "network.surrogate": "step",
    "network.learned_tau": "yes",
    "network.round_tau": "no",
    "network.learned_threshold": 1,
    "network.residual_scale": 0,
    "data.name": "",
    "data.data_dir": 3,
    "data.train_examples": HUGE,
    "data.test_examples": 0,
    "data.size": HUGE,
    "data.grey": 1,
    "data.frame_binning": "events",
    "data.workers": HUGE,
    "data.crop_padding": HUGE,
    "data.roll": -1,
    "data.flip": "yes",
    "data.autoaugment": 1,
    "data.cutout": HUGE,
    "data.degrees": 181,
    "data.scale": 1.0,
    "data.translate": 1e300,
    "train.epochs": HUGE,
    "train.batch_size": 0,
    "train.optimizer": "lamb",
    "train.learning_rate": 0,
    "train.momentum": 1.0,
    "train.scale_lr": -1,
    "train.weight_decay": 1e300,
    "train.warmup_epochs": -1,
    "train.clip_norm": 0,
    "train.loss": "mse",
    "train.label_smoothing": 1.0,
    "train.sops_penalty": float("inf"),
    "train.sops_target": 3,
    "train.sops_rate": 0,
    "train.distill": 3,
    "train.distill_weight": 1.5,
    "train.distill_temperature": 0,
    "train.distill_membranes": {"lif1": -1.0},
    "train.timesteps_schedule": 2,
    "train.ema_decay": 1.0,
    "train.recalibrate_images": -1,
    "prune.criterion": "taylor",
    "prune.ratios": {"middle": 1.0},
    "prune.budget": 3,
    "prune.floor": 1.5,
    "prune.multiple_of": 0,
    "prune.rounds": 0,
    "prune.comparison": "median",
    "prune.recalibrate": "sometimes",
    "prune.sparsity": 1.0,
    "prune.n_of_m": 3,
    "prune.weight_criterion": "taylor",
    "prune.score_batches": 0,
    "prune.score_batch_size": HUGE,
    "run.seed": 2**31 - 2,
    "run.checkpoint_epochs": 0,
    "run.checkpoint_steps": 0,
    "run.precision": "quick",
    "run.fsdp": 1,
}


def nested(name, value):
    part, _, field = name.partition(".")
    return {part: {field: value}}


def test_every_setting_has_a_wrong_value_here():
    names = {field.name for field in settings(Config())}
    assert names == set(BEYOND) | {name.replace("train.", "finetune.", 1) for name in BEYOND if "train." in name}


@pytest.mark.parametrize("name", BEYOND)
def test_a_wrong_value_raises_by_name(name):
    with pytest.raises(ValueError) as caught:
        from_dict(Config, nested(name, BEYOND[name]))
    assert str(caught.value).startswith(f"{name} must be ")


def test_the_largest_seed_has_room_for_those_after_it():
    jax.random.key(RunSettings(seed=2**31 - 3).seed + 2)


def test_the_names_are_those_that_there_are():
    known = {field.name: field.names for field in settings(Config())}
    assert set(known["network.surrogate"]) == set(SURROGATES)
    for place in (*CRITERIA.values(), *WEIGHT_CRITERIA.values()):
        assert isinstance(find(place), Criterion) or callable(find(place))
    assert set(known["data.name"]) == set(SOURCES)
    for gamma in known["network.gamma"]:
        Quantizer(2, gamma=gamma)
    for ste in known["network.ste"]:
        Quantizer(2, ste=ste)
    for name in known["network.name"]:
        network = NetworkSettings(name, timesteps=3)
        data = DataSettings("cifar10_dvs" if name == "vggsnn" else "imagenet2012")
        assert build_graph(Config(network=network, data=data)).timesteps == 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_go_together(name):
    check_config(PRESETS[name].config)


@pytest.mark.parametrize(
    "config", [Config(), *(preset.config for preset in PRESETS.values()), Config(network=NetworkSettings(bits=None))]
)
def test_a_config_survives_json_and_hashes_alike(config):
    found = from_dict(Config, json.loads(json.dumps(as_dict(config))))
    assert found == config
    assert hash(found) == hash(config)
    assert {found: 1}[config] == 1


def test_a_part_of_another_kind_raises():
    with pytest.raises(ValueError, match=r"train must be Training\(…\), got \{'epochs': 3\}"):
        Config(train={"epochs": 3})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(prune=Pruning(ratios={"head": 0.1})), "ratios name 'head'; this network has stem, outputs, first"),
        (Config(NetworkSettings(width=0.125), prune=Pruning(ratios={"stem": 0.99})), "leaves none of 8 channels"),
        (Config(NetworkSettings(width=0.001)), "width must be positive and give 1 to 1048576 channels"),
        (Config(data=DataSettings("cifar10", size=16)), "size must be None for images of"),
        (Config(data=DataSettings("nmnist")), "network resnet20 does not take recordings of events"),
        (Config(NetworkSettings("vggsnn")), "network vggsnn does not take still images"),
        (Config(NetworkSettings("vggsnn"), DataSettings("nmnist", cutout=3)), "cutout must be off for recordings of"),
        (Config(data=DataSettings("cifar10", roll=3)), "roll must be off for images, got 3."),
        (Config(NetworkSettings("no_such:net")), "'no_such:net' cannot be found (ModuleNotFoundError"),
        (Config(NetworkSettings("json:dumps")), "network json:dumps"),
        (Config(prune=Pruning("no_such:rule", budget="90kB")), "'no_such:rule' cannot be found"),
        (
            Config(data=DataSettings("digits", autoaugment=True), prune=Pruning(ratios={})),
            "autoaugment is for images of 3 channels; turn it off for those of 1.",
        ),
        (
            Config(
                NetworkSettings("vggsnn", timesteps=5),
                DataSettings("nmnist"),
                Training(timesteps_schedule="3:0.5,5"),
            ),
            "train.timesteps_schedule: 5 frames cannot be merged equally into 3; choose a divisor of 5.",
        ),
        (
            Config(NetworkSettings("mobilenet"), prune=Pruning(ratios={"head": 0.5}, budget="0.1kB")),
            "a budget of 100 bytes cannot be met",
        ),
    ],
)
def test_parts_that_do_not_go_together_raise(config, message):
    with pytest.raises(ValueError) as caught:
        check_config(config)
    assert message in str(caught.value)


def test_ratios_play_no_part_under_a_budget():
    digits = PRESETS["digits"].config
    network = dataclasses.replace(digits.network, name="mobilenet")
    check_config(dataclasses.replace(digits, network=network, prune=dataclasses.replace(digits.prune, budget="30kB")))


def without_regard(*, bits, timesteps, classes, input_shape, **options):
    """A network that ignores the ratios."""
    nodes = (
        Input("image", input_shape),
        Conv("conv1", "image", 4, label="early"),
        LIF("lif1", "conv1"),
        Conv("conv2", "lif1", 6, quantizer=bits, label="late"),
        LIF("lif2", "conv2"),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps)


OWN = dataclasses.replace(PRESETS["digits"].config, network=NetworkSettings(f"{__name__}:without_regard"))


def test_names_of_ratios_are_checked_before_a_run_that_prunes():
    """Not before other commands: ratios of a preset do no harm to a run that is only trained."""
    check_config(OWN)
    with pytest.raises(ValueError, match="prune.ratios name '.*'; this network has early, late"):
        check_ratios(OWN)
    check_ratios(dataclasses.replace(OWN, prune=Pruning(ratios={"early": 0.5})))
    check_ratios(dataclasses.replace(OWN, prune=dataclasses.replace(OWN.prune, budget="1kB")))


def test_the_control_from_scratch_has_the_pruned_widths_of_a_network_that_ignores_ratios(tmp_path, monkeypatch):
    config = dataclasses.replace(OWN, prune=Pruning(ratios={"early": 0.5, "late": 0.5}))
    pruned = pruned_graph(build_graph(config), config.prune.ratios)
    trained = []
    monkeypatch.setattr(controls, "load_network", lambda path: (pruned, {}))
    monkeypatch.setattr(controls, "train_stage", lambda run, name, graph, *_: trained.append(graph))
    controls.CONTROLS["scratch"](config, prepare_run(config, tmp_path, load("digits")))
    assert trained == [pruned]
    assert pruned.by_name["conv2"].features == 3


def mistaken(**options):
    return options["layers"]


def divided(**options):
    return options["classes"] / 0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (mistaken, "fails with KeyError: 'layers'."),
        (divided, "fails with ZeroDivisionError: division by zero."),
        (lambda **options: [][1], "fails with IndexError"),
        (lambda **options: None.nodes, "fails with AttributeError"),
    ],
)
def test_a_mistake_in_a_network_of_ones_own_is_a_sentence(function, words, monkeypatch):
    monkeypatch.setitem(globals(), "mistaken", function)
    with pytest.raises(ValueError) as caught:
        build_graph(Config(NetworkSettings(f"{__name__}:mistaken")))
    assert str(caught.value).startswith(f"network {__name__}:mistaken fails with ")
    assert words in str(caught.value)


def test_the_graph_follows_the_settings():
    network = NetworkSettings(
        "vgg16", 0.125, 5, 3, gamma="max", granularity="channel", ste="scaled", fire=">", surrogate="sigmoid"
    )
    config = Config(network, DataSettings("cifar100"), prune=Pruning(ratios={"early": 0.5}))
    graph = build_graph(config)
    first, second = [node for node in graph.nodes if isinstance(node, Conv)][:2]
    lif = next(node for node in graph.nodes if isinstance(node, LIF))
    assert (graph.timesteps, graph.classes, graph.input.shape) == (5, 100, (32, 32, 3))
    assert (first.features, first.quantizer) == (8, None)
    assert second.quantizer == Quantizer(3, "max", "channel", "scaled")
    assert (lif.fire, lif.surrogate) == (">", "sigmoid")
    assert build_graph(config, ratios=config.prune.ratios).values["features.0.conv"].shape[-1] == 4
    whole = build_graph(Config(NetworkSettings(bits=None)))
    assert all(node.quantizer is None for node in whole.nodes if isinstance(node, Conv))


def test_a_network_of_ones_own_is_named_or_given(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from qpsnn_jax import Config, NetworkSettings\n"
        "from qpsnn_jax.model.zoo import vgg16\n"
        "def own(**options): return vgg16(**options)\n"
        "config = Config(network=NetworkSettings(own, width=0.125))\n"
    )
    config = load_config(path)
    assert config.network.name == f"{path}:own"
    assert config == from_dict(Config, as_dict(config))
    assert build_graph(config) == build_graph(Config(NetworkSettings("vgg16", width=0.125)))


def data_set(frames):
    images = np.random.default_rng(0).integers(0, 256, (4, *frames, 8, 8, 2 if frames else 3), np.uint8)
    channels = images.shape[-1]
    arrays = (images, np.arange(4) % 2)
    from qpsnn_jax.data import Arrays

    return DataSet("random", Arrays(*arrays), Arrays(*arrays), 2, (0.4,) * channels, (0.2,) * channels)


def test_the_augmentation_follows_the_settings():
    data, key = data_set(()), jax.random.key(0)
    chosen = {"crop_padding": 2, "flip": True, "cutout": 3}
    expected = normalize_and_augment(key, data.train.images, Augmentation(**chosen), data.mean, data.std)
    np.testing.assert_array_equal(make_prepare(DataSettings(**chosen), data)(key, data.train.images), expected)
    plain = normalize(data.train.images, data.mean, data.std)
    np.testing.assert_array_equal(make_prepare(DataSettings(), data)(key, data.train.images), plain)
    everything = DataSettings(crop_padding=1, flip=True, autoaugment=True, cutout=2, degrees=3, scale=0.1, translate=1)
    assert augmentation(everything, frames=False, channels=3) == Augmentation(
        crop_padding=1, flip=True, autoaugment=True, cutout=2, degrees=3.0, scale=0.1, translate=1.0
    )


def test_frames_are_rolled():
    data = data_set((3,))
    rolled = make_prepare(DataSettings("nmnist", roll=2), data)(jax.random.key(0), data.train.images)
    plain = normalize(data.train.images, data.mean, data.std)
    np.testing.assert_allclose(rolled.sum((2, 3)), plain.sum((2, 3)), rtol=1e-4, atol=1e-3)
    assert not np.array_equal(rolled, plain)


def test_a_config_file_defines_config(tmp_path):
    path = tmp_path / "good.py"
    path.write_text("from qpsnn_jax import Config, Training\nconfig = Config(train=Training(epochs=3))\n")
    assert load_config(path) == dataclasses.replace(Config(), train=Training(epochs=3))


IMPORT = "from qpsnn_jax import Config, NetworkSettings\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = (\n", "has a syntax error in line 1: '(' was never closed."),
        ("x = 1\n  y = 2\n", "has a syntax error in line 2: unexpected indent."),
        ("import no_such_module\n", "fails with ModuleNotFoundError: No module named 'no_such_module'."),
        ("raise SystemExit('bye')\n", "fails with SystemExit: bye."),
        (IMPORT + "NetworkSettings(bits=9)\n", ": bits must be an integer from 1 to 8, or none, got 9."),
        (
            IMPORT + "config = Config(zzqx=2)\n",
            "fails with TypeError: Config.__init__() got an unexpected keyword argument 'zzqx'.",
        ),
        ("x = 1\n", "must define `config = qpsnn_jax.Config(…)`."),
        ("config = {'bits': 2}\n", "must define `config = qpsnn_jax.Config(…)`."),
    ],
)
def test_a_wrong_config_file_raises(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"config file {path}")
    assert str(caught.value).endswith(message)


def test_a_file_that_is_not_text_raises(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"wrong\.py") as caught:
        load_config(path)
    assert "None" not in str(caught.value)


def test_a_missing_config_file_raises(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.py does not exist"):
        load_config(tmp_path / "absent.py")
