"""Pure step functions of training and evaluation; the caller jits, shards and donates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.graph import Graph, check_graph
from qpsnn_jax.model.network import Capture, Reducer, SpikingNetwork
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.numerics.ranges import passes
from qpsnn_jax.training.distillation import Distillation, membranes_of
from qpsnn_jax.training.dual import OperationsTarget, next_price
from qpsnn_jax.training.state import TrainState, check_optimizer
from qpsnn_jax.training.trees import Variables, all_finite_in, any_change, select, updated_ema

Metrics = dict[str, Array]
Loss = Callable[[Array, Array], Array]
Prepare = Callable[[Array, Array], Array]


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
        traced where the batch is empty, the labels or losses are not one for each image, ``state`` is none or has no
        price for a target, or the teacher's variables are missing.

    Raises:
        ValueError: ``graph`` is not a Graph, ``tx`` not an optimizer, or ``ema_decay``, the target or the distillation
            is out of range or does not fit the graph.
    """
    check_graph(graph)
    check_optimizer(tx)
    if not callable(loss):
        raise ValueError(f"loss must be a function of currents and labels, got {loss!r}.")
    if not passes(ema_decay, lambda x: 0 <= x < 1):
        raise ValueError(f"ema_decay must be at least 0 and below 1, got {ema_decay}.")
    if target is not None:
        target.check()
    if distillation is not None:
        distillation.check(graph)
    capture = _capture(penalty or {}, distillation)
    forward: Any = partial(SpikingNetwork(graph, precision).apply, train=True, mutable=["batch_stats"], capture=capture)
    update = optax.with_extra_args_support(tx).update

    def step(state: TrainState, images: Array, labels: Array, teacher: Any = None) -> tuple[TrainState, Metrics]:
        if not isinstance(state, TrainState):
            raise ValueError(f"a step needs the state of init_state(variables, tx, key), got a {type(state).__name__}.")
        if distillation is not None and teacher is None:
            raise ValueError(
                "a step with distillation needs the teacher's variables: step(state, images, labels, teacher)."
            )
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        _check(state, images, labels, target)
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
                paid = state.price * jnp.maximum(target.excess(metrics["penalty"]), 0)
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
) -> Callable[..., tuple[Metrics, dict[str, Any]]]:
    """Sums over a batch in evaluation mode, as a pure function.

    Args:
        graph: the network.
        loss: as in :func:`make_train_step`.
        prepare: from raw images to normalized ones.
        capture: as in :class:`SpikingNetwork`; it is applied to padding examples too.
        precision: of :class:`SpikingNetwork`.

    Returns:
        ``step(variables, images, labels, weights=None) -> (sums, captured)`` with the sums ``loss``, ``correct`` and
        ``count`` over the examples, weighted by ``weights`` (1 for an example, 0 for padding; None for no padding). It
        raises ``ValueError`` while it is traced where ``weights`` or losses are not one for each label.
    """

    def step(
        variables: Variables, images: Array, labels: Array, weights: Array | None = None
    ) -> tuple[Metrics, dict[str, Any]]:
        labels = jnp.asarray(labels)
        weights = jnp.ones(labels.shape, jnp.float32) if weights is None else jnp.asarray(weights)
        if weights.shape != labels.shape:
            raise ValueError(f"weights need one number for each label, {labels.shape}, got the shape {weights.shape}.")
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


def _check(state: TrainState, images: Array, labels: Array, target: OperationsTarget | None) -> None:
    if (target is None) != (state.price is None):
        raise ValueError("a state has a price if, and only if, the step has a target: see priced of init_state.")
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
