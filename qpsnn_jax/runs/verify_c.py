"""Compiles the C program of an export and runs it on test images: whole, step by step, and with early exit."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from qpsnn_jax.data.feed import everything
from qpsnn_jax.export.c.source import write_c
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.numerics.early_exit import early_exit
from qpsnn_jax.runs.evaluation import ExitEvaluation
from qpsnn_jax.runs.exported import Exported

_BATCH = 50
_DRIVER = """
#include <stdio.h>
#include "net.h"
static uint8_t pixels[{pixels}];
static net_state state;
static void print(const int32_t *logits) {{
  for (int k = 0; k < net_classes; k++) printf("%ld ", (long)logits[k]);
}}
int main(void) {{
  int32_t logits[net_classes];
  while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) {{
    {function}(pixels, logits);
    print(logits);
    net_reset(&state);
    for (int t = 0; t < net_steps; t++) {{
      net_step(&state, pixels + t * {frame});
      print(state.logits);
    }}
    int found = 0;
    net_reset(&state);
    do found = net_step(&state, pixels + state.steps * {frame});
    while (state.steps < net_steps && !({clear}));
    printf("%d %ld ", found, (long)state.steps);
  }}
  return 0;
}}
"""


class ProgramAgreement(NamedTuple):
    """A C program beside the integer network on the same images.

    ``equal`` is the share of images with all logits equal, of the whole call and after every step. With early exit,
    ``exits`` is the program's accuracy and steps, and ``equal_exits`` the share of equal steps and predictions.
    """

    equal: float
    exits: ExitEvaluation | None = None
    equal_exits: float = 1.0


def verify_c(exported: Exported, cc: str, threshold: float | None = None) -> ProgramAgreement:
    """Compile the C program and compare it with the integer network on the test set.

    Args:
        exported: from :func:`qpsnn_jax.runs.exported.read_run`.
        cc: the compiler and its options.
        threshold: of early exit, as in :func:`qpsnn_jax.early_exit`; None for no early exit.

    Raises:
        ValueError: ``cc`` does not name a compiler, the compiler or the program fails, or early exit has a threshold
            that is not finite or fewer than two classes.
    """
    network, (pixels, labels) = IntegerNetwork.of(exported.folded), everything(exported.test_data.test)
    steps, classes = network.folded.timesteps, network.folded.classes
    if threshold is not None and classes < 2:
        raise ValueError("early exit compares two classes, and the network has one.")
    if threshold is not None and not np.isfinite(threshold):
        raise ValueError(f"the threshold of early exit must be a finite number, got {threshold}.")
    numbers = _run(network, pixels, cc, threshold).reshape(len(pixels), -1)
    logits, found, taken = numbers[:, :-2].reshape(len(pixels), 1 + steps, classes), numbers[:, -2], numbers[:, -1]
    equal, leaves = [], []
    for start in range(0, len(pixels), _BATCH):
        by_step, ours = network.by_step(pixels[start : start + _BATCH]), logits[start : start + _BATCH]
        summed = by_step.cumsum(1)
        equal.append((ours == np.concatenate([summed[:, -1:], summed], axis=1)).all((1, 2)))
        if threshold is not None:
            leaves.append(jax.device_get(early_exit(by_step, network.margin(threshold))))
    share = float(np.concatenate(equal).mean())
    if threshold is None:
        return ProgramAgreement(share)
    predictions, exits = map(np.concatenate, zip(*leaves, strict=True))
    same = (found == predictions) & (taken == exits)
    shares = np.bincount(taken - 1, minlength=steps) / len(taken)
    leaving = ExitEvaluation(float((found == labels).mean()), tuple(shares.tolist()))
    return ProgramAgreement(share, leaving, float(same.mean()))


def _run(network: IntegerNetwork, pixels: np.ndarray, cc: str, threshold: float | None) -> np.ndarray:
    """What the program prints of all images."""
    compiler, frames = _words(cc), network.folded.image.frames
    function, frame = ("net_infer_frames", pixels[0, 0].size) if frames else ("net_infer", 0)
    clear = "0" if threshold is None else f"net_margin(state.logits) >= {threshold!r} * net_one"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_c(place / "net.c", network)
        driver = _DRIVER.format(pixels=pixels[0].size, function=function, frame=frame, clear=clear)
        (place / "main.c").write_text(driver, encoding="utf-8")
        _checked([*compiler, "net.c", "main.c", "-o", "net"], place, b"")
        return np.array(_checked([str(place / "net")], place, pixels.tobytes()).split(), np.int64)


def _words(cc: str) -> list[str]:
    """A compiler and its options as separate words."""
    try:
        words = shlex.split(cc)
    except ValueError as error:
        raise ValueError(f"cc must be a C compiler and its options, got {cc!r} ({error}).") from None
    if not words:
        raise ValueError(f"cc must be a C compiler and its options, got {cc!r}.")
    return words


def _checked(command: list[str], folder: Path, data: bytes) -> bytes:
    try:
        ran = subprocess.run(command, cwd=folder, input=data, capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"the compiler {command[0]!r} cannot be run ({error.strerror}); give another --cc.") from None
    if ran.returncode:
        said = (ran.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"])[0]
        raise ValueError(f"`{shlex.join(command)}` failed: {said}")
    return ran.stdout
