"""The C compilers of this machine, and what they make of a network."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qpsnn_jax.export.c.source import CSource

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
DRIVER = """
#include <stdio.h>
#include "net.h"
static uint8_t input[{pixels}];
int main(void) {{
  int32_t logits[net_classes];
  while (fread(input, 1, sizeof input, stdin) == sizeof input) {{
    printf("%d", {function}(input, logits));
    for (int k = 0; k < net_classes; k++) printf(" %ld", (long)logits[k]);
    printf("\\n");
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


def run(
    command: list[str], text: CSource, pixels: np.ndarray, folder: Path, emulator: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Compile a network named ``net`` and run it: classes and logits of every image."""
    function = "net_infer_frames" if "net_infer_frames" in text.header else "net_infer"
    (folder / "net.c").write_text(text.source)
    (folder / "net.h").write_text(text.header)
    (folder / "main.c").write_text(DRIVER.format(pixels=pixels[0].size, function=function))
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
    ran = subprocess.run([*emulator, folder / "net"], input=pixels.tobytes(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    numbers = np.array([line.split() for line in ran.stdout.decode().splitlines()], np.int64)
    return numbers[:, 0], numbers[:, 1:]
