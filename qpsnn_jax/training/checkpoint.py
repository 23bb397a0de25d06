"""Checkpoints: arrays by Orbax, with the graph and everything else that is needed to restore them.

A checkpoint is a folder ``step_N`` with ``arrays`` (Orbax, one array for each leaf, under its path in the tree) and
``meta.json``: the graph, the caller's notes, the dtype and shape of every array, and the CRC-32 of every file. It is
written under a temporary name, flushed to the disk and renamed, so one without ``.tmp`` is complete, also after a power
cut. Processes save and restore together.

Orbax's own ``Checkpointer`` renames and deletes too, but commits before the checksums of its files can be written, and
it has no checksums of the values of arrays: a changed byte is read as another weight.
"""

import glob
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.runtime.files import naming
from qpsnn_jax.runtime.keys import data_to_key, key_to_data
from qpsnn_jax.runtime.logs import log_level
from qpsnn_jax.runtime.naming import NotImportedError
from qpsnn_jax.runtime.processes import is_process_zero, on_process_zero
from qpsnn_jax.runtime.sharding import data_mesh, device_put, replicated
from qpsnn_jax.training import files

_KEPT = 2
# Names of arrays that Orbax takes as they are.
_PLAIN_NAME = re.compile(r"[\w/-]+")


class DamagedError(ValueError):
    """A checkpoint cannot be read as it was written. Whoever asked for it knows the remedy."""


class Checkpoint(NamedTuple):
    """A checkpoint whose arrays have not been read yet.

    ``path`` is its folder, ``notes`` are the caller's, ``arrays`` names every array with its dtype and shape, such as
    ``{"params/conv1/kernel": "float32[3, 3, 16, 32]"}``, and ``files`` holds the CRC-32 of every file.
    """

    path: Path
    step: int
    graph: Graph
    notes: dict[str, Any]
    arrays: dict[str, str]
    files: dict[str, int]


def save(directory: Path, step: int, graph: Graph, state: Any, notes: dict[str, Any]) -> Path:
    """Write ``step_N`` into ``directory`` and delete all but the last two checkpoints there.

    Args:
        directory: created if missing.
        step: N, 0 or more.
        graph: of the network that ``state`` belongs to.
        state: a pytree of arrays; those that are not on the devices of all processes must be the same in each. Sharded
            arrays are written by the processes that hold them.
        notes: plain values for JSON.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it cannot be written, for instance because the disk is full. Nothing of it remains, and earlier
            checkpoints are unchanged.
    """
    final, temporary = directory / f"step_{step}", directory / f"step_{step}.tmp"
    meta = {"step": step, "graph": json.loads(to_json(graph)), "notes": notes, "arrays": _described(state)}
    with _removed_on_failure(temporary), naming(final):
        on_process_zero(lambda: _make_anew(temporary))
        _write_arrays(temporary / "arrays", _by_name(state))
        on_process_zero(lambda: _finish(temporary, final, meta))
    return final


def latest(directory: Path) -> Checkpoint | None:
    """The checkpoint with the highest step in a directory; None if there is none.

    Raises:
        DamagedError: its description is damaged.
    """
    steps = _steps(directory)
    return read(directory / f"step_{steps[-1]}") if steps else None


def read(path: Path) -> Checkpoint:
    """The description of the checkpoint in the folder ``path``.

    Raises:
        DamagedError: its description is damaged.
        ValueError: there is no checkpoint.
        NotImportedError: its graph has a node or a function that has not been imported.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta.pop("crc32_meta") != _checksum(meta):
            raise ValueError("it does not match its checksum")
        for name, kind in (("step", int), ("notes", dict), ("arrays", dict), ("files", dict)):
            if not isinstance(meta[name], kind):
                raise ValueError(f"{name} is not of the type {kind.__name__}")
        graph = from_json(json.dumps(meta["graph"]))
        return Checkpoint(path, meta["step"], graph, meta["notes"], meta["arrays"], meta["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is not a checkpoint: it has no meta.json.") from None
    except NotImportedError as error:
        raise NotImportedError(f"checkpoint {path} refers to code of your own: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"checkpoint {path} is damaged: its meta.json does not describe a network ({error})."
        ) from None


def restore(checkpoint: Checkpoint, like: Any, *, partial: bool = False) -> Any:
    """The arrays of a checkpoint.

    Args:
        checkpoint: from :func:`latest` or :func:`read`.
        like: a pytree of arrays or shapes of the same structure; the result has its structure and is on its devices,
            or, if it has none, on a device of this process.
        partial: read only the arrays that ``like`` names and skip the others: ``{"params": {"conv1": …}}`` for the
            weights of one layer. A dict serves for a named tuple with the same fields.

    Returns:
        The state that was saved, bit for bit.

    Raises:
        DamagedError: the arrays are damaged.
        ValueError: they are not of the dtypes and shapes in ``like`` (another network's).
    """
    path, wanted = checkpoint.path, _described(like)
    # Before Orbax reads them, because its threads print their own tracebacks when something does not match.
    found = {name: text for name, text in checkpoint.arrays.items() if name in wanted} if partial else checkpoint.arrays
    if wanted != found:
        raise ValueError(f"checkpoint {path} belongs to another network or optimizer than is needed here.")
    on_process_zero(lambda: _check_files(checkpoint))
    try:
        read = _read_arrays(path / "arrays", _by_name(like))
    except Exception as error:
        raise DamagedError(f"checkpoint {path} cannot be read, it may be damaged ({_first_line(error)}).") from None
    return jax.tree.unflatten(jax.tree.structure(like), read.values())


def with_saved_dtypes(checkpoint: Checkpoint, like: Any) -> Any:
    """``like`` as shapes with the dtypes of the checkpoint's arrays, for a network that was saved in half precision."""

    def saved(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = checkpoint.arrays.get(name, "").partition("[")[0]
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype) if dtype in _FLOATS else leaf.dtype)

    named = _by_name(like)
    return jax.tree.unflatten(jax.tree.structure(like), [saved(name, leaf) for name, leaf in named.items()])


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two arrays of the state have the same path, as a name with a slash in it can make.")
    return named


