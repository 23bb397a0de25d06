"""Tiny ImageNet from its official folder ``tiny-imagenet-200``, or from a copy of it that TFDS prepared.

The folder holds 110,000 small JPEG files; :mod:`~qpsnn_jax.data.sources.tiny_imagenet_builder` packs them into
one ArrayRecord data set without TensorFlow. Both give the same data. The official validation images serve as test set,
since the labels of the official test images were never published.
"""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.dataset import Arrays, DataSet, subset
from qpsnn_jax.data.pictures import read_picture
from qpsnn_jax.data.sources.tfds import FACTS, is_prepared, prepared

NAME = "tiny_imagenet"
_FOLDER = "tiny-imagenet-200"
_SOURCE = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip and name the folder that holds it as data_dir"


class Listing(NamedTuple):
    """The files of one split, in a fixed order, and their labels, int32."""

    paths: list[Path]
    labels: np.ndarray


def tiny_imagenet(request: DataRequest) -> DataSet:
    """Tiny ImageNet as arrays: 100,000 + 10,000 images of 64×64×3, 200 classes in the order of their WordNet ids.

    Args:
        request: its folder holds ``tiny-imagenet-200`` or TFDS's ``tiny_imagenet``, which is preferred; only the images
            asked for are decoded.

    Returns:
        Images uint8 ``n 64 64 3``; mean and std are those of the whole training set.

    Raises:
        ValueError: the folder is missing or incomplete, an image cannot be read, or there are fewer examples.

    References:
        Le and Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015.
    """
    if request.data_dir is None:
        raise ValueError(f"data_dir must be given: {_SOURCE}.")
    if is_prepared(NAME, request.data_dir):
        return prepared(NAME, request)
    train, test = list_folder(find_folder(request.data_dir))
    chosen = subset(train.labels, request.seed, "train_examples", request.train_examples)
    tested = subset(test.labels, request.seed, "test_examples", request.test_examples)
    return DataSet(
        name=NAME,
        train=_read(train, chosen),
        test=_read(test, tested),
        classes=FACTS[NAME].classes,
        mean=FACTS[NAME].mean,
        std=FACTS[NAME].std,
    )


def find_folder(data_dir: str | PathLike[str]) -> Path:
    """Find the official folder.

    Raises:
        ValueError: there is none.
    """
    folder = Path(data_dir).expanduser() / _FOLDER
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; {_SOURCE}.")
    return folder


def list_folder(folder: Path) -> tuple[Listing, Listing]:
    """List the training and the validation files, and check that they are complete. No image is read.

    Args:
        folder: the official folder.

    Returns:
        Training and validation files, sorted by class and name, and by name.

    Raises:
        ValueError: a list or an image is missing, or classes differ in size. The message names the file.
    """
    classes = sorted(line.strip() for line in _lines(folder / "wnids.txt") if line.strip())
    label = {wnid: i for i, wnid in enumerate(classes)}
    if len(label) != FACTS[NAME].classes:
        raise ValueError(
            f"{folder / 'wnids.txt'} must name {FACTS[NAME].classes} classes, got {len(label)}; {_SOURCE}."
        )
    found = [sorted((folder / "train" / wnid / "images").glob("*.JPEG")) for wnid in classes]
    fullest = max(1, *map(len, found))
    for wnid, paths in zip(classes, found, strict=True):
        if len(paths) != fullest:
            where = folder / "train" / wnid / "images"
            raise ValueError(f"{where} holds {len(paths)} images where another class has {fullest}; {_SOURCE}.")
    train = Listing(
        [path for paths in found for path in paths], np.repeat(np.arange(len(classes), dtype=np.int32), fullest)
    )
    return train, _validation(folder / "val", label)


def read_image(path: Path) -> np.ndarray:
    """Decode one image of 64×64 pixels, in colour or grey; see :func:`~qpsnn_jax.data.pictures.read_picture`."""
    height, width, channels = FACTS[NAME].shape
    return read_picture(path, channels, (height, width))


def _validation(folder: Path, label: dict[str, int]) -> Listing:
    annotations = folder / "val_annotations.txt"
    rows = sorted(line.split()[:2] for line in _lines(annotations) if line.strip())
    present = {path.name for path in (folder / "images").glob("*.JPEG")}
    for row in rows:
        if len(row) < 2 or row[1] not in label:
            raise ValueError(
                f"{annotations} must hold a file name and a known class on each line, got {' '.join(row)!r}."
            )
        if row[0] not in present:
            raise ValueError(f"{folder / 'images' / row[0]} is missing; {_SOURCE}.")
    if len({row[0] for row in rows}) != len(rows) or len(rows) != len(present) or not rows:
        count = f"{len(rows)} lines for {len(present)} images"
        raise ValueError(f"{annotations} must name each image in {folder / 'images'} once, got {count}; {_SOURCE}.")
    labels = np.asarray([label[wnid] for _, wnid in rows], np.int32)
    return Listing([folder / "images" / name for name, _ in rows], labels)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} is missing or unreadable; {_SOURCE}.") from None


def _read(listing: Listing, indices: np.ndarray) -> Arrays:
    images = np.empty((len(indices), *FACTS[NAME].shape), np.uint8)
    for row, index in enumerate(indices):
        images[row] = read_image(listing.paths[index])
    return Arrays(images, listing.labels[indices])
