"""A run's directory: the run that it belongs to, and the networks in it.

It holds ``config.json`` and one folder for each stage, with ``stage.json`` (the result), ``final`` (the network),
checkpoints and metrics. A stage is complete if its ``stage.json`` exists. Not every run has ``masked`` and
``recalibrated``.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.variables import check_variables
from qpsnn_jax.runs.config import Config, check_config
from qpsnn_jax.runs.records import (
    StageResult,
    read_arrays,
    read_checked,
    read_notes,
    read_result,
    versions,
    write_checked,
)
from qpsnn_jax.runtime.lock import LOCK_FILE, directory_lock
from qpsnn_jax.runtime.naming import NotImportedError
from qpsnn_jax.runtime.processes import fail_together
from qpsnn_jax.runtime.settings import as_dict, from_dict, settings
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.state import Variables, init_variables

STAGES = ("quantized", "pruned", "masked", "recalibrated", "finetuned")
ACTIVITY = "activity.npz"
# Settings that do not change what a run computes: where its data are, how they are read, when it is saved, how it is
# sharded.
_CIRCUMSTANCES = {
    "data": ("data_dir", "workers"),
    "run": ("checkpoint_epochs", "checkpoint_steps", "fsdp"),
}


@fail_together
def check_run(directory: Path, config: Config) -> bool:
    """Whether ``directory`` already holds this run, wherever its data are. Writes nothing.

    Raises:
        ValueError: the directory holds something else, or another run.
    """
    if (directory / "config.json").exists():
        there = {field.name: field.value for field in settings(with_circumstances(parse_config(directory), config))}
        for field in settings(config):
            if field.value != there[field.name]:
                raise ValueError(
                    f"{directory} holds another run ({field.name} is {there[field.name]!r} there and {field.value!r} "
                    "here); choose another --out."
                )
        return True
    # A run that is killed before it has written its config leaves these.
    leftovers = {"config.json.tmp", LOCK_FILE}
    if directory.exists() and (not directory.is_dir() or {p.name for p in directory.iterdir()} - leftovers):
        raise ValueError(f"{directory} exists and is not the directory of a run; choose another --out.")
    return False


@contextmanager
def open_run(directory: Path, config: Config) -> Iterator[None]:
    """Lock the directory of a run, so that no other program writes there meanwhile. A new directory is created.

    Raises:
        ValueError: the directory holds something else or another run, or is in use.
    """
    check_run(directory, config)
    with directory_lock(directory):
        make_run(directory, config)
        yield


def make_run(directory: Path, config: Config) -> None:
    """Create the directory of a run, or check that it holds this run. The caller holds the lock.

    Raises:
        ValueError: the directory holds something else, or another run.
    """
    if not check_run(directory, config):
        directory.mkdir(parents=True, exist_ok=True)
        write_checked(directory / "config.json", {"config": as_dict(config), "versions": versions()})
        check_run(directory, config)  # again, because it is process 0's config


def read_config(directory: Path, data_dir: str | None = None) -> Config:
    """The config of the run in ``directory``.

    Args:
        directory: of the run.
        data_dir: where its data lie now; as the config says when left out.

    Raises:
        ValueError: there is no run, its config is damaged, or its data cannot be described.
    """
    config = parse_config(directory)
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"the config in {directory / 'config.json'} cannot be used: {error}") from None
    return config


def parse_config(directory: Path) -> Config:
    """The config of the run in ``directory``, not checked against its data, which may lie elsewhere now.

    Raises:
        ValueError: there is no run, or its config is damaged.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not the directory of a run: it has no config.json.")
    try:
        return from_dict(Config, read_checked(path).get("config"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({str(error).rstrip('.')}).") from None


def run_of(path: Path) -> Path | None:
    """The directory of the run that contains ``path``, or is ``path``; None if there is none."""
    return next((place for place in (path, *path.resolve().parents) if _is_run(place)), None)


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: by its config or, where that is damaged, by its stages.

    Other programs have files of this name too.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    if any((folder / name).is_dir() for name in STAGES):
        return True
    try:
        read_checked(path)["config"]
    except (ValueError, KeyError, OSError):
        return False
    return True


def read_stage(directory: Path, name: str) -> StageResult | None:
    """The result of a stage; None if it is not complete.

    Raises:
        ValueError: ``stage.json`` is damaged.
    """
    return read_result(directory / name / "stage.json")


def stage_of(path: Path) -> Path | None:
    """The folder of the complete stage whose network :func:`load_network` loads from ``path``; None for any other."""
    place = path.resolve()
    places = [place, *_last_stage(place)]
    if place.name == "final":
        places.append(place.parent)
    elif place.parent.name == "final":
        places.append(place.parent.parent)
    return next((stage for stage in places if (stage / "stage.json").exists()), None)


def load_network(path: str | PathLike[str]) -> tuple[Graph, Variables]:
    """Load the network of a run (of its last complete stage), of a complete stage, or of :func:`save_network`.

    Args:
        path: the directory of the run, of the stage, or of the network.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`.

    Raises:
        ValueError: there is no complete network, it is damaged, or it has a node whose class is not imported.
    """
    path, unusable = Path(path), None
    if run := run_of(path):
        try:
            read_config(run)  # imports the functions that the config names, and so the nodes of the graph
        except ValueError as error:
            unusable = error
    try:
        return _saved_network(path)
    except NotImportedError as error:
        raise unusable or error from None
    except checkpoint.DamagedError as error:
        if (stage := stage_of(path)) is None:
            raise
        raise ValueError(
            f"{str(error).rstrip('.')}; delete the folder {stage} to redo the stage, or the whole run if it began "
            "with a pretrained network."
        ) from None


def _saved_network(path: Path) -> tuple[Graph, Variables]:
    found = _saved(path)
    return found.graph, checkpoint.restore(found, checkpoint.with_saved_dtypes(found, _shapes(found.graph)))


def _saved(path: Path) -> checkpoint.Checkpoint:
    for place in (path, path / "final", *(stage / "final" for stage in _last_stage(path))):
        found = checkpoint.read(place) if (place / "meta.json").exists() else checkpoint.latest(place)
        if found is not None and found.notes.get("variables"):
            return found
    raise ValueError(
        f"{path} does not hold a complete network; give a run or a stage that is complete, or an imported network."
    )


def save_network(
    path: str | PathLike[str], graph: Graph, variables: Variables, notes: Mapping[str, Any] | None = None
) -> None:
    """Save a network in the directory ``path``, from which :func:`load_network` loads it.

    Args:
        path: the directory; it is created if missing.
        graph, variables: the network.
        notes: plain values for JSON, kept beside the network.

    Raises:
        ValueError: a node holds a function that cannot be imported by name, such as a lambda, or the variables are not
            the graph's, naming the first that is not, or ``path`` is a file.
        OSError: the directory cannot be written.
    """
    check_variables(graph, variables)
    if Path(path).is_file():
        raise ValueError(f"save_network writes a directory, and {path} is a file; give another path.")
    checkpoint.save(Path(path), 0, graph, variables, {**(notes or {}), "variables": True})


def read_saved_notes(path: Path) -> dict[str, Any]:
    """The notes beside the network of :func:`load_network`, which has been loaded."""
    return _saved(path).notes


def read_activity(path: Path) -> dict[str, np.ndarray] | None:
    """The activity measured at the end of a stage, for :func:`qpsnn_jax.cost`; None for an imported network.

    Args:
        path: as for :func:`load_network`.

    Raises:
        ValueError: the file is damaged.
    """
    stage = stage_of(path)
    if stage is None or not (stage / ACTIVITY).exists():
        return None
    return read_arrays(stage / ACTIVITY, "see the cost without operations")


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes that a stage was trained on; none where they have no names.

    Args:
        path: as in :func:`load_network`.

    Raises:
        ValueError: the stage's result is damaged.
    """
    stage = stage_of(path)
    names = read_notes(stage / "stage.json", "class_names", []) if stage else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{stage}/stage.json is damaged: class_names must be a list of names.")
    return tuple(names)


def with_circumstances(config: Config, circumstances: Config) -> Config:
    """``config`` with the settings of ``circumstances`` that do not change what a run computes."""
    parts = {
        part: dataclasses.replace(
            getattr(config, part), **{name: getattr(getattr(circumstances, part), name) for name in names}
        )
        for part, names in _CIRCUMSTANCES.items()
    }
    return dataclasses.replace(config, **parts)


def _last_stage(run: Path) -> list[Path]:
    """The folder of a run's last complete stage, as a list of one; empty if there is none."""
    return [run / name for name in reversed(STAGES) if (run / name / "stage.json").exists()][:1]


@lru_cache(maxsize=4)
def _shapes(graph: Graph) -> Variables:
    return jax.eval_shape(partial(init_variables, graph), jax.random.key(0))
