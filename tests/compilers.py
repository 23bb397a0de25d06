"""The C compilers of this machine, and what they make of a network."""

import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from qpsnn_jax.export.c.source import CSource, c_source
from qpsnn_jax.export.folded_layers import Rates
from qpsnn_jax.export.integer_network import IntegerNetwork

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "net.h"
static uint8_t input[{pixels}];
static net_state state, other;
static void print(const int32_t *logits) {{
  for (int k = 0; k < net_classes; k++) printf(" %ld", (long)logits[k]);
}}
int main(int count, char **words) {{
  int32_t logits[net_classes];
  const double threshold = count > 1 ? atof(words[1]) : 0;
  while (fread(input, 1, sizeof input, stdin) == sizeof input) {{
    printf("%d", {function}(input, logits));
    print(logits);
    net_reset(&state);
    for (int t = 0; t < 2 * net_steps; t++) {{
      printf(" %d", net_step(&state, input + (t % net_steps) * {frame}));
      print(state.logits);
      net_step(&other, input);
    }}
    net_reset(&state);
    do net_step(&state, input + state.steps * {frame});
    while (state.steps < net_steps && net_margin(state.logits) < threshold * net_one);
    printf(" %d\\n", (int)state.steps);
  }}
  return 0;
}}
"""


def _clang() -> list[str] | None:
    """Zig's, where the package ``ziglang`` is installed: it compiles for other machines too. Else the system's."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return ["clang"] if shutil.which("clang") else None


