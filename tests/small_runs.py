"""A small network that stands in the zoo during the tests, and what they read from a run's directory."""

import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, Add, Dense, GlobalAveragePool, Input, Quantizer, Shortcut
from qpsnn_jax.model.zoo.blocks import checked_ratios, conv_bn, kept_channels, neuron, scaled
from qpsnn_jax.runtime.lock import LOCK_FILE


def small(
    *,
    bits: Quantizer | None,
    timesteps: int,
    classes: int,
    input_shape: tuple[int, int, int],
    width: float,
    ratios: Mapping[str, float] | None,
    lif: LIF,
) -> Graph:
    """A stem of 10 channels and one strided residual block with 20 in its middle."""
    ratio = checked_ratios(ratios, ("stem", "middle"))
    stem, middle = (kept_channels(scaled(n, width), ratio[label]) for n, label in ((10, "stem"), (20, "middle")))
    outputs = scaled(16, width)
    source = tuple(i if i < stem else -1 for i in range(outputs))
    nodes = (
        Input("image", input_shape),
        *conv_bn("image", "conv1", "bn1", stem, label="stem"),
        neuron("lif1", "bn1", lif),
        *conv_bn("lif1", "conv2", "bn2", middle, strides=(2, 2), quantizer=bits, label="middle"),
        neuron("lif2", "bn2", lif),
        *conv_bn("lif2", "conv3", "bn3", outputs, quantizer=bits),
        Shortcut("shortcut", "lif1", source, 2),
        Add("add", "bn3", "shortcut"),
        neuron("lif3", "add", lif),
        GlobalAveragePool("pool", "lif3"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps)


def tiny(*, bits, timesteps, classes, input_shape, width, ratios, lif):
    """One quantized convolution, in the middle."""
    middle = kept_channels(6, checked_ratios(ratios, ("middle",))["middle"])
    nodes = (
        Input("image", input_shape),
        *conv_bn("image", "conv1", "bn1", 4, label=None),
        neuron("lif1", "bn1", lif),
        *conv_bn("lif1", "conv2", "bn2", middle, quantizer=bits, label="middle"),
        neuron("lif2", "bn2", lif),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps)


def single(*, bits, timesteps, classes, input_shape, width, ratios, lif):
    """One convolution, quantized, of the spikes of the pixels."""
    middle = kept_channels(6, checked_ratios(ratios, ("middle",))["middle"])
    nodes = (
        Input("image", input_shape),
        neuron("lif1", "image", lif),
        *conv_bn("lif1", "conv2", "bn2", middle, quantizer=bits, label="middle"),
        neuron("lif2", "bn2", lif),
        GlobalAveragePool("pool", "lif2"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory but the lock, which names the last process that held it."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != LOCK_FILE)
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def checksums(stage: Path) -> dict[str, dict[str, int]]:
    """CRC-32 of every array in every checkpoint of a stage, by the checkpoint's name."""
    return {str(p.parent.relative_to(stage)): array_checksums(p.parent) for p in stage.rglob("meta.json")}


def array_checksums(checkpoint: Path) -> dict[str, int]:
    """CRC-32 of every array in a checkpoint, as Orbax alone reads it, by name."""
    with warnings.catch_warnings(action="ignore"):  # that the arrays come back where they were
        arrays = ocp.load(str(checkpoint / "arrays"))
    return {name: zlib.crc32(np.ascontiguousarray(array).tobytes()) for name, array in arrays.items()}


def records(report: dict) -> list[dict]:
    """The stages of a report without their seconds."""
    return [{name: value for name, value in stage.items() if name != "seconds"} for stage in report["stages"]]
