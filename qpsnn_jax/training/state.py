"""What training carries from step to step, and its start."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from qpsnn_jax.model.graph import Graph, check_graph
from qpsnn_jax.model.network import Declaration
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.keys import check_key, is_key
from qpsnn_jax.training.trees import Variables


class TrainState(NamedTuple):
    """The state that training carries from step to step.

    ``step`` counts batches, of which an optimizer may take several for one update; ``variables`` are those of the
    network; ``opt_state`` is Optax's; ``ema`` the exponential moving average of params and batch statistics, or None;
    ``key`` is the random key of the whole run, typed, from which each step derives its own by folding in its number;
    ``price`` is that of operations under an :class:`~qpsnn_jax.training.dual.OperationsTarget`, or None.
    """

    step: Array
    variables: Variables
    opt_state: optax.OptState
    ema: Variables | None
    key: Array
    price: Array | None = None


def init_variables(graph: Graph, key: Array) -> Variables:
    """Initialized variables of a graph. The initialization is compiled once for each graph.

    Args:
        graph: the network.
        key: a random key, typed or raw; it may be traced.

    Returns:
        ``{"params": …, "batch_stats": …, "scales": …}``, each ``{node: {array: …}}`` in float32; with masked
        layers ``"masks"`` of ones.

    Raises:
        ValueError: ``graph`` is not a Graph, or ``key`` is not a random key.
    """
    check_graph(graph)
    check_key(key)
    if isinstance(key, Tracer):
        return _init(graph, key)
    if not isinstance(jnp.zeros(()), Tracer):
        return _compiled_init(graph)(key)
    with jax.ensure_compile_time_eval():  # The program that is traced around this gets constants.
        return _compiled_init(graph)(key)


@lru_cache(maxsize=16)
def _compiled_init(graph: Graph) -> Callable[[Array], Variables]:
    return fast_compile_jit(partial(_init, graph))


def _init(graph: Graph, key: Array) -> Variables:
    variables: Any = Declaration(graph).init(key)
    return {"params": {}, "batch_stats": {}, "scales": {}} | dict(variables)


def init_state(
    variables: Variables, tx: optax.GradientTransformation, key: Array, *, ema: bool = False, priced: bool = False
) -> TrainState:
    """The state before the first step.

    It holds the arrays of ``variables`` without copies, so a step that is jitted with the state donated deletes them,
    and nothing else of the caller's.

    Args:
        variables: of the network.
        tx: the optimizer.
        key: random key of the run, typed, or raw key data of the default implementation.
        ema: whether to maintain an exponential moving average of params and batch statistics.
        priced: whether operations have a price, which then starts at 0.

    Returns:
        The :class:`TrainState` at step 0.

    Raises:
        ValueError: ``key`` is not a random key, or ``tx`` no optimizer.
    """
    check_key(key)
    check_optimizer(tx)
    key = jnp.copy(key if is_key(key) else jax.random.wrap_key_data(key))
    averaged = ("params", "batch_stats")  # a network without batch-norm may have none
    averages = {name: variables[name] for name in averaged if name in variables} if ema else None
    opt_state, averages = _unshared((tx.init(variables["params"]), averages), variables)
    price = jnp.zeros((), jnp.float32) if priced else None
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, averages, key, price)


def check_optimizer(tx: Any) -> None:
    """Check that ``tx`` is an optimizer.

    Raises:
        ValueError: it is none.
    """
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise ValueError(f"tx must be an Optax optimizer, such as optax.adam(1e-3), got a {type(tx).__name__}.")


def _unshared(tree: Any, given: Any) -> Any:
    """The tree with copies of the arrays that it has in common with ``given`` or has twice.

    A step that donates its state must not be given a buffer twice, as optimizers do that start from the params.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(given)}

    def own(leaf: Any) -> Any:
        copied = jnp.copy(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return copied

    return jax.tree.map(own, tree)


def evaluation_variables(state: TrainState) -> Variables:
    """The variables to evaluate: those of the moving average if there is one.

    Its moments of batch-norm are averages too. For quantized weights :func:`qpsnn_jax.recalibrate` gives better ones.
    """
    return state.variables | (state.ema or {})
