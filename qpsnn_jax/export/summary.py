"""Text that summarizes a packed network."""

import math

import numpy as np

from qpsnn_jax.export.folded_layers import Concatenation, Layer, MaxPool, Neurons, Rates, Readout, Sum, sources
from qpsnn_jax.export.packed.file import Packed


def summary(packed: Packed) -> str:
    """A line for every layer, the sizes, and the origin of the network.

    Args:
        packed: from :func:`qpsnn_jax.export.packed.file.load_packed`.

    Returns:
        Text of several lines.
    """
    folded = packed.folded
    shape = "×".join(str(n) for n in folded.image.shape)
    what = "frames" if folded.image.frames else "pixels"
    lines = [f"{folded.image.name:20} {what} {shape}, {folded.timesteps} steps"]
    for layer in folded.layers:
        size = "×".join(str(n) for n in folded.maps[layer.name].shape)
        lines.append(f"{layer.name:20} {size:>12}  {_kind(layer)} of {' and '.join(sources(layer))}")
    total = packed.header_bytes + packed.payload_bytes
    lines.append(f"{total:,} bytes: {packed.payload_bytes:,} of weights and {packed.header_bytes:,} of header")
    notes = packed.notes
    if isinstance(accuracy := notes.get("accuracy"), float) and math.isfinite(accuracy):
        lines.append(f"accuracy {100 * accuracy:.2f} %, stage {_text(notes.get('stage'))}, as trained")
    if packed.class_names:
        lines.append(f"classes {', '.join(packed.class_names)}")
    if isinstance(versions := notes.get("versions"), dict):
        lines.append(", ".join(f"{_text(package)} {_text(version)}" for package, version in versions.items()))
    return "\n".join(lines)


def _text(note: object) -> str:
    """A note without control characters: the notes are untrusted text."""
    return ascii(note)[1:-1] if isinstance(note, str) else "?"


def _kind(layer: Layer) -> str:
    match layer:
        case Neurons() | Readout():
            height, width, inputs, outputs = layer.kernel.shape
            ternary = isinstance(layer, Neurons) and layer.levels is not None
            kind = "neurons" if isinstance(layer, Neurons) else "readout"
            cell = _cell(layer) if isinstance(layer, Neurons) else ""
            left = "" if layer.mask is None else f", {100 * layer.mask.mean():.0f} % left"
            return f"{kind}, {height}×{width}×{inputs}×{outputs} at {1.6 if ternary else layer.bits} bits{left}{cell},"
        case MaxPool():
            return f"max-pool {layer.window[0]}×{layer.window[1]}"
        case Sum():
            return "sum"
        case Concatenation():
            return "concatenation"
        case Rates():
            return "rates"


def _cell(layer: Neurons) -> str:
    """Leak and reset where they are not the default."""
    tau = f"from {min(layer.tau):g} to {max(layer.tau):g}" if isinstance(layer.tau, np.ndarray) else f"{layer.tau:g}"
    leak = "" if tau == "0.5" else f", τ {tau}"
    return leak + ("" if layer.reset == "hard" else f", {layer.reset} reset")
