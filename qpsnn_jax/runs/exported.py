"""Export of a run: its network with the statistics of its data, and its origin."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qpsnn_jax.data import DataSet
from qpsnn_jax.export.c.source import write_c
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.nir.file import write_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.export.onnx import write_onnx
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.export.stablehlo import write_stablehlo
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.data_record import check_data
from qpsnn_jax.runs.directory import (
    STAGES,
    load_network,
    parse_config,
    read_class_names,
    read_config,
    read_stage,
    run_of,
    stage_of,
)
from qpsnn_jax.runs.loading import check_fits, load_test_data
from qpsnn_jax.runs.records import versions
from qpsnn_jax.runs.statistics import Statistics, as_trained, trained_statistics
from qpsnn_jax.runtime.naming import without_folder
from qpsnn_jax.runtime.settings import as_dict
from qpsnn_jax.training.state import Variables


@dataclass(frozen=True, eq=False)
class Exported:
    """A run's network with its test set and notes on its origin.

    Attributes:
        graph, variables: of the run.
        mean, std: by which its images are normalized.
        notes: the config, the versions, and the stage with its accuracy.
        stem_bits, readout_bits: as for :func:`fold`.
        precision: of the run, with which an export is compared.
        data: the test set that it is compared on; None for an export alone.
    """

    graph: Graph
    variables: Variables
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: dict[str, Any]
    stem_bits: int = 32
    readout_bits: int = 32
    precision: Precision = "auto"
    data: DataSet | None = None

    @property
    def test_data(self) -> DataSet:
        """``data`` of what was read to be compared."""
        assert self.data is not None, "read with compared=True"
        return self.data

    @cached_property
    def folded(self) -> Folded:
        """The network as codes, scales and biases.

        Raises:
            ValueError: the network cannot run in integers.
        """
        bits = {"stem_bits": self.stem_bits, "readout_bits": self.readout_bits}
        return fold(self.graph, self.variables, self.mean, self.std, **bits)


def read_run(
    path: Path,
    data_dir: str | None = None,
    *,
    data: str | None = None,
    stem_bits: int = 32,
    readout_bits: int = 32,
    compared: bool = False,
    test_examples: int | None = None,
) -> Exported:
    """The network of a run, or an imported one, ready to be exported.

    Args:
        path: a run (its last complete stage), one of its complete stages, or an imported network.
        data_dir: TFDS data directory, by default the run's own.
        data: for an imported network, the name of the data set that it was trained on.
        stem_bits, readout_bits: as for :func:`fold`.
        compared: whether the test images are needed. Without them no data are read, if mean and std of the pixels are
            kept with the network, and ``data`` and ``data_dir`` are not given.
        test_examples: how many test images to load, by default as in the run.

    Raises:
        ValueError: there is no such run or stage, its data are missing or do not fit it, or ``data`` is given for a run
            or missing for another network.
    """
    graph, variables = load_network(path)
    run, kept = run_of(path), trained_statistics(path)
    if run is not None and data is not None:
        raise ValueError(f"{path} belongs to a run, which has a data set; leave out --data.")
    if kept is None or compared or data is not None or data_dir is not None:
        if run is None and data is None:
            without = "test images are" if kept else "mean and std of its pixels are"
            raise ValueError(
                f"{path} does not belong to a run, so the {without} unknown; name the data set that it was trained on "
                "with --data."
            )
        config = None if run is None else read_config(run, data_dir)
        loaded = load_test_data(graph, config, name=data, data_dir=data_dir, test_examples=test_examples)
        check_fits(path, graph, loaded)
        if run is not None:
            check_data(run, loaded, train=False, test=test_examples is None, otherwise="train a new run on these")
        loaded = as_trained(loaded, kept)
        used, names = Statistics(tuple(loaded.mean), tuple(loaded.std)), loaded.class_names
    else:
        # The data of the run need not be there.
        config = None if run is None else parse_config(run)
        loaded, used, names = None, kept, read_class_names(path)
    notes = {"versions": versions(), "std": list(used.std)} | ({"class_names": list(names)} if names else {})
    if run is not None and config is not None:
        notes |= _origin(path, run, config)
    precision = "auto" if config is None else config.run.precision
    return Exported(graph, variables, used.mean, used.std, notes, stem_bits, readout_bits, precision, loaded)


def shared_settings(config: Config) -> dict[str, Any]:
    """A config as plain values for other people: without paths of this machine, which are private.

    Of a file of one's own its name is left, and of a teacher outside of the run the name of its directory.
    """
    plain = {
        part: {name: without_folder(value) if isinstance(value, str) else value for name, value in fields.items()}
        for part, fields in as_dict(config).items()
    }
    plain["data"].pop("data_dir")
    for part in ("train", "finetune"):
        if plain[part]["distill"] is not None:
            plain[part]["distill"] = _without_parents(plain[part]["distill"])
    return plain


def _without_parents(teacher: str) -> str:
    """The last component of a path; of a stage of another run the last two, because one would be a stage of this."""
    *parents, name = Path(teacher).parts or (teacher,)
    return "/".join([*parents[-1:], name] if name in STAGES else [name])


def write_run(
    exported: Exported,
    path: Path,
    format_: str,
    *,
    portable: bool = False,
    onnx: Mapping[str, int | None] = MappingProxyType({}),
    batch: int = 1,
) -> str:
    """Write a run's network as a file. Its folder is created if missing.

    Args:
        exported: from :func:`read_run`.
        path: the file.
        format_: one of :data:`qpsnn_jax.export.FORMATS`.
        portable: as for :func:`qpsnn_jax.c_source`.
        onnx: options of :func:`qpsnn_jax.onnx_model`.
        batch: of the StableHLO.

    Returns:
        The size of the file, as text.

    Raises:
        ValueError: the network cannot be exported, or a package that the format needs is not installed.
    """
    if format_ == "c":
        network = IntegerNetwork.of(exported.folded)
        text = write_c(_placed(path), network, portable=portable)
        constants, state = f"{text.constant_bytes:,} of constants", f"{text.state_bytes:,} of a state between steps"
        return f"{text.working_bytes:,} bytes of working memory, {constants}, {state}"
    if format_ == "onnx":
        folded = exported.folded
        return f"{write_onnx(_placed(path), folded, **onnx):,} bytes"
    whole = (exported.graph, exported.variables, exported.mean, exported.std)
    if format_ == "nir":
        document = nir_graph(*whole)
        return f"{write_nir(_placed(path), document):,} bytes"
    if format_ == "stablehlo":
        return f"{write_stablehlo(_placed(path), *whole, batch=batch):,} bytes"
    folded = exported.folded
    packed = write_packed(_placed(path), folded, exported.notes)
    return f"{packed.payload_bytes:,} bytes of weights and {packed.header_bytes:,} of header"


def _placed(path: Path) -> Path:
    """``path``, whose folder now exists. It is created only once the export has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _origin(path: Path, run: Path, config: Config) -> dict[str, Any]:
    notes: dict[str, Any] = {"config": shared_settings(config)}
    place = stage_of(path)
    stage = place and read_stage(place.parent, place.name)
    if place is not None and stage is not None:
        notes |= {"stage": place.relative_to(run.resolve()).as_posix(), "accuracy": stage.accuracy_last}
    return notes
