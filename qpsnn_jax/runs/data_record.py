"""What the data of a run were when it started, so that it does not go on, or is evaluated, with others unnoticed."""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.data.dataset import Arrays, DataSet, Examples
from qpsnn_jax.data.feed import count
from qpsnn_jax.runs.records import read_checked, write_checked
from qpsnn_jax.runtime.processes import fail_together

_FILE = "data.json"
_TOLERANCE = 1e-6  # other machines sum in another order
_WHAT = {"train": "training", "test": "test"}


def record_data(directory: Path, data: DataSet) -> None:
    """Write what the data are into the directory of a run, for :func:`check_data`."""
    write_checked(directory / _FILE, _facts(data))


@fail_together
def check_data(
    directory: Path, data: DataSet, *, train: bool = True, test: bool = True, otherwise: str = "start in a new --out"
) -> None:
    """Check that a run's data are those that it started with, wherever they lie; a run without a record passes.

    Args:
        directory: of the run.
        data: its data now.
        train: whether all training images are loaded, so that they can be compared.
        test: whether all test images are.
        otherwise: what else can be done, for the message.

    Raises:
        ValueError: they are others, or the record is damaged.
    """
    then = read_record(directory)
    if then is None:
        return
    loaded = [part for part, whole in (("train", train), ("test", test)) if whole]
    if change := _change(then, _facts(data), loaded):
        raise ValueError(f"{directory} started with other data: {change}; give it those of then again, or {otherwise}.")


def read_record(directory: Path) -> dict[str, Any] | None:
    """What :func:`record_data` wrote; None for a run without a record.

    Raises:
        ValueError: the record is damaged.
    """
    path = directory / _FILE
    if not path.is_file():
        return None
    try:
        return read_checked(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it if the data are still the same.") from None


def _facts(data: DataSet) -> dict[str, Any]:
    return {
        "train": _counted(data.train),
        "test": _counted(data.test),
        "mean": [float(value) for value in data.mean],
        "std": [float(value) for value in data.std],
    }


def _counted(examples: Examples) -> dict[str, int | None]:
    """The number of examples, and the CRC-32 of their labels; None for files, whose labels are read with the images."""
    labels = zlib.crc32(np.asarray(examples.labels, "<i4").tobytes()) if isinstance(examples, Arrays) else None
    return {"examples": count(examples), "labels": labels}


def _change(then: dict[str, Any], now: dict[str, Any], parts: list[str]) -> str:
    """The first difference as words; empty if there is none."""
    for part in parts:
        if then[part]["examples"] != now[part]["examples"]:
            return f"{then[part]['examples']:,} {_WHAT[part]} images then and {now[part]['examples']:,} now"
        if then[part]["labels"] != now[part]["labels"]:
            return f"the labels of the {_WHAT[part]} images have changed"
    for name in ("mean", "std"):
        pairs = list(zip(then[name], now[name], strict=False))
        same = len(then[name]) == len(now[name])
        if not same or not all(math.isclose(*pair, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for pair in pairs):
            shown = [", ".join(f"{value:.6g}" for value in facts[name]) for facts in (then, now)]
            return f"the {name} of the training images was {shown[0]} and is {shown[1]}"
    return ""
