"""The compiled training step: its optimizer, the sharding of its state, and several steps as one program."""

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, Sharding

from qpsnn_jax.data.feed import Feed
from qpsnn_jax.kernels.dispatch import Precision, compiler_options
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.network import Reducer
from qpsnn_jax.model.operations import sops_reducers
from qpsnn_jax.numerics.losses import cross_entropy, temporal_cross_entropy
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.compiling import low_memory_jit
from qpsnn_jax.runtime.sharding import device_put, fsdp_shardings, replicated
from qpsnn_jax.training.distillation import Distillation, Rescale
from qpsnn_jax.training.dual import OperationsTarget
from qpsnn_jax.training.optim import cosine_schedule, optimizer
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import TrainState, Variables, init_state
from qpsnn_jax.training.steps import Loss, Prepare, make_train_step, scan_steps
from qpsnn_jax.training.timesteps import at_timesteps, prepare_at

# Activations of a batch, in elements, above which a step is compiled for low memory: 256 MB in float32.
_LARGE = 1 << 26
_LOSSES: dict[str, Callable[..., Array]] = {"cross_entropy": cross_entropy, "tet": temporal_cross_entropy}


@lru_cache(maxsize=16)
def make_optimizer(training: Training, steps_per_epoch: int) -> Any:
    """The Optax transformation that ``training`` describes; the same object for the same arguments."""
    schedule = cosine_schedule(
        training.learning_rate,
        epochs=max(1, training.epochs),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=training.warmup_epochs,
    )
    return optimizer(
        training.optimizer,
        schedule,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        scale_lr=training.scale_lr,
    )


_init_state = jax.jit(init_state, static_argnames=("tx", "ema", "priced"))


def initial_state(
    variables: Variables, tx: Any, mesh: Mesh, training: Training, run: RunSettings
) -> tuple[TrainState, TrainState]:
    """The state before the first step, on the devices, and the sharding of each of its arrays."""
    options = {"ema": training.ema_decay is not None, "priced": training.target is not None}
    state = _init_state(variables, tx, jax.random.key(run.seed), **options)
    shardings = state_shardings(state, mesh, fsdp=run.fsdp)
    return device_put(state, shardings), shardings


def state_shardings(state: TrainState, mesh: Mesh, *, fsdp: bool) -> TrainState:
    """Shardings of a state: replicated; with FSDP, parameters, their averages and the optimizer's state are sharded."""
    whole = replicated(mesh)
    shardings: TrainState = jax.tree.map(lambda _: whole, state)
    if not fsdp:
        return shardings
    params = {"params": fsdp_shardings(mesh, state.variables["params"])}
    variables, ema = shardings.variables | params, shardings.ema and shardings.ema | params
    return shardings._replace(variables=variables, opt_state=fsdp_shardings(mesh, state.opt_state), ema=ema)


Advance = Callable[[TrainState, Feed, int], tuple[TrainState, dict[str, Array]]]
"""From a state, the batches and a number of steps to the state after them and the metrics of each."""


