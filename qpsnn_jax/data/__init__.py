"""Data sets as arrays or files, and augmentation inside jit.

``load("digits")`` needs nothing; ``load("cifar10", data_dir=…)`` reads a folder that TensorFlow Datasets prepared.
Every loader gives a :class:`DataSet` of uint8 images; normalization (:mod:`qpsnn_jax.numerics.normalization`) and
augmentation (:mod:`qpsnn_jax.data.augment`) run inside the training step.
"""

from collections.abc import Callable
from functools import partial
from os import PathLike

from qpsnn_jax.data.augment.images import Augmentation
from qpsnn_jax.data.dataset import Arrays, DataSet, Files
from qpsnn_jax.data.sources.digits import digits as _digits
from qpsnn_jax.data.sources.imagenet import imagenet as _imagenet
from qpsnn_jax.data.sources.recordings import By
from qpsnn_jax.data.sources.recordings import cifar10_dvs as _cifar10_dvs
from qpsnn_jax.data.sources.recordings import nmnist as _nmnist
from qpsnn_jax.data.sources.tfds import cifar as _cifar
from qpsnn_jax.data.sources.tiny_imagenet import tiny_imagenet as _tiny_imagenet

__all__ = ["EVENTS", "SHAPES", "SIZED", "Arrays", "Augmentation", "By", "DataSet", "Files", "load"]

# Image shape (h, w, c) and number of classes, known without reading anything.
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "tiny_imagenet": ((64, 64, 3), 200),
    "imagenet2012": ((224, 224, 3), 1000),
    "nmnist": ((34, 34, 2), 10),
    "cifar10_dvs": ((48, 48, 2), 10),
}
# Recordings of events, which become frames of a size and number to choose.
EVENTS = {"nmnist": _nmnist, "cifar10_dvs": _cifar10_dvs}
# Data sets that are brought to a size: frames of events, and pictures of all sizes.
SIZED = {*EVENTS, "imagenet2012"}


def _embedded(data_dir: str | PathLike[str] | None, seed: int, **examples: int | None) -> DataSet:
    del data_dir  # the digits travel with the package
    return _digits(seed, **examples)


_LOADERS: dict[str, Callable[..., DataSet]] = {
    "digits": _embedded,
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "tiny_imagenet": _tiny_imagenet,
}


def load(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    seed: int = 0,
    train_examples: int | None = None,
    test_examples: int | None = None,
    timesteps: int | None = None,
    size: int | None = None,
    by: By = "count",
) -> DataSet:
    """Load a data set by name: as arrays in host memory, but imagenet2012 as files that are read while training runs.

    The order is random but fixed by ``seed``, and n examples are the first n in that order, so smaller subsets lie
    within larger ones. Of arrays every beginning holds the classes in proportion.

    Args:
        name: ``digits`` (embedded, 1,437 + 360 images of 8×8×1), ``cifar10`` or ``cifar100`` (50,000 + 10,000 images of
            32×32×3, from TFDS), ``tiny_imagenet`` (100,000 + 10,000 of 64×64×3), ``imagenet2012`` (1,281,167 + 50,000,
            from TFDS), ``nmnist`` or ``cifar10_dvs`` (event recordings, as frames ``n t h w 2``).
        data_dir: the TFDS data directory, None for TFDS's own; the folder of event recordings. The digits do not use
            it.
        seed: chooses the order, hence the subsets, and for the digits the split; 0 or more.
        train_examples: number of training examples, None for all.
        test_examples: number of test examples, None for all.
        timesteps: frames per recording; for event recordings only, which need it.
        size: height and width of the frames of event recordings or of ImageNet's crops, None for the usual ones.
        by: frames of a recording hold equal numbers of events (``count``) or last equally long (``time``).

    Returns:
        The data set; its mean and std are those of the whole training set.

    Raises:
        ValueError: unknown name, a number of examples that is not there, or data that are missing or damaged.
    """
    if name not in SHAPES:
        raise ValueError(f"name must be one of {', '.join(SHAPES)}, got {name!r}.")
    if name in EVENTS:
        if timesteps is None:
            raise ValueError(f"timesteps must be given for {name}: how many frames a recording becomes.")
        frame = (size, size) if size is not None else SHAPES[name][0][:2]
        read = EVENTS[name]
        return read(
            data_dir,
            seed,
            timesteps=timesteps,
            size=frame,
            by=by,
            train_examples=train_examples,
            test_examples=test_examples,
        )
    if name in SIZED:
        return _imagenet(data_dir, seed, train_examples=train_examples, test_examples=test_examples, size=size)
    return _LOADERS[name](data_dir, seed, train_examples=train_examples, test_examples=test_examples)
