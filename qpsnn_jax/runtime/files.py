"""Writing a file whole or not at all, and errors that name the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


def write_atomically(path: str | PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` + ``.tmp``, flush it to the disk, then rename it; a file that is there is replaced.

    Raises:
        OSError: it cannot be written; the error names ``path``. What was there is unharmed, and nothing is left
            beside it.
    """
    path = Path(path)
    temporary = Path(f"{path}.tmp")
    with naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """Let an ``OSError`` from within name ``path``; that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
