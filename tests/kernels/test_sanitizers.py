"""The loops of the native kernels under the compiler's sanitizers."""

import subprocess
from pathlib import Path

import pytest

from qpsnn_jax.kernels.native import library

SOURCES = Path(library.__file__).parent


def compiled(source: str, name: str, directory: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """A program with sanitizer ``name``."""
    try:
        command = library.compiler()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    program = directory / name.replace(",", "-")
    # The quickest to compile and run; threads are slow to watch where nothing is optimized.
    level = "-O1" if name == "thread" else "-Og"
    options = ["-std=c++17", level, "-g1", "-pthread", f"-fsanitize={name}", "-fno-sanitize-recover=all"]
    options += [*library.target(), f"-I{SOURCES}", f"-I{Path(__file__).parent}"]
    text = subprocess.run(
        [*command, *options, "-x", "c++", "-", "-o", str(program)], input=source, capture_output=True, text=True
    )
    return program, text


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_loops_read_and_write_what_is_theirs(sanitizer, tmp_path):
    _, known = compiled("int main() {}", sanitizer, tmp_path)
    if known.returncode:
        pytest.skip(f"the compiler has no sanitizer {sanitizer}: {known.stderr.strip().splitlines()[-1]}")
    program, done = compiled((Path(__file__).parent / "sanitized.cc").read_text(), sanitizer, tmp_path)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
