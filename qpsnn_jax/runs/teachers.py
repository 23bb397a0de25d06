"""Teachers of a run's trainings: a stage of the run itself, or any other network."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qpsnn_jax.data.dataset import DataSet
from qpsnn_jax.export.packed.file import Packed, load_packed
from qpsnn_jax.export.pretrained import names, packed_path, pretrained
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.config import Config, describe_data, narrowed_graph
from qpsnn_jax.runs.directory import STAGES, load_network, parse_config, read_class_names, run_of
from qpsnn_jax.runs.loading import differing_classes
from qpsnn_jax.runs.programs import Teacher, distillation_by
from qpsnn_jax.runs.statistics import Statistics, packed_statistics, rescaling, trained_statistics
from qpsnn_jax.runtime.settings import from_dict
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import Variables


def load_teacher(directory: Path, training: Training, source: Path | None, data: DataSet) -> Teacher | None:
    """The network that ``training.distill`` names, with the normalization of its own images; None if it names none.

    Args:
        directory: of the run.
        training: whose teacher.
        source: the stage that holds the trained network where it is not in ``directory``.
        data: of the run.

    Raises:
        ValueError: it is not complete, or damaged.
    """
    if training.distill is None:
        return None
    if source is not None and training.distill == source.name:
        return Teacher(*load_network(source))
    if training.distill in STAGES:
        return Teacher(*load_network(directory / training.distill))
    network, place = read_teacher(training.distill), training.distill
    known = packed_statistics(_packed(place)) if _is_pretrained(place) else trained_statistics(Path(place))
    return Teacher(*network, rescaling(Statistics(data.mean, data.std), known))


def read_teacher(place: str) -> tuple[Graph, Variables]:
    """The network in a directory or, if nothing is there, the pretrained one of this name.

    Several processes may call this together: nothing is written, unlike by :func:`qpsnn_jax.runs.pretrained.find`.

    Raises:
        ValueError: there is none, or it is not complete, or damaged.
    """
    return pretrained(place) if _is_pretrained(place) else load_network(Path(place))


def _is_pretrained(place: str) -> bool:
    return place in names() and not Path(place).exists()


def _packed(name: str) -> Packed:
    return load_packed(packed_path(name))


def check_teachers(config: Config, graph: Graph, data: DataSet) -> None:
    """Check what can be checked before any training: all but the widths that pruning under a budget leaves.

    Raises:
        ValueError: a teacher does not fit the network, never exists, or was trained on other data.
    """
    for name, before in (("train", ()), ("finetune", STAGES[:-1])):
        training = getattr(config, name)
        if training.distill is None:
            continue
        try:
            if training.distill in STAGES:
                _check_stage(training.distill, before, config.prune)
                teacher = graph
            else:
                _check_data(training.distill, config, data)
                teacher = read_teacher(training.distill)[0]
            student = narrowed_graph(graph, config.prune) if before and training.distill_membranes else graph
            distillation_by(training, teacher).check(student, widths=not before or config.prune.budget is None)
        except ValueError as error:
            raise ValueError(f"{name}.distill: {error}") from None


def _check_stage(stage: str, before: Sequence[str], pruning: Pruning) -> None:
    """Check that every fine-tuning will find the stage, which not every run, and not every round of it, has."""
    if stage not in before:
        raise ValueError(f"the stage {stage} comes only after this training; choose an earlier one or another network.")
    if stage == "masked" and not (pruning.masks and (pruning.sparsity is not None or pruning.rounds == 1)):
        raise ValueError("there is no stage masked without masks in every round of pruning; set prune.sparsity.")
    if stage == "recalibrated" and pruning.recalibrate != "always":
        raise ValueError(
            f"the stage recalibrated needs prune.recalibrate always, got {pruning.recalibrate}: it may not exist."
        )


class _Origin(NamedTuple):
    """Where a teacher comes from: the run or the name, its config, and the classes that it was trained on."""

    name: str
    config: Config
    class_names: tuple[str, ...]


def _origin(teacher: str) -> _Origin | None:
    """None for a network that belongs to no run."""
    if _is_pretrained(teacher):
        packed = _packed(teacher)
        return _Origin(teacher, from_dict(Config, packed.notes["config"]), packed.class_names)
    run = run_of(Path(teacher))
    return None if run is None else _Origin(str(run), parse_config(run), read_class_names(Path(teacher)))


def _check_data(teacher: str, config: Config, data: DataSet) -> None:
    """Check that the teacher was trained on the classes of this run, and on none of its test images."""
    origin = _origin(teacher)
    if origin is None:
        return
    run, theirs, class_names = origin
    if theirs.data.name != config.data.name:
        raise ValueError(
            f"{run} was trained on {theirs.data.name}, and this run has {config.data.name}; choose a teacher of that."
        )
    if differing := differing_classes(class_names, data):
        trained, own = differing
        raise ValueError(f"{run} was trained on the classes {trained}, and this run has {own}; choose another teacher.")
    folders = [Path(each.data.data_dir or ".").resolve() for each in (theirs, config)]
    known = config.data.name == "folder" and theirs.data.data_dir is not None and folders[0].exists()
    if known and folders[0] != folders[1]:
        raise ValueError(
            f"{run} was trained on the pictures in {folders[0]}, some of which may be test images of this run, which "
            f"has those in {folders[1]}; choose a teacher of these."
        )
    if describe_data(config).split_by_seed and theirs.run.seed != config.run.seed:
        raise ValueError(
            f"{run} has run.seed {theirs.run.seed} and so was trained on test images of this run, because the seed "
            f"splits {config.data.name}; choose a teacher of run.seed {config.run.seed}."
        )
