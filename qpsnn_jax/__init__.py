"""Compressing spiking neural networks in JAX: QP-SNN (ICLR 2025) as pure functions and networks as data."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpsnn_jax.config import Config
    from qpsnn_jax.costs import Cost, Energy, activity_reducers, connection_sparsity, cost, sops_reducers
    from qpsnn_jax.export.agreement import compare, simulate
    from qpsnn_jax.export.csource import c_source
    from qpsnn_jax.export.folding import fold
    from qpsnn_jax.export.integer_network import IntegerNetwork
    from qpsnn_jax.export.nir_graph import nir_graph, write_nir
    from qpsnn_jax.export.nir_import import import_nir, read_nir
    from qpsnn_jax.export.onnx_graph import onnx_model
    from qpsnn_jax.export.packed import load_packed, write_packed
    from qpsnn_jax.export.stablehlo import stablehlo
    from qpsnn_jax.graph import Graph, Quantizer
    from qpsnn_jax.losses import cross_entropy, temporal_cross_entropy
    from qpsnn_jax.network import AttentionTrace, SpikingNetwork
    from qpsnn_jax.neurons import LIFTrace, lif, lif_step, lif_trace
    from qpsnn_jax.optim import cosine_schedule, optimizer
    from qpsnn_jax.pipeline import load_network, save_network
    from qpsnn_jax.pruning import (
        channel_groups,
        magnitude_scores,
        make_score_step,
        prune,
        random_scores,
        sca_scores,
        score,
        select,
        singular_values,
        svs_ranks,
        svs_scores,
    )
    from qpsnn_jax.quantization import Codes, codes, dequantize, gamma_of, integer_weights, quantize
    from qpsnn_jax.steps import TrainState, init_state, init_variables, make_eval_step, make_train_step
    from qpsnn_jax.surrogate import arctan, fire_step, rectangular, sigmoid, triangular
    from qpsnn_jax.torch_import import import_torch

_HOMES = {
    "config": ("Config",),
    "costs": ("Cost", "Energy", "activity_reducers", "connection_sparsity", "cost", "sops_reducers"),
    "export.agreement": ("compare", "simulate"),
    "export.csource": ("c_source",),
    "export.folding": ("fold",),
    "export.integer_network": ("IntegerNetwork",),
    "export.nir_graph": ("nir_graph", "write_nir"),
    "export.nir_import": ("import_nir", "read_nir"),
    "export.onnx_graph": ("onnx_model",),
    "export.packed": ("load_packed", "write_packed"),
    "export.stablehlo": ("stablehlo",),
    "graph": ("Graph", "Quantizer"),
    "losses": ("cross_entropy", "temporal_cross_entropy"),
    "network": ("AttentionTrace", "SpikingNetwork"),
    "neurons": ("LIFTrace", "lif", "lif_step", "lif_trace"),
    "optim": ("cosine_schedule", "optimizer"),
    "pipeline": ("load_network", "save_network"),
    "pruning": (
        "Criterion",
        "channel_groups",
        "make_score_step",
        "magnitude_scores",
        "matrix_ranks",
        "prune",
        "random_scores",
        "sca",
        "sca_scores",
        "score",
        "select",
        "singular_values",
        "svs",
        "svs_ranks",
        "svs_scores",
    ),
    "quantization": ("Codes", "codes", "dequantize", "gamma_of", "integer_weights", "quantize"),
    "steps": ("TrainState", "init_state", "init_variables", "make_eval_step", "make_train_step"),
    "surrogate": ("arctan", "fire_step", "rectangular", "sigmoid", "triangular"),
    "torch_import": ("import_torch",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that the command line starts at once."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"qpsnn_jax.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'qpsnn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