class FrozenMasks:
    """The collection ``masks`` of variables, equal to another of the same values; ``held`` is None if it is empty."""

    def __init__(self, masks: Mapping[str, Any]) -> None:
        arrays = {name: np.asarray(leaves["mask"]) for name, leaves in masks.items()}
        self.held = {name: {"mask": mask} for name, mask in arrays.items()} or None
        self._key = tuple((name, mask.shape, mask.tobytes()) for name, mask in sorted(arrays.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenMasks) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Teacher(NamedTuple):
    """A network that another one is trained to follow; ``rescale`` as in :class:`~qpsnn_jax.Distillation`."""

    graph: Graph
    variables: Variables
    rescale: Rescale | None = None


def make_advance(
    graph: Graph,
    tx: Any,
    training: Training,
    prepare: Prepare,
    mesh: Mesh,
    shardings: TrainState,
    run: RunSettings,
    teacher: Teacher | None = None,
    masks: Mapping[str, Any] | None = None,
) -> Callable[[int], Advance]:
    """For a number of time steps: a function that takes the next training step, or several as one program.

    ``masks`` are those of the variables, of which a price on operations takes account.
    """
    # Other masks are another program only where their values enter it.
    counted = FrozenMasks(masks or {}) if training.target or training.sops_penalty else FrozenMasks({})
    taught = () if teacher is None else (device_put(teacher.variables, replicated(mesh)),)
    leaves, tree = jax.tree.flatten(shardings)
    placed = tuple(leaves), tree

    @cache
    def at(timesteps: int) -> Advance:
        changed, prepared = at_timesteps(graph, timesteps), prepare_at(prepare, graph, timesteps)
        # Its first steps, which are what it would do at this T: only its batch-norm looks at time, and is constant.
        teaching = teacher and distillation_by(training, at_timesteps(teacher.graph, timesteps), teacher.rescale)
        # The target is for all steps of the network; fewer have that part of it.
        share, goal = timesteps / graph.timesteps, training.target
        target = None if goal is None else OperationsTarget(share * goal, training.sops_rate)
        step, steps = _jitted_steps(
            changed, tx, training, prepared, mesh, *placed, run.precision, target, teaching, counted
        )

        def advance(state: TrainState, batches: Feed, size: int) -> tuple[TrainState, dict[str, Array]]:
            if size == 1:
                return step(state, *next(batches), *taught)
            return steps(state, *batches.several(size), *taught)

        return advance

    return at


@lru_cache(maxsize=8)
def _jitted_steps(
    graph: Graph,
    tx: Any,
    training: Training,
    prepare: Prepare,
    mesh: Mesh,
    shardings: tuple[Sharding, ...],
    tree: Any,
    precision: Precision,
    target: OperationsTarget | None,
    distillation: Distillation | None,
    masks: FrozenMasks,
) -> tuple[Callable, Callable]:
    """The compiled step, and several. Cached: a process that resumes a training, or repeats it, compiles it once."""
    whole = replicated(mesh)
    sharded = any(sharding != whole for sharding in shardings)
    made = make_train_step(
        graph,
        tx,
        loss=_loss(training),
        prepare=prepare,
        ema_decay=training.ema_decay or 0.0,
        penalty=sops_reducers(graph, masks=masks.held) if target else _penalty(graph, training.sops_penalty, masks),
        target=target,
        distillation=distillation,
        precision=precision,
        **({"gather": partial(jax.lax.with_sharding_constraint, shardings=whole)} if sharded else {}),
    )
    results = jax.tree.unflatten(tree, shardings), whole
    options = {"donate_argnums": 0, "out_shardings": results, "compiler_options": compiler_options(precision)}
    jit = partial(_jit(graph, training.batch_size // mesh.size), **options)
    return jit(made), jit(scan_steps(made))


def distillation_by(training: Training, teacher: Graph, rescale: Rescale | None = None) -> Distillation:
    """How a teacher takes part in the loss of a course of training."""
    weight, temperature = training.distill_weight, training.distill_temperature
    return Distillation(teacher, weight, temperature, training.distill_membranes, rescale)


def _jit(graph: Graph, examples: int) -> Callable[..., Any]:
    """``low_memory_jit`` for a step that needs much memory; ``jax.jit`` for others, where it is a tenth faster."""
    steps = {name: graph.timesteps if value.timed else 1 for name, value in graph.values.items()}
    activations = examples * sum(steps[name] * math.prod(value.shape) for name, value in graph.values.items())
    return low_memory_jit if activations > _LARGE else jax.jit


def _loss(training: Training) -> Loss:
    return partial(_LOSSES[training.loss], label_smoothing=training.label_smoothing)


def _penalty(graph: Graph, weight: float, masks: FrozenMasks) -> dict[str, Reducer]:
    """A penalty of ``weight`` for every million synaptic operations of an image."""

    def scaled(reducer: Reducer) -> Reducer:
        return lambda value: weight * 1e-6 * reducer(value)

    reducers = sops_reducers(graph, masks=masks.held) if weight else {}
    return {name: scaled(reducer) for name, reducer in reducers.items()}
