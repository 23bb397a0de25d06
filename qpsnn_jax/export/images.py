"""Classifying image files with a packed network. Uses only NumPy and Pillow."""

import errno
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qpsnn_jax.data.pictures import SUFFIXES, find_pictures, read_picture, read_square
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.runtime.arrays import read_npy

_SUFFIXES = (*SUFFIXES, ".npy")


class Classified(NamedTuple):
    """An image file, the class with the largest logit, and the time-mean of its output current."""

    path: Path
    label: int
    current: float


class Unclassified(NamedTuple):
    """An image file that cannot be classified, and one sentence with its name and the reason."""

    path: Path
    reason: str


def classify(folded: Folded, path: str | PathLike[str]) -> Iterator[Classified | Unclassified]:
    """Classify an image, or every image in a folder, in the order of their names; see :func:`read_pixels`.

    Args:
        folded: the network, from :func:`qpsnn_jax.export.packed.file.load_packed`.
        path: a picture (:data:`~qpsnn_jax.data.pictures.FORMATS`), a NumPy file of uint8 pixels ``h w c`` or frames
            ``t h w c``, or a folder of them. Within a folder only regular files that are not hidden count.

    Returns:
        An iterator over :class:`Classified`, or :class:`Unclassified` where a file of a folder cannot be read.

    Raises:
        ValueError: a folder without images; of a single file, that it is not an image or does not fit the network.
        OSError: there is nothing at ``path``, or a single file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    network = IntegerNetwork.of(folded)
    if not path.is_dir():
        yield _classified(network, path)
        return
    paths = find_pictures(path, _SUFFIXES)
    if not paths:
        raise ValueError(f"{path} holds no images ({', '.join(_SUFFIXES)}).")
    for file in paths:
        try:
            yield _classified(network, file)
        except ValueError as error:
            yield Unclassified(file, str(error))
        except OSError as error:
            yield Unclassified(file, f"{file}: {error.strerror or error}.")


def read_pixels(folded: Folded, path: str | PathLike[str]) -> np.ndarray:
    """Pixels of a file in the shape that a network takes, uint8 ``h w c`` or ``t h w c``.

    A picture may have any size: its middle square is resized to that of the network
    (:func:`~qpsnn_jax.data.pictures.middle_square`). For a network of images that are not square it must have their
    size, as an array must.

    Args:
        folded: the network.
        path: of the file.

    Raises:
        ValueError: the file is not an image, is damaged, or does not fit the network.
        OSError: the file cannot be read.
    """
    path, (h, w, c) = Path(path), folded.image.shape
    shape = (folded.timesteps, h, w, c) if folded.image.frames else (h, w, c)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and len(shape) == 3 and c in (1, 3):
        return read_square(path, c, h) if h == w else read_picture(path, c, (h, w))
    if suffix in SUFFIXES:
        raise ValueError(f"{path}: this network takes uint8 arrays of shape {shape}, in .npy files.")
    if suffix != ".npy":
        raise ValueError(f"{path} is not an image: its name must end in one of {', '.join(_SUFFIXES)}.")
    pixels = read_npy(path)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} {pixels.shape}"
        mend = "bring it to that size" if pixels.shape != shape else "convert its pixels, from 0 to 255, to uint8"
        raise ValueError(f"{path} holds {found}, and the network takes uint8 {shape}; {mend}.")
    return pixels


def _classified(network: IntegerNetwork, path: Path) -> Classified:
    logits = network(read_pixels(network.folded, path)[None])[0]
    label = int(logits.argmax())
    return Classified(path, label, float(logits[label]) * network.readout.unit)
