"""The packed file ``*.qpsnn``: a folded network in one small file, as ``notebooks/format.md`` specifies it.

NumPy alone. What is read is checked before anything is allocated for it: a file that is cut, changed or hostile is
refused with one sentence.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.export.folded import Folded, Image, Layer, MaxPool, Neurons, Readout, Residual, Sum
from qpsnn_jax.runtime.files import write_atomically

MAGIC = b"QPSNN\r\n\x1a"
VERSION = 1
_FIXED = struct.Struct("<8sIIQI")
_LONGEST_HEADER = 2**20
_LONGEST_NAME = 256
_DTYPES = {"codes": np.uint8, "int8": np.int8, "float32": np.float32}
_KINDS = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}


class Packed(NamedTuple):
    """What a packed file holds.

    ``notes`` say where the network comes from. The file has ``header_bytes`` of description and ``payload_bytes`` of
    weights, and nothing else.
    """

    folded: Folded
    notes: dict[str, Any]
    header_bytes: int
    payload_bytes: int


class _Array(NamedTuple):
    """An array as it lies in the file."""

    shape: tuple[int, ...]
    kind: str
    bits: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return -(-math.prod(self.shape) * self.bits // 8)


def payload_bytes(folded: Folded) -> int:
    r"""Bytes of a network's numbers, :math:`\sum ⌈n_i b_i/8⌉`: codes at b bits, a scale and a bias per channel at 32.

    With stem and readout in float32 this is Eq. 16 of the paper, where batch-norm has two numbers per channel as well;
    a bias that a convolution has beside its batch-norm is folded away.
    """
    return sum(array.size for layer in folded.layers for array in _arrays(_describe(layer)))


def write_packed(path: Path, folded: Folded, notes: Mapping[str, Any]) -> Packed:
    """Write a packed file, under a temporary name first.

    Args:
        path: of the file; one that is there is replaced.
        folded: the network.
        notes: where it comes from: plain values for JSON.

    Returns:
        What was written.

    Raises:
        ValueError: the description is longer than 1 MiB, or the notes are not plain values.
    """
    document = {
        "timesteps": folded.timesteps,
        "image": {
            "name": folded.image.name,
            "shape": folded.image.shape,
            "mean": folded.image.mean,
            "frames": folded.image.frames,
        },
        "layers": [_describe(layer) for layer in folded.layers],
        "notes": dict(notes),
    }
    try:
        header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the notes of a packed file must be plain values for JSON ({error}).") from None
    if len(header) > _LONGEST_HEADER:
        raise ValueError(f"the description has {len(header):,} bytes, and at most {_LONGEST_HEADER:,} fit.")
    payload = b"".join(_numbers(layer) for layer in folded.layers)
    start = _FIXED.pack(MAGIC, VERSION, len(header), len(payload), 0)[:-4]
    checksum = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(start)))
    write_atomically(path, start + struct.pack("<I", checksum) + header + payload)
    return Packed(folded, dict(notes), _FIXED.size + len(header), len(payload))


def load_packed(path: Path) -> Packed:
    """Read a packed file.

    Args:
        path: of the file.

    Returns:
        :class:`Packed`; ``IntegerNetwork.of(packed.folded)`` runs it.

    Raises:
        ValueError: it is no packed file, of another version, damaged, or describes no network.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        actual = os.fstat(stream.fileno()).st_size
        start = stream.read(_FIXED.size)
        if len(start) < _FIXED.size or not start.startswith(MAGIC):
            raise ValueError(f"{path} is not a packed network: it does not begin like one.")
        _, version, header_length, payload_length, checksum = _FIXED.unpack(start)
        if version != VERSION:
            raise ValueError(f"{path} has version {version} of the packed format; this program reads {VERSION}.")
        if header_length > _LONGEST_HEADER or actual != _FIXED.size + header_length + payload_length:
            raise ValueError(f"{path} is damaged: it has {actual:,} bytes and says that it has others.")
        header = stream.read(header_length)
        try:
            document = json.loads(header, parse_constant=_no_constant)
            image, timesteps, entries, notes = _document(document)
            arrays = [spec for entry in entries for spec in _arrays(entry)]
            if sum(array.size for array in arrays) != payload_length:
                raise ValueError("its layers need another number of bytes than it has")
            payload = stream.read(payload_length)
            if zlib.crc32(payload, zlib.crc32(header, zlib.crc32(start[:-4]))) != checksum:
                raise ValueError("it does not match its checksum")
            numbers = _unpacked(payload, arrays)
            folded = Folded(image, tuple(_layer(entry, numbers) for entry in entries), timesteps)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
            reason = f"{type(error).__name__} {error}" if not isinstance(error, ValueError) else error
            raise ValueError(f"{path} is damaged or no network: {str(reason)[:200].rstrip('.')}.") from None
    return Packed(folded, notes, _FIXED.size + header_length, payload_length)


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Codes of ``bits`` bits in as few bytes, low bits first: code i takes bits i·b to i·b + b - 1 of the stream."""
    planes = (codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.astype(np.uint8), bitorder="little").tobytes()


def unpack_codes(data: bytes, count: int, bits: int) -> np.ndarray:
    """The ``count`` codes that :func:`pack_codes` packed, uint8.

    Raises:
        ValueError: there are too few bytes, or the bits left over in the last one are not zero.
    """
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(stream) < count * bits or stream[count * bits :].any():
        raise ValueError(f"{len(data)} bytes do not hold {count} codes of {bits} bits")
    planes = stream[: count * bits].reshape(count, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)


def _describe(layer: Layer) -> dict[str, Any]:
    """A layer as plain values, without its numbers."""
    match layer:
        case Neurons():
            entry = {"kind": "neurons", "source": layer.source, "kernel": _kernel(layer.kernel, layer.bits)}
            entry |= {"strides": layer.strides, "padding": layer.padding}
            entry |= {"threshold": layer.threshold, "strict": layer.strict, "residual": None}
            if (residual := layer.residual) is not None:
                runs = _runs(residual.channels)
                entry["residual"] = {"source": residual.source, "stride": residual.stride, "channels": runs}
        case MaxPool():
            entry = {"kind": "max_pool", "source": layer.source, "window": layer.window}
            entry |= {"strides": layer.strides, "padding": layer.padding}
        case Sum():
            entry = {"kind": "sum", "first": layer.first, "second": layer.second}
        case Readout():
            bits = 8 * layer.kernel.dtype.itemsize
            entry = {"kind": "readout", "source": layer.source, "kernel": _kernel(layer.kernel, bits)}
            entry |= {"window": layer.window, "strides": layer.strides}
    return {"name": layer.name, **entry}


def _kernel(kernel: np.ndarray, bits: int) -> dict[str, Any]:
    return {"kind": _KINDS[kernel.dtype], "bits": bits, "shape": kernel.shape}


def _arrays(entry: Mapping[str, Any]) -> Iterable[_Array]:
    """Shape, kind and bits of the arrays of a layer, in the order in which they lie in the file."""
    if entry["kind"] not in ("neurons", "readout"):
        return
    kernel = entry["kernel"]
    shape = tuple(kernel["shape"])
    if len(shape) != 4 or not all(type(n) is int and 0 < n < 2**24 for n in shape):
        raise ValueError(f"a kernel cannot have the shape {str(shape)[:80]}")
    if kernel["kind"] not in _DTYPES or type(kernel["bits"]) is not int or not 1 <= kernel["bits"] <= 32:
        raise ValueError("a kernel is of no known kind")
    bits = kernel["bits"] if kernel["kind"] == "codes" else 8 * np.dtype(_DTYPES[kernel["kind"]]).itemsize
    if bits != kernel["bits"]:
        raise ValueError("a kernel has a wrong number of bits")
    yield _Array(shape, kernel["kind"], bits)
    if entry["kind"] == "neurons" or kernel["kind"] == "int8":
        yield _Array((shape[3] if entry["kind"] == "neurons" else 1,), "float32", 32)
    yield _Array((shape[3],), "float32", 32)


def _numbers(layer: Layer) -> bytes:
    match layer:
        case Neurons():
            arrays = [layer.kernel, layer.scale, layer.bias]
        case Readout(kernel=kernel) if kernel.dtype == np.int8:
            arrays = [layer.kernel, np.asarray([layer.scale]), layer.bias]
        case Readout():
            arrays = [layer.kernel, layer.bias]
        case _:
            arrays = []
    return b"".join(
        pack_codes(array, stored.bits) if stored.kind == "codes" else array.astype(_little(stored.kind)).tobytes()
        for array, stored in zip(arrays, _arrays(_describe(layer)), strict=True)
    )


def _little(kind: str) -> np.dtype:
    return np.dtype(_DTYPES[kind]).newbyteorder("<")


def _unpacked(payload: bytes, arrays: list[_Array]) -> Any:
    place = 0
    for stored in arrays:
        data = payload[place : place + stored.size]
        place += len(data)
        if stored.kind == "codes":
            values = unpack_codes(data, math.prod(stored.shape), stored.bits)
        else:
            values = np.frombuffer(data, _little(stored.kind)).astype(_DTYPES[stored.kind])
        yield values.reshape(stored.shape)


def _document(document: Any) -> tuple[Image, int, list[dict[str, Any]], dict[str, Any]]:
    image, entries, notes = document["image"], document["layers"], document["notes"]
    if not isinstance(notes, dict) or not isinstance(entries, list):
        raise ValueError("its description has no layers or no notes")
    mean = tuple(float(m) for m in _list(image["mean"]))
    if type(image["frames"]) is not bool:
        raise ValueError("frames must be true or false")
    read = Image(_name(image["name"]), _integers(image["shape"], 3), mean, image["frames"])  # type: ignore[arg-type]
    return read, document["timesteps"], entries, notes


def _layer(entry: dict[str, Any], numbers: Any) -> Layer:
    name, kind = _name(entry["name"]), entry["kind"]
    if kind == "sum":
        return Sum(name, _name(entry["first"]), _name(entry["second"]))
    source, strides = _name(entry["source"]), _pair(entry["strides"])
    if kind == "max_pool":
        return MaxPool(name, source, _pair(entry["window"]), strides, _pair(entry["padding"]))
    kernel = next(numbers)
    if kind == "readout":
        scale = float(next(numbers)[0]) if kernel.dtype == np.int8 else 1.0
        return Readout(name, source, _pair(entry["window"]), strides, kernel, scale, next(numbers))
    if kind != "neurons":
        raise ValueError("a layer is of no known kind")
    scale, bias, residual = next(numbers), next(numbers), entry["residual"]
    if type(entry["threshold"]) not in (int, float) or type(entry["strict"]) is not bool:
        raise ValueError("a threshold must be a number, and strict true or false")
    if residual is not None:
        channels = _channels(residual["channels"], kernel.shape[3])
        residual = Residual(_name(residual["source"]), channels, residual["stride"])
    options = (strides, _pair(entry["padding"]), scale, bias, entry["threshold"], entry["strict"], residual)
    return Neurons(name, source, kernel, entry["kernel"]["bits"], *options)


def _runs(channels: tuple[int, ...]) -> list[list[int]]:
    """Channels as runs [first, count] that count up from ``first``, or stay -1."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == (-1 if runs[-1][0] < 0 else sum(runs[-1])):
            runs[-1][1] += 1
        else:
            runs.append([channel, 1])
    return runs


def _channels(runs: Any, count: int) -> tuple[int, ...]:
    channels: list[int] = []
    for run in _list(runs):
        first, length = _integers(run, 2)
        if not (first >= -1 and 1 <= length <= count - len(channels)):
            raise ValueError("a residual has other channels than its layer")
        channels += [-1] * length if first < 0 else range(first, first + length)
    return tuple(channels)


def _integers(value: Any, count: int) -> tuple[int, ...]:
    if not (isinstance(value, list) and len(value) == count and all(type(n) is int for n in value)):
        raise ValueError(f"{str(value)[:80]} must be {count} whole numbers")
    return tuple(value)


def _pair(value: Any) -> tuple[int, int]:
    first, second = _integers(value, 2)
    return first, second


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:80]} must be a list")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not (0 < len(value) <= _LONGEST_NAME and value.isprintable()):
        raise ValueError("a name must be a printable text of at most 256 characters")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
