"""Checkpoints as the authors' PyTorch code writes them."""

import numpy as np

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import BatchNorm, Conv, Dense


def released_name(node: str) -> str:
    """``features.3.conv`` is ``features.convbn3.layer.module`` there, and ``layer1.0.bn1`` ``layer1.0.bn1.bn``."""
    if node.startswith("features"):
        _, place, kind = node.split(".")
        return f"features.convbn{place}.{'bn.bn' if kind == 'bn' else 'layer.module'}"
    return node + (".bn" if "bn" in node else "")


def state_dict(graph: Graph, variables: dict) -> dict[str, np.ndarray]:
    tensors = {}
    for node in graph.nodes:
        params, name = variables["params"].get(node.name), released_name(node.name)
        match node:
            case Conv():
                tensors[f"{name}.weight"] = params["kernel"].transpose(3, 2, 0, 1)
            case Dense():
                name = "classifier.linear1.module" if "flatten" in graph.by_name else "fc.module"
                h, w, c = graph.values["pool"].shape if "flatten" in graph.by_name else (1, 1, len(params["kernel"]))
                tensors[f"{name}.weight"] = np.stack(
                    [row.reshape(h, w, c).transpose(2, 0, 1).ravel() for row in params["kernel"].T]
                )
            case BatchNorm():
                stats = variables["batch_stats"][node.name]
                tensors |= {f"{name}.weight": params["scale"], f"{name}.running_mean": stats["mean"]}
                tensors |= {f"{name}.bias": params["bias"], f"{name}.running_var": stats["var"]}
        if isinstance(node, Conv | Dense) and node.bias:
            tensors[f"{name}.bias"] = params["bias"]
    return {name: np.array(tensor) for name, tensor in tensors.items()}
