"""Checkpoints of the authors' PyTorch code, as a graph and variables."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qpsnn_jax.export.torch_file import WRAPPERS, float32_array, unwrapped
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, Flatten, Quantizer
from qpsnn_jax.model.zoo.resnet20 import resnet20_of_widths
from qpsnn_jax.model.zoo.vgg import VGG16, vgg_of_widths
from qpsnn_jax.numerics.gamma import Granularity
from qpsnn_jax.numerics.quantization import STE

# The released code fires strictly above the threshold.
_RELEASED_LIF = LIF("", "", fire=">")
# Of torch.nn.DataParallel, of torch.compile, and of modules that hold the network.
_PREFIX = re.compile(rf"^(({'|'.join(('module', '_orig_mod', *WRAPPERS))})\.)+")
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def import_torch(
    state_dict: Mapping[str, Any],
    *,
    bits: int,
    timesteps: int,
    input_size: int = 32,
    granularity: Granularity = "channel",
    ste: STE = "scaled",
) -> tuple[Graph, dict[str, Any]]:
    """A released QP-SNN checkpoint as a graph and its variables.

    The network (ResNet20 or VGG-16), its classes and every width are inferred from the names and shapes. The graph has
    the released code's choices: it fires above the threshold, takes γ per output channel and, in training, passes
    g/γ through the quantizer.

    Args:
        state_dict: names to tensors, as ``torch.load`` gives them; weights O I H W. It may be under ``state_dict``,
            ``model_state_dict``, ``model`` or ``net``. Modules that the released code lists under two names may appear
            under both. The prefixes ``module.``, ``_orig_mod.`` and those keys with a dot are ignored, and so are
            single numbers, such as an epoch.
        bits: b of the quantized convolutions (a checkpoint does not say).
        timesteps: T.
        input_size: height and width of the images of a ResNet20; that of a VGG-16 follows from its weights.
        granularity, ste: see :class:`qpsnn_jax.Quantizer`.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`, with ``params``, ``batch_stats``, ``scales``.

    Raises:
        ValueError: it is no state dict, the names are those of no known network, a tensor is missing, too many, of the
            wrong shape or no plain numbers, or a running variance is negative.

    References:
        QP-SNN (ICLR 2025), the released implementation.
    """
    tensors = _Tensors(unwrapped(state_dict))
    quantizer = Quantizer(bits, "mean", granularity, ste)
    if tensors.any_of("layer1.0."):
        graph, names = _resnet20(tensors, quantizer, timesteps, input_size)
    elif tensors.any_of("features.convbn0."):
        graph, names = _vgg16(tensors, quantizer, timesteps)
    else:
        known = "layer1.0.conv1.weight (ResNet20) nor features.convbn0.layer.module.weight (VGG-16)"
        raise ValueError(f"state_dict does not belong to a known network: it has neither {known}.")
    variables = _variables(graph, tensors, names)
    tensors.check_all_used()
    return graph, variables


class _Tensors:
    """The tensors of a state dict by the first of the names that the released code lists a module under."""

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping):
            kind = type(state_dict).__name__
            raise ValueError(f"state_dict must map names to tensors, as torch.load gives it, got {kind}.")
        if wrong := next((key for key in state_dict if not isinstance(key, str)), None):
            raise ValueError(f"state_dict must map names to tensors, got the key {wrong!r}.")
        self.given: dict[str, str] = {}
        for key in state_dict:
            name = _first_name(key)
            if name not in self.given or _PREFIX.sub("", key) == name:
                self.given[name] = key
        self.state_dict, self.used = state_dict, set[str]()

    def any_of(self, module: str) -> bool:
        """Whether it has a tensor whose name starts so."""
        return any(name.startswith(module) for name in self.given)

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor as float32."""
        if name not in self.given:
            raise ValueError(f"state_dict lacks the tensor {name!r}.")
        self.used.add(name)
        array = float32_array(self.given[name], self.state_dict[self.given[name]])
        if shape is not None and array.shape != shape:
            raise ValueError(f"tensor {name!r} has the shape {array.shape}, expected {shape}.")
        return array

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that has so many axes."""
        array = self.array(name)
        if array.ndim != ndim:
            raise ValueError(f"tensor {name!r} has the shape {array.shape}, expected {ndim} axes.")
        return array.shape

    def check_all_used(self) -> None:
        """Check that every tensor was read, except single numbers: the counts of batches, an epoch."""
        for name, key in self.given.items():
            if name not in self.used and np.shape(self.state_dict[key]):
                raise ValueError(
                    f"state_dict has the tensor {key!r}, which does not belong to the network of the others."
                )


def _first_name(key: str) -> str:
    """The released code lists a convolution with its batch-norm a second time, and a batch-norm alone too."""
    name = _PREFIX.sub("", key).replace(".seqbn.module.", ".bn.")
    name = re.sub(r"\bconv(\d)_s\.layer\.module\.", r"conv\1.", name)
    return re.sub(r"\bconv(\d)_s\.bn\.", r"bn\1.", name)


def _resnet20(tensors: _Tensors, quantizer: Quantizer, timesteps: int, input_size: int) -> tuple[Graph, dict[str, str]]:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    stem, channels = tensors.shape("conv1.weight", 4)[:2]
    graph = resnet20_of_widths(
        stem,
        tuple((tensors.shape(f"{b}.conv1.weight", 4)[0], tensors.shape(f"{b}.conv2.weight", 4)[0]) for b in blocks),
        quantizer,
        timesteps=timesteps,
        classes=tensors.shape("fc.module.weight", 2)[0],
        input_shape=(input_size, input_size, channels),
        lif=_RELEASED_LIF,
    )
    names = {node.name: node.name for node in graph.nodes if isinstance(node, Conv)}
    names |= {node.name: f"{node.name}.bn" for node in graph.nodes if isinstance(node, BatchNorm)}
    return graph, names | {"fc": "fc.module"}


def _vgg16(tensors: _Tensors, quantizer: Quantizer, timesteps: int) -> tuple[Graph, dict[str, str]]:
    places = [place for place, channels in enumerate(VGG16.places) if channels is not None]
    shapes = [tensors.shape(f"features.convbn{i}.layer.module.weight", 4) for i in places]
    readout = "classifier.linear1.module"
    classes, inputs = tensors.shape(f"{readout}.weight", 2)
    # Four max-pools and the average-pool leave size/32 positions a side.
    size = 32 * max(1, round((inputs / shapes[-1][0]) ** 0.5))
    widths, image = tuple(shape[0] for shape in shapes), (size, size, shapes[0][1])
    graph = vgg_of_widths(VGG16, widths, quantizer, timesteps, classes, image, _RELEASED_LIF)
    names = {f"features.{i}.conv": f"features.convbn{i}.layer.module" for i in places}
    names |= {f"features.{i}.bn": f"features.convbn{i}.bn.bn" for i in places}
    return graph, names | {"fc": readout}


def _variables(graph: Graph, tensors: _Tensors, names: Mapping[str, str]) -> dict[str, Any]:
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}, "scales": {}}
    for node in graph.nodes:
        features = graph.values[node.name].shape[-1:]
        match node:
            case Conv() | Dense():
                leaves = {"kernel": _kernel(graph, node, tensors, f"{names[node.name]}.weight")}
                if node.bias:
                    leaves["bias"] = tensors.array(f"{names[node.name]}.bias", features)
                variables["params"][node.name] = leaves
                if node.quantizer is not None:
                    gains = features if node.quantizer.granularity == "channel" else (1,)
                    variables["scales"][node.name] = {"gain": np.ones(gains, np.float32)}
            case BatchNorm():
                name = names[node.name]
                leaves = {ours: tensors.array(f"{name}.{theirs}", features) for theirs, ours in _BATCH_NORM.items()}
                if (leaves["var"] < 0).any():
                    raise ValueError(f"tensor {f'{name}.running_var'!r} must not be negative, as it is a variance.")
                variables["params"][node.name] = {k: leaves[k] for k in ("scale", "bias")}
                variables["batch_stats"][node.name] = {k: leaves[k] for k in ("mean", "var")}
    # A copy: the arrays may share memory with a PyTorch model that is trained further.
    return jax.tree.map(jnp.array, variables)


def _kernel(graph: Graph, node: Conv | Dense, tensors: _Tensors, name: str) -> np.ndarray:
    """O I H W to H W I O; the flattened features of a readout from channel-first to channel-last."""
    inputs = graph.values[node.input].shape[-1]
    if isinstance(node, Conv):
        return tensors.array(name, (node.features, inputs, *node.kernel)).transpose(2, 3, 1, 0)
    weight = tensors.array(name, (node.features, inputs))
    source = graph.by_name[node.input]
    h, w, c = graph.values[source.input].shape if isinstance(source, Flatten) else (1, 1, inputs)
    return weight.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(inputs, -1)
