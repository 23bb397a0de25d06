r"""Put a trained network among those that come with the package, with its card.

Command: python -m experiments.publish RUN --name NAME --command "COMMAND THAT MADE IT" [--data NAME] [--data-dir DIR]
    [--seeds 0=0.9750,1=0.9694] [--commit COMMIT]
"""

import dataclasses
import io
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments.errors import usage_errors
from experiments.integers import classified_right
from qpsnn_jax import Graph
from qpsnn_jax.data import Arrays, DataSet
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.export.pretrained import FOLDER, Card
from qpsnn_jax.export.unfolding import current_moments
from qpsnn_jax.runs.config import Config, build_graph
from qpsnn_jax.runs.directory import load_network, read_config, run_of
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runs.exported import shared_settings
from qpsnn_jax.runs.loading import load_test_data
from qpsnn_jax.runs.records import measure, versions
from qpsnn_jax.runtime.files import write_together

_FIRST = 300  # test images that the test of a card classifies
_SHARE = r"0?\.\d+|[01](\.0*)?"  # a number from 0 to 1


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="RUN")
@click.option("--name", required=True, help="of the network; existing files are replaced")
@click.option("--command", required=True, help="the command that made it")
@click.option("--data", help="data set whose test images are read (default: that of the run)")
@click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")
@click.option("--seeds", default="", metavar="SEED=ACCURACY,…", help="accuracies of all seeds that were trained")
@click.option("--commit", help="of the code that trained it (default: the present one)")
@click.option("--stem-bits", type=click.Choice(("8", "32")), default="32", show_default=True)
@click.option("--readout-bits", type=click.Choice(("8", "32")), default="32", show_default=True)
@usage_errors()
def main(path: Path, **options: Any) -> None:
    """Write packed file, moments and card of a run's network into the package."""
    card = publish(path, **options)
    click.echo(f"{card.name}: {100 * card.accuracy:.2f} % of {card.test_images:,} images")


def publish(
    path: Path,
    *,
    name: str,
    command: str,
    data: str | None = None,
    data_dir: str | None = None,
    seeds: str = "",
    stem_bits: str = "32",
    readout_bits: str = "32",
    commit: str | None = None,
    folder: Path = FOLDER,
) -> Card:
    """What :func:`main` does; returns the card.

    Raises:
        ValueError: the path does not belong to a run, ``seeds`` are not accuracies by seed, or the data are missing.
    """
    accuracies = _accuracies(seeds)
    config = _config(path, data)
    if accuracies and str(config.run.seed) not in accuracies:
        raise ValueError(f"--seeds must name the run's own seed, {config.run.seed}, too; got {seeds!r}.")
    graph, variables = load_network(path)
    found = _test_data(graph, config, data_dir)
    folded = fold(graph, variables, found.mean, found.std, stem_bits=int(stem_bits), readout_bits=int(readout_bits))
    card = _card(name, (graph, variables), folded, found, config)
    card = dataclasses.replace(card, command=command, commit=commit or _commit(), seeds=accuracies or card.seeds)
    text = json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False) + "\n"
    contents = {".qpsnn": _packed(folded, config, found), ".npz": _moments(graph, variables), ".json": text.encode()}
    write_together({folder / f"{name}{ending}": content for ending, content in contents.items()})
    return card


def _config(path: Path, data: str | None) -> Config:
    """That of the run; ``data`` are taken whole, whatever part of them the run held out."""
    run = run_of(path)
    if run is None:
        raise ValueError(f"{path} does not belong to a run.")
    config = read_config(run)
    if data is None:
        return config
    whole = dataclasses.replace(config.data, name=data, train_examples=None, test_examples=None)
    return dataclasses.replace(config, data=whole)


def _test_data(graph: Graph, config: Config, data_dir: str | None) -> DataSet:
    """All test images of the run's seed, which of a data set without a split of its own are others for every seed."""
    everything = dataclasses.replace(config, data=dataclasses.replace(config.data, test_examples=None))
    return load_test_data(graph, everything, data_dir=data_dir)


def _card(name: str, network: tuple[Graph, Any], folded: Folded, data: DataSet, config: Config) -> Card:
    """What is measured; the rest is empty."""
    assert isinstance(data.test, Arrays)
    right = classified_right(folded, data.test)
    measured = evaluate(*network, data.test, data, precision=config.run.precision)
    accuracy = float(right.mean())
    return Card(
        name=name,
        data=f"{config.data.name}, {'×'.join(map(str, data.shape))}, {data.classes} classes",
        accuracy=accuracy,
        test_images=len(right),
        first_images=min(_FIRST, len(right)),
        first_correct=int(right[:_FIRST].sum()),
        seeds={str(config.run.seed): accuracy},
        seed=config.run.seed,
        command="",
        commit="",
        result=dataclasses.asdict(measure("finetuned", network, build_graph(config), measured, None, 0.0)),
    )


def _packed(folded: Folded, config: Config, data: DataSet) -> bytes:
    notes = {"config": shared_settings(config), "versions": versions(), "std": [float(value) for value in data.std]}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "network.qpsnn"
        write_packed(path, folded, {**notes, "class_names": list(data.class_names)})
        return path.read_bytes()


def _moments(graph: Graph, variables: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    arrays = {
        f"{layer}/{kind}": values
        for layer, moments in current_moments(graph, variables).items()
        for kind, values in moments._asdict().items()
    }
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _accuracies(text: str) -> dict[str, float]:
    """Accuracies by seed of ``SEED=ACCURACY,…``; empty for an empty text.

    Raises:
        ValueError: it is not of that form, or an accuracy is not from 0 to 1.
    """
    pairs = [word.partition("=") for word in text.split(",")] if text else []
    for seed, _, accuracy in pairs:
        if not (seed.strip().isdecimal() and re.fullmatch(_SHARE, accuracy.strip())):
            raise ValueError(f"--seeds must be SEED=ACCURACY,…, such as 0=0.9750,1=0.9694, got {text!r}.")
    return {str(int(seed)): float(accuracy) for seed, _, accuracy in pairs}


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()


if __name__ == "__main__":
    main()
