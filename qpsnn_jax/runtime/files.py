"""Atomic writing of files, and errors that name the file."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

_LONGEST_REASON = 200
_LFS = b"version https://git-lfs"


def user_cache() -> Path:
    """The folder of this program in the user's cache, ``$XDG_CACHE_HOME`` or ``~/.cache``; it need not exist.

    Raises:
        RuntimeError: the user has no home directory, and ``XDG_CACHE_HOME`` is not set.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "qpsnn_jax"


def write_atomically(path: str | PathLike[str], data: bytes) -> None:
    """Write one file as :func:`write_together` does."""
    write_together({Path(path): data})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write each file to its path + ``.tmp``, flush them to the disk, then rename all; existing files are replaced.

    Raises:
        OSError: one cannot be written; the error names it. Existing files are unchanged, and no
            temporary file remains.
    """
    paths = {path: Path(f"{path}.tmp") for path in contents}
    try:
        for (path, temporary), data in zip(paths.items(), contents.values(), strict=True):
            with naming(path):
                _write_flushed(path, temporary, data)
        for path, temporary in paths.items():
            with naming(path):
                os.replace(temporary, path)
    except BaseException:
        for temporary in paths.values():
            with suppress(OSError):
                temporary.unlink()
        raise


def _write_flushed(path: Path, temporary: Path, data: bytes) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_regular(path: str | PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. A pipe or a device could block the reader for ever.

    Raises:
        ValueError: it is a pipe or a device.
        OSError: it is missing, a folder, or cannot be read.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError(f"{os.fspath(path)} is not a regular file.")
    return open(path, "rb")


def unreadable(path: str | PathLike[str], reason: str) -> ValueError:
    """The error of an invalid file: ``reason``, or that it is a Git LFS pointer."""
    try:
        with open_regular(path) as file:
            pointer = file.read(len(_LFS)) == _LFS
    except (OSError, ValueError):
        pointer = False
    if pointer:
        reason = "is a Git LFS pointer in place of the file; fetch the file by: git lfs pull"
    return ValueError(f"{os.fspath(path)} {reason}.")


def reason_of(error: Exception) -> str:
    """The first line of a library's error, shortened, without control characters and without a full stop."""
    line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line[:_LONGEST_REASON]).strip(" .:")


@contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """Add ``path`` to an ``OSError`` raised inside, because that of a full disk does not name the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
