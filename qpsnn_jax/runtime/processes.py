"""Several JAX processes that carry out one run: they start together, wait for each other, and process 0 writes files.

All of them run the same program on the same inputs and see the same directory. In a single process, none of this
has an effect.
"""

import atexit
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices

from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.runtime.sharding import batch_sharding, data_mesh, replicated
from qpsnn_jax.runtime.witness import Witness

P = ParamSpec("P")
R = TypeVar("R")
# Seconds after which a process that no longer answers counts as dead.
_HEARTBEAT = 20
# Seconds that a process waits for the others at its end, so that they can end too after their last barrier.
_PATIENCE = 30
# Seconds to resolve the name of a host, and for all processes to start.
_LOOKUP, _START = 10, 120
_DIED = (
    "qpsnn: error: a process of this run died. Start all of them again with the same commands: the run resumes from "
    "its last checkpoint."
)


def initialize(processes: int | None, process_id: int | None, coordinator: str | None) -> None:
    """Make this process one of several; to be called before JAX computes anything.

    From then on the death of one process ends all within a minute, each with a sentence on stderr and a status other
    than 0; see :func:`exit_if_peer_died`.

    Args:
        processes: how many there are; None, like the other two, lets JAX ask the cluster (Slurm, Open MPI, a TPU pod).
        process_id: which one this is, from 0 on.
        coordinator: ``host:port`` at which process 0 listens.

    Raises:
        ValueError: a number out of its range, an address that is invalid or in use, a cluster that JAX does not know,
            or processes that do not start.
    """
    if processes is not None:
        if processes < 1 or process_id is None or not 0 <= process_id < processes:
            raise ValueError(f"process-id must be at least 0 and below processes, got {process_id} of {processes}.")
        _check_address(coordinator or "", listen=process_id == 0)
    place = coordinator or "the address that the cluster gives"
    witness = Witness(
        f"qpsnn: error: not all processes connected to {place} within {_START} seconds. Start each of them once, "
        "with the same number of processes and the same coordinator."
    )
    # Its handler would replace the SIGTERM handler that stops training; see any_process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        witness.dismiss()
        raise ValueError(f"JAX cannot join the processes at {place}: {str(error).splitlines()[0]}") from None
    witness.instruct(_DIED)
    atexit.register(_leave, witness)


def _leave(witness: Witness) -> None:
    jax.distributed.shutdown()  # Waits for the others, and crashes if one of them has died.
    witness.dismiss()


def _check_address(coordinator: str, *, listen: bool) -> None:
    """Check the address before JAX uses it: JAX crashes, or waits for long, if it is wrong."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"coordinator must be HOST:PORT with a port of 1 to 65535, the same for all processes, got {coordinator!r}."
        )
    if not _known(host.strip("[]")):
        raise ValueError(f"coordinator {coordinator!r} names a host that cannot be resolved.")
    if listen:
        _check_port(int(port))


def _known(host: str) -> bool:
    """Whether the name of a host is resolved within some seconds."""
    found = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            found.extend(socket.getaddrinfo(host, None))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_LOOKUP)
    return bool(found)


def _check_port(port: int) -> None:
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(
            f"process 0 cannot listen at port {port} ({reason}); choose another for all processes."
        ) from None


def exit_if_peer_died(error: Exception) -> None:
    """End this process at once if an error of JAX means that another process has died.

    The :class:`~qpsnn_jax.runtime.witness.Witness` prints the sentence. A normal exit would wait for the dead process.
    """
    if jax.distributed.is_initialized() and _PEER_DIED.search(str(error)):
        sys.stdout.flush()
        os._exit(1)


# In the errors of CPU and GPU collectives and of JAX's service about a peer that does not answer.
_PEER_DIED = re.compile(r"gloo|nccl|coordination ?service|heartbeat|barrier", re.IGNORECASE)


def is_process_zero() -> bool:
    """Whether this process is the one that writes files and prints results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        sync_global_devices(name)


def fail_together(function: Callable[P, R]) -> Callable[P, R]:
    """The function, but if it fails in one process it fails in all, so that none waits for one that has ended."""

    @wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        if jax.process_count() == 1:
            return function(*arguments, **options)
        try:
            result, failure = function(*arguments, **options), None
        except Exception as error:
            result, failure = None, error
        if process_allgather(np.int32(failure is not None)).any():
            raise failure or ValueError("another process failed; see its error.")
        return cast(R, result)

    return checked


def on_process_zero(work: Callable[[], object]) -> None:
    """Let process 0 change files, once all processes have arrived here; all continue when it is done.

    So the files that processes read and base decisions on are the same for all of them.
    """
    barrier("process 0 writes")
    fail_together(lambda: work() if is_process_zero() else None)()


def write_on_process_zero(path: Path, data: bytes) -> None:
    """:func:`~qpsnn_jax.runtime.files.write_atomically`, by process 0, while the others wait."""
    on_process_zero(lambda: write_atomically(path, data))


def any_process(question: Callable[[], bool]) -> Callable[[], bool]:
    """Whether a condition holds in any process, with the same answer in all of them.

    All processes must call it equally often. With several processes, the answer is that of the previous call (at first
    False), so that no step waits for it.
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
