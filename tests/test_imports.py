"""Imports go one way, from the numerics up to the command line."""

import ast
from pathlib import Path

import pytest

import qpsnn_jax

PACKAGE = Path(qpsnn_jax.__file__).parent

# From bottom to top; a module may import from the layers below its own, and from its own layer.
LAYERS = [
    {
        "surrogate",
        "losses",
        "data.dataset",
        "data.image_operations",
        "data.resized_crop",
        "data.events",
        "data.frames",
        "data.stream",
        "progress",
        "files",
        "compiling",
        "hardware",
        "bfloat16",
        "pruning.rank",
        "stopping",
        "sharding",
        "processes",
        "export",
        "export.folded",
    },
    {"winograd", "popcount", "export.integer_network", "export.packed"},
    {"export.summary", "export.cplan", "export.images", "export.onnx_graph"},
    {"export.csource"},
    {"data.autoaugment", "data.host_crop", "data.feed"},
    {"data.augment"},
    {
        "neurons",
        "quantization",
        "pruning.scores",
        "data.digits",
        "data.tfds_source",
        "data.recordings",
        "data.event_augment",
    },
    {"data.tiny_imagenet", "data.imagenet"},
    {"data.tiny_imagenet_builder"},
    {"data.prepare", "data.inspection"},
    {"data"},
    {"graph", "convolution"},
    {"zoo.blocks", "network"},
    {"zoo.resnet20", "zoo.sew_resnet18", "zoo.spikingformer", "zoo.vgg"},
    {"zoo", "pruning.channels"},
    {"pruning.selection", "torch_import", "costs"},
    {"pruning", "optim", "steps", "export.folding", "export.agreement"},
    {"export.stablehlo", "export.nir_graph"},
    {"export.nir_import"},
    {"checkpoint", "config"},
    {"presets", "train"},
    {"pipeline"},
    {"export.runs"},
    {"export.verify"},
    {"plots"},
    {"report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
ONLY_IN = {
    "flax": {"network"},
    "optax": {"losses", "optim", "steps"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data.tfds_source", "data.tiny_imagenet_builder", "data.prepare"},
    "grain": {"data.stream"},
    "matplotlib": {"plots"},
    "argparse": {"cli"},
    "nir": {"export.nir_graph"},
    "onnx": {"export.onnx_graph"},
    "onnxruntime": {"export.verify"},
}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


MODULES = list(_modules())


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


def test_every_module_has_a_layer():
    assert {name for name, _ in MODULES} == set(LEVEL)


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_imports_point_down(name, path):
    ours = {module.removeprefix("qpsnn_jax.") for module in imported(path) if module.startswith("qpsnn_jax.")}
    upward = {module for module in ours & set(LEVEL) if LEVEL[module] > LEVEL[name]}
    assert not upward


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_libraries_stay_in_their_rooms(name, path):
    tops = {module.split(".")[0] for module in imported(path)}
    assert not {library for library in tops & set(ONLY_IN) if name not in ONLY_IN[library]}
