"""The option of commands that load a network, whose nodes may be defined outside of the package."""

from collections.abc import Callable
from typing import Any

import click

from qpsnn_jax.runtime.naming import import_code


def _import(_context: click.Context, _option: click.Parameter, places: tuple[str, ...]) -> None:
    for place in places:
        import_code(place)


def importing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--import`` to a command; the modules are imported before it runs."""
    return click.option(
        "--import",
        multiple=True,
        metavar="MODULE",
        expose_value=False,
        callback=_import,
        help="module or .py file with node classes of your own; may be repeated",
    )(command)
