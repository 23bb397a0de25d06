"""The controls that a run is compared with, each in a subdirectory of ``controls``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.channels import channel_groups
from qpsnn_jax.pruning.ratios import pruned_graph
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.config import Config, build_graph, finetuning_parts
from qpsnn_jax.runs.data_record import record_data
from qpsnn_jax.runs.directory import load_network, make_run, read_stage
from qpsnn_jax.runs.programs import distillation_by
from qpsnn_jax.runs.records import StageResult, read_result, write_result
from qpsnn_jax.runs.rounds import prune_in_rounds, run_stages
from qpsnn_jax.runs.stages import Run, finetune, prepare_run, train, train_stage
from qpsnn_jax.runs.teachers import read_teacher
from qpsnn_jax.training.state import Variables, init_variables


def run_controls(config: Config, run: Run) -> list[StageResult]:
    """Run the controls of a finished run; those that are complete are only read.

    ``baseline``: the paper's baseline, vanilla quantization and SCA, with the same training and fine-tuning.
    ``random``: the run's own quantized network with random channels (and masked weights) removed, with the same
    fine-tuning. ``random_recalibrated``: the same with batch-norm recalibrated, without training, which any criterion
    must exceed. ``scratch``: a network of the pruned widths and masks trained from scratch, for as many epochs as
    training and fine-tuning together.

    Returns:
        One result per control, with its name.
    """
    for name, control in CONTROLS.items():
        stages = control(config, run)
        result = replace(stages[-1], name=name, seconds=sum(stage.seconds for stage in stages))
        write_result(_path(run.directory, name), result)
    return read_controls(run.directory)


def check_controls(config: Config, run: Run) -> None:
    """Check before any training what the controls need beyond the run: a teacher for the pruned widths of ``scratch``.

    Raises:
        ValueError: membranes of the teacher do not fit them, or they are not known.
    """
    training = config.train
    if training.distill is None or not training.distill_membranes:
        return
    if config.prune.budget is not None:
        raise ValueError(
            "--compare trains a network of the pruned widths, which are not known under a prune.budget; leave out "
            "--compare or train.distill_membranes."
        )
    pruned = pruned_graph(run.graph, config.prune.ratios, multiple_of=config.prune.multiple_of)
    try:
        distillation_by(training, read_teacher(training.distill)[0]).check(pruned)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise ValueError(
            f"--compare trains a network of the pruned widths by train.distill_membranes, and {said}; leave out one."
        ) from None


def read_controls(directory: Path) -> list[StageResult]:
    """Results of the complete controls, in the order of :data:`CONTROLS`."""
    found = (read_result(_path(directory, name)) for name in CONTROLS)
    return [result for result in found if result]


def _path(directory: Path, name: str) -> Path:
    return directory / "controls" / f"{name}.json"


def _baseline(config: Config, run: Run) -> list[StageResult]:
    changed = replace(
        config, network=replace(config.network, gamma="none"), prune=replace(config.prune, criterion="sca")
    )
    return run_stages(changed, _below(changed, run, "baseline"))


def _random(config: Config, run: Run) -> list[StageResult]:
    changed = _at_random(config.prune)
    own, stages = _random_channels(config, changed, run, "random")
    return [*stages, finetune(own, finetuning_parts(config)[-1], source=run.directory / "quantized")]


def _random_recalibrated(config: Config, run: Run) -> list[StageResult]:
    # In one round: between rounds the network is fine-tuned, and nothing is trained here.
    changed = replace(_at_random(config.prune), recalibrate="always", rounds=1)
    return _random_channels(config, changed, run, "random_recalibrated")[1]


def _at_random(pruning: Pruning) -> Pruning:
    weights = "random" if pruning.masks else pruning.weight_criterion
    return replace(pruning, criterion="random", weight_criterion=weights)


def _random_channels(config: Config, pruning: Pruning, run: Run, name: str) -> tuple[Run, list[StageResult]]:
    """A run that prunes the quantized network of another one, and its stages up to fine-tuning."""
    changed = replace(config, prune=pruning)
    own = _below(changed, run, name)
    return own, [train(run, config.train), *prune_in_rounds(changed, own, source=run.directory / "quantized")]


def _scratch(config: Config, run: Run) -> list[StageResult]:
    own = replace(run, directory=run.directory / "controls" / "scratch")
    result = read_stage(own.directory, "quantized")
    if result is None:
        graph, masks = _pruned_widths(config, run)
        variables = init_variables(graph, jax.random.key(run.settings.seed + 2)) | masks
        training = replace(
            config.train,
            epochs=config.train.epochs + config.finetune.epochs,
            recalibrate_images=max(config.train.recalibrate_images, config.finetune.recalibrate_images),
        )
        result = train_stage(own, "quantized", graph, variables, training, run.settings)
    return [result]


def _pruned_widths(config: Config, run: Run) -> tuple[Graph, Variables]:
    """The pruned graph, and its masks if there are any."""
    if config.prune.masks:
        graph, variables = load_network(run.directory / "masked")
        return graph, {"masks": variables["masks"]}
    pruned = load_network(run.directory / "pruned")[0]
    if config.prune.budget is not None or config.prune.multiple_of > 1:
        return pruned, {}
    made = build_graph(config, ratios=config.prune.ratios)
    # A network of your own need not look at the ratios.
    return made if _sizes(made) == _sizes(pruned) else pruned, {}


def _sizes(graph: Graph) -> dict[str, int]:
    return {name: group.size for name, group in channel_groups(graph).items()}


CONTROLS: dict[str, Callable[[Config, Run], list[StageResult]]] = {
    "baseline": _baseline,
    "random": _random,
    "random_recalibrated": _random_recalibrated,
    "scratch": _scratch,
}


def _below(config: Config, run: Run, name: str) -> Run:
    """The run of a changed config in its own directory, on the data of the run that it is compared with."""
    place = run.directory / "controls" / name
    make_run(place, config)
    record_data(place, run.data)
    return prepare_run(config, place, run.data, run.hooks)
