"""What a data set is here: arrays in host memory or files, their statistics, and a fixed balanced order.

Images stay uint8 until a batch is on the device, so that a whole CIFAR is 184 MB and moving a batch costs a quarter of
its float32 size; :func:`qpsnn_jax.numerics.normalization.normalize` runs inside the jitted step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class Arrays(NamedTuple):
    """Labelled images: ``images`` uint8 of shape ``n h w c`` and ``labels`` int32 of shape ``n``, in host memory."""

    images: np.ndarray
    labels: np.ndarray


class Source(Protocol):
    """A random-access sequence of examples, such as :func:`qpsnn_jax.data.sources.tfds.source` gives."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


Transform = Callable[[Any, np.random.Generator], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Files:
    """Labelled images that stay on disk because memory does not hold them.

    Attributes:
        source: the examples, in whatever form ``crop`` and ``centre`` take.
        shape: ``(h, w, c)`` of an image once it is cropped.
        crop: from an example and its own random generator to ``image`` (uint8, of that shape) and ``label`` (int32),
            for training.
        centre: the same without anything random, for scoring and evaluation.
    """

    source: Source
    shape: tuple[int, int, int]
    crop: Transform
    centre: Transform


Examples = Arrays | Files


@dataclass(frozen=True, eq=False)
class DataSet:
    """A training and a test set, with what is needed to feed them to a network.

    Attributes:
        name: what :func:`qpsnn_jax.data.load` calls it.
        train: training images; arrays are ordered so that every beginning of them holds the classes in proportion.
        test: test images, likewise.
        classes: number of classes; labels are in ``{0, …, classes - 1}``.
        mean: mean of each channel over the whole training set, pixels scaled to [0, 1].
        std: standard deviation of each channel over the whole training set, on the same scale.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    r"""Order examples at random so that every beginning is stratified.

    A shuffle by ``seed`` deals the examples out into :math:`R = n // classes` rounds: the r-th of the :math:`n_c` of
    its class goes to round :math:`⌊R (r + ½) / n_c⌋`. The rounds follow each other, each in shuffled order. The first k
    examples then hold each class in its proportion to within two examples (exactly, when classes are equal and k is a
    multiple of their number), and smaller subsets are contained in larger ones.

    Args:
        labels: class of each example, integers of shape ``n``.
        seed: a number, 0 or more.

    Returns:
        A permutation of ``0 … n-1``, int64. It is drawn from the raw stream of NumPy's PCG64, which is the same in all
        versions of NumPy and does not depend on JAX.

    Raises:
        ValueError: a seed that is not a whole number, 0 or more.
    """
    if not _is_whole(seed) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}.")
    shuffled = np.argsort(np.random.PCG64(int(seed)).random_raw(len(labels)), kind="stable")
    by_class = np.argsort(labels[shuffled], kind="stable")
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    rounds = len(labels) // np.count_nonzero(counts) * (2 * rank + 1) // (2 * np.repeat(counts, counts))
    return shuffled[by_class[np.lexsort((by_class, rounds))]]


def example_count(what: str, wanted: int | None, available: int) -> int:
    """Check a number of examples: ``wanted``, or all that are ``available``.

    Args:
        what: the name of the input, for the message.
        wanted: number asked for, or None for all.
        available: number there are.

    Returns:
        A number from 1 to ``available``.

    Raises:
        ValueError: ``wanted`` is not a whole number from 1 to ``available``.
    """
    if wanted is None:
        return available
    if not _is_whole(wanted) or not 1 <= wanted <= available:
        raise ValueError(f"{what} must be a whole number from 1 to {available}, or None for all, got {wanted!r}.")
    return int(wanted)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