def _described(tree: Any) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _by_name(tree).items()}


def _write_arrays(path: Path, named: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Restore takes shardings from its ``like``, and storing them takes a fifth of the time.
    context.array.saving.enable_write_sharding_file = False
    # Orbax rejects arrays without elements. Their shape is in meta.json.
    arrays = {name: _global(key_to_data(leaf)) for name, leaf in named.items() if leaf.size}
    # Orbax's threads log the traceback of an error that is raised here as well.
    with context, _safe_name(path.parent) as parent, log_level("absl", logging.CRITICAL):
        try:
            written = ocp.save_async(str(parent / path.name), arrays)
            try:
                written.result()
            except BaseException:
                with suppress(Exception):
                    written.result()  # Interrupted: its threads still write.
                raise
            whole = all(map(_PLAIN_NAME.fullmatch, arrays)) or _is_found(parent / path.name, arrays)
        except Exception as error:
            if code := re.search(r"os_error_code='(\d+)'", str(error)):
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
            raise OSError(f"{path.parent} cannot be written ({_first_line(error)}).") from None
    if not whole:
        raise OSError(f"{path.parent} cannot be written: its arrays would not be found again.")


def _is_found(path: Path, arrays: dict[str, Any]) -> bool:
    """Whether Orbax finds the arrays again under their names, which it may have interpreted."""
    from orbax.checkpoint import v1 as ocp

    found = {name: x.shape for name, x in ocp.metadata(str(path)).metadata.items()}
    return found == {name: leaf.shape for name, leaf in arrays.items()}


def _read_arrays(path: Path, named: dict[str, Any]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    wanted = {name: _abstract(leaf) for name, leaf in named.items() if leaf.size}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, _safe_name(path.parent) as parent, log_level("absl", logging.CRITICAL):
        arrays = ocp.load(str(parent / path.name), wanted) if wanted else {}
    return {
        name: data_to_key(arrays[name], leaf) if name in arrays else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in named.items()
    }


@contextmanager
def _safe_name(folder: Path) -> Iterator[Path]:
    """A link to a folder whose name Orbax would interpret as a pattern (``lr=[0.02]``)."""
    folder = folder.resolve()
    if glob.escape(str(folder)) == str(folder) and "\\" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qpsnn-") as place:
        link = Path(place) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


@contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if is_process_zero():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    """Describe the arrays that are written, rename the folder, and delete older ones."""
    arrays = temporary / "arrays"
    written = sorted(path for path in arrays.rglob("*") if path.is_file())
    meta = meta | {"files": {path.relative_to(arrays).as_posix(): files.checksum(path) for path in written}}
    text = json.dumps(meta | {"crc32_meta": _checksum(meta)})
    (temporary / "meta.json").write_text(text, encoding="utf-8")
    files.flush(temporary)
    replaced = final.with_name(f"{final.name}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(temporary, final)
    files.flush_name(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    for step in _steps(final.parent)[:-_KEPT]:
        shutil.rmtree(final.parent / f"step_{step}")


def _check_files(checkpoint: Checkpoint) -> None:
    """Files that do not belong to the checkpoint, for example those of a file manager, are ignored."""
    for name, expected in checkpoint.files.items():
        path = checkpoint.path / "arrays" / name
        if not path.is_file() or files.checksum(path) != expected:
            raise DamagedError(f"checkpoint {checkpoint.path} is damaged: its files do not match their checksums.")


def _global(leaf: Any) -> Any:
    """The array as Orbax requires it: on the devices of all processes if there are several.

    An array on one device is read here, because Orbax takes twice as long for one of JAX as for one of NumPy.
    """
    if not getattr(leaf, "is_fully_addressable", True):
        return leaf
    if jax.process_count() > 1:
        return device_put(leaf, replicated(data_mesh()))
    return np.asarray(leaf) if jax.device_count() == 1 else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    data = key_to_data(leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _steps(directory: Path) -> list[int]:
    names = (path.name.removeprefix("step_") for path in directory.glob("step_*"))
    return sorted(int(name) for name in names if name.isdigit())


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
