"""The stages of QP-SNN: train quantized, score, prune, fine-tune. Each is done once, and saved on disk.

Beyond the paper, masks of weights (:mod:`qpsnn_jax.runs.masking`) and recalibration may come before fine-tuning.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.data import DataSet
from qpsnn_jax.data.feed import count, sample
from qpsnn_jax.data.settings import make_prepare
from qpsnn_jax.model.costs import activity_reducers
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.pruning import prune
from qpsnn_jax.pruning.criteria import find_criterion, find_weight_criterion, scores_by
from qpsnn_jax.pruning.rounds import pruning_rounds
from qpsnn_jax.pruning.scoring import Scores
from qpsnn_jax.pruning.settings import Pruning, parse_budget
from qpsnn_jax.runs.config import Config, build_graph
from qpsnn_jax.runs.directory import ACTIVITY, load_network, read_stage, save_network
from qpsnn_jax.runs.evaluation import Evaluation, evaluate, normalizer
from qpsnn_jax.runs.hooks import Hooks, show_progress
from qpsnn_jax.runs.loop import fit
from qpsnn_jax.runs.metrics import write_metrics
from qpsnn_jax.runs.records import Epoch, StageResult, measure, read_arrays, write_arrays, write_result
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runs.teachers import check_teachers, load_teacher
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.sharding import data_mesh
from qpsnn_jax.training.recalibration import recalibrate
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import Variables, init_variables
from qpsnn_jax.training.steps import Prepare

_HALF = 0.5
_RECALIBRATED_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Run:
    """What the stages of a run share.

    Attributes:
        directory: of the run.
        graph: the network before pruning.
        data: the data set.
        prepare: normalization and augmentation in training.
        workers: processes that read and decode files.
        settings: seed, checkpoints and sharding.
        hooks: further hooks of every training.
        prefix: of the names of its stages, where it is a part of another run.
    """

    directory: Path
    graph: Graph
    data: DataSet
    prepare: Prepare
    workers: int
    settings: RunSettings
    hooks: tuple[Hooks, ...] = ()
    prefix: str = ""


def prepare_run(config: Config, directory: Path, data: DataSet, hooks: Sequence[Hooks] = ()) -> Run:
    """The :class:`Run` of a config. Writes nothing.

    Raises:
        ValueError: the network cannot be built, or does not take the data, a teacher does not fit it, or there is no
            such criterion.
    """
    find_criterion(config.prune.criterion)
    find_weight_criterion(config.prune.weight_criterion)
    prepare, graph = make_prepare(config.data, data), build_graph(config)
    check_teachers(config, graph, data)
    return Run(directory, graph, data, prepare, config.data.workers, config.run, tuple(hooks))


def train(run: Run, training: Training) -> StageResult:
    """Stage 1: train the quantized network from scratch. Returns its result; a complete stage is only read."""
    if result := read_stage(run.directory, "quantized"):
        return result
    variables = init_variables(run.graph, jax.random.key(run.settings.seed))
    return train_stage(run, "quantized", run.graph, variables, training, run.settings)


def score_channels(run: Run, pruning: Pruning, *, source: Path | None = None, done: int = 0) -> Scores:
    """Stage 2a: score the channels of the trained network. The scores are saved in ``scores.npz``.

    Args:
        run: the run.
        pruning: the criterion and its number of images.
        source: the stage that holds the trained network, by default the run's own.
        done: how many rounds of pruning came before.
    """
    path = run.directory / "pruned" / "scores.npz"
    if path.exists():
        return {name: jnp.asarray(values) for name, values in read_arrays(path, "score again").items()}
    scores = score_network(run, pruning, *_trained_network(run, source, pruned=done > 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, scores)
    return scores


def prune_channels(run: Run, pruning: Pruning, *, source: Path | None = None, done: int = 0) -> StageResult:
    """Stage 2b: remove the channels with the lowest scores. Returns its result; a complete stage is only read.

    Of several rounds, this is one, and arrives at the goal in the last.

    Args:
        run: the run.
        pruning: the ratios, or a budget in their place.
        source: the stage that holds the trained network, by default the run's own.
        done: how many rounds came before.
    """
    if result := read_stage(run.directory, "pruned"):
        return result
    started = time.monotonic()
    graph, variables = _trained_network(run, source, pruned=done > 0)
    scores = score_channels(run, pruning, source=source, done=done)
    keep = _channels_to_keep(run, pruning, done, graph, variables, scores)
    smaller, _ = prune(graph, {}, keep)
    # In one jit: otherwise hundreds of small gathers would be compiled one by one.
    variables = fast_compile_jit(lambda tree: prune(graph, tree, keep)[1])(variables)
    notes = {"keep": {name: channels.tolist() for name, channels in keep.items()}}
    result = evaluate(smaller, variables, run.data.test, run.data, precision=run.settings.precision)
    return finish_stage(run, "pruned", smaller, variables, result, [], time.monotonic() - started, notes)


def recalibrate_pruned(run: Run, pruning: Pruning) -> StageResult | None:
    """Stage 2d: batch-norm of the pruned network recalibrated. Returns its result, or None where there is none to do.

    Args:
        run: whose network.
        pruning: whether, and on how many images, which are those that are scored.
    """
    if result := read_stage(run.directory, "recalibrated"):
        return result
    start = _last_complete(run, "masked", "pruned")
    pruned = read_stage(run.directory, start)
    wanted = {"always": True, "never": False, "auto": pruned is not None and pruned.connection_ratio < _HALF}
    if not wanted[pruning.recalibrate]:
        return None
    started = time.monotonic()
    graph, variables = load_network(run.directory / start)
    batches, shared = _scored_batches(run, pruning)
    variables = recalibrate(graph, variables, batches, mesh=shared, precision=run.settings.precision)
    result = evaluate(graph, variables, run.data.test, run.data, precision=run.settings.precision)
    return finish_stage(run, "recalibrated", graph, variables, result, [], time.monotonic() - started, {})


def finetune(run: Run, training: Training, *, source: Path | None = None) -> StageResult:
    """Stage 3: fine-tune the pruned network. Returns its result; a complete stage is only read.

    Args:
        run: the run.
        training: epochs, batch size, optimizer and loss.
        source: the stage that holds the trained network, by default the run's own; it may be the teacher.
    """
    if result := read_stage(run.directory, "finetuned"):
        return result
    graph, variables = load_network(run.directory / _last_complete(run, "recalibrated", "masked", "pruned"))
    settings = replace(run.settings, seed=run.settings.seed + 1)
    return train_stage(run, "finetuned", graph, variables, training, settings, source=source)


def train_stage(
    run: Run,
    name: str,
    graph: Graph,
    variables: Variables,
    training: Training,
    settings: RunSettings,
    *,
    source: Path | None = None,
) -> StageResult:
    """Train a network as a stage of a run, and save it; ``source`` as for :func:`finetune`."""
    directory = run.directory / name
    title = f"{run.directory.name}, {name}" if run.directory.parent.name == "controls" else run.prefix + name
    with write_metrics(directory) as metrics, show_progress(title, run.data.evaluated) as shown:
        done = fit(
            graph,
            variables,
            run.data,
            training,
            directory,
            prepare=run.prepare,
            run=settings,
            workers=run.workers,
            teacher=load_teacher(run.directory, training, source, run.data),
            hooks=(metrics, shown, *run.hooks),
        )
    variables, result, seconds = done.variables, done.result, done.seconds
    if training.recalibrate_images:
        started = time.monotonic()
        size = min(training.recalibrate_images, _RECALIBRATED_AT_ONCE)
        batches, shared = _batches(run, size, math.ceil(training.recalibrate_images / size))
        variables = recalibrate(graph, variables, batches, mesh=shared, precision=settings.precision)
        result = evaluate(graph, variables, run.data.test, run.data, precision=settings.precision)
        seconds += time.monotonic() - started
    return finish_stage(run, name, graph, variables, result, done.epochs, seconds, {})


def score_network(run: Run, pruning: Pruning, graph: Graph, variables: Variables) -> Scores:
    """Scores of the whole network's channels by a criterion, on images of the training set."""
    batches, shared = _scored_batches(run, pruning)
    key = jax.random.key(run.settings.seed)
    options = {"mesh": shared, "precision": run.settings.precision}
    return scores_by(pruning.criterion, graph, variables, batches, key, **options)


