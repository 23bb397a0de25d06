"""Do the next units of the plan for some hours, or show what came out; see ``experiments/claims.md``."""

import dataclasses
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import jax

from experiments.claims.kinds import do
from experiments.claims.plan import QUESTIONS, plan
from experiments.claims.results import is_done, take_result
from experiments.claims.tables import read_results, table
from experiments.claims.units import Unit, steps_of
from experiments.errors import usage_errors
from qpsnn_jax.runs import stages
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runtime.files import user_cache
from qpsnn_jax.runtime.stopping import Terminated, termination

_RESULTS = Path(__file__).parents[1] / "results"
_WARM, _STEPS = 10, 200  # steps that are not measured, and that are


def command(name: str, plan: Callable[[], Sequence[Unit]], questions: Mapping[str, str]) -> click.Command:
    """The command that does a plan, of runs in ``runs/NAME`` and results in ``experiments/results/NAME``.

    Args:
        name: of the plan.
        plan: its units, in the order in which they are done.
        questions: their names, and the arm of each that the others are compared with.
    """

    @click.command(help=f"Do the next units of the plan of experiments/{name}.md, or show what came out.")
    @click.option("--hours", type=click.FloatRange(0, min_open=True), help="stop after so many; none: when all is done")
    @click.option("--share", default="1/1", metavar="K/N", help="the K-th of N machines that do the plan together")
    @click.option("--only", metavar="QUESTION", help="one question alone")
    @click.option("--data-dir", metavar="DIR", help="TFDS data directory with CIFAR-10")
    @click.option("--runs", type=click.Path(path_type=Path), default=Path("runs") / name, show_default=True)
    @click.option("--results", type=click.Path(path_type=Path), default=_RESULTS / name, help="folder of the results")
    @click.option("--tables", is_flag=True, help="show what came out, and do nothing")
    @click.option("--list", "listed", is_flag=True, help="show the units and whether they are done, and do nothing")
    @click.option("--measure", is_flag=True, help=f"measure {_STEPS} steps of every network, and the plan's hours")
    @usage_errors()
    def main(
        hours: float | None, share: str, only: str | None, data_dir: str | None, runs: Path, results: Path, **show: bool
    ) -> None:
        whole = plan()
        units = [unit for unit in shared(whole, share) if only in (None, unit.question)]
        if only not in (None, *questions):
            raise click.UsageError(f"--only must be one of {', '.join(questions)}, got {only!r}.")
        if show["tables"]:
            click.echo(tables(units, read_results(results, {unit.name for unit in whole}), questions))
        elif show["listed"]:
            for unit in units:
                click.echo(f"{'done' if is_done(unit, results) else '    '}  {unit.name}")
        elif show["measure"]:
            click.echo(hours_needed(units, data_dir))
        else:
            # The seeds of an arm have the same programs.
            jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
            left = work(units, runs, results, data_dir, hours)
            click.echo(f"{left} of {len(units)} units are left." if left else "All units are done.")

    return main


def work(units: list[Unit], runs: Path, results: Path, data_dir: str | None, hours: float | None) -> int:
    """Do units in order until the time is over or SIGTERM comes, whichever is first; what was begun is saved.

    A training whose loss is not finite is named, and the next unit is done.

    Returns:
        How many units have no result.
    """
    with termination() as terminated, deadline(hours):

        def check() -> None:
            if terminated():
                raise Terminated

        try:
            for unit in units:
                check()
                if not is_done(unit, results):
                    click.echo(unit.name, err=True)
                    _attempt(unit, runs, results, data_dir, check)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on.", err=True)
    return sum(not is_done(unit, results) for unit in units)


def _attempt(unit: Unit, runs: Path, results: Path, data_dir: str | None, check: Callable[[], None]) -> None:
    if take_result(unit, runs, results):
        return
    try:
        do(unit, runs, results, data_dir, check)
    except FloatingPointError as error:
        click.echo(f"{unit.name}: {error}", err=True)
    finally:
        # Each unit compiles some hundred programs, and a process may map only so many pieces of memory (Linux: 65,530).
        jax.clear_caches()


@contextmanager
def deadline(hours: float | None) -> Iterator[None]:
    """Send this process SIGTERM after some hours; training saves and stops then."""
    timer = threading.Timer((hours or 0) * 3600, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    if hours is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shared(units: Sequence[Unit], share: str) -> list[Unit]:
    """The units of one machine: all that start from one dense network go together.

    Raises:
        click.UsageError: the share is not K/N, from 1/N to N/N.
    """
    first, _, second = share.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise click.UsageError(f"--share must be K/N, the K-th of N, got {share!r}.")
    roots = list(dict.fromkeys(map(_root, units)))
    mine = set(roots[int(first) - 1 :: int(second)])
    return [unit for unit in units if _root(unit) in mine]


def _root(unit: Unit) -> str:
    return unit.name if unit.base is None else _root(unit.base)


def tables(units: list[Unit], results: list[dict[str, Any]], questions: Mapping[str, str]) -> str:
    """The tables of all questions of some units; ``results`` are those of the whole plan."""
    arms: dict[str, list[str]] = {}
    for unit in units:
        if unit.arm not in arms.setdefault(unit.question, []):
            arms[unit.question].append(unit.arm)
    return "\n".join(table(question, names, questions[question], results) for question, names in arms.items())


def hours_needed(units: list[Unit], data_dir: str | None) -> str:
    """Seconds of a training step by network and batch size, and the hours of every question, as lines."""
    seconds: dict[Any, float] = {}
    hours: dict[str, float] = {}
    for unit in units:
        network, batch_size = unit.config.network, unit.config.train.batch_size
        for timesteps, number in steps_of(unit).items():
            kind = (network.name, network.width, timesteps, network.bits is None, batch_size)
            if kind not in seconds:
                seconds[kind] = _seconds_of_a_step(unit, timesteps, data_dir)
            hours[unit.question] = hours.get(unit.question, 0.0) + number * seconds[kind] / 3600
    lines = [f"{_words(kind)}: {each:.4f} s a step" for kind, each in seconds.items()]
    lines += [f"{question}: {needed:.1f} hours of steps" for question, needed in hours.items()]
    return "\n".join([*lines, "Whole widths are measured; pruned networks take less. Evaluation comes on top."])


def _words(kind: tuple[Any, ...]) -> str:
    name, width, timesteps, in_float, batch = kind
    return f"{'float' if in_float else 'quantized'} {name} of width {width}, T = {timesteps}, batch {batch}"


def _seconds_of_a_step(unit: Unit, timesteps: int, data_dir: str | None) -> float:
    training = dataclasses.replace(unit.config.train, epochs=1, timesteps_schedule=None)
    network = dataclasses.replace(unit.config.network, timesteps=timesteps)
    images = (_WARM + _STEPS) * training.batch_size
    data = dataclasses.replace(unit.config.data, data_dir=data_dir, train_examples=images, test_examples=1)
    config = dataclasses.replace(unit.config, network=network, train=training, finetune=training, data=data)
    times: list[float] = []

    def tick(step: int, values: Mapping[str, float]) -> None:
        times.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        run = stages.prepare_run(config, Path(folder), load_data(config), (Hooks(metrics=tick),))
        stages.train(run, training)
    return (times[-1] - times[_WARM - 1]) / (len(times) - _WARM)


main = command("claims", plan, QUESTIONS)

if __name__ == "__main__":
    main()
