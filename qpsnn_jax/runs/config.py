"""The settings of a run as one frozen record, and the objects it describes."""

import dataclasses
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_type_hints

from jax import Array

from qpsnn_jax.data import Augmentation, DataInfo, DataRequest, EventAugmentation, FrameBinning, describe
from qpsnn_jax.data.augment.frames import augment_frames
from qpsnn_jax.data.augment.images import normalize_and_augment
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Quantizer
from qpsnn_jax.model.zoo import NETWORKS
from qpsnn_jax.numerics.gamma import Gamma, Granularity
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.numerics.quantization import STE
from qpsnn_jax.numerics.surrogate import Fire
from qpsnn_jax.training.optim import OptimizerName

LossName = Literal["cross_entropy", "tet"]
CriterionName = Literal["svs", "sca", "magnitude", "random"]


@dataclass(frozen=True)
class Config:
    """Settings of a run; every field can be set on the command line as ``--field value``.

    Network: ``network`` (a name in the zoo), ``width`` multiplier, ``timesteps`` T, ``bits`` of the quantized weights
    (None: full precision), ``gamma``, ``granularity``, ``ste`` (see :class:`qpsnn_jax.Quantizer`), ``fire``,
    ``surrogate`` (see :func:`qpsnn_jax.lif`).

    Data: ``data`` set, ``data_dir`` of TFDS or of the recordings, ``train_examples`` and ``test_examples`` (None: all);
    ``size``, height and width of event frames or of ImageNet's crops (None: the usual ones); ``frame_binning``,
    event frames of equal numbers of events or of equal duration; ``workers``, processes that read and decode files (0:
    none); augmentation ``crop_padding`` (of images), ``roll`` (of event frames), ``flip``, ``autoaugment``,
    ``cutout``, ``degrees``, ``scale``, ``translate`` (see :class:`qpsnn_jax.data.Augmentation`).

    Training: ``epochs``, ``batch_size``, ``optimizer``, ``learning_rate``, ``momentum``, ``weight_decay`` (on
    convolutions), ``warmup_epochs``, ``clip_norm``, ``loss``, ``label_smoothing``, ``sops_penalty`` (added to the loss
    for every million synaptic operations an image takes), ``average`` (decay of a moving average of the weights, None:
    none).

    Pruning: ``criterion``, ``ratios`` removed by label, on the command line ``stem=0.1,middle=0.6``;
    ``score_batches`` of ``score_batch_size`` training images.

    Fine-tuning: ``finetune_epochs``, ``finetune_optimizer``, ``finetune_learning_rate``; the rest as in training.

    Run: ``seed``; ``checkpoint_epochs``, how many epochs lie between checkpoints; ``checkpoint_steps``, how many steps
    lie between those within an epoch (None: there are none); ``fsdp``, cut the weights and what the optimizer keeps of
    them over the devices (fully sharded data parallel) instead of holding them whole on each.

    Raises:
        ValueError: a field of the wrong type or out of range, naming it.
    """

    network: str = "resnet20"
    width: float = 1.0
    timesteps: int = 2
    bits: int | None = 2
    gamma: Gamma = "mean"
    granularity: Granularity = "layer"
    ste: STE = "clipped"
    fire: Fire = ">="
    surrogate: str = "triangular"

    data: str = "cifar10"
    data_dir: str | None = None
    train_examples: int | None = None
    test_examples: int | None = None
    size: int | None = None
    frame_binning: FrameBinning = "count"
    workers: int = 0
    crop_padding: int = 0
    roll: int = 0
    flip: bool = False
    autoaugment: bool = False
    cutout: int = 0
    degrees: float = 0.0
    scale: float = 0.0
    translate: float = 0.0

    epochs: int = 300
    batch_size: int = 256
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-5
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    sops_penalty: float = 0.0
    average: float | None = None

    criterion: CriterionName = "svs"
    ratios: Mapping[str, float] = field(default_factory=dict)
    score_batches: int = 5
    score_batch_size: int = 128

    finetune_epochs: int = 150
    finetune_optimizer: OptimizerName = "adam"
    finetune_learning_rate: float = 0.001

    seed: int = 0
    checkpoint_epochs: int = 5
    checkpoint_steps: int | None = None
    fsdp: bool = False

    def __post_init__(self) -> None:
        for name, hint in field_types().items():
            object.__setattr__(self, name, _checked(name, hint, getattr(self, name)))
        _one_of("network", self.network, NETWORKS)
        for name in ("epochs", "batch_size", "score_batches", "score_batch_size", "checkpoint_epochs"):
            _require(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("width", "learning_rate", "finetune_learning_rate"):
            _require(name, getattr(self, name) > 0, "positive", getattr(self, name))
        for name in ("weight_decay", "sops_penalty", "warmup_epochs", "finetune_epochs", "seed", "workers"):
            _require(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        for name in ("momentum", "label_smoothing"):
            _require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1", getattr(self, name))
        _require("clip_norm", self.clip_norm is None or self.clip_norm > 0, "positive or none", self.clip_norm)
        _require("average", self.average is None or 0 < self.average < 1, "between 0 and 1, or none", self.average)
        _require("seed", self.seed < 2**31, "below 2**31", self.seed)
        steps = self.checkpoint_steps
        _require("checkpoint_steps", steps is None or steps >= 1, "at least 1, or none", steps)
        augmenter(self)
        build_graph(self)


def build_graph(config: Config, *, ratios: Mapping[str, float] | None = None) -> Graph:
    """The network of a config, whole, or with pruned widths when ``ratios`` are given.

    Raises:
        ValueError: the network cannot be built, naming the setting or the node at fault.
    """
    info = described(config)
    quantizer = None if config.bits is None else Quantizer(config.bits, config.gamma, config.granularity, config.ste)
    build = NETWORKS[config.network]
    settings = {
        "bits": quantizer,
        "timesteps": config.timesteps,
        "classes": info.classes,
        "input_shape": info.shape,
        "width": config.width,
        "lif": LIF("", "", fire=config.fire, surrogate=config.surrogate),
    }
    if build(**settings, ratios=config.ratios).input.frames != info.frames:
        kind = "recordings of events" if info.frames else "still images"
        raise ValueError(f"network {config.network} does not take {kind}, which {config.data} holds.")
    return build(**settings, ratios=ratios)


def described(config: Config) -> DataInfo:
    """What is known of a config's data set before it is read.

    Raises:
        ValueError: an unknown data set, or a size that it does not have.
    """
    return describe(config.data, DataRequest(data_dir=config.data_dir, size=config.size))


Augmenter = Callable[[Array, Array, tuple[float, ...], tuple[float, ...]], Array]


def augmenter(config: Config) -> Augmenter:
    """Normalization and augmentation in training: a function of a key, uint8 images or frames, mean and std.

    Raises:
        ValueError: a setting out of range, or one that event frames do not have.
    """
    if not described(config).frames:
        _require("roll", not config.roll, "off for still images", config.roll)
        chosen = Augmentation(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Augmentation)})
        return lambda key, pixels, mean, std: normalize_and_augment(key, pixels, chosen, mean, std)
    for name in ("crop_padding", "autoaugment", "cutout", "scale", "translate"):
        _require(name, not getattr(config, name), "off for recordings of events", getattr(config, name))
    rolled = EventAugmentation(flip=config.flip, roll=config.roll, degrees=config.degrees)
    return lambda key, pixels, mean, std: augment_frames(key, normalize(pixels, mean, std), rolled)


