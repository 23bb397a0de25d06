"""Standard error of a process that dies, in any way."""

import subprocess
import sys
from pathlib import Path

import pytest

# Without JAX, which takes seconds to import. The descriptor stands for what a C++ library writes.
PROGRAM = """
import os, signal, sys
from qpsnn_jax.runtime.witness import Witness
witness = Witness("starting failed")
print("python speaks", file=sys.stderr)
os.write(2, {noise!r})
witness.instruct("it died: ü")
{end}
"""


def last_words(tmp_path: Path, end: str, noise: bytes = b"") -> tuple[int, list[str], list[Path]]:
    """The status, the lines on stderr, and the files that are left."""
    program = PROGRAM.format(noise=noise, end=end)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=False
    )
    return ended.returncode, ended.stderr.decode().splitlines(), list(tmp_path.iterdir())


@pytest.mark.parametrize("end", ["os._exit(1)", "os.abort()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_death_is_one_sentence(tmp_path, end):
    status, lines, left = last_words(tmp_path, end)
    assert status != 0
    assert lines == ["python speaks", "it died: ü"]
    assert left == []


def test_what_libraries_said_is_kept_beside_it(tmp_path):
    _, lines, (log,) = last_words(tmp_path, "os.abort()", noise=b"F1128 many lines\n")
    assert lines == ["python speaks", f"it died: ü (Output of its libraries: {log})"]
    assert log.read_bytes() == b"F1128 many lines\n"


@pytest.mark.parametrize("end", ["witness.dismiss()", "witness.dismiss(); os.abort()"])
def test_a_witness_that_is_dismissed_says_nothing(tmp_path, end):
    _, lines, left = last_words(tmp_path, end, noise=b"noise\n")
    assert lines == ["python speaks"]
    assert left == []


def test_a_witness_that_is_gone_harms_nobody(tmp_path):
    status, lines, _ = last_words(tmp_path, "witness._process.kill(); witness._process.wait(); witness.dismiss()")
    assert (status, lines) == (0, ["python speaks"])
