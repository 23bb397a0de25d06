"""Checkpoints of the authors' PyTorch code, as a graph and variables."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from qpsnn_jax.graph import LIF, AveragePool, BatchNorm, Conv, Dense, Graph, Quantizer
from qpsnn_jax.quantize import STE, Per
from qpsnn_jax.zoo.resnet20 import resnet20_of_widths
from qpsnn_jax.zoo.vgg16 import vgg16_of_widths

# The released code fires strictly above the threshold.
_RELEASED_LIF = LIF("", "", fire=">")
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def import_torch(
    state_dict: Mapping[str, Any],
    *,
    bits: int,
    timesteps: int,
    input_size: int = 32,
    per: Per = "channel",
    ste: STE = "scaled",
) -> tuple[Graph, dict[str, Any]]:
    """A released QP-SNN checkpoint as a graph and its variables.

    The network (ResNet20 or VGG-16), its classes and every width are inferred from the names and shapes. The graph has
    the released code's choices: it fires above the threshold, takes γ per output channel and, in training, passes
    g/γ through the quantizer.

    Args:
        state_dict: names to tensors, as ``torch.load`` gives them; weights O I H W. Modules that the released code
            lists under two names may appear under both; a ``module.`` prefix is ignored.
        bits: b of the quantized convolutions (a checkpoint does not say).
        timesteps: T.
        input_size: height and width of the images of a ResNet20; a VGG-16 tells its own.
        per, ste: see :class:`qpsnn_jax.Quantizer`.

    Returns:
        ``(graph, variables)`` for :class:`qpsnn_jax.SpikingNetwork`, with ``params``, ``batch_stats``, ``scales``.

    Raises:
        ValueError: the names are those of no known network, a tensor is missing or its shape does not fit.

    References:
        QP-SNN (ICLR 2025), the released implementation.
    """
    tensors = {key.removeprefix("module."): _array(value) for key, value in state_dict.items()}
    quantizer = Quantizer(bits, "mean", per, ste)
    if "layer1.0.conv1.weight" in tensors:
        graph, names = _resnet20(tensors, quantizer, timesteps, input_size)
    elif "features.convbn0.layer.module.weight" in tensors:
        graph, names = _vgg16(tensors, quantizer, timesteps)
    else:
        known = "layer1.0.conv1.weight (ResNet20) or features.convbn0.layer.module.weight (VGG-16)"
        raise ValueError(f"state_dict is of no known network: it has neither {known}.")
    return graph, _variables(graph, tensors, names)


def _resnet20(tensors, quantizer: Quantizer, timesteps: int, input_size: int):
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    graph = resnet20_of_widths(
        _outputs(tensors, "conv1.weight"),
        tuple((_outputs(tensors, f"{b}.conv1.weight"), _outputs(tensors, f"{b}.conv2.weight")) for b in blocks),
        quantizer,
        timesteps=timesteps,
        classes=_outputs(tensors, "fc.module.weight"),
        input_shape=(input_size, input_size, tensors["conv1.weight"].shape[1]),
        lif=_RELEASED_LIF,
    )
    names = {node.name: node.name for node in graph.nodes if isinstance(node, Conv)}
    names |= {node.name: f"{node.name}.bn" for node in graph.nodes if isinstance(node, BatchNorm)}
    return graph, names | {"fc": "fc.module"}


def _vgg16(tensors, quantizer: Quantizer, timesteps: int):
    places = sorted({int(k.split(".")[1][6:]) for k in tensors if k.startswith("features.convbn")})
    widths = tuple(_outputs(tensors, f"features.convbn{i}.layer.module.weight") for i in places)
    if len(widths) != 13:
        raise ValueError(f"state_dict has {len(widths)} VGG convolutions where 13 are needed.")
    readout = "classifier.linear1.module"
    classes, inputs = _get(tensors, f"{readout}.weight").shape
    # Four max-pools and the average-pool leave size/32 positions a side.
    size = 32 * round((inputs / widths[-1]) ** 0.5)
    channels = tensors["features.convbn0.layer.module.weight"].shape[1]
    shape = (size, size, channels)
    graph = vgg16_of_widths(
        widths, quantizer, timesteps=timesteps, classes=classes, input_shape=shape, lif=_RELEASED_LIF
    )
    names = {f"features.{i}.conv": f"features.convbn{i}.layer.module" for i in places}
    names |= {f"features.{i}.bn": f"features.convbn{i}.bn.bn" for i in places}
    return graph, names | {"fc": readout}


def _variables(graph: Graph, tensors, names: Mapping[str, str]) -> dict[str, Any]:
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}, "scales": {}}
    for node in graph.nodes:
        if isinstance(node, Conv | Dense):
            kernel = _get(tensors, f"{names[node.name]}.weight")
            leaves = {"kernel": _kernel(graph, node, kernel)}
            if node.bias:
                leaves["bias"] = _get(tensors, f"{names[node.name]}.bias")
            variables["params"][node.name] = leaves
            if node.quantizer is not None:
                gains = node.features if node.quantizer.per == "channel" else 1
                variables["scales"][node.name] = {"gain": np.ones(gains, np.float32)}
        elif isinstance(node, BatchNorm):
            leaves = {ours: _get(tensors, f"{names[node.name]}.{theirs}") for theirs, ours in _BATCH_NORM.items()}
            variables["params"][node.name] = {k: leaves[k] for k in ("scale", "bias")}
            variables["batch_stats"][node.name] = {k: leaves[k] for k in ("mean", "var")}
    return {
        collection: {name: {k: jnp.asarray(v) for k, v in leaves.items()} for name, leaves in nodes.items()}
        for collection, nodes in variables.items()
    }


def _kernel(graph: Graph, node: Conv | Dense, weight: np.ndarray) -> np.ndarray:
    """O I H W to H W I O; the flattened features of a readout from channel-first to channel-last."""
    if isinstance(node, Conv):
        expected = (node.features, graph.values[node.input].shape[-1], *node.kernel)
        if weight.shape != expected:
            raise ValueError(f"tensor of node {node.name!r} has the shape {weight.shape}, expected {expected}.")
        return weight.transpose(2, 3, 1, 0)
    pooled = next((n for n in graph.nodes if isinstance(n, AveragePool)), None)
    h, w, c = (1, 1, graph.values[node.input].shape[0]) if pooled is None else graph.values[pooled.name].shape
    if weight.shape != (node.features, h * w * c):
        raise ValueError(
            f"tensor of node {node.name!r} has the shape {weight.shape}, expected {(node.features, h * w * c)}."
        )
    return weight.reshape(node.features, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, node.features)


def _outputs(tensors, name: str) -> int:
    return _get(tensors, name).shape[0]


def _get(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"state_dict lacks the tensor {name!r}.")
    return tensors[name]


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
