"""Batches of a data set that does not fit on the device, through Grain.

Batch k depends only on the seed, k and the number of hosts, not on worker processes or restarts.
The state of the iterator is a small dictionary for the checkpoint; setting it continues with the next batch.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, Protocol

import numpy as np

from qpsnn_jax.data.dataset import Source
from qpsnn_jax.runtime.checks import integer

# Reading threads in each process, and batches they read ahead; Pillow releases the GIL while it decodes.
_THREADS = 4
_AHEAD = 4
# Grain uses 32 bits of a seed.
_MOST = 2**32 - 1
# Seconds that closing waits for a batch that is being read.
_PATIENCE = 10.0


class Resumable(Protocol):
    """Something read in order, whose position can be saved and restored."""

    def get_state(self) -> dict[str, Any]:
        """Return the position, as plain values for JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at a position from ``get_state`` of an iterator made with the same arguments."""
        ...

    def close(self) -> None:
        """Stop reading ahead, and the worker processes, if any."""
        ...


class Batches(Resumable, Protocol):
    """A resumable iterator over batches."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...


def stream(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    workers: int = 0,
    shard_by_process: bool = True,
    transform: Callable[[Any, np.random.Generator], Any] | None = None,
    epochs: int | None = None,
    shuffle: bool = True,
) -> Batches:
    """Read a source in batches, shuffled anew in every epoch.

    An epoch is shuffled globally, then dealt out to the hosts. Examples that do not fill a batch on every host are
    dropped from that epoch; the next epoch drops others.

    Args:
        source: the examples; pickled to the workers, if any.
        batch_size: examples in a batch of this host.
        seed: chooses the order and the transform's draws, 0 to 2³²-1; the same on every host.
        workers: worker processes that read ahead; 0 reads within this process, with a few threads.
        shard_by_process: give each JAX process its own part of every epoch; else each reads everything.
        transform: maps an example and its own random generator to a pytree of arrays of fixed shapes, for instance
            :class:`~qpsnn_jax.data.augment.host_crop.TrainCrop`.
        epochs: passes over the source, None for endless.
        shuffle: False keeps the order of the source, for evaluation.

    Returns:
        An iterator over stacked examples, whose state can be saved and set in the middle of an epoch.

    Raises:
        ValueError: a number out of its range, or a source with less than one batch for each host.
    """
    import grain

    batch_size = integer("batch_size", batch_size, 1, _MOST)
    seed = integer("seed", seed, 0, _MOST)
    workers = integer("workers", workers, 0, _MOST)
    epochs = None if epochs is None else integer("epochs", epochs, 1, _MOST)
    hosts = grain.sharding.ShardByJaxProcess() if shard_by_process else grain.sharding.NoSharding()
    share = len(source) // hosts.shard_count
    if share < batch_size:
        held = f"{len(source)} examples for {hosts.shard_count} host(s)"
        raise ValueError(f"batch_size must be at most the examples of one host, got {batch_size} with {held}.")
    data = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        data = data.shuffle()
    # Before the split over hosts, so that the draws of an example do not depend on the number of hosts.
    if transform is not None:
        data = data.random_map(transform)
    data = data[hosts.shard_index : share * hosts.shard_count : hosts.shard_count]
    data = data.batch(batch_size, drop_remainder=True).repeat(epochs)
    batches = data.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD))
    if workers:
        _settle_flags()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        return _Apart(iter(batches.mp_prefetch(options)))
    return iter(batches)


class _Apart:
    """Batches of worker processes that ignore Ctrl-C at a terminal; the main program stops them.

    Processes inherit the mask of blocked signals, and Grain starts them when batches are requested. So a thread that
    blocks interrupts requests each batch. The caller that waits for it does not block them. A batch that was requested
    before an interrupt is returned by the next request.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._asking: threading.Thread | None = None
        # Otherwise it is started with the first worker, and then it no longer blocks interrupts.
        resource_tracker.ensure_running()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._asking is None:
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()
        batch, error = self._answers.get()
        self._asking = None
        if error is not None:
            raise error
        return batch

    def _ask(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._answers.put((next(self._batches), None))
        except BaseException as error:
            self._answers.put((None, error))

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        if self._asking is not None:
            self._answers.get()
            self._asking = None
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()
        if self._asking is not None:
            # It may have started a worker in the meantime.
            self._asking.join(_PATIENCE)
            self._batches.close()


def _settle_flags() -> None:
    """Give Grain's absl flags their defaults in a program that does not parse any; its workers need them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
