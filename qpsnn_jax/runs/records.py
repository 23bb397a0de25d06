"""Files of a run beside its networks: results of stages, with their notes, and arrays by name."""

import importlib.metadata
import io
import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs.evaluation import Evaluation
from qpsnn_jax.runtime.arrays import read_npz
from qpsnn_jax.runtime.checks import finite
from qpsnn_jax.runtime.processes import write_on_process_zero
from qpsnn_jax.training.state import Variables

_PACKAGES = ("qpsnn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_CHECKSUM = "crc32"
_LARGEST = 1e30  # beyond it no result of a stage can be


Network = tuple[Graph, Variables]
"""A graph and its variables."""


class Epoch(NamedTuple):
    """An epoch of training: its number (from 1), the mean training loss (nats), the test accuracy (a fraction).

    ``timesteps`` is its T if there is a schedule of them; the accuracy is at the network's own.
    """

    epoch: int
    train_loss: float
    test_accuracy: float
    timesteps: int | None = None


@dataclass(frozen=True)
class StageResult:
    """Result of a complete stage. Accuracies are fractions of the test set; operations and energy are per image.

    ``accuracy_best`` is that of the best epoch, or of the only evaluation; None for a network evaluated later.
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


def measure(
    name: str, network: Network, whole: Graph, result: Evaluation, best: float | None, seconds: float
) -> StageResult:
    """The record of a network: its ``result`` on the test set and its costs, relative to the ``whole`` network's."""
    graph, variables = network
    costs = cost(graph, result.activity, masks=variables.get("masks"))
    assert costs.sops_total is not None
    assert costs.sops_per_step is not None
    assert costs.energy_mj is not None
    return StageResult(
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
    """Versions of Python and of the packages that the results of a run depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON atomically, on process 0."""
    write_on_process_zero(path, (json.dumps(document, indent=2) + "\n").encode())


def write_checked(path: Path, document: Mapping[str, Any]) -> None:
    """:func:`write_json` with a checksum, which :func:`read_checked` verifies."""
    write_json(path, {**document, _CHECKSUM: _checksum(document)})


def read_checked(path: Path) -> dict[str, Any]:
    """The document that :func:`write_checked` wrote.

    Raises:
        ValueError: it is not JSON, or its checksum is wrong. The message does not name the path.
    """
    try:
        document = json.loads(path.read_bytes())
        found = document.pop(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is not a JSON document of a run") from None
    if found != _checksum(document):
        raise ValueError("it does not match its checksum")
    return document


def write_result(path: Path, result: StageResult, **notes: Any) -> None:
    """Write the result of a stage and its notes."""
    write_checked(path, {"stage": asdict(result), **notes})


def read_result(path: Path) -> StageResult | None:
    """The result of a stage; None if it is not complete.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    values = read_notes(path, "stage")
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(StageResult)}:
        raise _damaged(path, "it does not hold the result of a stage")
    try:
        _check_result(**values)
    except ValueError as error:
        raise _damaged(path, str(error).rstrip(".")) from None
    return StageResult(**values)


def _check_result(name: Any, accuracy_best: Any, firing_rates: Any, **numbers: Any) -> None:
    if not isinstance(name, str) or not isinstance(firing_rates, dict):
        raise ValueError("it does not hold the result of a stage")
    best = {} if accuracy_best is None else {"accuracy_best": accuracy_best}
    for key, value in {**best, **firing_rates, **numbers}.items():
        finite(key, value, 0, _LARGEST)


def read_notes(path: Path, key: str, default: Any = None) -> Any:
    """A note of a complete stage: ``epochs``, ``class_names``, or of the stage ``pruned`` the channels to ``keep``.

    Args:
        path: of ``stage.json``.
        key: the note.
        default: what a stage without the note has; None if it must have it.

    Raises:
        ValueError: the notes are damaged, or lack one that must be there.
    """
    try:
        notes = read_checked(path)
    except ValueError as error:
        raise _damaged(path, error) from None
    if key not in notes and default is None:
        raise _damaged(path, f"it has no {key}")
    return notes.get(key, default)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as ``.npz``, atomically, on process 0."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{name: np.asarray(values) for name, values in arrays.items()})
    write_on_process_zero(path, stream.getvalue())


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays by name that :func:`write_arrays` wrote.

    Raises:
        ValueError: the file is damaged. The message says to delete it in order to do what ``remedy`` names.
    """
    try:
        arrays = read_npz(path)
    except (ValueError, OSError):
        arrays = {}
    if not arrays or any(array.dtype.kind not in "fiu" for array in arrays.values()):
        raise ValueError(f"{path} is damaged; delete it to {remedy}.")
    return arrays


def _damaged(path: Path, why: object) -> ValueError:
    place = f"the folder {path.parent}" if path.name == "stage.json" else "it"
    return ValueError(f"{path} is damaged: {why}; delete {place} to redo the stage.")


def _checksum(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
