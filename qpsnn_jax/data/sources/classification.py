"""Any image classification set that TFDS prepared, by its name. Shapes and classes come from its own description.

Pictures without a common size are reduced to their central square and resized. All are decoded once
(:mod:`qpsnn_jax.data.decoded`).
"""

import logging
import re
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.data.catalogue import SOURCES, DataInfo, DataRequest
from qpsnn_jax.data.dataset import DataSet, example_count
from qpsnn_jax.data.decoded import decode_all, examples, identity, statistics
from qpsnn_jax.data.pictures import decode_picture, middle_square
from qpsnn_jax.data.sources.folder import split_rows
from qpsnn_jax.data.sources.tfds import damaged, data_root, find, names_of, read_chunks, source, tfds
from qpsnn_jax.runtime.files import reason_of
from qpsnn_jax.runtime.logs import log_level

_USUAL = 32  # default side of pictures without a common size
_NAME = re.compile(r"\w+(/[\w.+-]+)?")


class Prepared(NamedTuple):
    """A prepared data set, by its own description.

    Attributes:
        folder: of its files.
        image, label: the names of its features.
        shape: ``(h, w, c)`` of an image; h and w are None where they differ.
        classes: number of classes.
        class_names: their names, empty where they are numbers.
        splits: the names of the training and of the test split; the latter is None where there is none.
    """

    folder: Path
    image: str
    label: str
    shape: tuple[int | None, int | None, int]
    classes: int
    class_names: tuple[str, ...]
    splits: tuple[str, str | None]


def describe_prepared(name: str, request: DataRequest) -> DataInfo:
    """Shape and classes of a prepared data set; no example is read.

    Raises:
        ValueError: the name is unknown, the set is not prepared, or it is not an image classification set.
    """
    found = read_description(name, request.data_dir)
    height, width, channels = found.shape
    by_seed = found.splits[1] is None
    if height is not None and width is not None:
        return DataInfo((height, width, channels), found.classes, split_by_seed=by_seed)
    side = _USUAL if request.size is None else request.size
    return DataInfo((side, side, channels), found.classes, resizable=True, split_by_seed=by_seed)


def prepared_set(name: str, request: DataRequest) -> DataSet:
    """An image classification set that TFDS prepared.

    Args:
        name: of the data set, ``name`` or ``name/config``.
        request: its data directory holds ``<name>/<version>/``. The test set is the split ``test``, or else
            ``validation``, or else a fifth of ``train``, drawn by the seed. Its size is that of pictures that have
            none in common, 32 by default.

    Returns:
        Images uint8 ``n h w c``, in memory up to 1 GiB; mean and std are those of the whole training set.

    Raises:
        ValueError: as :func:`describe_prepared`, or examples are damaged; the message names all damaged pictures.
        OSError: the cache cannot be written.
    """
    found, info = read_description(name, request.data_dir), describe_prepared(name, request)
    used = [split for split in found.splits if split]
    parts = [source(name, split, request.data_dir, image=found.image) for split in used]
    by_part = [_labels(name, found, split, request.data_dir) for split in used]
    labels, first = np.concatenate(by_part), len(by_part[0])

    def read(row: int) -> np.ndarray:
        part, index = (0, row) if row < first else (1, row - first)
        return _picture(f"{used[part]} example {index}", parts[part][index][found.image], info)

    files = sorted(path for path in found.folder.iterdir() if path.is_file())
    decoded = decode_all(name, identity(files), len(labels), info.shape, read)
    class_names = found.class_names or tuple(map(str, range(found.classes)))
    train, test = split_rows(labels, first if len(parts) > 1 else None, request.seed, class_names)
    mean, std = statistics(decoded.moments[train].sum(axis=0), len(train) * info.shape[0] * info.shape[1])
    train = train[: example_count("train_examples", request.train_examples, len(train))]
    test = test[: example_count("test_examples", request.test_examples, len(test))]
    return DataSet(
        name=name,
        train=examples(decoded, train, labels[train]),
        test=examples(decoded, test, labels[test]),
        classes=found.classes,
        mean=mean,
        std=std,
        class_names=found.class_names,
    )


def check_known(name: str) -> None:
    """Check that TFDS has a data set of this name.

    Raises:
        ValueError: there is none.
    """
    known = tfds().list_builders(with_community_datasets=False) if _NAME.fullmatch(name) else ()
    if name.partition("/")[0] not in known:
        raise ValueError(
            f"there is no data set {name!r}; choose one of {', '.join(SOURCES)}, one of TFDS, or give module:attribute "
            "of your own."
        )


def read_description(name: str, data_dir: str | PathLike[str] | None) -> Prepared:
    """The description of a prepared data set.

    Raises:
        ValueError: as :func:`describe_prepared`.
    """
    if not _NAME.fullmatch(name) or not (data_root(data_dir) / name).is_dir():
        check_known(name)
    return _description(name, find(name, data_dir))


def _description(name: str, folder: Path) -> Prepared:
    try:
        with log_level("absl", logging.ERROR):
            info = tfds().builder_from_directory(folder).info
            features, splits = dict(info.features.items()), list(info.splits)
            keys = info.supervised_keys
    except Exception as error:  # TFDS raises many types for damaged files
        raise damaged(name, folder, error) from None
    image = _only(name, features, keys and keys[0], tfds().features.Image)
    label = _only(name, features, keys and keys[1], tfds().features.ClassLabel)
    shape, classes = features[image].shape, features[label].num_classes
    dtype = np.dtype(features[image].np_dtype)
    if shape[-1] not in (1, 3) or dtype != np.uint8:
        raise ValueError(f"{name} has images {shape} of {dtype}; what is read is uint8 of 1 or 3 channels.")
    if "train" not in splits:
        raise ValueError(f"{name} has no split train; it has {', '.join(splits) or 'none'}.")
    test = next((split for split in ("test", "validation") if split in splits), None)
    return Prepared(folder, image, label, shape, classes, names_of(features[label]), ("train", test))


def _only(name: str, features: dict[str, Any], key: Any, kind: type) -> str:
    """The feature of a kind: the one that is used in supervised learning, or the only one."""
    found = [feature for feature, value in features.items() if type(value) is kind]
    if key in found:
        return key
    if len(found) != 1:
        raise ValueError(
            f"{name} is not an image classification set: of its features ({', '.join(features)}) {len(found)} are "
            f"{kind.__name__}, and one must be."
        )
    return found[0]


def _labels(name: str, found: Prepared, split: str, data_dir: str | PathLike[str] | None) -> np.ndarray:
    chunks = read_chunks(name, split, data_dir, image=found.image, label=found.label)
    labels = np.asarray([label for chunk in chunks for _, label in chunk], np.int32)
    if not len(labels):
        raise ValueError(f"{found.folder} has no examples in its split {split}.")
    if labels.min() < 0 or labels.max() >= found.classes:
        held = f"labels from {labels.min()} to {labels.max()}"
        raise ValueError(f"{found.folder} has {held} in its split {split}, and {found.classes} classes.")
    return labels


def _picture(place: str, data: bytes, info: DataInfo) -> np.ndarray:
    height, width, channels = info.shape
    try:
        if info.resizable:
            return middle_square(decode_picture(data, channels), height)
        return np.asarray(decode_picture(data, channels, (height, width))).reshape(info.shape)
    except ValueError as error:
        raise ValueError(f"{place}: {reason_of(error)}") from None
