"""The numbers of a network as bytes, and back: codes of b bits packed, floating numbers little-endian."""

import math
from collections.abc import Iterator

import numpy as np

from qpsnn_jax.export.folded_layers import Layer, Neurons, Readout
from qpsnn_jax.export.packed.description import DTYPES, StoredArray, arrays_of, describe
from qpsnn_jax.numerics.sparsity import index_of, write_index

_POWERS = 3 ** np.arange(5, dtype=np.uint8)


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


def pack_ternary(codes: np.ndarray) -> bytes:
    """Codes 0, 1 and 2, five in a byte as the digits of a number to the base 3, the first the lowest."""
    digits = np.concatenate([codes.ravel(), np.zeros(-codes.size % 5, np.uint8)]).reshape(-1, 5)
    return (digits * _POWERS).sum(1, dtype=np.uint8).tobytes()


def unpack_ternary(data: bytes, count: int) -> np.ndarray:
    """The ``count`` codes that :func:`pack_ternary` packed, uint8.

    Raises:
        ValueError: there are too few bytes, a byte is none of 0 to 242, or digits left over in the last are not zero.
    """
    numbers = np.frombuffer(data, np.uint8)
    codes = (numbers[:, None] // _POWERS % 3).astype(np.uint8).ravel()
    if len(codes) < count or codes[count:].any() or (numbers > 242).any():
        raise ValueError(f"{len(data)} bytes do not hold {count} ternary codes")
    return codes[:count]


def layer_bytes(layer: Layer) -> bytes:
    """The arrays of a layer, one after the other."""
    match layer:
        case Neurons():
            cell = [value for value in (layer.threshold, layer.tau) if isinstance(value, np.ndarray)]
            arrays = [*_weights(layer), layer.scale, layer.bias, *cell]
        case Readout(kernel=kernel) if kernel.dtype != np.float32:
            arrays = [*_weights(layer), np.asarray([layer.scale]), layer.bias]
        case Readout():
            arrays = [*_weights(layer), layer.bias]
        case _:
            arrays = []
    pairs = zip(arrays, arrays_of(describe(layer)), strict=True)
    return b"".join(_packed(array, stored) for array, stored in pairs)


def _weights(layer: Neurons | Readout) -> list[np.ndarray]:
    """The weights of a layer; of one with a mask the index of those that are left, and these."""
    if layer.mask is None:
        return [layer.kernel]
    return [write_index(layer.mask, index_of(layer.mask)), layer.kernel[layer.mask]]


def _packed(array: np.ndarray, stored: StoredArray) -> bytes:
    if stored.kind == "codes":
        return pack_codes(array, stored.bits)
    return pack_ternary(array) if stored.kind == "ternary" else array.astype(_little(stored.kind)).tobytes()


def _little(kind: str) -> np.dtype:
    return np.dtype(DTYPES[kind]).newbyteorder("<")


def unpack(payload: bytes, arrays: list[StoredArray]) -> Iterator[np.ndarray]:
    """The arrays of the payload, in order.

    Raises:
        ValueError: the payload is too short, or bits that must be zero are not.
    """
    place = 0
    for stored in arrays:
        data = payload[place : place + stored.size]
        place += len(data)
        if stored.kind == "codes":
            values = unpack_codes(data, math.prod(stored.shape), stored.bits)
        elif stored.kind == "ternary":
            values = unpack_ternary(data, math.prod(stored.shape))
        else:
            values = np.frombuffer(data, _little(stored.kind)).astype(DTYPES[stored.kind])
        yield values.reshape(stored.shape)
