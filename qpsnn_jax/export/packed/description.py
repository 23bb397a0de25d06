"""Layers as plain values for JSON, and back; input is checked, because it may be untrusted."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from qpsnn_jax.export.folded_checks import MOST_VALUES
from qpsnn_jax.export.folded_layers import Concatenation, Image, Layer, MaxPool, Neurons, Rates, Readout, Residual, Sum
from qpsnn_jax.numerics.sparsity import Index, index_of, read_index

DTYPES = {"codes": np.uint8, "int8": np.int8, "float32": np.float32, "ternary": np.uint8}
_KINDS = {np.dtype(dtype): kind for kind, dtype in reversed(DTYPES.items())}
_BITS = {"int8": 8, "float32": 32, "ternary": 2}
_LONGEST_NAME = 256


class StoredArray(NamedTuple):
    """An array as it is stored in the file."""

    shape: tuple[int, ...]
    kind: str
    bits: int

    @property
    def size(self) -> int:
        """Its bytes."""
        if self.kind == "ternary":
            return -(-math.prod(self.shape) // 5)
        return -(-math.prod(self.shape) * self.bits // 8)


def describe(layer: Layer) -> dict[str, Any]:
    """A layer as plain values, without its numbers."""
    match layer:
        case Neurons():
            entry = {"kind": "neurons", "source": layer.source, "kernel": _kernel(layer, layer.levels)}
            entry |= {"strides": layer.strides, "padding": layer.padding}
            # Left out where they change nothing, as most files need neither.
            entry |= {"groups": layer.groups} if layer.groups != 1 else {}
            entry |= {"dilation": layer.dilation} if layer.dilation != (1, 1) else {}
            entry |= {"threshold": _number_or_array(layer.threshold), "strict": layer.strict, "residual": None}
            entry |= {"tau": _number_or_array(layer.tau)} if np.any(np.asarray(layer.tau) != 0.5) else {}
            entry |= {"reset": layer.reset} if layer.reset != "hard" else {}
            if (residual := layer.residual) is not None:
                runs = _runs(residual.channels)
                entry["residual"] = {"source": residual.source, "stride": residual.stride, "channels": runs}
        case MaxPool():
            entry = {"kind": "max_pool", "source": layer.source, "window": layer.window}
            entry |= {"strides": layer.strides, "padding": layer.padding}
        case Sum():
            entry = {"kind": "sum", "first": layer.first, "second": layer.second}
        case Concatenation():
            entry = {"kind": "concatenation", "sources": layer.sources}
        case Readout():
            entry = {"kind": "readout", "source": layer.source, "kernel": _kernel(layer)}
            entry |= {"window": layer.window, "strides": layer.strides}
        case Rates():
            entry = {"kind": "rates", "source": layer.source}
    return {"name": layer.name, **entry}


def _number_or_array(value: float | np.ndarray) -> float | None:
    """A number; None for one of each channel, which are among the numbers of the file."""
    return None if isinstance(value, np.ndarray) else value


def _kernel(layer: Neurons | Readout, levels: int | None = None) -> dict[str, Any]:
    kind = "ternary" if levels else _KINDS[layer.kernel.dtype]
    entry = {"kind": kind, "bits": layer.bits, "shape": layer.kernel.shape}
    if layer.mask is None:
        return entry
    return {**entry, "left": int(layer.mask.sum()), "index": index_of(layer.mask)._asdict()}


def arrays_of(entry: Mapping[str, Any]) -> Iterator[StoredArray]:
    """Shape, kind and bits of the arrays of a layer, in the order of the file."""
    if entry["kind"] not in ("neurons", "readout"):
        return
    kernel = entry["kernel"]
    shape = tuple(kernel["shape"])
    if len(shape) != 4 or not all(type(n) is int and 0 < n < 2**24 for n in shape):
        raise ValueError(f"a kernel cannot have the shape {str(shape)[:80]}")
    if kernel["kind"] not in DTYPES or type(kernel["bits"]) is not int or not 1 <= kernel["bits"] <= 32:
        raise ValueError("a kernel is of an unknown kind")
    bits = kernel["bits"] if kernel["kind"] == "codes" else _BITS[kernel["kind"]]
    if bits != kernel["bits"]:
        raise ValueError("a kernel has a wrong number of bits")
    outputs = shape[3]
    if "index" in kernel:
        index = _index(kernel["index"], math.prod(shape))
        yield StoredArray((index.length,), "codes", index.bits)
        if type(left := kernel["left"]) is not int or not 0 <= left <= math.prod(shape):
            raise ValueError("a number of weights is wrong")
        shape = (left,)
    yield StoredArray(shape, kernel["kind"], bits)
    if entry["kind"] == "neurons" or kernel["kind"] != "float32":
        yield StoredArray((outputs if entry["kind"] == "neurons" else 1,), "float32", 32)
    yield StoredArray((outputs,), "float32", 32)
    if entry["kind"] == "neurons":
        for _ in _by_channel(entry):
            yield StoredArray((outputs,), "float32", 32)


def _by_channel(entry: Mapping[str, Any]) -> Iterator[str]:
    """Which of θ and τ of neurons are arrays."""
    return (name for name in ("threshold", "tau") if entry.get(name, 0.5) is None)


def format_version(entries: list[dict[str, Any]]) -> int:
    """The first version of the format that describes such layers: 3 has other neurons and rates, 2 an index."""
    if any("tau" in each or "reset" in each or each["kind"] == "rates" or [*_by_channel(each)] for each in entries):
        return 3
    return 2 if any("index" in each.get("kernel", {}) for each in entries) else 1


def _index(entry: Any, weights: int) -> Index:
    """The index of so many weights; raises some error for one that cannot be."""
    if weights > MOST_VALUES:
        raise ValueError(f"a kernel of {weights:,} weights is too large for an index")
    index = Index(entry["kind"], *_integers([entry[name] for name in ("bits", "length", "n", "m")], 4))
    n, m = index.n, index.m
    least = {"bitmap": 1, "runs": index.bits, "n_of_m": math.comb(m, n) - 1 if 0 < n < m <= 8 else 0}[index.kind]
    bits = least.bit_length() if index.kind == "n_of_m" else least
    if not 1 <= index.bits <= 8 or index.bits != bits or not 0 <= index.length <= weights:
        raise ValueError("an index is of an unknown kind")
    return index


def read_document(document: Any) -> tuple[Image, int, list[dict[str, Any]], dict[str, Any]]:
    """Image, T, the layers' entries and the notes of a description; raises some error for other input."""
    image, entries, notes = document["image"], document["layers"], document["notes"]
    if not isinstance(notes, dict) or not isinstance(entries, list):
        raise ValueError("its description has no layers or no notes")
    mean = tuple(_number("a mean", m) for m in _list(image["mean"]))
    if type(image["frames"]) is not bool:
        raise ValueError("frames must be true or false")
    h, w, c = _integers(image["shape"], 3)
    read = Image(_name(image["name"]), (h, w, c), mean, image["frames"])
    return read, document["timesteps"], entries, notes


