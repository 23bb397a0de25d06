"""Data sets from a folder that TensorFlow Datasets prepared, read without TensorFlow.

TFDS stores the examples as ArrayRecord; ``as_data_source`` reads them with NumPy alone. Only preparing the folder
(download, unpack, encode) needs TensorFlow. All of a split's labels are read, but only the images asked for are
decoded. TFDS is imported when it is first needed.
"""

import logging
import shlex
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.dataset import Arrays, DataSet, subset
from qpsnn_jax.data.pictures import decode_picture
from qpsnn_jax.runtime.files import reason_of
from qpsnn_jax.runtime.logs import log_level


class Facts(NamedTuple):
    """Facts of a data set: image shape, number of classes, mean and std of the training set on [0, 1]."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


FACTS = {
    "cifar10": Facts((32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Facts((32, 32, 3), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": Facts((64, 64, 3), 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}


class _Encoded(NamedTuple):
    """One split, sorted by id: encoded images, and int32 labels."""

    images: list[bytes]
    labels: np.ndarray


def cifar10(request: DataRequest) -> DataSet:
    """CIFAR-10 as arrays, uint8 ``n 32 32 3``; see :func:`prepared`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    return prepared("cifar10", request)


def cifar100(request: DataRequest) -> DataSet:
    """CIFAR-100 with its 100 fine labels as arrays, uint8 ``n 32 32 3``; see :func:`prepared`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    return prepared("cifar100", request)


def prepared(name: str, request: DataRequest) -> DataSet:
    """Read one of :data:`FACTS` as arrays.

    Args:
        name: of the data set.
        request: its data directory holds ``<name>/<version>/``; None for TFDS's own, which is ``$TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``. The seed starts from the examples sorted by id, so that the order does not depend
            on how the folder is sharded. Only the images asked for are decoded.

    Returns:
        Images uint8 ``n h w c``; mean and std are those of the whole training set.

    Raises:
        ValueError: the folder has no prepared data, they are damaged, or they have fewer examples. The message says how
            to prepare the data.
    """
    facts = FACTS[name]
    with log_level("absl", logging.ERROR):  # without its advice to install OpenCV
        folder = find(name, request.data_dir)
        train = _read(name, folder, "train")
        chosen = subset(train.labels, request.seed, "train_examples", request.train_examples)
        test = _read(name, folder, "test")
        tested = subset(test.labels, request.seed, "test_examples", request.test_examples)
        return DataSet(
            name=name,
            train=_decode(name, folder, train, chosen),
            test=_decode(name, folder, test, tested),
            classes=facts.classes,
            mean=facts.mean,
            std=facts.std,
            class_names=_class_names(name, folder),
        )


def source(name: str, split: str, data_dir: str | PathLike[str] | None = None, *, image: str = "image") -> Any:
    """A split as a random-access sequence that a :func:`~qpsnn_jax.data.stream.stream` can read; nothing is decoded.

    Args:
        name: any data set that TFDS prepared in array_record format, such as ``imagenet2012``.
        split: its split, such as ``train``.
        data_dir: the TFDS data directory; None for TFDS's own.
        image: the name of the feature that holds the images.

    Returns:
        A sequence of dictionaries with ``image`` (encoded bytes), ``label`` and the other features.

    Raises:
        ValueError: the folder has no prepared data, they are damaged, or the split is unknown.
    """
    with log_level("absl", logging.ERROR):  # without its advice to install OpenCV
        folder = find(name, data_dir)
        try:
            return _open(folder, split, image)
        except Exception as error:  # as in _read
            raise damaged(name, folder, error) from None


def read_chunks(
    name: str,
    split: str,
    data_dir: str | PathLike[str] | None,
    *,
    image: str = "image",
    label: str = "label",
    size: int = 256,
) -> Iterator[list[tuple[bytes, int]]]:
    """Read a whole split as chunks of encoded images and labels, so that it need not fit in memory.

    Args:
        name, split, data_dir, image: as for :func:`source`.
        label: the name of the feature that holds the labels.
        size: examples in a list; the last one may have fewer.

    Raises:
        ValueError: the folder has no prepared data, or they are damaged.
    """
    examples = source(name, split, data_dir, image=image)
    for first in range(0, len(examples), size):
        try:
            chunk = examples.__getitems__(range(first, min(first + size, len(examples))))
        except Exception as error:  # as in _read
            raise damaged(name, find(name, data_dir), error) from None
        yield [(example[image], int(example[label])) for example in chunk]


def is_prepared(name: str, data_dir: str | PathLike[str] | None) -> bool:
    """Whether a data directory, None for TFDS's own, holds a prepared version; nothing is read."""
    return bool(_versions(name, data_dir))


