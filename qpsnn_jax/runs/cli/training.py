"""Commands that carry out a run: all of it, or stage by stage."""

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
    "--out", required=True, type=_PATH, metavar="DIR", help="directory of the run; resumes the run that it holds"
)
_DIRECTORY = click.argument("directory", type=_PATH, metavar="DIR")
_DATA_DIR = click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")


@click.command(cls=ConfigCommand)
@_OUT
@click.option("--compare", is_flag=True, help="also run the controls: baseline, random, from scratch")
@joining
def run(config: str, changes: dict[str, str], out: Path, *, compare: bool, **processes: Any) -> None:
    """Train, score, prune, fine-tune and report."""
    settings = _chosen(config, changes, processes)
    from qpsnn_jax.runs.config import check_ratios
    from qpsnn_jax.runs.controls import read_controls, run_controls
    from qpsnn_jax.runs.report import table, write_report
    from qpsnn_jax.runs.rounds import run_stages

    check_ratios(settings)
    with _started(settings, out, compare=compare) as running:
        stages = run_stages(settings, running)
        if compare:
            write_report(settings, out, running.data, stages, read_controls(out))  # in case a control fails
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

    with _started(settings, out) as running:
        say(table([stages.train(running, settings.train)]))


@click.command()
@_DIRECTORY
@_DATA_DIR
@joining
def score(directory: Path, data_dir: str | None, **processes: Any) -> None:
    """Score the channels of a trained run."""
    join(**processes)
    with _continued(directory, "quantized", data_dir) as (settings, running):
        from qpsnn_jax.runs.rounds import round_of
        from qpsnn_jax.runs.stages import score_channels

        # The channels of the whole network are those of the first round.
        own = running if settings.prune.rounds == 1 else round_of(running, 0)
        scores = score_channels(own, settings.prune, source=directory / "quantized")
    for name, values in scores.items():
        say(f"{name:20} {len(values):5} channels, scores {values.min():.4g} to {values.max():.4g}")
    say(f"\nscores: {own.directory / 'pruned' / 'scores.npz'}")


@click.command()
@_DIRECTORY
@_DATA_DIR
@joining
def prune(directory: Path, data_dir: str | None, **processes: Any) -> None:
    """Remove channels and mask weights of a trained run, those of the lowest scores, and recalibrate batch-norm."""
    join(**processes)
    with _continued(directory, "quantized", data_dir) as (settings, running):
        from qpsnn_jax.runs.report import table
        from qpsnn_jax.runs.rounds import prune_in_rounds

        say(table(prune_in_rounds(settings, running)))


@click.command()
@click.argument("directory", type=_PATH, metavar="DIR|NAME")
@click.option("--out", type=_PATH, metavar="DIR", help="directory of a new run that starts from a pretrained network")
@_DATA_DIR
@joining
def finetune(directory: Path, out: Path | None, data_dir: str | None, **processes: Any) -> None:
    """Fine-tune a pruned run, or a pretrained network by name, and report."""
    join(**processes)
    directory = _start_from(directory, out)
    with _continued(directory, "pruned", data_dir) as (settings, running):
        from qpsnn_jax.runs.controls import read_controls
        from qpsnn_jax.runs.report import table, write_report
        from qpsnn_jax.runs.rounds import run_stages

        stages = run_stages(settings, running)
        write_report(settings, directory, running.data, stages, read_controls(directory))
    say(table(stages))


def _start_from(directory: Path, out: Path | None) -> Path:
    """The directory of the run to go on with: an existing one, or ``out`` with a pretrained network as its pruned."""
    from qpsnn_jax.export.pretrained import names

    name = str(directory)
    if directory.exists() or name not in names():
        if out is not None:
            raise ValueError("--out is for a pretrained network; a run is fine-tuned in its own directory.")
        return directory
    if out is None:
        raise ValueError(f"{name} comes with the package; name the directory of a new run with --out.")
    from qpsnn_jax.runs.pretrained import start_from

    start_from(name, out)
    return out


COMMANDS = (run, train, score, prune, finetune)
_PRODUCERS = {"quantized": "qpsnn train", "pruned": "qpsnn prune"}


def _chosen(name: str, changes: dict[str, str], processes: dict[str, Any]) -> "Config":
    join(**processes)
    from qpsnn_jax.runs.config import check_config
    from qpsnn_jax.runs.loop import batch_mesh
    from qpsnn_jax.runtime.processes import fail_together

    @fail_together
    def checked() -> "Config":
        config = chosen(name, changes)
        check_config(config)
        for part in ("train", "finetune"):
            try:
                batch_mesh(getattr(config, part).batch_size)
            except ValueError as error:
                raise ValueError(f"{part}.{error}") from None
        return config

    return checked()


@contextmanager
def _started(config: "Config", directory: Path, *, compare: bool = False) -> "Iterator[Run]":
    """The run of a config in a directory, which is locked meanwhile. Nothing is written before the data are loaded.

    ``compare``: whether its controls follow.
    """
    from qpsnn_jax.runs.controls import check_controls
    from qpsnn_jax.runs.data_record import check_data, record_data
    from qpsnn_jax.runs.directory import STAGES, check_run, open_run, read_stage
    from qpsnn_jax.runs.loading import load_data
    from qpsnn_jax.runs.stages import prepare_run

    check_run(directory, config)
    data = load_data(config)
    check_data(directory, data)
    running = prepare_run(config, directory, data)
    if compare:
        check_controls(config, running)
    with open_run(directory, config):
        record_data(directory, data)
        done = [name for name in STAGES if read_stage(directory, name)]
        say(f"run: {directory.resolve()}" + (f", complete: {', '.join(done)}" if done else ""), err=True)
        yield running


@contextmanager
def _continued(directory: Path, after: str, data_dir: str | None) -> "Iterator[tuple[Config, Run]]":
    """The config and the run in a directory, whose stage ``after`` must be complete."""
    from qpsnn_jax.runs.directory import read_config, read_stage

    config = read_config(directory, data_dir)
    if read_stage(directory, after) is None:
        raise ValueError(f"{directory} has no complete stage {after!r} yet; run `{_PRODUCERS[after]}` first.")
    with _started(config, directory) as running:
        yield config, running
