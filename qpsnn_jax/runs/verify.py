"""Compares an exported network with the trained one, on test images."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.data.feed import evaluation_batches, everything
from qpsnn_jax.export import FOLDED
from qpsnn_jax.export.agreement import Agreement, Side, compare, compare_networks, mean_currents
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.nir.file import read_nir, write_nir
from qpsnn_jax.export.nir.reader import import_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.export.onnx import onnx_model
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.export.stablehlo import stablehlo, without_locations
from qpsnn_jax.runs.exported import Exported
from qpsnn_jax.runs.report import exit_table
from qpsnn_jax.runs.verify_c import ProgramAgreement, verify_c

# Rounding can change the class of an image that lies between two. 8-bit weights of first and last layer change more.
SAME_PREDICTIONS = 0.999
SAME_PREDICTIONS_ROUNDED = 0.9
_BATCH = 50  # of the StableHLO


class Verdict(NamedTuple):
    """The result of a comparison as ``text``, and the requirements that the export fails, as sentences, or ``""``."""

    text: str
    failures: str


def verify(
    exported: Exported,
    format_: str,
    *,
    cc: str = "cc -O2",
    early_exit: float | None = None,
    onnx: Mapping[str, int] = MappingProxyType({}),
) -> Verdict:
    """Compare an export with the trained network on the test set, and check what its format guarantees.

    Every format must give the predictions of the float network on at least 99.9 % of the images, or on 90 % if the
    weights of the first or last layer are rounded to 8 bits; C also every logit of the integer network, bit for bit, at
    once and step by step.

    Args:
        exported: from :func:`qpsnn_jax.runs.exported.read_run`.
        format_: one of :data:`qpsnn_jax.export.FORMATS`. For packed, C and ONNX the integer network is compared too.
        cc: C compiler and its options.
        onnx: options of :func:`qpsnn_jax.onnx_model`.
        early_exit: a threshold of :func:`qpsnn_jax.early_exit` for the C program, which must leave as the integers do.

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
        found = verify_c(exported, cc, early_exit)
        lines.append(program_report(found, early_exit))
        for duty, share in (("give every logit", found.equal), ("leave as the integers do", found.equal_exits)):
            if share < 1:
                failures.append(f"the C program must {duty}, and differs on {100 * (1 - share):.2f} %.")
    if format_ == "nir":
        agreement = verify_nir(exported)
        lines.append(report(agreement, "the NIR graph"))
        require("the NIR graph", agreement.predictions)
    in_onnxruntime = partial(verify_onnx, options=onnx)
    for name, other, run in (("onnxruntime", "onnx", in_onnxruntime), ("StableHLO", "stablehlo", verify_stablehlo)):
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
    data, (images, labels) = exported.test_data, everything(exported.test_data.test)
    whole = (exported.graph, exported.variables, network, images, data.mean, data.std, labels)
    return compare(*whole, precision=exported.precision)


def verify_onnx(exported: Exported, options: Mapping[str, int] = MappingProxyType({})) -> tuple[float, float]:
    """Run the ONNX model in onnxruntime on the CPU and compare it with the float network on the test set.

    Args:
        exported: a run.
        options: of :func:`qpsnn_jax.onnx_model`.

    Returns:
        The share of images with the same prediction, and the largest difference of a time-mean current.

    Raises:
        ValueError: ``onnx`` or ``onnxruntime`` is not installed, or the images do not fit.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("onnxruntime is not installed: pip install '.[onnx]' in the checkout.") from None
    model = onnx_model(exported.folded, **options).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return _beside(exported, _in_batches(lambda pixels: session.run(None, {"pixels": pixels})[0], options.get("batch")))


def verify_stablehlo(exported: Exported) -> tuple[float, float]:
    """Run what a StableHLO file holds with XLA, and compare it with the float network on the test set.

    The module is of batches of 50 images.

    Returns:
        The share of images with the same prediction, and the largest difference of a time-mean current.

    Raises:
        ValueError: the images do not fit.
    """
    data = exported.test_data
    module = stablehlo(exported.graph, exported.variables, data.mean, data.std, batch=_BATCH)
    read = dataclasses.replace(module, mlir_module_serialized=without_locations(module.mlir_module_serialized))
    return _beside(exported, _in_batches(lambda pixels: np.asarray(read.call(jnp.asarray(pixels))), _BATCH))


def _in_batches(run: Callable[[np.ndarray], Any], batch: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """``run`` for any number of images, though it takes exactly ``batch`` of them: the last batch is filled up."""

    def run_all(pixels: np.ndarray) -> np.ndarray:
        size = batch or len(pixels)
        filled = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % size, axis=0)])
        return np.concatenate([run(filled[i : i + size]) for i in range(0, len(filled), size)])[: len(pixels)]

    return run_all


def verify_nir(exported: Exported) -> Agreement:
    """Write the NIR file, read it back as a network, and compare that with the float network on the test set.

    The read network normalizes pixels by the mean and std of the file's metadata.

    Raises:
        ValueError: the network cannot be exported, or there are no test images.
    """
    data, (images, labels) = exported.test_data, everything(exported.test_data.test)
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
    data = exported.test_data

    @jax.jit
    def forward(tree: Any, pixels: jax.Array) -> jax.Array:
        return mean_currents(exported.graph, tree, pixels, data.mean, data.std, exported.precision)

    sides = []
    for pixels, _ in evaluation_batches(data.test):
        expected = np.asarray(forward(exported.variables, jnp.asarray(pixels)))
        sides.append(np.stack([expected, np.asarray(run(pixels))]))
    ours, theirs = np.concatenate(sides, axis=1)
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean()), float(np.abs(ours - theirs).max())


def program_report(found: ProgramAgreement, early_exit: float | None) -> str:
    """The agreement of a C program as text, with its accuracy and steps under early exit, if any."""
    share = f"{100 * found.equal:.2f} % of the images"
    line = f"the C program gives the logits of the integer network, at once and step by step, on {share}"
    return line if found.exits is None else f"{line}; with early exit:\n\n{exit_table({early_exit: found.exits})}"


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
