"""Several JAX processes that do one run together: they start, wait for each other, and process 0 writes the files.

All of them run the same program on the same inputs and see the same directory. In a single process nothing here does
anything.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices

from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, replicated

P = ParamSpec("P")
R = TypeVar("R")
# Seconds that a process which ends waits for the others: enough for them to end too, after their last barrier.
_PATIENCE = 30


def initialize(processes: int | None, process_id: int | None, coordinator: str | None) -> None:
    """Make this process one of several; to be called before JAX computes anything.

    Args:
        processes: how many there are; None, like the other two, lets JAX ask the cluster (Slurm, Open MPI, a TPU pod).
        process_id: which one this is, from 0 on.
        coordinator: ``host:port`` at which process 0 listens.

    Raises:
        ValueError: a number out of its range, an address without a port, or a cluster that JAX does not know.
    """
    if processes is not None:
        if processes < 1 or process_id is None or not 0 <= process_id < processes:
            raise ValueError(f"process-id must be at least 0 and below processes, got {process_id} of {processes}.")
        host, _, port = (coordinator or "").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"coordinator must be HOST:PORT, the same for all processes, got {coordinator!r}.")
    # Its handler would take SIGTERM from the one that stops training; see any_process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process_id, shutdown_timeout_seconds=_PATIENCE)
    except ValueError as error:
        raise ValueError(f"JAX cannot join the processes: {error}") from None


def is_process_zero() -> bool:
    """Whether this process is the one that writes files and prints results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        sync_global_devices(name)


def fail_together(function: Callable[P, R]) -> Callable[P, R]:
    """The function, but where it fails in one process it fails in all, so that none waits for one that has gone."""

    @wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        if jax.process_count() == 1:
            return function(*arguments, **options)
        try:
            result, failure = function(*arguments, **options), None
        except Exception as error:
            result, failure = None, error
        if process_allgather(np.int32(failure is not None)).any():
            raise failure or ValueError("another process has failed, and says why.")
        return cast(R, result)

    return checked


def on_process_zero(work: Callable[[], object]) -> None:
    """Let process 0 do something to the files, once all have come here; all go on when it is done.

    What a process has read before, and decided by, is therefore the same in all of them.
    """
    barrier("process 0 writes")
    fail_together(lambda: work() if is_process_zero() else None)()


def write_on_process_zero(path: Path, data: bytes) -> None:
    """:func:`~qpsnn_jax.runtime.files.write_atomically`, by process 0, while the others wait."""
    on_process_zero(lambda: write_atomically(path, data))


def any_process(question: Callable[[], bool]) -> Callable[[], bool]:
    """A question with the same answer in every process: yes, when it is yes in any.

    Each process must ask equally often. Among several, an answer is that to the time before (at first no), so that no
    step waits for it.
    """
    if jax.process_count() == 1:
        return question
    mesh = data_mesh()
    own = len(mesh.local_devices)
    any_of = jax.jit(jnp.max, out_shardings=replicated(mesh))
    last = np.zeros((), np.int32)

    def answer() -> bool:
        nonlocal last
        mine = jax.make_array_from_process_local_data(batch_sharding(mesh), np.full(own, question(), np.int32))
        before, last = last, any_of(mine)
        return bool(before)

    return answer
