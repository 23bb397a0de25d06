"""The command; see :mod:`experiments.cifar10_fast`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.cifar10_fast.recipe import Recipe, count, read_data
from experiments.cifar10_fast.slices import Run
from experiments.errors import usage_errors
from qpsnn_jax.data import load
from qpsnn_jax.runtime.stopping import termination

_POSITIVE, _NUMBER = click.FloatRange(0, min_open=True), click.IntRange(1)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="directory of the run; resumes what it holds"
)
@click.option("--minutes", type=_POSITIVE, help="stop after the slice that ends then")
@click.option("--network", default="resnet20", show_default=True, help="name in the zoo, or MODULE:NAME")
@click.option("--width", type=_POSITIVE, default=1.0, show_default=True, help="factor on all widths")
@click.option("--timesteps", type=_NUMBER, default=2, show_default=True, help="T of the second half of each course")
@click.option("--size", type=_POSITIVE, default=1.61, show_default=True, help="budget after pruning in MB (Eq. 16)")
@click.option("--epochs", default="40,15,25,15", show_default=True, metavar="N,N,N,N", help="of the four phases")
@click.option("--batch-size", type=_NUMBER, default=512, show_default=True)
@click.option(
    "--held-out", type=_NUMBER, default=5000, show_default=True, help="training images that are not trained on"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--data", default="cifar10", show_default=True, help="a data set in memory")
@click.option("--data-dir", metavar="DIR", help="its directory")
@click.option("--count", "counted", is_flag=True, help="count the operations of the recipe, and do nothing")
@usage_errors()
def main(
    out: Path | None, minutes: float | None, data: str, data_dir: str | None, *, counted: bool, **options: Any
) -> None:
    """Train, prune and fine-tune in slices of one epoch."""
    recipe = replace(Recipe(), **{**options, "epochs": _four(options["epochs"])})
    if counted:
        click.echo(count(recipe))
        return
    if out is None:
        raise click.UsageError("name the directory of the run with --out.")
    found = load(data, data_dir=data_dir)
    run = Run(recipe, out, read_data(recipe, found))
    started = time.monotonic()
    with termination() as terminated:
        for line in run.slices():
            click.echo(line)
            if terminated() or (minutes is not None and time.monotonic() - started > 60 * minutes):
                click.echo("stopped; the same command goes on.", err=True)
                return
    result = run.result(found.test)
    click.echo(f"test accuracy {100 * result['test_accuracy']:.2f} %, {result['weight_bytes'] / 1e6:.3f} MB")


def _four(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise click.UsageError(f"--epochs must be four numbers of epochs, one or more each, got {text!r}.")
    return tuple(map(int, words))


if __name__ == "__main__":
    main()
