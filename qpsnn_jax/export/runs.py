"""Export of a run: its network folded with the statistics of its data, and where it comes from."""

from pathlib import Path
from typing import Any, NamedTuple

from qpsnn_jax import pipeline
from qpsnn_jax.config import as_dict
from qpsnn_jax.data import DataSet
from qpsnn_jax.export.csource import write_c
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.onnx_graph import write_onnx
from qpsnn_jax.export.packed import write_packed
from qpsnn_jax.export.stablehlo import write_stablehlo
from qpsnn_jax.graph import Graph
from qpsnn_jax.steps import Variables


class Exported(NamedTuple):
    """A run's network, folded, with the test set it is measured on and notes on where it comes from."""

    graph: Graph
    variables: Variables
    data: DataSet
    folded: Folded
    notes: dict[str, Any]


def fold_run(
    path: Path,
    data_dir: str | None = None,
    *,
    stem_bits: int = 32,
    readout_bits: int = 32,
    test_examples: int | None = None,
) -> Exported:
    """Fold the network of a run.

    Args:
        path: a run, whose last complete stage is taken, or one of its complete stages.
        data_dir: TFDS data directory, the run's own when left out; mean and std of the pixels come from the data.
        stem_bits, readout_bits: of :func:`fold`.
        test_examples: how many test images to load, the run's number when left out.

    Returns:
        :class:`Exported`. Its notes are the run's config, the record of the stage and the versions.

    Raises:
        ValueError: no run or stage is there, its data are missing, or the network has no form in whole numbers.
    """
    graph, variables = pipeline.load_network(path)
    run = pipeline.run_of(path)
    if run is None:
        raise ValueError(f"{path} belongs to no run, so the mean and std of its pixels are not known; give a run.")
    config = pipeline.read_config(run)
    data = pipeline.load_test_data(graph, config, data_dir=data_dir, test_examples=test_examples)
    folded = fold(graph, variables, data.mean, data.std, stem_bits=stem_bits, readout_bits=readout_bits)
    return Exported(graph, variables, data, folded, _notes(path, run, config))


def write_run(exported: Exported, path: Path, form: str, *, portable: bool = False) -> str:
    """Write a run's network as a file.

    Args:
        exported: from :func:`fold_run`.
        path: of the file.
        form: ``packed``, ``c``, ``onnx`` or ``stablehlo``.
        portable: of :func:`qpsnn_jax.export.csource.c_source`.

    Returns:
        What was written, in words.

    Raises:
        ValueError: as the export, or a package that it needs is not installed.
    """
    if form == "c":
        text = write_c(path, IntegerNetwork.of(exported.folded), portable=portable)
        return f"{text.working_bytes:,} bytes of working memory and {text.constant_bytes:,} of constants"
    if form == "onnx":
        return f"{write_onnx(path, exported.folded):,} bytes"
    if form == "stablehlo":
        data = exported.data
        return f"{write_stablehlo(path, exported.graph, exported.variables, data.mean, data.std):,} bytes"
    packed = write_packed(path, exported.folded, exported.notes)
    return f"{packed.payload_bytes:,} bytes of numbers and {packed.header_bytes:,} of header"


def _notes(path: Path, run: Path, config: Any) -> dict[str, Any]:
    names = pipeline.STAGES if path.resolve() == run.resolve() else (path.resolve().name,)
    stages = (pipeline.read_stage(run, name) for name in reversed(names))
    stage = next((stage for stage in stages if stage), None)
    notes = {"config": as_dict(config), "versions": pipeline.versions()}
    # Where the data lay on the machine that trained is nobody else's business.
    notes["config"].pop("data_dir", None)
    if stage is not None:
        notes |= {"stage": stage.name, "accuracy": stage.accuracy_last}
    return notes
