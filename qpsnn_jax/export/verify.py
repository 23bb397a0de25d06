"""Runs an exported network beside the one that was trained, on test images, and says how far they agree."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.data.feed import evaluation_batches, everything
from qpsnn_jax.export.agreement import Agreement, compare, mean_currents
from qpsnn_jax.export.csource import write_c
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.onnx_graph import onnx_model
from qpsnn_jax.export.packed import load_packed, write_packed
from qpsnn_jax.export.runs import Exported

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


def verify_packed(exported: Exported) -> Agreement:
    """Write the packed file, read it back, and compare its whole numbers with the float network on the test set.

    Args:
        exported: from :func:`qpsnn_jax.export.runs.fold_run`.

    Returns:
        :class:`Agreement`.

    Raises:
        ValueError: as the export, or there are no test images.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.qpsnn"
        write_packed(path, exported.folded, exported.notes)
        network = IntegerNetwork.of(load_packed(path).folded)
    data, (images, labels) = exported.data, everything(exported.data.test)
    return compare(exported.graph, exported.variables, network, images, data.mean, data.std, labels)


def verify_c(exported: Exported, cc: str, *, portable: bool = False) -> float:
    """Compile the C program and compare its logits with the interpreter's on the test set.

    Args:
        exported: from :func:`qpsnn_jax.export.runs.fold_run`.
        cc: the compiler and its options.
        portable: of :func:`qpsnn_jax.export.csource.c_source`.

    Returns:
        The share of images all of whose logits are equal.

    Raises:
        ValueError: the compiler is missing or fails, or the program does.
    """
    network, pixels = IntegerNetwork.of(exported.folded), everything(exported.data.test).images
    function = "net_infer_frames" if exported.folded.image.frames else "net_infer"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_c(place / "net.c", network, portable=portable)
        (place / "main.c").write_text(_DRIVER.format(pixels=pixels[0].size, function=function))
        _checked([*shlex.split(cc), "net.c", "main.c", "-o", "net"], place, b"")
        printed = _checked([str(place / "net")], place, pixels.tobytes())
    logits = np.array(printed.split(), np.int64).reshape(len(pixels), -1)
    equal = [(logits[i : i + _BATCH] == network(pixels[i : i + _BATCH])).all(-1) for i in range(0, len(pixels), _BATCH)]
    return float(np.concatenate(equal).mean())


def verify_onnx(exported: Exported) -> tuple[float, float]:
    """Run the ONNX model in onnxruntime on the CPU and compare it with the float network on the test set.

    Args:
        exported: from :func:`qpsnn_jax.export.runs.fold_run`.

    Returns:
        The share of images with the same prediction, and the largest difference of a time-mean current.

    Raises:
        ValueError: ``onnx`` or ``onnxruntime`` is not installed, or the images do not fit.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("onnxruntime is not installed: pip install 'qpsnn-jax[onnx]'.") from None
    data = exported.data
    model = onnx_model(exported.folded).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    @jax.jit
    def forward(tree: Any, pixels: jax.Array) -> jax.Array:
        return mean_currents(exported.graph, tree, pixels, data.mean, data.std)

    sides = []
    for pixels, _ in evaluation_batches(data.test):
        found: Any = session.run(None, {"pixels": pixels})[0]
        sides.append(np.stack([np.asarray(forward(exported.variables, jnp.asarray(pixels))), found]))
    ours, theirs = np.concatenate(sides, axis=1)
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean()), float(np.abs(ours - theirs).max())


def report(agreement: Agreement) -> str:
    """An agreement as lines of text: predictions, accuracies, and differing spikes by layer."""
    lines = [f"{agreement.images:,} test images, the same prediction on {100 * agreement.predictions:.2f} %"]
    if agreement.accuracy_float is not None and agreement.accuracy_integer is not None:
        both = f"{100 * agreement.accuracy_float:.2f} % and {100 * agreement.accuracy_integer:.2f} %"
        lines.append(f"accuracy of the float network and of the whole numbers: {both}")
    lines.append("spikes that differ, of all spikes and silences of a layer:")
    lines += [f"  {name:20} {share:.2e}" for name, share in agreement.spikes.items()]
    return "\n".join(lines)


def _checked(command: list[str], folder: Path, data: bytes) -> bytes:
    try:
        ran = subprocess.run(command, cwd=folder, input=data, capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"the compiler {command[0]!r} cannot be run ({error.strerror}); give another --cc.") from None
    if ran.returncode:
        said = (ran.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"])[0]
        raise ValueError(f"`{shlex.join(command)}` failed: {said}")
    return ran.stdout
