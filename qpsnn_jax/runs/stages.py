"""The stages of QP-SNN: train quantized, score, prune, fine-tune; each kept in the run's directory and never redone.

A run's directory holds ``config.json`` and a folder per stage with ``stage.json`` (its record), ``final`` (its
variables) and what training leaves. A stage whose ``stage.json`` is there is complete.
"""

import dataclasses
import importlib.metadata
import io
import json
import platform
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.data import DataRequest, DataSet, describe, load
from qpsnn_jax.data.feed import count, sample
from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.pruning import (
    magnitude_group_scores,
    prune,
    random_group_scores,
    sca_criterion,
    score,
    select,
    svs_criterion,
)
from qpsnn_jax.pruning.selection import Scores
from qpsnn_jax.runs.config import Config, as_dict, build_graph, from_dict
from qpsnn_jax.runs.loop import Evaluation, Plan, evaluate, fit, normalizer, whole_batches
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.processes import fail_together, write_on_process_zero
from qpsnn_jax.runtime.sharding import data_mesh
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.steps import Variables, init_variables

STAGES = ("quantized", "pruned", "finetuned")
CONTROLS = ("baseline", "random", "scratch")
ACTIVITY = "activity.npz"
# Settings that do not change what a run computes: where its data lie, who reads them, when it is saved, what holds it.
_CIRCUMSTANCES = ("data_dir", "workers", "checkpoint_epochs", "checkpoint_steps", "fsdp")
_CRITERIA = {"svs": svs_criterion, "sca": sca_criterion}
_PACKAGES = ("qpsnn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Stage:
    """Record of a complete stage; accuracies are fractions of the test set, operations and energy are per image.

    ``accuracy_best`` is that of the best epoch, or of the only evaluation; None where a network is evaluated later on.
    """

    name: str
    accuracy_last: float
    accuracy_best: float | None
    params: int
    size_bytes: int
    connection_ratio: float
    firing_rates: dict[str, float]
    sops_per_step: float
    sops_total: float
    energy_mj: float
    seconds: float


@fail_together
def check_run(directory: Path, config: Config) -> bool:
    """Whether ``directory`` already holds this run, whatever the directory of its data; nothing is written.

    Raises:
        ValueError: the directory holds something else, or another run.
    """
    if (directory / "config.json").exists():
        other = read_config(directory)
        here = {name: getattr(config, name) for name in _CIRCUMSTANCES}
        if (other := dataclasses.replace(other, **here)) != config:
            name = next(n for n, value in as_dict(other).items() if value != as_dict(config)[n])
            raise ValueError(
                f"{directory} holds another run ({name} is {getattr(other, name)!r} there and "
                f"{getattr(config, name)!r} here); choose another --out."
            )
        return True
    # A run killed at its very start leaves a temporary config.json and nothing else.
    if directory.exists() and (not directory.is_dir() or {p.name for p in directory.iterdir()} - {"config.json.tmp"}):
        raise ValueError(f"{directory} exists and is not the directory of a run; choose another --out.")
    return False


def open_run(directory: Path, config: Config) -> None:
    """Make the directory of a run, or check that it is this run's, to go on with it.

    Raises:
        ValueError: the directory holds something else, or another run.
    """
    if not check_run(directory, config):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", {"config": as_dict(config), "versions": versions()})
        check_run(directory, config)  # again, because it is process 0's config


def read_config(directory: Path) -> Config:
    """The config of the run in ``directory``.

    Raises:
        ValueError: there is no run, or its description is damaged.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not the directory of a run: it has no config.json.")
    try:
        return from_dict(json.loads(path.read_text())["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from None


@fail_together
def load_data(config: Config) -> DataSet:
    """The data set of a config.

    Raises:
        ValueError: the data are missing, or too few for a batch.
    """
    data = load(
        config.data,
        data_dir=config.data_dir,
        seed=config.seed,
        train_examples=config.train_examples,
        test_examples=config.test_examples,
        timesteps=config.timesteps,
        size=config.size,
        frame_binning=config.frame_binning,
    )
    whole_batches(config, data)
    return data


def train(config: Config, directory: Path, data: DataSet) -> Stage:
    """Stage 1: train the quantized network from scratch. Returns its record; a complete stage is only read."""
    if stage := read_stage(directory, "quantized"):
        return stage
    graph = build_graph(config)
    variables = init_variables(graph, jax.random.key(config.seed))
    return _trained(config, directory, "quantized", data, graph, variables, _training(config, config.epochs))


def score_channels(config: Config, directory: Path, data: DataSet, *, source: Path | None = None) -> Scores:
    """Stage 2a: score the channels of the trained network by the config's criterion; kept as ``scores.npz``.

    ``source`` is the stage that holds the trained network, the run's own when left out.
    """
    path = directory / "pruned" / "scores.npz"
    if path.exists():
        return {name: jnp.asarray(values) for name, values in stored_arrays(path, "score again").items()}
    graph, variables = _trained_network(config, source or directory / "quantized")
    scores = _scores(config, graph, variables, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_arrays(path, scores)
    return scores


def prune_channels(config: Config, directory: Path, data: DataSet, *, source: Path | None = None) -> Stage:
    """Stage 2b: remove the channels with the lowest scores. Returns its record; a complete stage is only read.

    ``source`` is the stage that holds the trained network, the run's own when left out.
    """
    if stage := read_stage(directory, "pruned"):
        return stage
    started = time.monotonic()
    graph, variables = _trained_network(config, source or directory / "quantized")
    keep = select(graph, score_channels(config, directory, data, source=source), config.ratios)
    smaller, _ = prune(graph, {}, keep)
    # Under one jit, because hundreds of small gathers would each be compiled by themselves.
    variables = fast_compile_jit(lambda tree: prune(graph, tree, keep)[1])(variables)
    notes = {"keep": {name: channels.tolist() for name, channels in keep.items()}}
    result = evaluate(smaller, variables, data.test, data)
    return _finish(config, directory, "pruned", smaller, variables, result, [], time.monotonic() - started, notes)


def finetune(config: Config, directory: Path, data: DataSet) -> Stage:
    """Stage 3: train the pruned network on. Returns its record; a complete stage is only read."""
    if stage := read_stage(directory, "finetuned"):
        return stage
    graph, variables = load_network(directory / "pruned")
    plan = Plan(
        config, config.finetune_epochs, config.finetune_optimizer, config.finetune_learning_rate, config.seed + 1
    )
    return _trained(config, directory, "finetuned", data, graph, variables, plan)


def run(config: Config, directory: Path, data: DataSet) -> list[Stage]:
    """All stages in the paper's order (quantize first, then prune), going on where an earlier call was stopped."""
    return [stage(config, directory, data) for stage in (train, prune_channels, finetune)]


def run_controls(config: Config, directory: Path, data: DataSet) -> list[Stage]:
    """The controls of a finished run, each in a directory of its own below ``controls``.

    ``baseline``: the paper's, vanilla quantization and SCA, trained and fine-tuned alike. ``random``: the run's own
    quantized network with random channels removed, fine-tuned alike. ``scratch``: the pruned widths trained from fresh
    weights for as many epochs as training and fine-tuning together.

    Returns:
        One record per control, named after it.
    """
    for control in (_baseline, _random, _scratch):
        stage = control(config, directory, data)
        write_json(directory / "controls" / f"{stage.name}.json", {"stage": dataclasses.asdict(stage)})
    return read_controls(directory)


def read_controls(directory: Path) -> list[Stage]:
    """Records of the controls that were run, in the order of :func:`run_controls`; none where there are none."""
    paths = (directory / "controls" / f"{name}.json" for name in CONTROLS)
    return [_read_record(path) for path in paths if path.exists()]


def run_of(path: Path) -> Path | None:
    """The directory of the run that a path lies in, or is; None where there is none."""
    return next((place for place in (path, *path.resolve().parents) if (place / "config.json").is_file()), None)


def load_test_data(
    graph: Graph,
    config: Config | None,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    test_examples: int | None = None,
) -> DataSet:
    """A test set in the form that a network takes, with a single training example.

    Args:
        graph: the network; its steps and the size of its input are those of frames and crops.
        config: of the run that the network comes from, if any.
        data, data_dir, test_examples: the run's own when left out.

    Raises:
        ValueError: the data are missing, or neither ``data`` nor ``config`` names any that is known.
    """
    name, folder = data or (config and config.data) or "", data_dir or (config and config.data_dir)
    resizable = describe(name, DataRequest(data_dir=folder)).resizable
    return load(
        name,
        data_dir=folder,
        seed=config.seed if config else 0,
        train_examples=1,
        test_examples=test_examples if test_examples is not None else config and config.test_examples,
        timesteps=graph.timesteps,
        size=graph.input.shape[0] if resizable else None,
        frame_binning=config.frame_binning if config else "count",
    )


def load_network(path: Path) -> tuple[Graph, Variables]:
    """The network in a run's directory (its last complete stage), a complete stage's, or an imported one's.

    Args:
        path: such a directory.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    for place in (path, path / "final", *(stage / "final" for stage in _last_stage(path))):
        found = checkpoint.read(place) if (place / "meta.json").exists() else checkpoint.latest(place)
        if found is not None and found.notes.get("variables"):
            shapes = checkpoint.with_saved_dtypes(found, _shapes(found.graph))
            return found.graph, checkpoint.restore(found, shapes)
    raise ValueError(
        f"{path} holds no finished network; give a run or a stage that is complete, or an imported network."
    )


@lru_cache(maxsize=4)
def _shapes(graph: Graph) -> Variables:
    return jax.eval_shape(partial(init_variables, graph), jax.random.key(0))


def save_network(path: Path, graph: Graph, variables: Variables, notes: dict[str, Any]) -> None:
    """Write a network so that :func:`load_network` finds it in ``path``."""
    checkpoint.save(path, 0, graph, variables, notes | {"variables": True})


def read_stage(directory: Path, name: str) -> Stage | None:
    """The record of a stage, or None where it is not complete.

    Raises:
        ValueError: the record is damaged.
    """
    path = directory / name / "stage.json"
    return _read_record(path) if path.exists() else None


def read_notes(directory: Path, name: str, key: str) -> Any:
    """What a complete stage noted beside its record: ``epochs``, or for the stage ``pruned`` the channels to ``keep``.

    Raises:
        ValueError: the notes are damaged.
    """
    path = directory / name / "stage.json"
    try:
        return json.loads(path.read_text())[key]
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None


def _read_record(path: Path) -> Stage:
    try:
        return Stage(**json.loads(path.read_text())["stage"])
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None


def _damaged(path: Path) -> ValueError:
    place = f"the folder {path.parent}" if path.name == "stage.json" else "it"
    return ValueError(f"{path} is damaged; delete {place} to redo the stage.")


def measured(name: str, graph: Graph, whole: Graph, result: Evaluation, best: float | None, seconds: float) -> Stage:
    """The record of a network: ``result`` on the test set, costs of ``graph`` beside the ``whole`` network's."""
    costs = cost(graph, result.activity)
    assert costs.sops_total is not None
    assert costs.sops_per_step is not None
    assert costs.energy_mj is not None
    return Stage(
        name,
        result.accuracy,
        best,
        costs.params,
        costs.size_bytes,
        costs.connections / max(1, cost(whole).connections),
        costs.firing_rates,
        costs.sops_per_step,
        costs.sops_total,
        costs.energy_mj,
        seconds,
    )


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON under a temporary name, then rename; of several processes, the first does."""
    write_on_process_zero(path, (json.dumps(document, indent=2) + "\n").encode())


def _training(config: Config, epochs: int) -> Plan:
    return Plan(config, epochs, config.optimizer, config.learning_rate, config.seed)


def _trained(
    config: Config, directory: Path, name: str, data: DataSet, graph: Graph, variables: Variables, plan: Plan
) -> Stage:
    title = f"{directory.name}, {name}" if directory.parent.name == "controls" else name
    done = fit(graph, variables, data, plan, directory / name, title)
    return _finish(config, directory, name, graph, done.variables, done.result, done.epochs, done.seconds, {})


def _finish(
    config: Config,
    directory: Path,
    name: str,
    graph: Graph,
    variables: Variables,
    result: Evaluation,
    epochs: list[dict[str, float]],
    seconds: float,
    notes: dict[str, Any],
) -> Stage:
    best = max([result.accuracy, *(epoch["test_accuracy"] for epoch in epochs)])
    stage = measured(name, graph, build_graph(config), result, best, seconds)
    save_network(directory / name / "final", graph, variables, notes)
    _write_arrays(directory / name / ACTIVITY, result.activity)
    write_json(directory / name / "stage.json", {"stage": dataclasses.asdict(stage), "epochs": epochs, **notes})
    return stage


def _trained_network(config: Config, place: Path) -> tuple[Graph, Variables]:
    graph, variables = load_network(place)
    if graph != build_graph(config):
        raise ValueError(f"{place} holds another network than the run's config describes.")
    return graph, variables


def stored_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Arrays by name that a run stored: the scores of its channels, or the activity of a stage.

    Raises:
        ValueError: the file is damaged; deleting it lets one do what ``remedy`` says.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            return dict(stored.items())
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is damaged; delete it to {remedy}.") from None


def read_activity(path: Path) -> dict[str, np.ndarray] | None:
    """The activity measured at the end of a stage, for :func:`qpsnn_jax.cost`; None for an imported network.

    Args:
        path: as in :func:`load_network`.

    Raises:
        ValueError: the file is damaged.
    """
    found = next((place / ACTIVITY for place in (path, *_last_stage(path)) if (place / ACTIVITY).exists()), None)
    return found and stored_arrays(found, "see the cost without operations")


def _last_stage(run: Path) -> list[Path]:
    """The folder of a run's last complete stage; none where there is none."""
    return [run / name for name in reversed(STAGES) if (run / name / "stage.json").exists()][:1]


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{name: np.asarray(values) for name, values in arrays.items()})
    write_on_process_zero(path, stream.getvalue())


