"""Mean and std by which a network's images are normalized, as they are kept with it."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.data.dataset import DataSet
from qpsnn_jax.export.packed.file import Packed
from qpsnn_jax.runs.data_record import read_record
from qpsnn_jax.runs.directory import read_saved_notes, run_of
from qpsnn_jax.training.distillation import Rescale


class Statistics(NamedTuple):
    """Of each input channel, pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, notes: dict[str, Any]) -> "Statistics | None":
        """Those in some notes, if there are any."""
        if not {"mean", "std"} <= notes.keys():
            return None
        return cls(*(tuple(float(value) for value in notes[name]) for name in cls._fields))


def trained_statistics(path: Path) -> Statistics | None:
    """Those of the training images, by the notes of a network or the record of its run; None where neither has them.

    Args:
        path: of a network, which has been loaded.

    Raises:
        ValueError: the record is damaged.
    """
    run = run_of(path)
    return Statistics.of(read_saved_notes(path)) or (None if run is None else Statistics.of(read_record(run) or {}))


def packed_statistics(packed: Packed) -> Statistics:
    """Those of the network in a packed file."""
    mean = tuple(float(value) / 255 for value in packed.folded.image.mean)
    return Statistics(mean, tuple(map(float, packed.notes["std"])))


def rescaling(own: Statistics, other: Statistics | None) -> Rescale | None:
    """Factors and shifts from images that are normalized by ``own`` to those by ``other``; None where there are none.

    None too where both are equal up to the rounding of float32.
    """
    if other is None:
        return None
    (mean, std), (mean_, std_) = (np.asarray(values, np.float64) for values in (own, other))
    factor, shift = std / std_, (mean - mean_) / std_
    if np.allclose(factor, 1, rtol=0, atol=1e-6) and np.allclose(shift, 0, rtol=0, atol=1e-6):
        return None
    return tuple(factor.tolist()), tuple(shift.tolist())


def as_trained(data: DataSet, known: Statistics | None) -> DataSet:
    """A data set whose images are normalized as those that a network was trained on, where these are known."""
    return data if known is None else dataclasses.replace(data, mean=known.mean, std=known.std)
