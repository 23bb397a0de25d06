"""Progress of long work: a bar on a terminal and in a notebook, plain lines in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work."""

    def advance(self, steps: int, note: str) -> None:
        """Count finished steps; ``note`` is shown next to the bar."""
        ...

    def line(self, text: str) -> None:
        """Print a line that remains."""
        ...


class _Bar:
    def __init__(self, bar) -> None:
        self._bar = bar

    def advance(self, steps: int, note: str) -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(steps)

    def line(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)  # where the bar is; stdout is for the result


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title

    def advance(self, steps: int, note: str) -> None:
        """Lines only, for a pipe."""

    def line(self, text: str) -> None:
        print(f"{self._title}: {text}", file=sys.stderr, flush=True)


class _Silent:
    def advance(self, steps: int, note: str) -> None:
        """Print nothing."""

    def line(self, text: str) -> None:
        """Print nothing."""


@contextmanager
def progress(title: str, *, total: int, done: int = 0, shown: bool = True) -> Iterator[Progress]:
    """Progress over ``total`` steps, of which ``done`` are finished.

    Args:
        title: what is being done.
        total: steps in all.
        done: steps already finished, when work is resumed.
        shown: False prints nothing, because another process does.
    """
    if not shown:
        yield _Silent()
        return
    if not (sys.stderr.isatty() or _in_notebook()):
        yield _Lines(title)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc=title, unit="step", dynamic_ncols=True) as bar:
        yield _Bar(bar)


def _in_notebook() -> bool:
    """Whether this process is a notebook kernel. That ipykernel is imported does not suffice."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
