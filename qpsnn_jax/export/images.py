"""Classifying image files with a packed network. NumPy and Pillow alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.integer_network import IntegerNetwork

_MODES = {1: "L", 3: "RGB"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".npy")


class Classified(NamedTuple):
    """An image file, the class with the largest logit, and the time-mean of its output current."""

    path: Path
    label: int
    current: float


def classify(folded: Folded, path: Path) -> Iterator[Classified]:
    """Classify an image, or every image in a folder, in the order of their names.

    Args:
        folded: the network, from :func:`qpsnn_jax.export.packed.load_packed`.
        path: a picture in a usual format, a NumPy file of uint8 pixels ``h w c`` or frames ``t h w c``, or a folder
            of them.

    Returns:
        An iterator over :class:`Classified`.

    Raises:
        ValueError: a folder without images, a file that holds none, or one of another size than the network's.
        OSError: a file that cannot be read.
    """
    network = IntegerNetwork.of(folded)
    paths = [path]
    if path.is_dir():
        paths = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"{path} holds no images ({', '.join(_SUFFIXES)}).")
    for file in paths:
        logits = network(read_pixels(folded, file)[None])[0]
        label = int(logits.argmax())
        yield Classified(file, label, float(logits[label]) * network.readout.unit)


def read_pixels(folded: Folded, path: Path) -> np.ndarray:
    """Pixels of a file in the shape that a network takes, uint8 ``h w c`` or ``t h w c``.

    Raises:
        ValueError: the file holds no image, or one of another size.
        OSError: the file cannot be read.
    """
    h, w, c = folded.image.shape
    shape = (folded.timesteps, h, w, c) if folded.image.frames else (h, w, c)
    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        elif len(shape) == 4 or c not in _MODES:
            raise ValueError(f"{path}: this network takes uint8 arrays of shape {shape}, in .npy files.")
        else:
            with Picture.open(path) as picture:
                pixels = np.asarray(picture.convert(_MODES[c])).reshape(picture.height, picture.width, c)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image.") from None
    except (EOFError, Picture.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged or too large ({error}).") from None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} {pixels.shape}"
        raise ValueError(f"{path} holds {found}, and the network takes uint8 {shape}; bring it to that size.")
    return pixels