def _channels_to_keep(
    run: Run, pruning: Pruning, done: int, graph: Graph, variables: Variables, scores: Scores
) -> dict[str, np.ndarray]:
    budget = {} if pruning.budget is None else parse_budget(pruning.budget)
    goal: dict[str, Any] = dict(budget) or {"ratios": pruning.ratios}
    goal |= {"floor": pruning.floor, "comparison": pruning.comparison, "multiple_of": pruning.multiple_of}
    transform = pruning_rounds(pruning.rounds, **goal)
    activity = mean_activity(run, pruning, graph, variables) if "sops" in budget else None
    return transform.keep(transform.init(run.graph)._replace(graph=graph, done=done), scores, activity)


def mean_activity(run: Run, pruning: Pruning, graph: Graph, variables: Variables) -> dict[str, np.ndarray]:
    """The activity on the images that are scored, which are of the training set."""

    def measured(images: Array) -> dict[str, Array]:
        network = SpikingNetwork(graph, run.settings.precision)
        output: Any = network.apply(variables, images, capture=activity_reducers(graph))
        return output.captured

    step = jax.jit(measured)
    found = [jax.device_get(step(batch)) for batch in _scored_batches(run, pruning)[0]]
    return {name: np.mean([batch[name] for batch in found], axis=0) for name in found[0]}