def field_types() -> dict[str, Any]:
    """Type of every field of :class:`Config`."""
    return get_type_hints(Config)


def as_dict(config: Config) -> dict[str, Any]:
    """The config as plain values, for JSON."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(values: Mapping[str, Any]) -> Config:
    """A config from plain values.

    Raises:
        ValueError: an unknown field or a wrong value, naming it.
    """
    if unknown := [name for name in values if name not in field_types()]:
        raise ValueError(f"there is no setting {unknown[0]!r}; the settings are {', '.join(field_types())}.")
    return Config(**values)


def load_config(path: Path) -> Config:
    """The ``config`` that a Python file defines; the file may import its neighbours, as any script may.

    Raises:
        ValueError: the file is missing, fails to run, or defines no ``config`` of type :class:`Config`.
    """
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist.")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        namespace = runpy.run_path(str(path))
    except SyntaxError as error:
        place = f" in line {error.lineno}" if error.lineno else ""
        raise ValueError(f"config file {path} has a syntax error{place}: {error.msg}.") from None
    except ValueError as error:
        raise ValueError(f"config file {path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"config file {path} fails with {type(error).__name__}: {error}.") from None
    finally:
        sys.path.pop(0)
    if not isinstance(namespace.get("config"), Config):
        raise ValueError(f"config file {path} must define `config = qpsnn_jax.Config(…)`.")
    return namespace["config"]


def parse_value(name: str, text: str) -> Any:
    """The value of a field from its text on the command line.

    Raises:
        ValueError: the text is not of the field's type, naming the field and what it takes.
    """
    hint = field_types()[name]
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(k for k in kinds if k is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind == Mapping[str, float]:
            return {key.strip(): float(value) for key, value in (item.split("=") for item in text.split(",") if item)}
    except (ValueError, KeyError):
        raise ValueError(f"--{name} takes {_describe(hint)}, got {text!r}.") from None
    return text


def _checked(name: str, hint: Any, value: Any) -> Any:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    for kind in kinds:
        choices = get_args(kind) if not isinstance(kind, type) else ()
        if kind == Mapping[str, float]:
            if isinstance(value, Mapping) and all(_is_number(r) for r in value.values()):
                return {str(label): float(ratio) for label, ratio in value.items()}
        elif choices:
            if value in choices:
                return value
        elif kind is float:
            if _is_number(value):
                return float(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} takes {_describe(hint)}, got {value!r}.")


def _describe(hint: Any) -> str:
    if type(None) in get_args(hint):
        return " or ".join(_describe(kind) for kind in get_args(hint) if kind is not type(None)) + " or none"
    if hint == Mapping[str, float]:
        return "ratios by label such as stem=0.1,middle=0.6"
    if choices := get_args(hint):
        return "one of " + ", ".join(map(str, choices))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _one_of(name: str, value: str, known: Mapping[str, Any]) -> None:
    _require(name, value in known, f"one of {', '.join(known)}", value)


def _require(name: str, holds: bool, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {what}, got {value!r}.")
