"""Reading and writing a packed file ``*.qpsnn``, as ``notebooks/format.md`` specifies it. Uses only NumPy.

Input is checked before anything is allocated for it: a truncated, changed or malicious file is an error.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_checks import MOST_VALUES
from qpsnn_jax.export.packed.description import arrays_of, describe, format_version, read_document, read_layer
from qpsnn_jax.export.packed.numbers import layer_bytes, unpack
from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable, write_atomically

MAGIC = b"QPSNN\r\n\x1a"
# A file has the first version that describes its layers.
VERSIONS = (1, 2, 3)
_FIXED = struct.Struct("<8sIIQI")
_LONGEST_HEADER = 2**20
# Errors of an invalid description.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError)


class Packed(NamedTuple):
    """The content of a packed file.

    ``notes`` name the origin of the network. The file consists of ``header_bytes`` of description and ``payload_bytes``
    of weights.
    """

    folded: Folded
    notes: dict[str, Any]
    header_bytes: int
    payload_bytes: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, as printable text; empty where the notes name none."""
        names = self.notes.get("class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return ()
        return tuple("".join(c if c.isprintable() else "?" for c in name) for name in names)


def payload_bytes(folded: Folded) -> int:
    r"""Bytes of a network's numbers, :math:`\sum ⌈n_i b_i/8⌉`: codes at b bits, a scale and a bias per channel at 32.

    With stem and readout in float32 this is Eq. 16 of the paper, where batch-norm has two numbers per channel as well;
    a bias that a convolution has beside its batch-norm is folded away.
    """
    return sum(array.size for layer in folded.layers for array in arrays_of(describe(layer)))


def write_packed(path: str | PathLike[str], folded: Folded, notes: Mapping[str, Any]) -> Packed:
    """Write a packed file, under a temporary name first.

    Args:
        path: the file; an existing one is replaced.
        folded: the network.
        notes: its origin, as plain values for JSON.

    Returns:
        The written content.

    Raises:
        ValueError: the description is longer than 1 MiB, a name that :func:`load_packed` rejects, or notes that are not
            plain values.
    """
    image = folded.image
    document = {
        "timesteps": folded.timesteps,
        "image": {"name": image.name, "shape": image.shape, "mean": image.mean, "frames": image.frames},
        "layers": [describe(layer) for layer in folded.layers],
        "notes": dict(notes),
    }
    try:
        header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the notes of a packed file must be plain values for JSON ({error}).") from None
    if len(header) > _LONGEST_HEADER:
        raise ValueError(f"the description has {len(header):,} bytes, and at most {_LONGEST_HEADER:,} fit.")
    payload = b"".join(layer_bytes(layer) for layer in folded.layers)
    start = _FIXED.pack(MAGIC, format_version(document["layers"]), len(header), len(payload), 0)[:-4]
    checksum = struct.pack("<I", _checksum(start, header, payload))
    try:
        _parse(start + checksum, header, lambda: payload)
    except _MALFORMED as error:
        raise ValueError(f"the network cannot be packed: {_reason(error)}.") from None
    write_atomically(path, start + checksum + header + payload)
    return Packed(folded, dict(notes), _FIXED.size + len(header), len(payload))


def load_packed(path: str | PathLike[str]) -> Packed:
    """Read a packed file.

    Args:
        path: the file.

    Returns:
        :class:`Packed`; ``IntegerNetwork.of(packed.folded)`` runs it.

    Raises:
        ValueError: it is not a packed file, has another version, is damaged, or does not describe a network.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        actual = os.fstat(stream.fileno()).st_size
        start = stream.read(_FIXED.size)
        if len(start) < _FIXED.size or not start.startswith(MAGIC):
            raise unreadable(path, "is not a packed network: it has another signature")
        _, version, header_length, payload_length, _ = _FIXED.unpack(start)
        if version not in VERSIONS:
            raise ValueError(
                f"{path} has version {version} of the packed format; this program reads 1 to {VERSIONS[-1]}."
            )
        if header_length > _LONGEST_HEADER or actual != _FIXED.size + header_length + payload_length:
            raise ValueError(f"{path} is damaged: it has {actual:,} bytes, and its header gives another number.")
        try:
            folded, notes = _parse(start, stream.read(header_length), lambda: stream.read(payload_length))
        except _MALFORMED as error:
            raise ValueError(f"{path} is damaged or does not describe a network: {_reason(error)}.") from None
    return Packed(folded, notes, _FIXED.size + header_length, payload_length)


def _parse(start: bytes, header: bytes, read_payload: Callable[[], bytes]) -> tuple[Folded, dict[str, Any]]:
    """The network and the notes; the payload is read once its length is that of the layers."""
    *_, version, _, payload_length, checksum = _FIXED.unpack(start)
    document = json.loads(header, parse_constant=_no_constant)
    image, timesteps, entries, notes = read_document(document)
    arrays = [stored for entry in entries for stored in arrays_of(entry)]
    # A short index may be of many weights; without one there are as many as there are codes.
    indexed = [math.prod(entry["kernel"]["shape"]) for entry in entries if _has_index(entry)]
    if sum(indexed) > MOST_VALUES:
        raise ValueError(f"its layers with an index have {sum(indexed):,} weights, which are too many")
    if format_version(entries) != version:
        raise ValueError("its version does not fit its layers")
    if sum(stored.size for stored in arrays) != payload_length:
        raise ValueError("its layers need another number of bytes than it has")
    payload = read_payload()
    if _checksum(start[:-4], header, payload) != checksum:
        raise ValueError("it does not match its checksum")
    numbers = unpack(payload, arrays)
    return Folded(image, tuple(read_layer(entry, numbers) for entry in entries), timesteps), notes


def _has_index(entry: Mapping[str, Any]) -> bool:
    return "index" in entry.get("kernel", {})


def _checksum(*parts: bytes) -> int:
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return total


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its description is nested too deeply"
    return f"it lacks {reason_of(error)}" if isinstance(error, KeyError) else reason_of(error)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