def _scored_batches(run: Run, pruning: Pruning) -> tuple[Iterator[Array], Mesh | None]:
    """Those that pruning looks at."""
    return _batches(run, pruning.score_batch_size, pruning.score_batches)


def _batches(run: Run, size: int, number: int) -> tuple[Iterator[Array], Mesh | None]:
    """Batches of normalized images of the training set, and the devices that can share them, if any."""
    train = run.data.train
    images = sample(train, size, number, run.settings.seed, workers=run.workers)
    mesh = data_mesh()
    shared = mesh if mesh.size > 1 and min(size, count(train)) % mesh.size == 0 else None
    return map(jax.jit(normalizer(run.data)), images), shared


def _last_complete(run: Run, *names: str) -> str:
    """The first of these stages that is complete; the last one, if none is."""
    return next((name for name in names[:-1] if read_stage(run.directory, name)), names[-1])


def _trained_network(run: Run, source: Path | None, *, pruned: bool = False) -> tuple[Graph, Variables]:
    """The network to be pruned, which is the run's own unless a round has ``pruned`` it."""
    place = source or run.directory / "quantized"
    graph, variables = load_network(place)
    if graph != run.graph and not pruned:
        raise ValueError(f"{place} holds a network that differs from the run's config; start again in a new --out.")
    return graph, variables


def finish_stage(
    run: Run,
    name: str,
    graph: Graph,
    variables: Variables,
    result: Evaluation,
    epochs: list[Epoch],
    seconds: float,
    notes: dict[str, Any],
) -> StageResult:
    """Save the network and the result of a stage, which then is complete."""
    best = max([result.accuracy, *(epoch.test_accuracy for epoch in epochs)])
    stage = measure(run.prefix + name, (graph, variables), run.graph, result, best, seconds)
    directory = run.directory / name
    notes = {**notes, "class_names": run.data.class_names}
    save_network(directory / "final", graph, variables, notes)
    write_arrays(directory / ACTIVITY, result.activity)
    write_result(directory / "stage.json", stage, epochs=[epoch._asdict() for epoch in epochs], **notes)
    return stage
