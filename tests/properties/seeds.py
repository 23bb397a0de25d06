"""How many cases of each property are tried, and from which seed on."""

import os

import pytest


def seeds(count: int) -> pytest.MarkDecorator:
    """One test for each seed, ``count`` of them; the name of the test has its number.

    ``QPSNN_CASES=1000`` tries that many of each property, ``QPSNN_FIRST=5000`` others than the suite does.
    """
    first = int(os.environ.get("QPSNN_FIRST", "0"))
    cases = int(os.environ.get("QPSNN_CASES", count))
    return pytest.mark.parametrize("seed", range(first, first + cases))
