"""Options of commands that several processes may run together."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--processes",
        metavar="N|auto",
        help="number of processes of this run; auto: ask Slurm, Open MPI or the TPU pod",
    ),
    click.option("--process-id", type=int, metavar="I", help="index of this process, from 0"),
    click.option("--coordinator", metavar="HOST:PORT", help="address at which process 0 listens for the others"),
)


def joining(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``processes``, ``process_id`` and ``coordinator`` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def join(processes: str | None, process_id: int | None, coordinator: str | None) -> None:
    """Join the other processes, if there are any. Call it before a config file is read, because that may use JAX.

    Raises:
        ValueError: the options do not fit each other.
    """
    places = [place for place in (process_id, coordinator) if place is not None]
    if processes is None and not places:
        return
    number = processes or ""
    if len(places) != 2 * number.isdecimal() or not (number.isdecimal() or number == "auto"):
        raise ValueError("--processes takes auto, or a number together with --process-id and --coordinator.")
    from qpsnn_jax.runtime.processes import initialize

    initialize(int(number) if number.isdecimal() else None, process_id, coordinator)


def say(text: str, *, err: bool = False) -> None:
    """Print a line, on process 0 only."""
    from qpsnn_jax.runtime.processes import is_process_zero

    if is_process_zero():
        click.echo(text, err=err)
