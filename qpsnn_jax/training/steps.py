"""Pure step functions of training and evaluation; the caller jits, shards and donates."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Capture, Reducer, SpikingNetwork
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.keys import is_key
from qpsnn_jax.training.distillation import Distillation, membranes_of
from qpsnn_jax.training.dual import OperationsTarget, next_price
from qpsnn_jax.training.trees import Variables, all_finite_in, any_change, select, updated_ema

Metrics = dict[str, Array]
Loss = Callable[[Array, Array], Array]
Prepare = Callable[[Array, Array], Array]


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
    """
    if isinstance(key, Tracer):
        return _init(graph, key)
    with jax.ensure_compile_time_eval():  # A program that is traced around this gets constants.
        return _compiled_init(graph)(key)


@lru_cache(maxsize=16)
def _compiled_init(graph: Graph) -> Callable[[Array], Variables]:
    return fast_compile_jit(partial(_init, graph))


def _init(graph: Graph, key: Array) -> Variables:
    lead = (1, graph.timesteps) if graph.input.frames else (1,)
    variables: Any = SpikingNetwork(graph).init(key, jnp.zeros((*lead, *graph.input.shape), jnp.float32))
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
    """
    key = jnp.copy(key if is_key(key) else jax.random.wrap_key_data(key))
    averages = {name: variables[name] for name in ("params", "batch_stats")} if ema else None
    opt_state, averages = _unshared((tx.init(variables["params"]), averages), variables)
    price = jnp.zeros((), jnp.float32) if priced else None
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, averages, key, price)


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
    target: OperationsTarget | None = None,
    distillation: Distillation | None = None,
    gather: Callable[[Any], Any] = lambda params: params,
    precision: Precision = "auto",
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One update of spatio-temporal back-propagation, as a pure function.

    Under :func:`optax.apply_if_finite` and :class:`optax.MultiSteps`, which let some batches change no parameter, these
    leave the moving average unchanged too, and a batch whose statistics are not finite leaves the running ones.

    Args:
        graph: the network.
        tx: the optimizer. One that takes them is given the loss as ``value``, the gradient as ``grad`` and the loss as
            a function of params as ``value_fn``, penalty included.
        loss: from currents ``b t classes`` and labels ``b`` to one loss per example.
        prepare: from a key and raw images to normalized, augmented ones.
        ema_decay: of the moving average, used if the state has one.
        penalty: reducers for ``capture`` whose scalar results are added to the loss, such as
            :func:`qpsnn_jax.sops_reducers` scaled by the cost of an operation.
        target: a budget on the sum of ``penalty``, which then is not added to the loss but has the price that the state
            carries; ``penalty`` is :func:`qpsnn_jax.sops_reducers` itself.
        distillation: how a teacher takes part in the loss; the step then takes its variables as its last argument.
        gather: from the params of the state to the params that the network uses, of the same values: gathers arrays
            that are sharded over devices.
        precision: of :class:`SpikingNetwork`.

    Returns:
        ``step(state, images, labels) -> (state, metrics)`` with the scalars ``loss`` and ``accuracy`` of the batch, and
        ``penalty`` and ``distillation`` if there are any, with a target also the ``price``; the loss does not include
        them. The loss is NaN where a label is not the number of a class. The step raises ``ValueError`` while it is
        traced where the batch is empty, the labels or losses are not one for each image, or the state has no price for
        a target.
    """
    if distillation is not None:
        distillation.check(graph)
    capture = _capture(penalty or {}, distillation)
    forward: Any = partial(SpikingNetwork(graph, precision).apply, train=True, mutable=["batch_stats"], capture=capture)
    update = optax.with_extra_args_support(tx).update

    def step(state: TrainState, images: Array, labels: Array, teacher: Any = None) -> tuple[TrainState, Metrics]:
        _check_batch(images, labels)
        if (target is None) != (state.price is None):
            raise ValueError("a state has a price if, and only if, the step has a target: see priced of init_state.")
        images = prepare(jax.random.fold_in(state.key, state.step), images)
        targets: Any = distillation and distillation.targets(teacher, images, precision)

        def objective(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            variables = state.variables | {"params": gather(params)}
            (currents, captured, _), updates = forward(variables, images)
            losses = _losses(loss, currents, labels)
            metrics = {"loss": jnp.mean(losses), "accuracy": jnp.mean(_correct(currents, labels))}
            if costs := [found["penalty"] for found in captured.values() if "penalty" in found]:
                metrics["penalty"] = jnp.sum(jnp.stack(costs))
            paid = metrics.get("penalty", 0)
            if target is not None and state.price is not None:
                paid = state.price * target.excess(metrics["penalty"])
            total = metrics["loss"] + paid
            if distillation is not None:
                membranes = {name: captured[name]["membranes"] for name in distillation.membranes}
                distilled, drawn = distillation.losses(currents, membranes, targets)
                metrics["distillation"] = distilled
                total = total + distillation.weight * (distilled - metrics["loss"]) + drawn
            return total, (metrics, updates)

        params = state.variables["params"]
        (value, (metrics, updates)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        extra = {"value": value, "grad": gradients, "value_fn": lambda params: objective(params)[0]}
        changes, opt_state = update(gradients, state.opt_state, params, **extra)
        variables, ema = _with_changes(state, changes, dict(updates), opt_state, ema_decay)
        price = state.price
        if target is not None and price is not None:
            metrics["price"] = price = next_price(price, target.excess(metrics["penalty"]), target.rate)
        return TrainState(state.step + 1, variables, opt_state, ema, state.key, price), metrics

    return step


def _with_changes(
    state: TrainState, changes: Any, stats: dict[str, Any], opt_state: Any, ema_decay: float
) -> tuple[dict[str, Any], Any]:
    """The variables and their moving average after a step, both as they were where the optimizer withholds it."""
    ema = state.ema
    if withholds := _may_withhold(opt_state):
        stats = select(all_finite_in(stats), stats, {name: state.variables[name] for name in stats})
    variables = state.variables | {"params": optax.apply_updates(state.variables["params"], changes)} | stats
    if ema is not None:
        fresh = updated_ema(ema, variables, ema_decay)
        ema = select(any_change(changes), fresh, ema) if withholds else fresh
    return variables, ema


def _capture(penalty: Mapping[str, Reducer], distillation: Distillation | None) -> Capture:
    """For every node that enters the loss, what is taken of it by name."""

    def reducer(name: str) -> Reducer:
        taken = {"penalty": penalty[name]} if name in penalty else {}
        if distillation is not None and name in distillation.membranes:
            taken["membranes"] = membranes_of
        return lambda value: {part: reduce(value) for part, reduce in taken.items()}

    names = dict.fromkeys([*penalty, *(distillation.membranes if distillation else ())])
    return {name: reducer(name) for name in names}


def scan_steps(step: Callable[..., tuple[TrainState, Metrics]]) -> Callable[..., tuple[TrainState, Metrics]]:
    """Several updates as one program: ``lax.scan`` of a step over images ``n b …`` and labels ``n b``.

    Returns:
        ``steps(state, images, labels, *teacher) -> (state, metrics)``, the metrics of every step, ``n``.
    """

    def steps(state: TrainState, images: Array, labels: Array, *teacher: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, *batch, *teacher), state, (images, labels))

    return steps


def make_eval_step(
    graph: Graph,
    *,
    loss: Loss = cross_entropy,
    prepare: Callable[[Array], Array] = lambda images: images,
    capture: Capture = (),
    precision: Precision = "auto",
) -> Callable[[Variables, Array, Array, Array], tuple[Metrics, dict[str, Any]]]:
    """Sums over a batch in evaluation mode, as a pure function.

    Args:
        graph: the network.
        loss: as in :func:`make_train_step`.
        prepare: from raw images to normalized ones.
        capture: as in :class:`SpikingNetwork`; it is applied to padding examples too.
        precision: of :class:`SpikingNetwork`.

    Returns:
        ``step(variables, images, labels, weights) -> (sums, captured)`` with the sums ``loss``, ``correct`` and
        ``count`` over the examples, weighted by ``weights`` (1 for an example, 0 for padding).
    """

    def step(variables: Variables, images: Array, labels: Array, weights: Array) -> tuple[Metrics, dict[str, Any]]:
        output: Any = SpikingNetwork(graph, precision).apply(variables, prepare(images), capture=capture)
        currents, captured = output.currents, output.captured
        losses = _losses(loss, currents, labels)
        sums = {
            "loss": jnp.sum(jnp.where(weights == 0, 0, weights * losses)),
            "correct": jnp.sum(weights * _correct(currents, labels)),
            "count": jnp.sum(weights),
        }
        return sums, captured

    return step


def _may_withhold(opt_state: optax.OptState) -> bool:
    """Whether an optimizer may let a batch change nothing; for others no program is made to ask."""

    def withholds(state: Any) -> bool:
        return isinstance(state, optax.ApplyIfFiniteState | optax.MultiStepsState)

    return any(map(withholds, jax.tree.leaves(opt_state, is_leaf=withholds)))


def _check_batch(images: Array, labels: Array) -> None:
    if not images.shape[0] or labels.shape != images.shape[:1]:
        raise ValueError(
            f"a batch needs images b … and labels b, one or more, got the shapes {images.shape} and {labels.shape}."
        )


def _losses(loss: Loss, currents: Array, labels: Array) -> Array:
    """One loss per example, in float32 at least."""
    losses = loss(currents, labels)
    if losses.shape != labels.shape:
        raise ValueError(f"loss must give one number per example, {labels.shape}, got the shape {losses.shape}.")
    return losses.astype(np.promote_types(losses.dtype, np.float32))


def _correct(currents: Array, labels: Array) -> Array:
    guesses = jnp.argmax(jnp.mean(currents, axis=1), axis=-1)
    return (guesses.astype(jnp.int32) == labels.astype(jnp.int32)).astype(jnp.float32)