@cache
def works(command: tuple[str, ...]) -> str | None:
    """None where the command compiles and its program runs here, else the reason to skip."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not on this machine"
    source = '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "program")
        made = subprocess.run(
            [*command, "-x", "c", "-", "-o", program], input=source, text=True, capture_output=True, check=False
        )
        ran = made.returncode == 0 and subprocess.run([program], capture_output=True, check=False).returncode == 0
    return None if ran else f"`{' '.join(command)}` makes no program that runs on this machine"


def compiler(name: str) -> list[str]:
    """The command of ``gcc``, ``clang`` or ``32-bit``; skips the test where there is none."""
    if name == "32-bit":
        choices = [
            ["gcc", "-m32"],
            *([[*clang, "-target", "x86-linux-musl"]] if (clang := _clang()) else []),
            ["clang", "-m32"],
        ]
    else:
        choices = [["gcc"]] if name == "gcc" else [clang] if (clang := _clang()) else [["clang"]]
    reasons = [works(tuple(command)) for command in choices]
    if None not in reasons:
        pytest.skip("; ".join(reason for reason in reasons if reason))
    return choices[reasons.index(None)]


def emulated_arm() -> tuple[list[str], list[str]]:
    """A compiler for 32-bit Arm and what runs its programs here; skips the test where either is missing."""
    emulator = shutil.which("qemu-arm") or shutil.which("qemu-arm-static")
    if emulator is None:
        pytest.skip("qemu-arm is not on this machine")
    if shutil.which("arm-linux-gnueabihf-gcc"):
        return ["arm-linux-gnueabihf-gcc", "-static"], [emulator]
    if (clang := _clang()) is None or "ziglang" not in clang:
        pytest.skip("neither arm-linux-gnueabihf-gcc nor ziglang is on this machine")
    return [*clang, "-target", "arm-linux-musleabihf"], [emulator]


class Ran(NamedTuple):
    """For every image: class and logits, also after each of 2T single steps, and the steps of an early exit."""

    classes: np.ndarray
    logits: np.ndarray
    step_classes: np.ndarray
    step_logits: np.ndarray
    exits: np.ndarray


def run(
    command: list[str],
    text: CSource,
    pixels: np.ndarray,
    folder: Path,
    emulator: Sequence[str] = (),
    threshold: float = 0.0,
) -> Ran:
    """Compile a network named ``net`` and run it, with early exit at a threshold in currents."""
    frames = "net_infer_frames" in text.header
    function, frame = ("net_infer_frames", pixels[0, 0].size) if frames else ("net_infer", 0)
    (folder / "net.c").write_text(text.source)
    (folder / "net.h").write_text(text.header)
    (folder / "main.c").write_text(DRIVER.format(pixels=pixels[0].size, function=function, frame=frame))
    # Through objects, because the network alone must need no other header.
    for source in ("net.c", "main.c"):
        made = subprocess.run(
            [*command, *STRICT, "-c", source], cwd=folder, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        assert not made.stderr, made.stderr
    link = [*command, "net.o", "main.o", "-o", "net"]
    made = subprocess.run(link, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    program = [*emulator, folder / "net", repr(float(threshold))]
    ran = subprocess.run(program, input=pixels.tobytes(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    numbers = np.array([line.split() for line in ran.stdout.decode().splitlines()], np.int64)
    classes = int(re.search(r"net_classes = (\d+)", text.header)[1])
    rows = numbers[:, :-1].reshape(len(pixels), -1, 1 + classes)
    return Ran(rows[:, 0, 0], rows[:, 0, 1:], rows[:, 1:, 0], rows[:, 1:, 1:], numbers[:, -1])


def agrees(
    command: list[str],
    network: IntegerNetwork,
    pixels: np.ndarray,
    folder: Path,
    *,
    portable: bool = False,
    emulator: Sequence[str] = (),
) -> None:
    """The program computes what the integer network does: whole, step by step, and with early exit."""
    expected, summed, steps = network(pixels), by_step(network, pixels), network.folded.timesteps
    first, second = np.sort(summed[:, :steps])[..., :-3:-1].transpose(2, 0, 1)
    # A margin that some images have after one step.
    threshold = float(np.median((first - second)[:, 0])) / network.one
    clear = first - second >= threshold * network.one
    clear[:, -1] = True
    ran = run(command, c_source(network, "net", portable=portable), pixels, folder, emulator, threshold)
    np.testing.assert_array_equal(ran.logits, expected)
    np.testing.assert_array_equal(ran.classes, expected.argmax(-1))
    np.testing.assert_array_equal(ran.step_logits, summed)
    np.testing.assert_array_equal(ran.step_logits[:, steps - 1], expected)
    np.testing.assert_array_equal(ran.step_classes, summed.argmax(-1))
    np.testing.assert_array_equal(ran.exits, clear.argmax(1) + 1)


def by_step(network: IntegerNetwork, pixels: np.ndarray) -> np.ndarray:
    """Logits after each of 2T steps, ``b 2T classes``: new ones after T steps, with membranes that go on."""
    folded, readout, steps = network.folded, network.folded.readout, network.folded.timesteps
    twice = dataclasses.replace(network, folded=dataclasses.replace(folded, timesteps=2 * steps))
    repeated = np.concatenate([pixels, pixels], axis=1) if folded.image.frames else pixels
    spikes = twice(repeated, [readout.source])[1][readout.source].astype(np.int64)
    if isinstance(readout, Rates):
        each = spikes.reshape(len(spikes), 2, steps, -1)
        return each.cumsum(2).reshape(len(spikes), 2 * steps, -1)
    (rows, columns), (sy, sx) = readout.kernel.shape[:2], readout.strides
    pooled = sum(
        spikes[:, :, y : y + sy * rows : sy, x : x + sx * columns : sx][:, :, :rows, :columns]
        for y, x in np.ndindex(readout.window)
    )
    sums = np.einsum("bthwc,hwck->btk", pooled, network.readout.weights.astype(np.int64))
    bias = [np.trunc(network.readout.bias * (t / steps)) for t in range(1, steps + 1)]
    halves = [np.cumsum(half, axis=1) + np.int64(bias) for half in np.split(sums, 2, axis=1)]
    return np.concatenate(halves, axis=1)
