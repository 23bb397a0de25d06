"""Networks that come with the package: packed files, each with the moments of its currents and a card.

Needs only NumPy, until a network is to be trained.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpsnn_jax.export.packed.file import load_packed
from qpsnn_jax.runtime.arrays import read_npz

if TYPE_CHECKING:
    from qpsnn_jax.model.graph import Graph
    from qpsnn_jax.training.state import Variables

FOLDER = Path(__file__).with_name("networks")


@dataclass(frozen=True)
class Card:
    """What is known about a pretrained network.

    Attributes:
        name: of the network.
        data: the data set, and how the network takes it.
        accuracy: of its integers on all test images, by the weights of the last epoch.
        test_images: how many these are.
        first_images, first_correct: of the first test images, how many are classified correctly.
        seeds: accuracy of every seed that was trained, by the seed; this network is one of them.
        seed: that of this network.
        command, commit: that made it, and the version of this project.
        result: of the stage, as measured by the floating-point network.
    """

    name: str
    data: str
    accuracy: float
    test_images: int
    first_images: int
    first_correct: int
    seeds: dict[str, float]
    seed: int
    command: str
    commit: str
    result: dict[str, Any]


def cards() -> dict[str, Card]:
    """The cards of all networks that come with the package, by name."""
    return {name: Card(**json.loads((FOLDER / f"{name}.json").read_bytes())) for name in names()}


def names() -> tuple[str, ...]:
    """The names of all networks that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.qpsnn")))


def closest(name: str) -> str | None:
    """The name of a pretrained network that ``name`` looks like, if there is one."""
    return next(iter(difflib.get_close_matches(name, names(), n=1)), None)


def packed_path(name: str) -> Path:
    """The packed file of a pretrained network, for :func:`qpsnn_jax.load_packed`.

    Raises:
        ValueError: there is no such network; the message names those that there are.
    """
    if name not in names():
        close = closest(str(name))
        hint = f"did you mean {close}?" if close else f"there are {', '.join(names())}."
        also = "" if Path(str(name)).suffix != ".qpsnn" else " (load_packed and unfold read a packed file)"
        raise ValueError(f"there is no pretrained network {str(name)!r}{also}; {hint}")
    return FOLDER / f"{name}.qpsnn"


def read_moments(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of a pretrained network's currents, by layer, for :func:`qpsnn_jax.unfold`.

    Raises:
        ValueError: there is no such network.
    """
    arrays = read_npz(packed_path(name).with_suffix(".npz"))
    layers = sorted({key.rpartition("/")[0] for key in arrays})
    return {layer: (arrays[f"{layer}/mean"], arrays[f"{layer}/var"]) for layer in layers}


def pretrained(name: str) -> "tuple[Graph, Variables]":
    """A network that comes with the package, ready to run, or to be trained further.

    Its quantized weights are those of its packed file, with a learned γ for each channel; see :func:`qpsnn_jax.unfold`.

    Args:
        name: one of ``qpsnn pretrained``.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`, which takes images normalized by the mean and
        standard deviation of the data set that the network was trained on.

    Raises:
        ValueError: there is no such network; the message names those that there are.
    """
    from qpsnn_jax.export.unfolding import unfold

    packed = load_packed(packed_path(name))
    return unfold(packed.folded, packed.notes["std"], read_moments(name))
