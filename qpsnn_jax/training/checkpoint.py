"""Checkpoints: arrays by Orbax, and beside them the graph and whatever else makes them restore by themselves.

A checkpoint is a folder ``step_N`` with ``arrays`` (Orbax) and ``meta.json``: the graph, the caller's notes, shape and
CRC-32 of every array, and the CRC-32 of every file. It is written under a temporary name and renamed, so that a name
without ``.tmp`` is always whole. Several processes must save and restore together; the first writes the description.
"""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qpsnn_jax.model.graph import Graph, from_json, to_json
from qpsnn_jax.runtime.processes import on_process_zero
from qpsnn_jax.runtime.sharding import data_mesh, device_get, device_put, replicated

_KEPT = 2
_ADVICE = "delete it to go on from an earlier one"


class Checkpoint(NamedTuple):
    """A checkpoint that was found: its folder, step, graph and the caller's notes; the arrays are not read yet."""

    path: Path
    step: int
    graph: Graph
    notes: dict[str, Any]


def save(directory: Path, step: int, graph: Graph, state: Any, notes: dict[str, Any]) -> Path:
    """Write ``step_N`` into ``directory`` and delete all but the last two checkpoints there.

    Args:
        directory: made when missing.
        step: N, 0 or more.
        graph: of the network that ``state`` belongs to.
        state: a pytree of arrays; those that are not on the devices of all processes must be the same in each.
        notes: plain values for JSON.

    Returns:
        The checkpoint's folder.
    """
    from orbax.checkpoint import v1 as ocp

    final = directory / f"step_{step}"
    temporary = directory / f"step_{step}.tmp"
    on_process_zero(lambda: _make_anew(temporary))
    ocp.save(str(temporary.resolve() / "arrays"), _shared(state))
    meta = {
        "step": step,
        "graph": json.loads(to_json(graph)),
        "notes": notes,
        "shapes": _shapes(state),
        "crc32": _checksums(state),
    }
    on_process_zero(lambda: _finish(temporary, final, meta))
    return final


def latest(directory: Path) -> Checkpoint | None:
    """The checkpoint with the highest step in a directory, or None where there is none.

    Raises:
        ValueError: its description is damaged.
    """
    steps = _steps(directory)
    return read(directory / f"step_{steps[-1]}") if steps else None


def read(path: Path) -> Checkpoint:
    """The description of the checkpoint in the folder ``path``.

    Raises:
        ValueError: there is no checkpoint or its description is damaged.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta.pop("crc32_meta") != _checksum(meta):
            raise ValueError("it does not match its checksum")
        return Checkpoint(path, meta["step"], from_json(json.dumps(meta["graph"])), meta["notes"])
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint: it has no meta.json.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged: its meta.json does not describe a network ({error})."
        ) from None


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """The arrays of a checkpoint.

    Args:
        checkpoint: from :func:`latest` or :func:`read`.
        like: a pytree of arrays or shapes of the same structure; what comes back has its structure, on its devices, and
            where it has none, on one of this process.

    Returns:
        The state that was saved, bit for bit.

    Raises:
        ValueError: the arrays are damaged, or are not of the shapes in ``like`` (another network's).
    """
    from orbax.checkpoint import v1 as ocp

    path = checkpoint.path
    meta = json.loads((path / "meta.json").read_text())
    # Before Orbax sees them, because its reading threads print tracebacks of their own when something does not fit.
    if _shapes(like) != meta.get("shapes"):
        raise ValueError(f"checkpoint {path} belongs to another network or optimizer than is needed here.")
    if _file_checksums(path / "arrays") != meta.get("files"):
        raise ValueError(f"checkpoint {path} is damaged: its files do not match their checksums; {_ADVICE}.")
    try:
        state = ocp.load(str(path.resolve() / "arrays"), jax.tree.map(_abstract, like))
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read, it may be damaged ({_first_line(error)}); {_ADVICE}."
        ) from None
    if _checksums(state) != meta.get("crc32"):
        raise ValueError(f"checkpoint {path} is damaged: its arrays do not match their checksums; {_ADVICE}.")
    return state


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    """Describe the arrays that are written, rename the folder, and delete what is too old."""
    meta = meta | {"files": _file_checksums(temporary / "arrays")}
    (temporary / "meta.json").write_text(json.dumps(meta | {"crc32_meta": _checksum(meta)}))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for step in _steps(final.parent)[:-_KEPT]:
        shutil.rmtree(final.parent / f"step_{step}")


def _shared(state: Any) -> Any:
    """The state on the devices of all processes, as Orbax wants it where there are several."""
    if jax.process_count() == 1:
        return state
    whole = replicated(data_mesh())
    return jax.tree.map(lambda x: device_put(x, whole) if getattr(x, "is_fully_addressable", True) else x, state)


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _steps(directory: Path) -> list[int]:
    names = (path.name.removeprefix("step_") for path in directory.glob("step_*"))
    return sorted(int(name) for name in names if name.isdigit())


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _checksums(state: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(device_get(state))
    return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).tobytes()) for path, leaf in leaves}


def _file_checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
