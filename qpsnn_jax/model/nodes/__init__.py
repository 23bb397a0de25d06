"""The kinds of nodes, one file for each family. The class of a node defines everything about it."""

from qpsnn_jax.model.nodes.attention import Attention, AttentionTrace
from qpsnn_jax.model.nodes.base import Activity, Context, Count, Leaf, Leaves, Node, Result, Unary, Value, Values
from qpsnn_jax.model.nodes.conv import Conv
from qpsnn_jax.model.nodes.dense import Dense
from qpsnn_jax.model.nodes.inputs import Input
from qpsnn_jax.model.nodes.neurons import LIF, Neuron
from qpsnn_jax.model.nodes.norm import BatchNorm
from qpsnn_jax.model.nodes.pools import AveragePool, GlobalAveragePool, MaxPool, SumPool
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.model.nodes.shapes import Add, Concatenate, Flatten, Shortcut
from qpsnn_jax.model.nodes.weighted import Weighted

__all__ = [
    "LIF",
    "Activity",
    "Add",
    "Attention",
    "AttentionTrace",
    "AveragePool",
    "BatchNorm",
    "Concatenate",
    "Context",
    "Conv",
    "Count",
    "Dense",
    "Flatten",
    "GlobalAveragePool",
    "Input",
    "Leaf",
    "Leaves",
    "MaxPool",
    "Neuron",
    "Node",
    "Quantizer",
    "Result",
    "Shortcut",
    "SumPool",
    "Unary",
    "Value",
    "Values",
    "Weighted",
]
