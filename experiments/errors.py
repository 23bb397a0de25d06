"""A user's mistake ends a command with one sentence and exit status 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def usage_errors() -> Iterator[None]:
    """Raise what a wrong input, or a loss that is not finite, raises as ``click.UsageError``; also a decorator."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise click.UsageError(str(error)) from None
