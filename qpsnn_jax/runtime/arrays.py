"""Reading NumPy's files. Any damage raises one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np

from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable


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
        ValueError: the file is not an archive of arrays, holds Python objects, or is damaged.
        OSError: it is missing or cannot be opened.
    """
    with open_regular(path) as file, _damage(path):
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array, not an archive")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{other[0]!r} is not an array")
        return arrays


@contextmanager
def _damage(path: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged header raises what the parsers of Python, zip and zlib raise
        raise unreadable(path, f"is not a readable file of arrays ({reason_of(error)})") from None
