"""The Flax module that runs a graph: it declares the arrays of the nodes and runs them in order."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.kernels.affine import Affine, Numbers, computed, without_convolution
from qpsnn_jax.kernels.dispatch import Precision, check_precision
from qpsnn_jax.model.graph import Graph, check_graph
from qpsnn_jax.model.nodes.base import Context, Leaf, Leaves, Node, Result
from qpsnn_jax.model.state import State, check_state
from qpsnn_jax.model.variables import check_variables

Reducer = Callable[[Any], Any]
Capture = Mapping[str, Reducer] | Iterable[str]


class Output(NamedTuple):
    """The result of a network: output ``currents`` ``b t classes``, the ``captured`` values and the ``state`` by node.

    The result for an image is the mean of the currents over all steps, also if they are computed in several calls, each
    with the ``state`` of the one before.
    """

    currents: Array
    captured: dict[str, Any]
    state: dict[str, Any]


class SpikingNetwork(nn.Module):
    """Runs ``graph`` on images.

    ``SpikingNetwork(graph).init(key, images)`` returns the variables, in the collections that the graph has:
    ``params``, ``batch_stats`` (the running mean and variance), and ``scales`` (a constant gain on the γ of each
    quantized layer, 1 until channels are pruned). ``SpikingNetwork(graph).apply(variables, images)`` returns an
    :class:`Output`.

    With ``train=True`` the statistics of the batch normalize, and ``mutable=["batch_stats"]`` returns the updated
    running statistics. The running variance is the unbiased one, as in the released code.

    Args:
        graph: the network.
        precision: as for :func:`qpsnn_jax.conv_spikes`; with ``"exact"`` the program is the same on every machine.
    """

    graph: Graph
    precision: Precision = "auto"

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, capture: Capture = (), state: State | None = None
    ) -> Output:
        """Output currents of the network.

        Args:
            images: normalized images ``b h w c``, or event frames ``b t h w c`` if the graph's input has frames. All
                values have their dtype: params of another dtype are converted to it, quantized weights after
                quantization. Moments are computed in float32 at least.
            train: normalize by the statistics of the batch.
            capture: names of nodes whose outputs are returned too, or a mapping from names to functions that reduce
                them, so that the maps themselves need not be stored. The captured output of a LIF node is a
                :class:`LIFTrace` of spikes and membranes ``b t h w c``, that of an attention an
                :class:`AttentionTrace`, that of any other node an array, without a time axis if it is the same at
                every step.
            state: that after the steps before these, from an earlier :class:`Output` or
                :func:`qpsnn_jax.initial_state`; None starts at rest. T steps at once are T calls of
                ``dataclasses.replace(graph, timesteps=1)``, each with the state of the one before: the neurons compute
                the same, bit for bit.

        Returns:
            ``Output(currents, captured, state)``: currents ``b t classes``, ``captured`` by node, and the ``state``
            after the last step: by LIF node U[T], its membrane potentials after the reset, ``b h w c``.

        Raises:
            ValueError: ``graph`` is not a Graph, there are no images, or not of its input shape, ``train`` is not True
                or False, the variables are those of another graph, ``capture`` names an unknown node, or ``state`` is
                that of another network or batch.

        References:
            QP-SNN (ICLR 2025), section 3; direct encoding.
        """
        graph = self.graph
        check_graph(graph)
        check_precision(self.precision)
        if not isinstance(train, bool | np.bool_):
            raise ValueError(f"train must be True or False, got {train!r}.")
        images = check_images(graph, images)
        if not self.is_initializing():
            check_variables(graph, self.variables, others=True)
        reducers = _reducers(graph, capture)
        if state is not None:
            check_state(graph, state, len(images), images.dtype)
        values: dict[str, Numbers] = {}
        captured: dict[str, Any] = {}
        after: dict[str, Any] = {}
        for node in graph.nodes:
            before = None if state is None else state.get(node.name)
            arrays = [values[name] for name in node.inputs] or [images]
            if node.name in reducers:  # spikes and membranes, or sums and what their reader makes of them
                arrays = [without_convolution(x) for x in arrays]
            result = self._run(node, arrays, train, before)
            values[node.name] = without_convolution(result.output) if node.name in reducers else result.output
            if result.state is not None:
                after[node.name] = result.state
            if node.name in reducers:
                captured[node.name] = reducers[node.name](
                    computed(result.output) if result.trace is None else result.trace
                )
        currents = computed(values[graph.output.name])
        if not graph.values[graph.output.name].timed:
            currents = _repeat(currents, graph.timesteps)
        return Output(currents, captured, after)

    def _run(self, node: Node, arrays: list[Numbers], train: bool, state: Any) -> Result:
        """Run a node and store its updated leaves."""
        leaves, variables = _declare(self, node)
        result = run_graph_node(self.graph, node, leaves, arrays, self.precision, train=train, state=state)
        for collection, variable in variables.items():
            if result.updates and self.is_mutable_collection(collection) and not self.is_initializing():
                variable.value = {name: result.updates.get(name, leaf) for name, leaf in variable.value.items()}
        return result


class Declaration(nn.Module):
    """Declares the arrays of ``graph`` as :class:`SpikingNetwork` does, in the same order, but runs nothing."""

    graph: Graph

    @nn.compact
    def __call__(self) -> None:
        """Declare the arrays of every node; ``Declaration(graph).init(key)`` returns new variables."""
        for node in self.graph.nodes:
            _declare(self, node)


def _declare(module: SpikingNetwork | Declaration, node: Node) -> tuple[Leaves, dict[str, nn.Variable]]:
    """The arrays of a node by name, and the Flax variables that hold those outside ``params``."""
    leaves: Leaves = {}
    variables: dict[str, nn.Variable] = {}
    table = node.leaves(module.graph.inputs_of(node))
    for collection in dict.fromkeys(leaf.collection for leaf in table.values()):
        own = {name: leaf for name, leaf in table.items() if leaf.collection == collection}
        if collection == "params":
            leaves |= module.param(node.name, fresh_leaves, own)
        else:
            constants = partial(fresh_leaves, jax.random.key(0), own)
            variables[collection] = module.variable(collection, node.name, constants)
            leaves |= variables[collection].value
    return leaves, variables


def run_graph_node(
    graph: Graph,
    node: Node,
    leaves: Leaves,
    arrays: list[Numbers],
    precision: Precision,
    *,
    train: bool = False,
    state: Any = None,
) -> Result:
    """Run a node of a graph. Its inputs get a time axis if any of them or its output has one.

    Args:
        graph, node: the node, and the graph that it is in.
        leaves: its arrays by name.
        arrays: the outputs of its inputs; the images for a node without inputs.
        precision: of :class:`SpikingNetwork`.
        train: normalize by the statistics of the batch.
        state: that of the node after the steps before these; None at rest.
    """
    arrays = arrays if node.uses_affine else [computed(x) for x in arrays]
    given = graph.inputs_of(node) or (graph.values[node.name],)
    if graph.values[node.name].timed or any(value.timed for value in given):
        pairs = zip(arrays, given, strict=True)
        arrays = [x if value.timed else _repeat(x, graph.timesteps) for x, value in pairs]
        given = tuple(value._replace(timed=True) for value in given)
    # Kernels that compute an affine function of float32 themselves; otherwise every node computes its own output.
    lazy = node.uses_affine and precision != "exact" and all(_dtype(x) == jnp.float32 for x in arrays)
    result = node.run(leaves, arrays, Context(given, graph.timesteps, train, precision, state, lazy))
    alone = graph.readers[node.name] == 1
    return result if alone else result._replace(output=without_convolution(result.output))


def fresh_leaves(key: Array, leaves: Mapping[str, Leaf]) -> Leaves:
    """New float32 arrays. The first draws from ``key`` itself, the others from keys derived from it."""
    arrays: Leaves = {}
    for i, (name, leaf) in enumerate(leaves.items()):
        arrays[name] = leaf.start(jax.random.fold_in(key, i) if i else key, arrays)
    return arrays


def _repeat(x: Any, timesteps: int) -> Any:
    """The same at every step."""
    if isinstance(x, Affine):
        residual = None if x.residual is None else _repeat(x.residual, timesteps)
        return x._replace(x=_repeat(x.x, timesteps), residual=residual)
    return jnp.broadcast_to(jnp.expand_dims(x, 1), (x.shape[0], timesteps, *x.shape[1:]))


def _dtype(x: Numbers) -> jnp.dtype:
    return (x.x if isinstance(x, Affine) else computed(x)).dtype


def check_images(graph: Graph, images: Array) -> Array:
    """Check that images are those of a graph: floating, of its input's shape, one or more; they are returned.

    Raises:
        ValueError: they are not; the message says what shape is expected.
    """
    try:
        images = jnp.asarray(images)
    except (TypeError, ValueError):
        raise ValueError(f"images must be an array of numbers, got {type(images).__name__}.") from None
    expected = ("b", graph.timesteps, *graph.input.shape) if graph.input.frames else ("b", *graph.input.shape)
    if images.ndim != len(expected) or images.shape[1:] != expected[1:]:
        wanted = " ".join(str(n) for n in expected)
        other = "; dataclasses.replace(graph, timesteps=…) runs other numbers of steps" if graph.input.frames else ""
        if images.shape == expected[1:]:
            other = "; one image is images[None], and where batches are asked for, they are a list: [images]"
        elif images.ndim == len(expected) + 1 and not graph.input.frames:
            other = "; Input(…, frames=True) takes a frame for each step"
        raise ValueError(
            f"images must have the shape {wanted} of node {graph.input.name!r}, got {images.shape}{other}."
        )
    if images.shape[0] == 0:
        raise ValueError(f"images must be one or more, of node {graph.input.name!r}, got the shape {images.shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating and normalized, got {images.dtype}.")
    return images


def _reducers(graph: Graph, capture: Capture) -> dict[str, Reducer]:
    if isinstance(capture, str):
        raise ValueError(f"capture must be a list of names, or functions by name, got {capture!r}; use [{capture!r}].")
    functions = capture.values() if isinstance(capture, Mapping) else ()
    if not isinstance(capture, Iterable) or not all(map(callable, functions)):
        raise ValueError(f"capture must be a list of names, or functions by name, got {capture!r}.")
    reducers = dict(capture) if isinstance(capture, Mapping) else {name: lambda x: x for name in capture}
    if unknown := [name for name in reducers if name not in graph.by_name]:
        raise ValueError(f"capture names {unknown[0]!r}, which is not a node of the graph.")
    return reducers
