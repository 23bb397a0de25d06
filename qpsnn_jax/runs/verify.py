"""Compares an exported network with the trained one, on test images."""

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from qpsnn_jax.data.feed import evaluation_batches, everything
from qpsnn_jax.export import FOLDED
from qpsnn_jax.export.agreement import Agreement, Side, compare, compare_networks, mean_currents
from qpsnn_jax.export.c.source import write_c
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.nir.file import read_nir, write_nir
from qpsnn_jax.export.nir.reader import import_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.export.onnx import onnx_model
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.export.stablehlo import stablehlo
from qpsnn_jax.runs.exported import Exported

# Rounding can change the class of an image that lies between two. 8-bit weights of first and last layer change more.
SAME_PREDICTIONS = 0.999
SAME_PREDICTIONS_ROUNDED = 0.9
_BATCH = 50
_DRIVER = """
#include <stdio.h>
#include "net.h"
static uint8_t pixels[{pixels}];
int main(void) {{
  int32_t logits[net_classes];
  while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) {{
    {function}(pixels, logits);
    for (int k = 0; k < net_classes; k++) printf("%ld ", (long)logits[k]);
  }}
  return 0;
}}
"""


class Verdict(NamedTuple):
    """The result of a comparison as ``text``, and the requirements that the export fails, as sentences, or ``""``."""

    text: str
    failures: str


def verify(exported: Exported, format_: str, *, cc: str = "cc -O2") -> Verdict:
    """Compare an export with the trained network on the test set, and check what its format guarantees.

    Every format must give the predictions of the float network on at least 99.9 % of the images, or on 90 % if the
    weights of the first or last layer are rounded to 8 bits; C also every logit of the integer network, bit for bit.

    Args:
        exported: from :func:`qpsnn_jax.runs.exported.read_run`.
        format_: one of :data:`qpsnn_jax.export.FORMATS`. For packed, C and ONNX the integer network is compared too.
        cc: C compiler and its options.

    Raises:
        ValueError: the network cannot be exported, the compiler fails, a package is missing, or there are no test
            images.
    """
    lines, failures = [], []
    least = SAME_PREDICTIONS if exported.stem_bits == exported.readout_bits == 32 else SAME_PREDICTIONS_ROUNDED

    def require(name: str, same: float) -> None:
        if same < least:
            failures.append(f"{name} must give {100 * least:g} % of the predictions, and gives {100 * same:.2f} %.")

    if format_ in FOLDED:
        agreement = verify_packed(exported)
        lines.append(report(agreement, "the integer network"))
        require("the integer network", agreement.predictions)
    if format_ == "c":
        equal = verify_c(exported, cc)
        lines.append(f"the C program gives the logits of the integer network on {100 * equal:.2f} % of the images")
        if equal < 1:
            failures.append(f"the C program must give every logit, and differs on {100 * (1 - equal):.2f} %.")
    if format_ == "nir":
        agreement = verify_nir(exported)
        lines.append(report(agreement, "the NIR graph"))
        require("the NIR graph", agreement.predictions)
    for name, other, run in (("onnxruntime", "onnx", verify_onnx), ("StableHLO", "stablehlo", verify_stablehlo)):
        if format_ == other:
            same, difference = run(exported)
            share = f"{100 * same:.2f} % of the images; currents differ by at most {difference:.1e}"
            lines.append(f"{name} gives the predictions of the float network on {share}")
            require(name, same)
    return Verdict("\n".join(lines), " ".join(failures))


def verify_packed(exported: Exported) -> Agreement:
    """Write the packed file, read it back, and compare its integer network with the float network on the test set.

    Raises:
        ValueError: the network cannot be exported, or there are no test images.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.qpsnn"
        write_packed(path, exported.folded, exported.notes)
        network = IntegerNetwork.of(load_packed(path).folded)
    data, (images, labels) = exported.data, everything(exported.data.test)
    whole = (exported.graph, exported.variables, network, images, data.mean, data.std, labels)
    return compare(*whole, precision=exported.precision)


def verify_c(exported: Exported, cc: str, *, portable: bool = False) -> float:
    """Compile the C program and compare its logits with the integer network's on the test set.

    Args:
        exported: from :func:`qpsnn_jax.runs.exported.read_run`.
        cc: the compiler and its options.
        portable: as for :func:`qpsnn_jax.c_source`.

    Returns:
        The share of images all of whose logits are equal.

    Raises:
        ValueError: ``cc`` does not name a compiler, or the compiler or the program fails.
    """
    compiler = _words(cc)
    network, pixels = IntegerNetwork.of(exported.folded), everything(exported.data.test).images
    function = "net_infer_frames" if exported.folded.image.frames else "net_infer"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_c(place / "net.c", network, portable=portable)
        (place / "main.c").write_text(_DRIVER.format(pixels=pixels[0].size, function=function), encoding="utf-8")
        _checked([*compiler, "net.c", "main.c", "-o", "net"], place, b"")
        printed = _checked([str(place / "net")], place, pixels.tobytes())
    logits = np.array(printed.split(), np.int64).reshape(len(pixels), -1)
    equal = [(logits[i : i + _BATCH] == network(pixels[i : i + _BATCH])).all(-1) for i in range(0, len(pixels), _BATCH)]
    return float(np.concatenate(equal).mean())


def verify_onnx(exported: Exported) -> tuple[float, float]:
    """Run the ONNX model in onnxruntime on the CPU and compare it with the float network on the test set.

    Returns:
        The share of images with the same prediction, and the largest difference of a time-mean current.

    Raises:
        ValueError: ``onnx`` or ``onnxruntime`` is not installed, or the images do not fit.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("onnxruntime is not installed: pip install 'qpsnn-jax[onnx]'.") from None
    model = onnx_model(exported.folded).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return _beside(exported, lambda pixels: session.run(None, {"pixels": pixels})[0])


