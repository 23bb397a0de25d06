"""The linter, the formatter and the type checker find nothing, and no text depends on the locale's encoding."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("name", CHECKS)
def test_clean(name):
    pytest.importorskip(CHECKS[name][0])
    result = subprocess.run(
        [sys.executable, "-m", *CHECKS[name]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def without_encoding(path: Path) -> list[str]:
    """Lines that read or write text without naming an encoding; files opened by a constant binary mode are bytes."""
    found = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        named = {keyword.arg for keyword in call.keywords}
        source = ast.unparse(call.func)
        modes = [each.value for each in call.args[:2] if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        opens = source in ("open", "os.fdopen") or (
            source.endswith(".open") and source not in ("os.open", "Image.open")
        )
        text = source.endswith((".read_text", ".write_text")) or (opens and not any("b" in mode for mode in modes))
        if text and "encoding" not in named:
            found.append(f"{path.name}:{call.lineno}")
    return found


def test_text_names_its_encoding():
    paths = [path for folder in ("qpsnn_jax", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    assert [line for path in paths for line in without_encoding(path)] == []
