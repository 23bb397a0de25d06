"""Pictures decoded once: a whole data set at one size, in arrays on disk that are mapped into memory.

They are stored in the user's cache under a name that changes with the pictures, and may be deleted at any time.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.data.dataset import Arrays, Examples, Files
from qpsnn_jax.data.pictures import without_warnings
from qpsnn_jax.runtime.files import naming, user_cache
from qpsnn_jax.runtime.progress import progress

# Arrays up to this size are held in memory and on the device; larger ones are streamed.
_IN_MEMORY = 2**30
_CHUNK = 256  # pictures in memory while they are decoded
_VERSION = "1"  # of the format of these files; pictures of another version are decoded again


class Decoded(NamedTuple):
    """All pictures of a data set at one size.

    Attributes:
        place: folder of ``pixels.npy``.
        pixels: uint8 ``n h w c``, mapped from the file.
        moments: sums of the pixels and of their squares in each picture and channel, int64 ``n 2 c``.
    """

    place: Path
    pixels: np.ndarray
    moments: np.ndarray


def decode_all(
    name: str, identity: str, number: int, shape: tuple[int, int, int], read: Callable[[int], np.ndarray]
) -> Decoded:
    """Decode pictures, or find them decoded by an earlier call.

    Args:
        name: of the data set, for messages.
        identity: a text that changes when any of the pictures changes.
        number: of pictures.
        shape: ``h w c`` of all of them.
        read: the picture of an index, uint8 of that shape; called by several threads.

    Raises:
        ValueError: pictures cannot be read; one sentence names all of them.
        OSError: the cache cannot be written.
    """
    text = "\n".join((_VERSION, str(number), str(shape), identity))
    place = user_cache() / "pictures" / hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
    found = _stored(place, (number, *shape))
    if found is None:
        with naming(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)  # may exist, but damaged
            temporary = Path(tempfile.mkdtemp(prefix="unfinished-", dir=place.parent))
        try:
            _write(temporary, name, number, shape, read)
            with suppress(OSError):  # another process was faster
                os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = _stored(place, (number, *shape))
    if found is None:
        raise ValueError(f"{place} was changed while it was written; start again.")
    return found


def identity(paths: list[Path]) -> str:
    """A text that changes when a file does: the paths, sizes and modification times of all of them."""

    def facts(path: Path) -> str:
        try:
            found = path.stat()
        except OSError:
            return f"{path} missing"
        return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ino}"

    return "\n".join(map(facts, paths))


def examples(decoded: Decoded, rows: np.ndarray, labels: np.ndarray) -> Examples:
    """Some of the pictures with their labels: in memory up to 1 GiB, else as files that are read while training runs.

    Args:
        decoded: from :func:`decode_all`.
        rows: which pictures, in this order.
        labels: classes of these pictures, int32.
    """
    shape = decoded.pixels.shape[1:]
    if len(rows) * math.prod(shape) <= _IN_MEMORY:
        return Arrays(decoded.pixels[rows], labels)
    return Files(_Rows(decoded.place, rows, labels), shape, _as_it_is, _as_it_is)


def statistics(moments: np.ndarray, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel, pixels scaled to [0, 1].

    Args:
        moments: sums of the pixels and of their squares, int64 ``2 c``.
        pixels: number of pixels in the sums.
    """
    total, squares = moments.tolist()  # Python's integers, because the products below are beyond int64
    mean = tuple(s / (255 * pixels) for s in total)
    std = tuple(((pixels * q - s * s) / (255 * pixels) ** 2) ** 0.5 for s, q in zip(total, squares, strict=True))
    return mean, std


def moments_of(picture: np.ndarray) -> np.ndarray:
    """Sums of the pixels of a picture ``h w c`` and of their squares, int64 ``2 c``."""
    flat = picture.reshape(-1, picture.shape[-1])
    return np.stack([flat.sum(axis=0, dtype=np.int64), np.square(flat, dtype=np.int64).sum(axis=0)])


class _Rows:
    """Pictures by row, each with its label; pickled to worker processes without the pixels."""

    def __init__(self, place: Path, rows: np.ndarray, labels: np.ndarray) -> None:
        self._place, self._rows, self._labels = place, rows, labels

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.load(self._place / "pixels.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pixels"}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.array(self._pixels[self._rows[index]]), "label": np.int32(self._labels[index])}


def _as_it_is(example: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    return example


def _stored(place: Path, shape: tuple[int, ...]) -> Decoded | None:
    """The decoded pictures in a folder; None if they are missing or damaged."""
    try:
        pixels, moments = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("pixels", "moments"))
    except (OSError, ValueError, EOFError):
        return None
    whole = pixels.shape == shape and moments.shape == (shape[0], 2, shape[-1])
    return Decoded(place, pixels, moments) if whole and pixels.dtype == np.uint8 else None


def _write(
    folder: Path, name: str, number: int, shape: tuple[int, int, int], read: Callable[[int], np.ndarray]
) -> None:
    moments = np.empty((number, 2, shape[-1]), np.int64)
    with naming(folder), (folder / "pixels.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (number, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for row, picture in enumerate(_decoded(name, number, read)):
            moments[row] = moments_of(picture)
            file.write(picture.tobytes())
        np.save(folder / "moments.npy", moments)


def _decoded(name: str, number: int, read: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """All pictures in order, decoded by threads, because Pillow releases the GIL."""
    reasons: list[str] = []

    def attempt(index: int) -> np.ndarray | str:
        try:
            return read(index)
        except ValueError as error:
            return str(error).rstrip(".")
        except OSError as error:
            return f"{error.filename}: {error.strerror or error}"

    with (
        without_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(f"decoding {name}", total=number) as shown,
    ):
        for first in range(0, number, _CHUNK):
            found = list(pool.map(attempt, range(first, min(first + _CHUNK, number))))
            reasons += [reason for reason in found if isinstance(reason, str)]
            shown.advance(len(found), "")
            if not reasons:
                yield from (picture for picture in found if not isinstance(picture, str))
    if reasons:
        raise unreadable_pictures(name, reasons)


def unreadable_pictures(name: str, reasons: list[str]) -> ValueError:
    """The error that names all pictures of a data set that cannot be read."""
    pictures = "1 picture" if len(reasons) == 1 else f"{len(reasons):,} pictures"
    return ValueError(f"{name} has {pictures} that cannot be read: {'; '.join(reasons)}.")
