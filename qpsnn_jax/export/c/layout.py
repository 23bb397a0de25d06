"""The memory layout of the generated C program: words and lanes, maps, groups of patches, packed weights."""

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Map, Neurons, sources

# As many 64-bit counters as fit into 16 vector registers of 512 bits; processors with such registers have 32.
_COUNTERS = 128
# Sixteen lanes are faster if they hardly need more weights; narrow layers do not fill them.
_WORTH_16_LANES = 1.15


class WordFormat(NamedTuple):
    """Bits of a word of spikes, and how many outputs are computed in parallel."""

    word: int
    lanes: int


class Layout(NamedTuple):
    """A network, its words, the place of each map in the shared array, and the array's bytes.

    ``kept`` are the places of the layers' membranes in a state, and ``membranes`` how many it has.
    """

    folded: Folded
    words: WordFormat
    places: dict[str, int]
    arena: int
    kept: dict[str, int]
    membranes: int


def lay_out(folded: Folded, word: int) -> Layout:
    """Choose lanes, and allocate the maps first-fit, each for the time that it is needed.

    Args:
        folded: the network.
        word: bits of a word, 32 or 64.

    Returns:
        :class:`Layout`.
    """
    words = WordFormat(word, _lanes(folded))
    last = {name: index for index, layer in enumerate(folded.layers) for name in sources(layer)}
    places: dict[str, int] = {}
    alive: list[tuple[int, int, str]] = []
    length = 0
    for index, layer in enumerate(folded.layers[:-1]):
        alive = sorted(entry for entry in alive if last.get(entry[2], -1) >= index)
        size, at = _bytes(folded, words, folded.maps[layer.name]), 0
        for start, end, _ in alive:
            if at + size <= start:
                break
            at = max(at, end)
        places[layer.name] = at
        alive.append((at, at + size, layer.name))
        length = max(length, at + size)
    sizes = {layer.name: math.prod(folded.maps[layer.name].shape) for layer in folded.neurons}
    kept = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    return Layout(folded, words, places, length, kept, sum(sizes.values()))


def planes_of(place: Map) -> int:
    """Bits of a map's largest value."""
    return place.largest.bit_length()


def on_spikes(folded: Folded) -> Iterable[Neurons]:
    """The layers of neurons that read spikes, not pixels."""
    return (layer for layer in folded.neurons if layer.source != folded.image.name)


def by_words(folded: Folded) -> Iterable[Neurons]:
    """Those among them whose outputs all read the same channels, in words."""
    return (layer for layer in on_spikes(folded) if layer.groups == 1)


def patches_of(folded: Folded, layer: Neurons) -> int:
    """Patches at one position: steps times bit planes."""
    return folded.timesteps * planes_of(folded.maps[layer.source])


def words_of(layer: Neurons, words: WordFormat) -> int:
    """Words of a patch."""
    return -(-math.prod(layer.kernel.shape[:3]) // words.word)


def weight_planes(layer: Neurons) -> int:
    """Bit planes of the weights: those of the codes, and the mask."""
    return layer.bits + (layer.mask is not None)


def groups_of(layout: Layout, layer: Neurons) -> tuple[int, int, int]:
    """How many patches a kernel takes at once, how many the last call takes, and how many those of a single step."""
    patches = patches_of(layout.folded, layer)
    group = min(patches, max(1, _COUNTERS // (layout.words.lanes * weight_planes(layer))))
    return group, patches % group or group, 1


def padded(array: np.ndarray, value: int, words: WordFormat) -> np.ndarray:
    """The last axis padded to full blocks of lanes."""
    spread = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % words.lanes)]
    return np.pad(array, spread, constant_values=value)


def interleaved(layer: Neurons, words: WordFormat) -> np.ndarray:
    """Bit planes of the codes, and of the mask, as words, ``[block of outputs][word][plane][output]``."""
    codes, planes = layer.kernel.astype(np.uint16), weight_planes(layer)
    codes = padded(codes if layer.mask is None else codes | layer.mask << layer.bits, 0, words)
    codes = codes.reshape(-1, codes.shape[-1])
    inputs, outputs = codes.shape
    codes = np.pad(codes, ((0, words_of(layer, words) * words.word - inputs), (0, 0)))
    bits = (codes[None] >> np.arange(planes, dtype=np.uint16)[:, None, None]) & 1
    packed = np.packbits(bits.astype(np.uint8), axis=1, bitorder="little").transpose(0, 2, 1)
    found = np.ascontiguousarray(packed).view(f"<u{words.word // 8}")
    blocks = found.reshape(planes, outputs // words.lanes, words.lanes, -1)
    return np.ascontiguousarray(blocks.transpose(1, 3, 0, 2))


def _lanes(folded: Folded) -> int:
    sizes = {
        lanes: sum(
            math.prod(layer.kernel.shape[:3]) * weight_planes(layer) * lanes * -(-layer.kernel.shape[3] // lanes)
            for layer in by_words(folded)
        )
        for lanes in (8, 16)
    }
    return 16 if sizes[16] <= _WORTH_16_LANES * sizes[8] else 8


def _bytes(folded: Folded, words: WordFormat, place: Map) -> int:
    h, w, c = place.shape
    return folded.timesteps * h * w * planes_of(place) * -(-c // words.lanes) * (words.lanes // 8)
