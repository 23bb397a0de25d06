"""What a run keeps beside its networks: results of stages, with what they noted, and arrays by name."""

import importlib.metadata
import io
import json
import platform
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs.evaluation import Evaluation
from qpsnn_jax.runtime.processes import write_on_process_zero

_PACKAGES = ("qpsnn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_CHECKSUM = "crc32"


class Epoch(NamedTuple):
    """An epoch of training: its number from 1 on, the mean training loss (nats), the test accuracy (a fraction)."""

    epoch: int
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class StageResult:
    """Result of a complete stage; accuracies are fractions of the test set, operations and energy are per image.

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


def measure(
    name: str, graph: Graph, whole: Graph, result: Evaluation, best: float | None, seconds: float
) -> StageResult:
    """The result of a network: ``result`` on the test set, costs of ``graph`` beside the ``whole`` network's."""
    costs = cost(graph, result.activity)
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
    """Versions of what a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON under a temporary name, then rename; of several processes, the first does."""
    write_on_process_zero(path, (json.dumps(document, indent=2) + "\n").encode())


def write_checked(path: Path, document: Mapping[str, Any]) -> None:
    """:func:`write_json` with a checksum, which :func:`read_checked` looks at."""
    write_json(path, {**document, _CHECKSUM: _checksum(document)})


def read_checked(path: Path) -> dict[str, Any]:
    """What :func:`write_checked` wrote.

    Raises:
        ValueError: it is no JSON, or another document than was written; the path is not named.
    """
    try:
        document = json.loads(path.read_bytes())
        found = document.pop(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is not the JSON that a run writes") from None
    if found != _checksum(document):
        raise ValueError("it does not match its checksum")
    return document


def write_result(path: Path, result: StageResult, **notes: Any) -> None:
    """Write the result of a stage, with what else it notes."""
    write_checked(path, {"stage": asdict(result), **notes})


def read_result(path: Path) -> StageResult | None:
    """The result of a stage, or None where it is not complete.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return None
    values = read_notes(path, "stage")
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(StageResult)}:
        raise _damaged(path, "it holds no result of a stage")
    return StageResult(**values)


def read_notes(path: Path, key: str) -> Any:
    """What a complete stage noted: its ``epochs``, or for the stage ``pruned`` the channels to ``keep``.

    Raises:
        ValueError: the notes are damaged.
    """
    try:
        return read_checked(path)[key]
    except KeyError:
        raise _damaged(path, f"it has no {key}") from None
    except ValueError as error:
        raise _damaged(path, error) from None


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as ``.npz``; of several processes, the first does."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{name: np.asarray(values) for name, values in arrays.items()})
    write_on_process_zero(path, stream.getvalue())


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Arrays by name that a run stored: the scores of its channels, or the activity of a stage.

    Raises:
        ValueError: the file is damaged; deleting it lets one do what ``remedy`` says.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            return dict(stored.items())
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is damaged; delete it to {remedy}.") from None


def _damaged(path: Path, why: object) -> ValueError:
    place = f"the folder {path.parent}" if path.name == "stage.json" else "it"
    return ValueError(f"{path} is damaged: {why}; delete {place} to redo the stage.")


def _checksum(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
