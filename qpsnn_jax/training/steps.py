"""Pure step functions of training and evaluation; the caller jits, shards and donates."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Capture, Reducer, SpikingNetwork
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.runtime.compiling import fast_compile_jit

Variables = dict[str, Any]
Metrics = dict[str, Array]
Loss = Callable[[Array, Array], Array]
Prepare = Callable[[Array, Array], Array]


class TrainState(NamedTuple):
    """The state that training carries from step to step.

    ``step`` counts updates; ``variables`` are those of the network; ``opt_state`` is Optax's; ``ema`` the
    exponential moving average of params and batch statistics, or None; ``key`` is the random key of the run, from which
    each step derives its own by folding in its number.
    """

    step: Array
    variables: Variables
    opt_state: optax.OptState
    ema: Variables | None
    key: Array


def init_variables(graph: Graph, key: Array) -> Variables:
    """Initialized variables of a graph: ``params``, ``batch_stats`` and ``scales``."""
    lead = (1, graph.timesteps) if graph.input.frames else (1,)

    def init(key: Array) -> Variables:
        variables: Any = SpikingNetwork(graph).init(key, jnp.zeros((*lead, *graph.input.shape)))
        return {"params": {}, "batch_stats": {}, "scales": {}} | dict(variables)

    if isinstance(key, Tracer):
        return init(key)
    return fast_compile_jit(init)(key)


def init_state(variables: Variables, tx: optax.GradientTransformation, key: Array, *, ema: bool = False) -> TrainState:
    """The state before the first step.

    It holds the arrays of ``variables`` without copies, so a step that is jitted with the state donated deletes them.

    Args:
        variables: of the network.
        tx: the optimizer.
        key: random key of the run, as raw key data or a typed key.
        ema: whether to maintain an exponential moving average of params and batch statistics.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    # Copies, because a step that donates its state must not be given the same buffer twice.
    averages = jax.tree.map(jnp.copy, {name: variables[name] for name in ("params", "batch_stats")}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables["params"]), averages, key)


def evaluation_variables(state: TrainState) -> Variables:
    """The variables to evaluate: those of the moving average if there is one."""
    return state.variables | (state.ema or {})


def make_train_step(
    graph: Graph,
    tx: optax.GradientTransformation,
    *,
    loss: Loss = cross_entropy,
    prepare: Prepare = lambda key, images: images,
    ema_decay: float = 0.999,
    penalty: Mapping[str, Reducer] | None = None,
    gather: Callable[[Any], Any] = lambda params: params,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """One update of spatio-temporal back-propagation, as a pure function.

    Args:
        graph: the network.
        tx: the optimizer.
        loss: from currents ``b t classes`` and labels ``b`` to one loss per example.
        prepare: from a key and raw images to normalized, augmented ones.
        ema_decay: of the moving average, used if the state has one.
        penalty: reducers for ``capture`` whose scalar results are added to the loss, such as
            :func:`qpsnn_jax.sops_reducers` scaled by the cost of an operation.
        gather: from the params of the state to the params that the network uses, of the same values: gathers arrays
            that are sharded over devices.

    Returns:
        ``step(state, images, labels) -> (state, metrics)`` with the scalars ``loss`` and ``accuracy`` of the batch, and
        ``penalty`` if there is one; the loss does not include it.
    """
    network = SpikingNetwork(graph)

    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        images = prepare(key, images)

        def objective(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            variables = state.variables | {"params": gather(params)}
            output, updates = network.apply(
                variables, images, train=True, mutable=["batch_stats"], capture=penalty or ()
            )
            currents, costs = output
            metrics = {"loss": jnp.mean(loss(currents, labels)), "accuracy": jnp.mean(_correct(currents, labels))}
            if costs:
                metrics["penalty"] = jnp.sum(jnp.stack(list(costs.values())))
            return metrics["loss"] + metrics.get("penalty", 0), (metrics, updates)

        (_, (metrics, updates)), gradients = jax.value_and_grad(objective, has_aux=True)(state.variables["params"])
        changes, opt_state = tx.update(gradients, state.opt_state, state.variables["params"])
        params = optax.apply_updates(state.variables["params"], changes)
        variables = state.variables | {"params": params} | dict(updates)
        ema = state.ema and _updated_ema(state.ema, variables, ema_decay)
        return TrainState(state.step + 1, variables, opt_state, ema, state.key), metrics

    return step


def scan_steps(
    step: Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """Several updates as one program: ``lax.scan`` of a step over images ``n b …`` and labels ``n b``.

    Returns:
        ``steps(state, images, labels) -> (state, metrics)``, the metrics of every step, ``n``.
    """

    def steps(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, *batch), state, (images, labels))

    return steps


def make_eval_step(
    graph: Graph,
    *,
    loss: Loss = cross_entropy,
    prepare: Callable[[Array], Array] = lambda images: images,
    capture: Capture = (),
) -> Callable[[Variables, Array, Array, Array], tuple[Metrics, dict[str, Any]]]:
    """Sums over a batch in evaluation mode, as a pure function.

    Args:
        graph: the network.
        loss: as in :func:`make_train_step`.
        prepare: from raw images to normalized ones.
        capture: as in :class:`SpikingNetwork`; it is applied to padding examples too.

    Returns:
        ``step(variables, images, labels, weights) -> (sums, captured)`` with the sums ``loss``, ``correct`` and
        ``count`` over the examples, weighted by ``weights`` (1 for an example, 0 for padding).
    """

    def step(variables: Variables, images: Array, labels: Array, weights: Array) -> tuple[Metrics, dict[str, Any]]:
        output: Any = SpikingNetwork(graph).apply(variables, prepare(images), capture=capture)
        currents, captured = output
        sums = {
            "loss": jnp.sum(weights * loss(currents, labels)),
            "correct": jnp.sum(weights * _correct(currents, labels)),
            "count": jnp.sum(weights),
        }
        return sums, captured

    return step


@fast_compile_jit
def all_finite(tree: Any) -> Array:
    """Whether no number in a tree of arrays is NaN or infinite, computed on the devices of the arrays."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _correct(currents: Array, labels: Array) -> Array:
    return (jnp.argmax(jnp.mean(currents, axis=1), axis=-1) == labels).astype(currents.dtype)


def _updated_ema(ema: Variables, variables: Variables, decay: float) -> Variables:
    fresh = {name: variables[name] for name in ema}
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, fresh)
