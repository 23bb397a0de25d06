"""Imports go one way: from a folder to the folders that stand above it in CONTRIBUTING.md's table."""

import ast
import re
from pathlib import Path

import pytest

import qpsnn_jax

PACKAGE = Path(qpsnn_jax.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"

ONLY_IN = {
    "flax": {"model.network", "model.layers"},
    "optax": {"numerics.losses", "training.optim", "training.state", "training.steps"},
    "orbax": {"training.checkpoint"},
    "tensorflow_datasets": {"data.sources.tfds", "data.sources.tiny_imagenet_builder", "data.prepare"},
    "grain": {"data.stream"},
    "matplotlib": {"runs.plots"},
    "click": {
        f"runs.cli.{name}"
        for name in (
            "main",
            "flags",
            "importing",
            "places",
            "joining",
            "margins",
            "pixels",
            "training",
            "networks",
            "exports",
            "bits",
            "datasets",
        )
    },
    "nir": {"export.nir.file"},
    "h5py": {"export.nir.file", "export.nir.sizes"},
    "onnx": {"export.onnx"},
    "onnxruntime": {"runs.verify"},
}


def documented_rooms():
    """The folders in the order in which CONTRIBUTING.md lists them."""
    return re.findall(r"(?m)^\| `(\w+)/` \|", CONTRIBUTING.read_text())


ROOMS = documented_rooms()


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if "." in name or (PACKAGE / name).is_dir():
            yield name, path


MODULES = list(_modules())
NAMES = {name for name, _ in MODULES}


def imported(path):
    """Modules imported anywhere in a file, lazily or not; types alone do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    """Modules of this package among them; a name that a room's ``__init__`` re-exports counts as the room."""
    return {module.removeprefix("qpsnn_jax.") for module in imported(path) if module.startswith("qpsnn_jax.")} & NAMES


def test_the_rooms_are_those_of_the_documentation():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(ROOMS) == folders
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_imports_point_to_rooms_above(name, path):
    own = ROOMS.index(name.split(".")[0])
    below = {module for module in ours(path) if ROOMS.index(module.split(".")[0]) > own}
    assert not below


def test_no_module_imports_itself_through_others():
    edges = {name: ours(path) - {name} for name, path in MODULES}
    finished, open_ = set(), []

    def visit(name):
        assert name not in open_, f"import cycle: {' -> '.join([*open_[open_.index(name) :], name])}"
        if name not in finished:
            open_.append(name)
            for module in sorted(edges[name]):
                visit(module)
            finished.add(open_.pop())

    for name in edges:
        visit(name)


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_libraries_stay_in_their_rooms(name, path):
    tops = {module.split(".")[0] for module in imported(path)}
    assert not {library for library in tops & set(ONLY_IN) if name not in ONLY_IN[library]}
