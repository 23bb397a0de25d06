r"""Put a trained network among those that come with the package, with its card.

Command: python -m experiments.publish RUN --name NAME --command "COMMAND THAT MADE IT" [--data NAME] [--data-dir DIR]
    [--seeds 0=0.9750,1=0.9694] [--commit COMMIT]
"""

import dataclasses
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments.integers import classified_right
from qpsnn_jax import Graph
from qpsnn_jax.data import Arrays, load
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.export.pretrained import FOLDER, Card
from qpsnn_jax.export.unfolding import current_moments
from qpsnn_jax.runs.config import build_graph
from qpsnn_jax.runs.directory import load_network, read_config, run_of
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runs.loading import for_network
from qpsnn_jax.runs.records import measure, versions
from qpsnn_jax.runtime.files import write_together
from qpsnn_jax.runtime.settings import as_dict

_FIRST = 300  # test images that the test of a card classifies


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
def main(path: Path, **options: Any) -> None:
    """Write packed file, moments and card of a run's network into the package."""
    publish(path, **options)


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
    """What :func:`main` does; returns the card."""
    graph, variables = load_network(path)
    run = run_of(path)
    if run is None:
        raise click.UsageError(f"{path} does not belong to a run.")
    config = read_config(run)
    if data is not None:  # all of it, whatever part of it the run held out
        whole = dataclasses.replace(config.data, name=data, train_examples=None, test_examples=None)
        config = dataclasses.replace(config, data=whole)
    own, where = config.data, data_dir or config.data.data_dir
    found = for_network(graph, load(own.name, data_dir=where, train_examples=1, timesteps=graph.timesteps))
    assert isinstance(found.test, Arrays)
    folded = fold(graph, variables, found.mean, found.std, stem_bits=int(stem_bits), readout_bits=int(readout_bits))
    plain = as_dict(config)
    plain["data"].pop("data_dir")
    notes = {"config": plain, "versions": versions(), "std": [float(value) for value in found.std]}
    write_packed(folder / f"{name}.qpsnn", folded, {**notes, "class_names": list(found.class_names)})

    right = classified_right(folded, found.test)
    measured = evaluate(graph, variables, found.test, found, precision=config.run.precision)
    result = measure("finetuned", (graph, variables), build_graph(config), measured, None, 0.0)
    accuracy = float(right.mean())
    card = Card(
        name=name,
        data=f"{own.name}, {'×'.join(map(str, found.shape))}, {found.classes} classes",
        accuracy=accuracy,
        test_images=len(right),
        first_images=min(_FIRST, len(right)),
        first_correct=int(right[:_FIRST].sum()),
        seeds=dict(_seed(word) for word in seeds.split(",") if word) or {str(config.run.seed): accuracy},
        seed=config.run.seed,
        command=command,
        commit=commit or _commit(),
        result=dataclasses.asdict(result),
    )
    text = json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False) + "\n"
    write_together({folder / f"{name}.npz": _moments(graph, variables), folder / f"{name}.json": text.encode()})
    click.echo(f"{name}: {100 * accuracy:.2f} % of {len(right):,} images")
    return card


def _moments(graph: Graph, variables: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    arrays = {
        f"{layer}/{kind}": values
        for layer, moments in current_moments(graph, variables).items()
        for kind, values in moments._asdict().items()
    }
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _seed(word: str) -> tuple[str, float]:
    seed, _, accuracy = word.partition("=")
    return seed, float(accuracy)


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()


if __name__ == "__main__":
    main()
