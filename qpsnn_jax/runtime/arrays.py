"""Reading NumPy's files. Any damage raises one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, is_zipfile

import numpy as np

from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable

# Weights hardly shrink when they are compressed, and a small archive may be of zeros that were pruned.
_MOST_BY_FILE, _MANY = 16, 2**28


def read_npy(path: str | PathLike[str]) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped: nothing is allocated for the size that its header declares.

    Raises:
        ValueError: the file does not hold an array, holds Python objects, or is damaged.
        OSError: it is missing or cannot be opened.
    """
    with open_regular(path), _damage(path):
        return np.lib.format.open_memmap(Path(path), mode="r")


def read_npz(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises:
        ValueError: the file is not an archive of arrays, holds Python objects, is damaged, or declares more than
            256 MiB and sixteen times its size.
        OSError: it is missing or cannot be opened.
    """
    with open_regular(path) as file, _damage(path):
        _check_sizes(file)
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array, not an archive")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{other[0]!r} is not an array")
        return arrays


def _check_sizes(file: BinaryIO) -> None:
    """Check the sizes that an archive declares; no more than they say is read of its members."""
    if is_zipfile(file):
        size = file.seek(0, 2)
        most = max(_MANY, _MOST_BY_FILE * size)
        if (declared := sum(member.file_size for member in ZipFile(file).infolist())) > most:
            raise ValueError(f"it declares {declared:,} bytes, and at most {most:,} are read from {size:,}")
    file.seek(0)


@contextmanager
def _damage(path: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged header raises what the parsers of Python, zip and zlib raise
        raise unreadable(path, f"is not a readable file of arrays ({reason_of(error)})") from None