def read_layer(entry: dict[str, Any], numbers: Iterator[np.ndarray]) -> Layer:
    """The layer of a description from :func:`describe`, with its arrays; raises some error for other input."""
    name, kind = _name(entry["name"]), entry["kind"]
    if kind == "sum":
        return Sum(name, _name(entry["first"]), _name(entry["second"]))
    if kind == "concatenation":
        return Concatenation(name, tuple(_name(source) for source in _list(entry["sources"])))
    source = _name(entry["source"])
    if kind == "rates":
        return Rates(name, source)
    strides = _pair(entry["strides"])
    if kind == "max_pool":
        return MaxPool(name, source, _pair(entry["window"]), strides, _pair(entry["padding"]))
    kernel, mask = _read_kernel(entry["kernel"], numbers)
    if kind == "readout":
        scale = 1.0 if kernel.dtype == np.float32 else float(next(numbers)[0])
        bits = entry["kernel"]["bits"]
        if entry["kernel"]["kind"] == "ternary":
            raise ValueError("a readout cannot be ternary")
        return Readout(name, source, _pair(entry["window"]), strides, kernel, scale, next(numbers), bits, mask)
    if kind != "neurons":
        raise ValueError("a layer is of an unknown kind")
    scale, bias, residual = next(numbers), next(numbers), entry["residual"]
    if type(entry["strict"]) is not bool:
        raise ValueError("strict must be true or false")
    if residual is not None:
        channels = _channels(residual["channels"], kernel.shape[3])
        residual = Residual(_name(residual["source"]), channels, residual["stride"])
    cell: dict[str, Any] = {}
    for field, value in (("threshold", entry["threshold"]), ("tau", entry.get("tau", 0.5))):
        cell[field] = next(numbers) if value is None else _number(f"a {field}", value)
    levels = 3 if entry["kernel"]["kind"] == "ternary" else None
    options = (strides, _pair(entry["padding"]), scale, bias)
    more: dict[str, Any] = {"strict": entry["strict"], "residual": residual, "levels": levels}
    more |= {"groups": entry.get("groups", 1), "dilation": _pair(entry.get("dilation", [1, 1]))}
    more |= {"mask": mask, "reset": entry.get("reset", "hard")}
    return Neurons(name, source, kernel, entry["kernel"]["bits"], *options, **more, **cell)


def _read_kernel(entry: Mapping[str, Any], numbers: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and their mask, if they have one."""
    if "index" not in entry:
        return next(numbers), None
    shape = tuple(entry["shape"])
    mask, values = read_index(next(numbers), _index(entry["index"], math.prod(shape)), shape), next(numbers)
    if np.count_nonzero(mask) != len(values):
        raise ValueError(f"an index is of {np.count_nonzero(mask):,} weights, and there are {len(values):,}")
    kernel = np.zeros(shape, values.dtype)
    kernel[mask] = values
    return kernel, mask


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
        raise ValueError(f"{str(value)[:80]} must be {count} integers")
    return tuple(value)


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number")
    return float(value)


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
