"""README and pages: every command runs or is parsed, every Python block runs and prints what is written after it."""

import importlib.util
import itertools
import pkgutil
import re
import shlex
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import PAGES, ROOT, blocks

import qpsnn_jax.runs
from qpsnn_jax.data import DataInfo
from qpsnn_jax.runs.cli.main import main

# Blocks that other tests run: in simulators that are not installed everywhere, and compiled.
ELSEWHERE = {("notebooks/nir.md", "python"): "test_simulators", ("notebooks/c.md", "c"): "test_csource"}


# A module that is first imported while functions are replaced would keep the replacements.
for module in pkgutil.walk_packages(qpsnn_jax.runs.__path__, "qpsnn_jax.runs."):
    importlib.import_module(module.name)


class Parsed(BaseException):
    """A command was accepted, and starts its work."""


@pytest.fixture
def place(small_run, small_config, tmp_path, monkeypatch, no_pictures):
    """What the words of the pages stand for, in a folder with the runs they name (finished, of a small network)."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "stages", "flowers"):
        shutil.copytree(small_run, f"runs/{name}")
    for part, name in itertools.product(("train", "test"), ("daisy", "rose")):
        Path("flowers", part, name).mkdir(parents=True)
    np.save("image.npy", np.zeros((8, 8, 1), np.uint8))
    return {"digits": str(small_config), "RUN": "runs/digits", "IMAGE_OR_FOLDER": "image.npy", "holiday/": "image.npy"}


def commands(page):
    """Each command of the page's shell blocks as words."""
    for block in blocks(page):
        if not block.language:
            for line in block.text.splitlines():
                for command in line.split(" && "):
                    yield shlex.split(command, comments=True)


def parses(words, monkeypatch):
    """The command is accepted, up to where it would read data."""

    def started(*_args, **_options):
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr("qpsnn_jax.runtime.processes.initialize", lambda *_: None)
        patch.setattr("qpsnn_jax.runs.directory.check_run", lambda *_: None)
        patch.setattr("qpsnn_jax.runs.loading.load_data", started)
        patch.setattr("qpsnn_jax.runs.directory.load_network", started)
        patch.setattr("qpsnn_jax.data.prepare.prepare", started)
        grey = DataInfo((28, 28, 1), 10)
        patch.setattr("qpsnn_jax.data.sources.classification.describe_prepared", lambda *_: grey)
        patch.setattr("qpsnn_jax.data.inspection.check", started)
        patch.setattr("qpsnn_jax.export.torch_file.read_state_dict", started)
        with pytest.raises(Parsed):
            main([str(ROOT / word) if word.startswith("experiments/") else word for word in words])


def qpsnn(words, place, monkeypatch):
    """Run the command, or parse it where it needs data, processes or a network that are not here."""
    if "--help" in words:
        assert main(words) == 0
        return
    trains = words[0] in ("run", "train")
    if trains or words[0] == "import-torch" or "--data-dir" in words:
        parses(words, monkeypatch)
    if trains and words[2:] in (["--out", "runs/digits"], ["--out", "runs/stages"]):
        words = [words[0], place["digits"], *words[2:]]
    elif trains or words[0] == "import-torch" or "--data-dir" in words:
        return
    assert main([place.get(word, word) if word != "digits" else word for word in words]) == 0, words


def installs(words):
    """The extras that a command of pip names exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [name for word in words for match in re.findall(r"\[(.*?)\]", word) for name in match.split(",")]
    assert set(named) <= set(extras)


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, place, monkeypatch, capsys):
    for words in commands(page):
        match words:
            case [".venv/bin/qpsnn" | "qpsnn", *rest]:
                qpsnn(rest, place, monkeypatch)
            case ["python3", "-m", "venv", ".venv"] | ["./digits"]:
                pass
            case [".venv/bin/python" | "python", "-m", "pytest", *rest]:
                assert shlex.join(["-m", "pytest", *rest]) in (ROOT / ".ci" / "run").read_text()
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), module
            case [".venv/bin/pip" | "pip", "install", *rest]:
                installs(rest)
            case ["cc", *rest]:
                assert "digits.c" in rest
            case _:
                raise AssertionError(f"{page}: this test does not know the command {shlex.join(words)}")
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES)
def test_python(page, place, capsys):
    found = blocks(page)
    names = {}
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language != "python" or (page, "python") in ELSEWHERE:
            continue
        if "onnxruntime" in block.text:
            pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra onnx)")
            assert main(["export", "runs/digits", "--format", "onnx", "--out", "digits.onnx"]) == 0
            capsys.readouterr()
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
            exec(compile(block.text, f"{page}, line {block.line}", "exec"), names)
        printed = capsys.readouterr().out
        assert printed == (after.text if after is not None and after.language == "text" else "")


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_every_block_has_a_known_language():
    assert {block.language for page in PAGES for block in blocks(page)} <= {"", "python", "text", "c"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_versions_agree():
    assert f"version: {version('qpsnn-jax')}" in (ROOT / "CITATION.cff").read_text()