def find(name: str, data_dir: str | PathLike[str] | None) -> Path:
    """Find the folder of the newest prepared version, without TFDS's own search, which might download.

    Raises:
        ValueError: there is no prepared version; the message says how to prepare one.
    """
    versions, root = _versions(name, data_dir), data_root(data_dir)
    if not versions:
        configs = sorted({path.parents[1].name for path in (root / name).glob("*/*.*.*/dataset_info.json")})
        if configs:
            raise ValueError(f"{root / name} holds several data sets; choose {name}/{f' or {name}/'.join(configs)}.")
        seen = f"data_dir {root} does not exist" if not root.is_dir() else f"data_dir {root} holds no prepared {name}"
        raise ValueError(f"{seen}; give the TFDS data directory that holds it, or {_recipe(name, root)}.")
    return max(versions, key=lambda path: [(len(part), part) for part in path.name.split(".")])


def data_root(data_dir: str | PathLike[str] | None) -> Path:
    """The TFDS data directory: the given one, or TFDS's own."""
    return Path(tfds().core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()


def _versions(name: str, data_dir: str | PathLike[str] | None) -> list[Path]:
    return [path.parent for path in (data_root(data_dir) / name).glob("*.*.*/dataset_info.json")]


def _read(name: str, folder: Path, split: str) -> _Encoded:
    try:
        source = _open(folder, split)
        examples = sorted(source.__getitems__(range(len(source))), key=lambda example: example["id"])
        labels = np.asarray([example["label"] for example in examples], np.int32)
        return _Encoded([example["image"] for example in examples], labels)
    except Exception as error:  # the readers below TFDS raise many types, for example RuntimeError and KeyError
        raise damaged(name, folder, error) from None


def _open(folder: Path, split: str, image: str = "image") -> Any:
    """A split of a prepared folder, whose images stay encoded."""
    builder = tfds().builder_from_directory(folder)
    return builder.as_data_source(split, decoders={image: tfds().decode.SkipDecoding()})


def names_of(label: Any) -> tuple[str, ...]:
    """The names of the classes of a ``ClassLabel``; none where they are only numbers."""
    names = tuple(label.names)
    return () if names == tuple(map(str, range(len(names)))) else names


def _class_names(name: str, folder: Path) -> tuple[str, ...]:
    try:
        return names_of(tfds().builder_from_directory(folder).info.features["label"])
    except Exception as error:  # as in _read
        raise damaged(name, folder, error) from None


def _decode(name: str, folder: Path, encoded: _Encoded, indices: np.ndarray) -> Arrays:
    height, width, channels = FACTS[name].shape
    images = np.empty((len(indices), height, width, channels), np.uint8)
    try:
        for row, index in enumerate(indices):
            images[row] = np.asarray(decode_picture(encoded.images[index], channels, (height, width)))
    except ValueError as error:
        raise damaged(name, folder, error) from None
    return Arrays(images, encoded.labels[indices])


def damaged(name: str, folder: Path, error: Exception) -> ValueError:
    """The error of a prepared folder that cannot be read, with the command that prepares it."""
    reason = reason_of(error)
    remedy = f"remove that folder, or choose another data_dir, and {_recipe(name, folder.parents[1])}"
    return ValueError(f"{folder} is not a readable {name} in array_record format ({reason}); {remedy}.")


def _recipe(name: str, root: Path) -> str:
    command = shlex.join(["qpsnn", "data", "prepare", name, "--data-dir", str(root)])
    return f"prepare it: {command} (this needs pip install tensorflow, reading does not)"


def tfds() -> Any:
    """Import TFDS late, because that is slow, and untyped, because its annotations contradict its decorators."""
    import tensorflow_datasets

    return tensorflow_datasets
