"""Options of commands that several processes do together."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--processes",
        metavar="N|auto",
        help="how many processes do this together; auto: as Slurm, Open MPI or a TPU pod say",
    ),
    click.option("--process-id", type=int, metavar="I", help="which of them this one is, from 0 on"),
    click.option("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others"),
)


def joining(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take ``processes``, ``process_id`` and ``coordinator``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def join(processes: str | None, process_id: int | None, coordinator: str | None) -> None:
    """Join the other processes, if there are any; before a config is read, because its file may use JAX.

    Raises:
        ValueError: options that do not go together.
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
    """Print a line; of several processes, the first does."""
    from qpsnn_jax.runtime.processes import is_process_zero

    if is_process_zero():
        click.echo(text, err=err)
