"""The sizes that an HDF5 file declares, beside those that its bytes can hold: looked at before anything is read."""

import math
import re
from os import PathLike
from typing import Any

from qpsnn_jax.runtime.files import open_regular

# Deflate, which nir writes with, makes at most 1032 bytes of one; a few numbers may be in the description itself.
_MOST_BY_BYTE, _FEW = 1032, 2**16
# Weights hardly shrink; the equal numbers of all neurons of a layer do, but no network has very many.
_MOST_BY_FILE, _MANY = 16, 2**30

# Where HDF5 keeps texts: signature, version 1, three zeros, and the size, which is allocated as it stands.
_TEXTS = re.compile(rb"GCOL\x01\0{3}(.{8})", re.DOTALL)


def oversized(path: str | PathLike[str]) -> str | None:
    """Why an HDF5 file must not be read: it declares more than its bytes can hold, or too much in all.

    Returns:
        The reason, naming the data set if it is one, or None.
    """
    import h5py

    with open_regular(path) as stream:
        data = stream.read()
    texts = ((match.start(), int.from_bytes(match[1], "little")) for match in _TEXTS.finditer(data))
    if beyond := next((length for start, length in texts if start + length > len(data)), 0):
        return f"is damaged: it declares {beyond:,} bytes of texts, and has {len(data):,} in all"
    with h5py.File(path) as file:
        return _oversized(file, len(data))


def _oversized(file: Any, size: int) -> str | None:
    import h5py

    total, seen, groups = 0, {file["/"]}, [file["/"]]
    while groups:
        for item in groups.pop().values():
            if item in seen:
                return f"is damaged: it has {item.name!r} in two places"
            seen.add(item)
            if isinstance(item, h5py.Group):
                groups.append(item)
            if not isinstance(item, h5py.Dataset):
                continue
            stored, declared = min(item.id.get_storage_size(), size), _declared(item)
            total += declared
            if declared > _MOST_BY_BYTE * stored + _FEW:
                return f"is damaged: its data set {item.name!r} declares {declared:,} bytes, and {stored:,} are stored"
            if total > _MOST_BY_FILE * size + _MANY:
                return f"declares {total:,} bytes up to its data set {item.name!r}, too many for a file of {size:,}"
    return None


def _declared(data: Any) -> int:
    """Bytes that reading a data set takes, or one of its chunks if that is more; none for one without a shape."""
    values = max(math.prod(shape) for shape in (data.shape or (), data.chunks or ()))
    return 0 if data.shape is None else values * data.dtype.itemsize
