"""NumPy's files, read so that any damage is one sentence that names the file."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.runtime.files import open_regular, unreadable


def read_npy(path: str | PathLike[str]) -> np.ndarray:
    """The array of an ``.npy`` file, mapped into memory: nothing is allocated for what its header declares.

    Raises:
        ValueError: it holds no array, an array of Python objects, or is damaged.
        OSError: it is missing or cannot be opened.
    """
    array = _load(path, mmap_mode="r")
    if not isinstance(array, np.ndarray):
        raise unreadable(path, "is an archive of arrays and no .npy file")
    return array


def read_npz(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises:
        ValueError: it is no such file, holds Python objects, or is damaged.
        OSError: it is missing or cannot be opened.
    """
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise unreadable(path, "is a single array and no .npz file")
    with archive:
        return {name: _guarded(path, archive.__getitem__, name) for name in archive.files}


def _load(path: str | PathLike[str], **options: Any) -> Any:
    with open_regular(path):
        return _guarded(path, np.load, Path(path), allow_pickle=False, **options)


def _guarded(path: str | PathLike[str], read: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return read(*arguments, **options)
    except Exception as error:  # a damaged header raises what the parsers of Python, zip and zlib raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(" .:")
        raise unreadable(path, f"is no readable file of arrays ({reason})") from None
