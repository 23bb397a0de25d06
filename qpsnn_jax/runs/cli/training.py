"""Commands that do a run: all of it, or stage by stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qpsnn_jax.runs.cli.flags import ConfigCommand, chosen
from qpsnn_jax.runs.cli.joining import join, joining, say

if TYPE_CHECKING:
    from qpsnn_jax.runs.config import Config
    from qpsnn_jax.runs.stages import Run

_PATH = click.Path(path_type=Path)
_OUT = click.option(
    "--out", required=True, type=_PATH, metavar="DIR", help="directory of the run, new or this run's, to go on with it"
)
_DIRECTORY = click.argument("directory", type=_PATH, metavar="DIR")


@click.command(cls=ConfigCommand)
@_OUT
@click.option("--compare", is_flag=True, help="also run the controls: baseline, random, from scratch")
@joining
def run(config: str, changes: dict[str, str], out: Path, *, compare: bool, **processes: Any) -> None:
    """Train, score, prune, fine-tune and report."""
    settings = _chosen(config, changes, processes)
    from qpsnn_jax.runs.controls import read_controls, run_controls
    from qpsnn_jax.runs.report import table, write_report
    from qpsnn_jax.runs.stages import run_stages

    with _begun(settings, out) as running:
        stages = run_stages(settings, running)
        if compare:
            run_controls(settings, running)
        controls = read_controls(out)
        write_report(settings, out, running.data, stages, controls)
    say(table([*stages, *controls]))
    say(f"\nreport: {out / 'report.md'}")


@click.command(cls=ConfigCommand)
@_OUT
@joining
def train(config: str, changes: dict[str, str], out: Path, **processes: Any) -> None:
    """Train the quantized network, the first stage of a run."""
    settings = _chosen(config, changes, processes)
    from qpsnn_jax.runs import stages
    from qpsnn_jax.runs.report import table

    with _begun(settings, out) as running:
        say(table([stages.train(running, settings.train)]))


@click.command()
@_DIRECTORY
@joining
def score(directory: Path, **processes: Any) -> None:
    """Score the channels of a trained run."""
    settings = _read(directory, processes)
    from qpsnn_jax.runs.stages import score_channels

    _require_stage(directory, "quantized", "qpsnn train")
    with _begun(settings, directory) as running:
        scores = score_channels(running, settings.prune)
    for name, values in scores.items():
        say(f"{name:20} {len(values):5} channels, scores {values.min():.4g} to {values.max():.4g}")
    say(f"\nscores: {directory / 'pruned' / 'scores.npz'}")


@click.command()
@_DIRECTORY
@joining
def prune(directory: Path, **processes: Any) -> None:
    """Remove the channels with the lowest scores from a trained run."""
    settings = _read(directory, processes)
    from qpsnn_jax.runs.report import table
    from qpsnn_jax.runs.stages import prune_channels

    _require_stage(directory, "quantized", "qpsnn train")
    with _begun(settings, directory) as running:
        say(table([prune_channels(running, settings.prune)]))


@click.command()
@_DIRECTORY
@joining
def finetune(directory: Path, **processes: Any) -> None:
    """Train a pruned run on, and report."""
    settings = _read(directory, processes)
    from qpsnn_jax.runs.controls import read_controls
    from qpsnn_jax.runs.report import table, write_report
    from qpsnn_jax.runs.stages import run_stages

    _require_stage(directory, "pruned", "qpsnn prune")
    with _begun(settings, directory) as running:
        stages = run_stages(settings, running)
        write_report(settings, directory, running.data, stages, read_controls(directory))
    say(table(stages))


COMMANDS = (run, train, score, prune, finetune)


def _chosen(name: str, changes: dict[str, str], processes: dict[str, Any]) -> "Config":
    join(**processes)
    from qpsnn_jax.runs.config import check_config
    from qpsnn_jax.runtime.processes import fail_together

    @fail_together
    def checked() -> "Config":
        config = chosen(name, changes)
        check_config(config)
        return config

    return checked()


def _read(directory: Path, processes: dict[str, Any]) -> "Config":
    join(**processes)
    from qpsnn_jax.runs.directory import read_config

    return read_config(directory)


@contextmanager
def _begun(config: "Config", directory: Path) -> "Iterator[Run]":
    """The run of a config in a directory that is held meanwhile; nothing is written before the data are there."""
    from qpsnn_jax.runs.directory import STAGES, check_run, open_run, read_stage
    from qpsnn_jax.runs.loading import load_data
    from qpsnn_jax.runs.stages import prepare_run

    check_run(directory, config)
    data = load_data(config)
    with open_run(directory, config):
        done = [name for name in STAGES if read_stage(directory, name)]
        say(f"run: {directory.resolve()}" + (f", has {' and '.join(done)}" if done else ""), err=True)
        yield prepare_run(config, directory, data)


def _require_stage(directory: Path, stage: str, command: str) -> None:
    from qpsnn_jax.runs.directory import read_stage

    if read_stage(directory, stage) is None:
        raise ValueError(f"{directory} has no complete stage {stage!r} yet; run `{command}` first.")