def verify_stablehlo(exported: Exported) -> tuple[float, float]:
    """Serialize the StableHLO, read it back, run it with XLA, and compare it with the float network on the test set.

    Returns:
        The share of images with the same prediction, and the largest difference of a time-mean current.

    Raises:
        ValueError: the images do not fit.
    """
    data = exported.data
    written = stablehlo(exported.graph, exported.variables, data.mean, data.std).serialize()
    read = export.deserialize(written)
    return _beside(exported, lambda pixels: read.call(jnp.asarray(pixels)))


def verify_nir(exported: Exported) -> Agreement:
    """Write the NIR file, read it back as a network, and compare that with the float network on the test set.

    The read network normalizes pixels by the mean and std of the file's metadata.

    Raises:
        ValueError: the network cannot be exported, or there are no test images.
    """
    data, (images, labels) = exported.data, everything(exported.data.test)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nir"
        write_nir(path, nir_graph(exported.graph, exported.variables, data.mean, data.std))
        document = read_nir(path)
    notes = document.metadata
    graph, variables = import_nir(document)
    precision = exported.precision
    read = Side(graph, variables, tuple(notes["mean"].tolist()), tuple(notes["std"].tolist()), precision)
    ours = Side(exported.graph, exported.variables, data.mean, data.std, precision)
    return compare_networks(ours, read, images, labels)


def _beside(exported: Exported, run: Callable[[np.ndarray], Any]) -> tuple[float, float]:
    """The share of equal predictions and the largest difference of currents between the float network and ``run``."""
    data = exported.data

    @jax.jit
    def forward(tree: Any, pixels: jax.Array) -> jax.Array:
        return mean_currents(exported.graph, tree, pixels, data.mean, data.std, exported.precision)

    sides = []
    for pixels, _ in evaluation_batches(data.test):
        expected = np.asarray(forward(exported.variables, jnp.asarray(pixels)))
        sides.append(np.stack([expected, np.asarray(run(pixels))]))
    ours, theirs = np.concatenate(sides, axis=1)
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean()), float(np.abs(ours - theirs).max())


def report(agreement: Agreement, other: str) -> str:
    """An agreement with ``other`` as lines of text: predictions, accuracies, and differing spikes by layer."""
    lines = [
        f"{agreement.images:,} test images; {other} gives the same prediction on {100 * agreement.predictions:.2f} %"
    ]
    if agreement.accuracy_float is not None and agreement.accuracy_other is not None:
        both = f"{100 * agreement.accuracy_float:.2f} % and {100 * agreement.accuracy_other:.2f} %"
        lines.append(f"accuracy of the float network and of {other}: {both}")
    lines.append("share of neurons and steps whose spikes differ, by layer:")
    lines += [f"  {name:20} {share:.2e}" for name, share in agreement.spikes.items()]
    return "\n".join(lines)


def _words(cc: str) -> list[str]:
    """A compiler and its options as separate words."""
    try:
        words = shlex.split(cc)
    except ValueError as error:
        raise ValueError(f"cc must be a C compiler and its options, got {cc!r} ({error}).") from None
    if not words:
        raise ValueError(f"cc must be a C compiler and its options, got {cc!r}.")
    return words


def _checked(command: list[str], folder: Path, data: bytes) -> bytes:
    try:
        ran = subprocess.run(command, cwd=folder, input=data, capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"the compiler {command[0]!r} cannot be run ({error.strerror}); give another --cc.") from None
    if ran.returncode:
        said = (ran.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"])[0]
        raise ValueError(f"`{shlex.join(command)}` failed: {said}")
    return ran.stdout