def _scores(config: Config, graph: Graph, variables: Variables, data: DataSet) -> Scores:
    if config.criterion == "magnitude":
        return magnitude_group_scores(graph, variables)
    if config.criterion == "random":
        return random_group_scores(graph, jax.random.key(config.seed))
    normalized = jax.jit(normalizer(data))
    images = sample(data.train, config.score_batch_size, config.score_batches, config.seed, workers=config.workers)
    mesh = data_mesh()
    shared = mesh if mesh.size > 1 and min(config.score_batch_size, count(data.train)) % mesh.size == 0 else None
    return score(graph, variables, map(normalized, images), _CRITERIA[config.criterion], mesh=shared)


def _baseline(config: Config, directory: Path, data: DataSet) -> Stage:
    changed = dataclasses.replace(config, gamma="none", criterion="sca")
    place = directory / "controls" / "baseline"
    open_run(place, changed)
    return _control("baseline", run(changed, place, data))


def _random(config: Config, directory: Path, data: DataSet) -> Stage:
    changed = dataclasses.replace(config, criterion="random")
    place = directory / "controls" / "random"
    open_run(place, changed)
    trained = train(config, directory, data)
    pruned = prune_channels(changed, place, data, source=directory / "quantized")
    return _control("random", [trained, pruned, finetune(changed, place, data)])


def _scratch(config: Config, directory: Path, data: DataSet) -> Stage:
    place = directory / "controls" / "scratch"
    if (stage := read_stage(place, "quantized")) is None:
        graph = build_graph(config, ratios=config.ratios)
        variables = init_variables(graph, jax.random.key(config.seed + 2))
        plan = _training(config, config.epochs + config.finetune_epochs)
        stage = _trained(config, place, "quantized", data, graph, variables, plan)
    return _control("scratch", [stage])


def _control(name: str, stages: list[Stage]) -> Stage:
    return dataclasses.replace(stages[-1], name=name, seconds=sum(stage.seconds for stage in stages))
