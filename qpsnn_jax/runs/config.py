"""All settings of a run as one record, and the files that hold it."""

import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from qpsnn_jax.data.catalogue import DataInfo, describe
from qpsnn_jax.data.settings import DataSettings, augmentation, request
from qpsnn_jax.model.settings import NetworkSettings, build
from qpsnn_jax.pruning.settings import Pruning, parse_budget, parse_n_of_m
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.naming import search_path
from qpsnn_jax.training.settings import Training

if TYPE_CHECKING:
    from qpsnn_jax.model.graph import Graph


@dataclass(frozen=True)
class Config:
    """All settings of a run: one record for each part of it.

    The command line (``--train.epochs 45``), ``config.json`` and a Python file that defines ``config`` name the same
    fields. Equal configs hash alike.

    Attributes:
        network: the network.
        data: the data set and its augmentation.
        train: training of the quantized network.
        prune: scoring and pruning.
        finetune: training after pruning.
        run: seed, checkpoints, devices.

    Raises:
        ValueError: a part is not a record of its class.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: Training = field(default_factory=Training)
    prune: Pruning = field(default_factory=Pruning)
    finetune: Training = field(default_factory=partial(Training, epochs=150, optimizer="adam", learning_rate=0.001))
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        for name, record in get_type_hints(Config).items():
            if not isinstance(getattr(self, name), record):
                raise ValueError(f"{name} must be {record.__name__}(…), got {getattr(self, name)!r}.")


def describe_data(config: Config) -> DataInfo:
    """Shape and classes of the data of a config.

    Raises:
        ValueError: as :func:`qpsnn_jax.data.describe`.
    """
    asked = request(config.data, seed=config.run.seed, timesteps=config.network.timesteps)
    return describe(config.data.name, asked)


def build_graph(config: Config, *, ratios: Mapping[str, float] | None = None) -> "Graph":
    """The network of a config; with the widths after pruning if ``ratios`` are given.

    Raises:
        ValueError: the network cannot be built; the message names the setting or the node at fault.
    """
    info = describe_data(config)
    return build(config.network, input_shape=info.shape, classes=info.classes, frames=info.frames, ratios=ratios)


def unpruned_graph(config: Config, pruned: "Graph") -> "Graph":
    """The network of a config, for the images and classes of a network of its run; the data are not looked for.

    Raises:
        ValueError: as :func:`build_graph`.
    """
    image = pruned.input
    return build(config.network, input_shape=image.shape, classes=pruned.classes, frames=image.frames)


def check_config(config: Config) -> None:
    """Check that network, data, augmentation, schedules and budget fit each other, which no part can check alone.

    Raises:
        ValueError: they do not; the message names the setting or the node at fault.
    """
    graph = build_graph(config)
    augmentation(config.data, frames=graph.input.frames, channels=graph.input.shape[-1])
    finetuning_parts(config)
    for name in ("train", "finetune"):
        _check_schedule(name, getattr(config, name), graph)
    if config.prune.budget is None:
        build_graph(config, ratios=config.prune.ratios)
    else:
        _check_budget(config.prune, graph)
    if config.prune.masks:
        _check_masks(config.prune, graph)


def finetuning_parts(config: Config) -> list[Training]:
    """Fine-tuning after each round of pruning: equal numbers of epochs, and in the last what is left over.

    Raises:
        ValueError: there are fewer epochs than rounds, or those of a round are too few for its other settings.
    """
    rounds, epochs = config.prune.rounds, config.finetune.epochs
    if 0 < epochs < rounds:
        raise ValueError(f"finetune.epochs must be at least the {rounds} of prune.rounds, or 0, got {epochs}.")
    own = [epochs // rounds] * (rounds - 1)
    try:
        return [replace(config.finetune, epochs=number) for number in (*own, epochs - sum(own))]
    except ValueError as error:
        raise ValueError(f"finetune, in {rounds} rounds: {error}") from None


def _check_schedule(name: str, training: Training, graph: "Graph") -> None:
    if training.timesteps_schedule is not None:
        from qpsnn_jax.training.timesteps import check_timesteps

        try:
            check_timesteps(training, graph)
        except ValueError as error:
            setting = "" if str(error).startswith("timesteps_schedule") else "timesteps_schedule: "
            raise ValueError(f"{name}.{setting}{error}") from None


def _check_budget(pruning: Pruning, graph: "Graph") -> None:
    """Check that a budget can be met, except one of operations, which are known once the network fires."""
    from qpsnn_jax.pruning.budget import check_budget
    from qpsnn_jax.pruning.criteria import scored_groups

    budget = parse_budget(str(pruning.budget))
    if "sops" not in budget:
        options: Any = {"floor": pruning.floor, "multiple_of": pruning.multiple_of, **budget}
        check_budget(graph, scored_groups(pruning.criterion, graph), **options)


def narrowed_graph(graph: "Graph", pruning: Pruning) -> "Graph":
    """A network with the widths that the ratios leave; as it is under a budget, which may leave any layer whole."""
    from qpsnn_jax.pruning.ratios import pruned_graph

    if pruning.budget is not None:
        return graph
    return pruned_graph(graph, pruning.ratios, multiple_of=pruning.multiple_of)


def check_ratios(config: Config) -> None:
    """Check the names of ratios before a run that prunes, for a network of your own, which need not look at them.

    Raises:
        ValueError: a name is no label of the network.
    """
    from qpsnn_jax.pruning.ratios import checked_ratios

    try:
        if config.prune.budget is None:
            checked_ratios(build_graph(config), config.prune.ratios)
    except ValueError as error:
        raise ValueError(f"prune.{error}") from None


def _check_masks(pruning: Pruning, graph: "Graph") -> None:
    """Check that there are layers to mask, and that the n:m of a config divides their inputs once they are pruned."""
    from qpsnn_jax.model.masks import masked_layer
    from qpsnn_jax.pruning.masks import maskable_layers

    pruned = narrowed_graph(graph, pruning)
    name = "sparsity" if pruning.n_of_m is None else "n_of_m"
    if not (layers := maskable_layers(pruned)):
        raise ValueError(f"prune.{name} finds no layer to mask: all read the image or are the last.")
    if pruning.n_of_m is None:
        return
    _, m = parse_n_of_m(pruning.n_of_m)
    if pruning.budget is not None and pruning.multiple_of % m:
        raise ValueError(
            f"prune.n_of_m {pruning.n_of_m} and a budget, which leaves any width, need a prune.multiple_of {m}."
        )
    for layer in layers:
        node = masked_layer(pruned, layer)
        inputs = node.leaves(pruned.inputs_of(node))["kernel"].shape[-2]
        if inputs % m:
            raise ValueError(
                f"prune.n_of_m {pruning.n_of_m} does not divide the {inputs} input channels of node {layer!r} after "
                "pruning; change prune.ratios, prune.multiple_of or network.width."
            )


def load_config(path: Path) -> Config:
    """The ``config`` that a Python file defines.

    The file runs as a program: it may import modules beside it and do whatever a script may. Use only files you trust.

    Raises:
        ValueError: the file is missing, fails to run, or defines no ``config`` of type :class:`Config`.
    """
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist.")
    try:
        with search_path(path.resolve().parent):
            config: Any = runpy.run_path(str(path)).get("config")
    except SyntaxError as error:
        place = f" in line {error.lineno}" if error.lineno else ""
        raise ValueError(f"config file {path} has a syntax error{place}: {error.msg}.") from None
    except ValueError as error:
        raise ValueError(f"config file {path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"config file {path} fails with {type(error).__name__}: {error}.") from None
    if not isinstance(config, Config):
        raise ValueError(f"config file {path} must define `config = qpsnn_jax.Config(…)`.")
    return config
