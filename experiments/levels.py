"""How well the weights of trained networks use the levels of their quantizer (Eq. 8 of the paper).

Of every quantized layer of a run, before pruning: the share of the levels in use, the share of the weights beyond ±γ,
and the signal-to-noise ratio, as it is and for the best factor on the layer, which batch-norm absorbs.

Command: python -m experiments.levels RUN [RUN …] [--out DIR]
"""

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from experiments.errors import usage_errors
from experiments.scores import trained_network
from qpsnn_jax import QuantizationStats
from qpsnn_jax.model.variables import leaves_of
from qpsnn_jax.runs.report import aligned
from qpsnn_jax.runtime.files import write_atomically

_HEAD = ("run", "levels used", "saturated", "SNR, dB", "rescaled, dB")


def measure(path: Path) -> dict[str, dict[str, float]]:
    """The statistics of every quantized layer of a run's trained network, before channels are removed.

    Masks are not considered: a weight that one sets to 0 counts as it is.

    Raises:
        ValueError: there is no such run, its training is not complete, or no layer is quantized.
    """
    _, graph, variables = trained_network(path)
    found = {}
    for node in graph.nodes:
        quantizer = getattr(node, "quantizer", None)
        if quantizer is not None:
            leaves = leaves_of(variables, node.name)
            stats = quantizer.stats(leaves["kernel"], leaves[quantizer.scale_leaf])
            found[node.name] = {name: float(value) for name, value in stats._asdict().items()}
    if not found:
        raise ValueError(f"{path} has no quantized layer.")
    return found


def means(layers: Mapping[str, Mapping[str, float]]) -> list[float]:
    """The means over the layers, in the order of :class:`~qpsnn_jax.QuantizationStats`."""
    values = [[layer[name] for layer in layers.values()] for name in QuantizationStats._fields]
    return np.asarray(values, float).mean(axis=1).tolist()


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def cells(values: list[float]) -> list[str]:
    """Means as two percentages and two ratios in dB."""
    return [*(f"{100 * value:.1f} %" for value in values[:2]), *(f"{value:.1f}" for value in values[2:])]


@click.command()
@click.argument("paths", type=click.Path(path_type=Path, exists=True), metavar="RUN…", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="for one JSON file a run")
@usage_errors()
def main(paths: tuple[Path, ...], out: Path | None) -> None:
    """Measure how well the weights of runs use the levels of their quantizer."""
    rows: list[tuple[str, ...]] = [_HEAD]
    names = [path.resolve().name for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two runs have the name {twice[0]}; measure them one at a time.")
    for name, path in zip(names, paths, strict=True):
        layers = measure(path)
        rows.append((name, *cells(means(layers))))
        if out is not None:
            # A ratio without noise is infinite, which JSON has no number for.
            finite = {layer: _finite(values) for layer, values in layers.items()}
            document = {"name": name, "layers": finite}
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / f"{name}.json", (json.dumps(document, indent=1) + "\n").encode())
    click.echo(aligned(rows))


if __name__ == "__main__":
    main()
