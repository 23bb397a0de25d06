"""One run at a time in a directory: a lock that is released when its owner ends."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qpsnn_jax.runtime.processes import fail_together, is_process_zero

# The file in the locked directory. It is not deleted: otherwise two runs could lock two files of the same name.
LOCK_FILE = ".lock"


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold ``directory``, so that no other program that asks for it writes there at the same time.

    The operating system holds the lock for the process and frees it when the process ends, however it ends. Of several
    processes of one run, process 0 takes it; all must enter together, after
    :func:`~qpsnn_jax.runtime.processes.initialize`. The directory is created if missing.

    Files read before the lock was taken may have changed since: read them again inside.

    Raises:
        ValueError: another process holds the directory.
        OSError: the directory cannot be created or written.
    """
    with ExitStack() as stack:
        fail_together(lambda: stack.enter_context(_flock(directory)) if is_process_zero() else None)()
        yield


@contextmanager
def _flock(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("a+b") as file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            owner = file.read(20).decode("ascii", "replace").strip()
            raise ValueError(
                f"{directory} is in use by another run (process {owner or 'unknown'}); wait until it ends, stop it, or "
                "choose another --out."
            )
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())
        file.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    """Whether the file could be locked; closing it, or the end of the process, frees it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        warnings.warn("files cannot be locked here; do not start a second run in this directory.", stacklevel=2)
    return True
