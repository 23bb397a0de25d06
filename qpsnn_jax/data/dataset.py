"""Data sets: arrays in host memory or files, their statistics, and a fixed balanced order.

Images stay uint8 until a batch is on the device, so CIFAR-10 takes 184 MB and a transfer is a quarter of its float32
size; :func:`qpsnn_jax.numerics.normalization.normalize` runs inside the jitted step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from qpsnn_jax.numerics.normalization import check_statistics
from qpsnn_jax.runtime.checks import integer


class Arrays(NamedTuple):
    """Labelled images in memory: ``images`` uint8 ``n h w c``, or frames ``n t h w c``; ``labels`` integers ``n``."""

    images: np.ndarray
    labels: np.ndarray


class Source(Protocol):
    """A random-access sequence of examples, such as that of :func:`qpsnn_jax.data.sources.tfds.source`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


Transform = Callable[[Any, np.random.Generator], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Files:
    """Labelled images on disk, for data sets that do not fit into memory.

    Attributes:
        source: the examples, as ``crop`` and ``centre`` take them.
        shape: ``(h, w, c)`` of an image once it is cropped.
        crop: from an example and its own random generator to ``image`` (uint8, of that shape) and ``label`` (int32),
            for training.
        centre: the same without randomness, for scoring and evaluation.
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
        name: its name in :func:`qpsnn_jax.data.load`.
        train: training images; arrays are ordered so that every prefix has the classes in proportion.
        test: test images, likewise.
        classes: number of classes; labels are in ``{0, …, classes - 1}``.
        mean: mean of each channel over the complete training set, pixels scaled to [0, 1].
        std: standard deviation of each channel over the complete training set, on the same scale.
        class_names: the name of each class, in the order of the labels; empty where they have none.
        evaluated: what the ``test`` images are called in messages, such as ``held-out``.

    Raises:
        ValueError: no example, images of another dtype or shape, labels beyond the classes, or statistics or names that
            do not match; the message names the data set.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    evaluated: str = "test"

    def __post_init__(self) -> None:
        try:
            integer("classes", self.classes, 1)
            for part, examples in (("training", self.train), ("test", self.test)):
                if isinstance(examples, Arrays):
                    _check_arrays(part, examples, self.classes)
            for part in ("train", "test"):
                object.__setattr__(self, part, _with_checked_labels(getattr(self, part), self.classes))
            shapes = [shape_of(examples) for examples in (self.train, self.test)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"training images have the shape {shapes[0]} and test images {shapes[1]}.")
            check_statistics(self.mean, self.std, self.shape[-1])
            if self.class_names and len(self.class_names) != self.classes:
                raise ValueError(f"class_names must be {self.classes} names or none, got {len(self.class_names)}.")
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example: ``(h, w, c)`` or, of event frames, ``(t, h, w, c)``."""
        return shape_of(self.train)


def shape_of(examples: Examples) -> tuple[int, ...]:
    """Shape of one example."""
    return examples.shape if isinstance(examples, Files) else examples.images.shape[1:]


def _check_arrays(part: str, arrays: Arrays, classes: int) -> None:
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim not in (4, 5) or not len(images):
        raise ValueError(f"{part} images must be uint8 n h w c or n t h w c, n at least 1, got {_kind(images)}.")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(f"{part} labels must be {len(images)} integers, got {_kind(labels)}.")
    beyond = (labels < 0) | (labels >= classes)
    if beyond.any():
        row = int(beyond.argmax())
        raise ValueError(f"{part} labels must be from 0 to {classes - 1}, got {labels[row]} at example {row}.")


def _with_checked_labels(examples: Examples, classes: int) -> Examples:
    """Arrays as they are; files whose labels are checked when they are read."""
    if isinstance(examples, Arrays):
        return examples
    crops = {name: LabelCheck(getattr(examples, name), classes) for name in ("crop", "centre")}
    return replace(examples, **crops)


@dataclass(frozen=True)
class LabelCheck:
    """A transform of files that raises an error where a label is beyond the classes; picklable for workers."""

    transform: Transform
    classes: int

    def __call__(self, example: Any, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The transformed example.

        Raises:
            ValueError: its label is none of the classes.
        """
        transformed = self.transform(example, rng)
        if not 0 <= transformed["label"] < self.classes:
            raise ValueError(f"labels must be from 0 to {self.classes - 1}, an example has {transformed['label']}.")
        return transformed


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    r"""Order examples at random so that every prefix is stratified.

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
        ValueError: ``seed`` is not an integer of 0 or more.
    """
    seed = integer("seed", seed, 0)
    shuffled = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    by_class = np.argsort(labels[shuffled], kind="stable")
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    rounds = len(labels) // np.count_nonzero(counts) * (2 * rank + 1) // (2 * np.repeat(counts, counts))
    return shuffled[by_class[np.lexsort((by_class, rounds))]]


def subset(labels: np.ndarray, seed: int, what: str, wanted: int | None) -> np.ndarray:
    """The first examples in :func:`balanced_order`: as many as are ``wanted``, or all; see :func:`example_count`."""
    return balanced_order(labels, seed)[: example_count(what, wanted, len(labels))]


def example_count(what: str, wanted: int | None, available: int) -> int:
    """Check a number of examples: ``wanted``, or all that are ``available``.

    Args:
        what: the name of the input, for the message.
        wanted: number asked for, or None for all.
        available: number of examples.

    Returns:
        A number from 1 to ``available``.

    Raises:
        ValueError: ``wanted`` is not an integer from 1 to ``available``.
    """
    return available if wanted is None else integer(what, wanted, 1, available)
