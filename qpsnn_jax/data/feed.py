"""Batches for training, scoring and evaluation, from arrays on the device or from streamed files.

Batch k of a training feed depends only on the seed and k, and the position of a feed can be saved and restored.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qpsnn_jax.data.dataset import Arrays, Examples, Files, Source
from qpsnn_jax.data.stream import Resumable, stream
from qpsnn_jax.runtime.sharding import batch_sharding, device_put, from_process_local_data, replicated

# Pixels in a batch of evaluation: 500 images of 64×64, fewer of larger ones.
_EVALUATION_PIXELS = 500 * 64 * 64
_EVALUATION_BATCH = 500


class Feed(Resumable, Protocol):
    """Endless batches of images and labels."""

    def __next__(self) -> Arrays: ...

    def several(self, number: int) -> Arrays:
        """The next n batches of one epoch, stacked: ``n b …``."""
        ...


def count(examples: Examples) -> int:
    """Count the examples."""
    return len(examples.source if isinstance(examples, Files) else examples.labels)


def feed(examples: Examples, batch_size: int, seed: int, *, workers: int = 0, mesh: Mesh | None = None) -> Feed:
    """Endless batches for training: each epoch in its own order, without an incomplete last batch.

    Arrays are copied to the device once and permuted there by a key, ``fold_in(key(seed), epoch)``. Files are read and
    cropped by :func:`~qpsnn_jax.data.stream.stream`.

    Args:
        examples: at least one batch of them.
        batch_size: examples in a batch.
        seed: chooses the orders and the crops.
        workers: processes that read files ahead, 0 for none; arrays need none.
        mesh: of the devices over which each batch is split; arrays are replicated on all of them. Of files, each
            process reads its own part of every batch.
    """
    if isinstance(examples, Files):
        return _Streamed(examples, batch_size, seed, workers, mesh)
    return _OnDevice(examples, batch_size, seed, mesh)


def evaluation_batches(examples: Examples, *, workers: int = 0) -> Iterator[Arrays]:
    """All examples once, in their order, in batches of one size but for the last, which may be smaller."""
    total, size = count(examples), _evaluation_size(examples)
    if not isinstance(examples, Files):
        yield from (Arrays(examples.images[i : i + size], examples.labels[i : i + size]) for i in range(0, total, size))
        return
    options = {"shard_by_process": False, "transform": examples.centre, "epochs": 1, "shuffle": False}
    rest = total % size
    for first, last, batch_size in ((0, total - rest, size), (total - rest, total, rest)):
        if first < last:
            part = Selected(examples.source, np.arange(first, last))
            with closing(stream(part, batch_size, 0, workers=workers, **options)) as read:
                yield from (Arrays(batch["image"], batch["label"]) for batch in read)


def sample(
    examples: Examples, batch_size: int, batches: int, seed: int = 0, *, workers: int = 0
) -> Iterator[np.ndarray]:
    """At most ``batches`` full batches of images without augmentation: the first of arrays, or files drawn by seed."""
    size = min(batch_size, count(examples))
    batches = min(batches, count(examples) // size)
    if isinstance(examples, Files):
        options = {"shard_by_process": False, "transform": examples.centre, "epochs": 1}
        with closing(stream(examples.source, size, seed, workers=workers, **options)) as read:
            yield from (next(read)["image"] for _ in range(batches))
    else:
        yield from (examples.images[i * size : (i + 1) * size] for i in range(batches))


def first(examples: Examples, number: int = 1) -> Arrays:
    """The first examples, files cropped as for evaluation; fewer if there are not so many."""
    if isinstance(examples, Files):
        taken = range(min(number, len(examples.source)))
        found = [examples.centre(examples.source[i], np.random.default_rng(0)) for i in taken]
        return Arrays(np.stack([x["image"] for x in found]), np.stack([x["label"] for x in found]))
    return Arrays(examples.images[:number], examples.labels[:number])


def everything(examples: Examples) -> Arrays:
    """All examples in memory, files cropped as for evaluation."""
    if not isinstance(examples, Files):
        return examples
    images, labels = zip(*evaluation_batches(examples), strict=True)
    return Arrays(np.concatenate(images), np.concatenate(labels))


class Selected:
    """Some examples of a source, by index; picklable for worker processes."""

    def __init__(self, source: Source, chosen: np.ndarray) -> None:
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._chosen[index])]


class _OnDevice:
    """Arrays on the device; the state is the number of batches returned so far."""

    def __init__(self, arrays: Arrays, batch_size: int, seed: int, mesh: Mesh | None) -> None:
        places = (None, None) if mesh is None else (replicated(mesh), batch_sharding(mesh))
        self._arrays, self._size, self._key = device_put(arrays, places[0]), batch_size, jax.random.key(seed)
        self._take = jax.jit(_take, static_argnums=3, out_shardings=places[1])
        together = None if mesh is None else batch_sharding(mesh, axis=1)
        self._several = jax.jit(_several, static_argnums=(3, 4), out_shardings=together)
        self._per_epoch = len(arrays.labels) // batch_size
        self._given, self._epoch, self._order = 0, -1, None

    def __next__(self) -> Arrays:
        return self._take(*self._passed(1), self._size)

    def several(self, number: int) -> Arrays:
        return self._several(*self._passed(number), self._size, number)

    def _passed(self, number: int) -> tuple[Arrays, Array, int]:
        """The arrays, the order of the epoch, and the position of the next batches in it, which count as returned."""
        epoch, row = divmod(self._given, self._per_epoch)
        if epoch != self._epoch or self._order is None:
            self._epoch, self._order = epoch, _order(self._key, epoch, len(self._arrays.labels))
        self._given += number
        return self._arrays, self._order, row

    def get_state(self) -> dict[str, Any]:
        return {"batches": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self._given = int(state["batches"])

    def close(self) -> None:
        """Do nothing: there are no worker processes."""


class _Streamed:
    """Files through Grain; the state is that of Grain's iterator, which depends on the number of workers."""

    def __init__(self, files: Files, batch_size: int, seed: int, workers: int, mesh: Mesh | None) -> None:
        self._place = None if mesh is None else batch_sharding(mesh)
        own = batch_size if mesh is None else batch_size // jax.process_count()
        options = {"shard_by_process": mesh is not None, "transform": files.crop}
        self._read, self._workers = stream(files.source, own, seed, workers=workers, **options), workers

    def __next__(self) -> Arrays:
        batch = next(self._read)
        return from_process_local_data(Arrays(batch["image"], batch["label"]), self._place)

    def several(self, number: int) -> Arrays:
        return jax.tree.map(lambda *parts: jnp.stack(parts), *[next(self) for _ in range(number)])

    def get_state(self) -> dict[str, Any]:
        return {"workers": self._workers, "read": self._read.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["workers"] != self._workers:
            raise ValueError(f"data.workers must be {state['workers']} here, as when the training was stopped.")
        self._read.set_state(state["read"])

    def close(self) -> None:
        self._read.close()


@partial(jax.jit, static_argnums=2)
def _order(key: Array, epoch: int, total: int) -> Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), total)


def _take(arrays: Any, order: Array, row: Array | int, size: int) -> Any:
    index = jax.lax.dynamic_slice(order, (row * size,), (size,))
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), arrays)


def _several(arrays: Any, order: Array, row: int, size: int, number: int) -> Any:
    return jax.vmap(lambda row: _take(arrays, order, row, size))(row + jnp.arange(number))


def _evaluation_size(examples: Examples) -> int:
    total = count(examples)
    height, width = (examples.shape if isinstance(examples, Files) else examples.images.shape[-3:])[:2]
    largest = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // (height * width)))
    fewest = -(-total // largest)
    # A last batch of another size would need its own compilation; a few more batches of one size are faster.
    equal = next((n for n in range(fewest, min(2 * fewest, total) + 1) if total % n == 0), fewest)
    return -(-total // equal)
