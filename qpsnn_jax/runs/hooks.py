"""Functions that the training loop calls, and those that show its progress."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from qpsnn_jax.runs.records import Epoch
from qpsnn_jax.runtime.processes import is_process_zero
from qpsnn_jax.runtime.progress import Progress, progress


def _nothing(*_: Any) -> None:
    pass


class Hooks(NamedTuple):
    """Functions that :func:`~qpsnn_jax.runs.loop.fit` calls. The default does nothing.

    Attributes:
        start: called before the first step with the steps already done and the total number of steps.
        metrics: called for every step, in order, with its number (from 1) and its metrics, while the next step runs.
        epoch: called after every epoch with its record and the total number of epochs.
        checkpoint: called before a checkpoint is written, with its step. What the hook has received so far must
            survive a crash.
    """

    start: Callable[[int, int], None] = _nothing
    metrics: Callable[[int, Mapping[str, float]], None] = _nothing
    epoch: Callable[[Epoch, int], None] = _nothing
    checkpoint: Callable[[int], None] = _nothing


@contextmanager
def show_progress(title: str, evaluated: str = "test") -> Iterator[Hooks]:
    """Hooks that show the progress of training on the standard error of process 0.

    Args:
        title: what is trained.
        evaluated: the name of the images that are evaluated after every epoch.
    """
    with ExitStack() as stack:
        shown: list[Progress] = []

        def start(done: int, total: int) -> None:
            shown.append(stack.enter_context(progress(title, total=total, done=done, shown=is_process_zero())))

        def metrics(step: int, values: Mapping[str, float]) -> None:
            shown[0].advance(1, f"loss {values['loss']:.3f}")

        def epoch(done: Epoch, epochs: int) -> None:
            steps = "" if done.timesteps is None else f", T = {done.timesteps}"
            accuracy = f"{evaluated} accuracy {100 * done.test_accuracy:.2f} %"
            shown[0].line(f"epoch {done.epoch}/{epochs}{steps}, train loss {done.train_loss:.3f}, {accuracy}")

        yield Hooks(start, metrics, epoch)
