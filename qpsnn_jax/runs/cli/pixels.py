"""The options of commands that import a network: mean and std by which its images are normalized."""

import math
import sys
from collections.abc import Callable
from typing import Any

import click

_Numbers = tuple[float, ...]


def _parse(_context: click.Context, option: click.Parameter, text: str | None) -> _Numbers | None:
    """The numbers of a text; none where the option is left out."""
    if text is None:
        return None
    # A mean of more than 1 would be of pixels from 0 to 255.
    kind, valid = ("numbers from 0 to 1", _from_0_to_1) if option.name == "mean" else ("positive numbers", _positive)
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(valid, numbers)):
        raise ValueError(f"{option.opts[0]} must be {kind} separated by commas, for pixels from 0 to 1, got {text!r}.")
    return numbers


def _from_0_to_1(number: float) -> bool:
    return 0 <= number <= 1


def _positive(number: float) -> bool:
    return 0 < number < math.inf


def normalizing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--mean`` and ``--std`` to a command, for :func:`statistics_given`."""
    for name in ("std", "mean"):
        command = click.option(
            f"--{name}",
            metavar="NUMBERS",
            callback=_parse,
            help=f"{name} by which its images were normalized, pixels from 0 to 1: one number, or one for each channel",
        )(command)
    return command


def check_both(mean: _Numbers | None, std: _Numbers | None) -> None:
    """Check that both options are given, or neither.

    Raises:
        ValueError: one is missing.
    """
    if (mean is None) != (std is None):
        given, missing = ("--mean", "--std") if std is None else ("--std", "--mean")
        raise ValueError(f"{given} needs {missing} too: images are normalized by both.")


def statistics_given(channels: int, mean: _Numbers | None, std: _Numbers | None) -> dict[str, list[float]]:
    """Both as notes of a network, for every one of its input channels; nothing where they are not given.

    Raises:
        ValueError: their number does not fit.
    """
    return {
        name: _for_channels(name, numbers, channels)
        for name, numbers in (("mean", mean), ("std", std))
        if numbers is not None
    }


def say_if_unknown(notes: dict[str, Any]) -> None:
    """Say by what images will be normalized, where the notes of a network do not."""
    if not {"mean", "std"} <= notes.keys():
        print(
            "qpsnn: images will be normalized by the mean and std of the data set that they are evaluated on; "
            "--mean and --std state others.",
            file=sys.stderr,
        )


def _for_channels(name: str, numbers: _Numbers, channels: int) -> list[float]:
    if len(numbers) not in (1, channels):
        raise ValueError(f"--{name} must be one number, or {channels} for the input channels, got {len(numbers)}.")
    return list(numbers) * (channels if len(numbers) == 1 else 1)
