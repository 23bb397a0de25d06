"""What is done: the phases, the network, the step of training and the program of an epoch; and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
from jax import Array

from experiments.claims.data import hold_out
from qpsnn_jax import Distillation, Graph, NetworkSettings, init_state, init_variables, make_train_step, optimizer
from qpsnn_jax.data import Arrays, DataSet
from qpsnn_jax.data.augment.images import normalize_and_augment
from qpsnn_jax.data.augment.records import Augmentation
from qpsnn_jax.model.settings import build
from qpsnn_jax.numerics.losses import cross_entropy
from qpsnn_jax.training.optim import cosine_schedule
from qpsnn_jax.training.state import TrainState
from qpsnn_jax.training.timesteps import at_timesteps

_AUGMENTATION = Augmentation(crop_padding=4, flip=True, cutout=8)


class Phase(NamedTuple):
    """A course of training with an optimizer of its own."""

    name: str
    timesteps: int
    epochs: int
    learning_rate: float
    pruned: bool = False


@dataclass(frozen=True)
class Recipe:
    """All that a run does; equal recipes give equal results on the same hardware."""

    network: str = "resnet20"
    width: float = 1.0
    bits: int = 2
    timesteps: int = 2
    size: float = 1.61
    epochs: tuple[int, int, int, int] = (40, 15, 25, 15)
    batch_size: int = 512
    held_out: int = 5000
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Training, then fine-tuning of the pruned network, each first at T = 1."""
        first, second, third, fourth = self.epochs
        return (
            Phase("quantized, T = 1", 1, first, 0.1),
            Phase(f"quantized, T = {self.timesteps}", self.timesteps, second, 0.02),
            Phase("pruned, T = 1", 1, third, 0.05, pruned=True),
            Phase(f"pruned, T = {self.timesteps}", self.timesteps, fourth, 0.02, pruned=True),
        )

    def graph(self, shape: tuple[int, int, int], classes: int) -> Graph:
        """The network before pruning."""
        settings = NetworkSettings(
            self.network, self.width, self.timesteps, self.bits, gamma="learned", granularity="channel", ste="plain"
        )
        return build(settings, input_shape=shape, classes=classes)


def read_data(recipe: Recipe, data: DataSet) -> DataSet:
    """The data set with the images that are held out as its test set: those of ``experiments.claims``."""
    if not isinstance(data.train, Arrays):
        raise click.UsageError(f"{data.name} is not a data set in memory.")
    if len(data.train.labels) - recipe.held_out < recipe.batch_size:
        left = max(0, len(data.train.labels) - recipe.held_out)
        raise click.UsageError(f"{left:,} training images are less than a batch of {recipe.batch_size}.")
    return hold_out(data, recipe.held_out)


def train_step(
    graph: Graph, tx: Any, mean: tuple[float, ...], std: tuple[float, ...], teacher: Graph | None
) -> Callable[..., Any]:
    """One update in bfloat16 on float32 weights; mean and std are those of the pixels."""

    def prepare(key: Array, images: Array) -> Array:
        return normalize_and_augment(key, images, _AUGMENTATION, mean, std).astype(jnp.bfloat16)

    return make_train_step(
        graph,
        tx,
        loss=partial(cross_entropy, label_smoothing=0.1),
        prepare=prepare,
        ema_decay=0.998,
        distillation=None if teacher is None else Distillation(teacher),
    )


def make_epoch(step: Callable[..., Any], batch_size: int) -> Callable[..., Any]:
    """One epoch as one program: ``(state, images, labels, key, *teacher) -> (state, loss)``, the state donated."""

    def epoch(state: TrainState, images: Array, labels: Array, key: Array, *teacher: Any) -> tuple[TrainState, Array]:
        steps = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: steps * batch_size].reshape(steps, batch_size)

        def body(state: TrainState, index: Array) -> tuple[TrainState, Array]:
            state, metrics = step(state, images[index], labels[index], *teacher)
            return state, metrics["loss"]

        state, losses = jax.lax.scan(body, state, order)
        return state, jnp.mean(losses)

    return jax.jit(epoch, donate_argnums=0)


def phase_optimizer(recipe: Recipe, phase: Phase, examples: int) -> Any:
    """SGD with a cosine schedule over the epochs of a phase."""
    steps = max(1, examples // recipe.batch_size)
    schedule = cosine_schedule(phase.learning_rate, epochs=phase.epochs, steps_per_epoch=steps, warmup_epochs=1.0)
    return optimizer("sgd", schedule, weight_decay=5e-4, scale_lr=0.1)


def lowered_step(recipe: Recipe, phase: Phase, graph: Graph, platform: str) -> Any:
    """The training step of a phase at its full size, lowered for a platform that need not be here."""
    shape = graph.input.shape
    tx = phase_optimizer(recipe, phase, recipe.batch_size)
    changed = at_timesteps(graph, phase.timesteps)
    step = train_step(changed, tx, (0.5,) * shape[2], (0.25,) * shape[2], changed if phase.pruned else None)
    variables = jax.eval_shape(partial(init_variables, graph), jax.random.key(0))
    state = jax.eval_shape(lambda tree: init_state(tree, tx, jax.random.key(0), ema=True), variables)
    images = jax.ShapeDtypeStruct((recipe.batch_size, *shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    given = (variables,) if phase.pruned else ()
    return jax.jit(step).trace(state, images, labels, *given).lower(lowering_platforms=(platform,))


def count(recipe: Recipe, platform: str = "cuda") -> str:
    """Floating-point operations of every phase at the whole widths, from its lowered step, as lines of text."""
    graph, steps = recipe.graph((32, 32, 3), 10), (50_000 - recipe.held_out) // recipe.batch_size
    lines, total = [], 0.0
    for phase in recipe.phases:
        flops = steps * lowered_step(recipe, phase, graph, platform).cost_analysis()["flops"]
        total += phase.epochs * flops
        lines.append(f"{phase.name}: {phase.epochs} epochs of {flops / 1e15:.3f} PFLOP")
    return "\n".join([*lines, f"all: {total / 1e15:.1f} PFLOP; pruned networks take less"])
