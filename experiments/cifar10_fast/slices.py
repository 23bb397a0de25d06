"""A run in slices of one epoch, each saved before the next begins."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.cifar10_fast.recipe import Phase, Recipe, make_epoch, phase_optimizer, train_step
from qpsnn_jax import (
    Graph,
    allocate,
    cost,
    fold,
    init_state,
    init_variables,
    load_network,
    prune,
    recalibrate,
    save_network,
    score,
)
from qpsnn_jax.data import Arrays, DataSet
from qpsnn_jax.data.dataset import Examples
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.pruning.budget import check_budget
from qpsnn_jax.pruning.criteria import scored_groups
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.state import evaluation_variables
from qpsnn_jax.training.timesteps import at_timesteps

_SCORED = 5  # batches of 128 images, as in the released code
_RECALIBRATED = 20


class Place(NamedTuple):
    """How far a run is: the phase, and the epochs of it that are done."""

    phase: int
    epoch: int


def accuracy(graph: Graph, variables: Any, examples: Examples, data: DataSet) -> float:
    """The fraction of images that are classified correctly, in float32."""
    return evaluate(graph, variables, examples, data, capture=()).accuracy


def training_batches(recipe: Recipe, images: Array, data: DataSet, number: int) -> list[Array]:
    """Normalized training images, drawn by the seed."""
    size = min(128, len(images) // number)
    chosen = np.random.default_rng(recipe.seed).permutation(len(images))[: number * size]
    return [normalize(images[part], data.mean, data.std) for part in chosen.reshape(number, size)]


def prune_network(recipe: Recipe, graph: Graph, variables: Any, images: Array, data: DataSet) -> tuple[Graph, Any]:
    """The channels that the budget leaves, by SVS, with batch-norm recalibrated, on training images."""
    batches = training_batches(recipe, images, data, _SCORED)
    keep = allocate(graph, score(graph, variables, batches), bytes=1e6 * recipe.size)
    smaller, _ = prune(graph, {}, keep)
    # In one program: otherwise hundreds of small gathers would be compiled one by one.
    left = jax.jit(lambda tree: prune(graph, tree, keep)[1])(variables)
    return smaller, recalibrate(smaller, left, batches)


class Run:
    """A run in a directory: its network, the state of training and the place in the recipe, all on disk."""

    def __init__(self, recipe: Recipe, directory: Path, data: DataSet):
        """A new run, or the one that the directory holds; ``data`` is that of :func:`read_data`."""
        assert isinstance(data.train, Arrays)
        self.recipe, self.directory, self.data = recipe, directory, data
        self.images, self.labels = map(jnp.asarray, data.train)  # on the device
        h, w, c = data.shape
        self.whole = recipe.graph((h, w, c), data.classes)
        check_budget(self.whole, scored_groups("svs", self.whole), bytes=1e6 * recipe.size)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "recipe.json"
        mine = json.loads(json.dumps(asdict(recipe)))
        if path.exists() and json.loads(path.read_text()) != mine:
            raise click.UsageError(f"{directory} holds a run of another recipe; choose another --out.")
        write_atomically(path, json.dumps(mine, indent=1).encode())

    def slices(self) -> Iterator[str]:
        """Do the epochs that are left, one after each ``next``; what was done, as a line of text."""
        for index, phase in enumerate(self.recipe.phases):
            graph, variables, place = self._start(index)
            if place.phase > index:
                continue
            teacher = load_network(self.directory / "whole") if phase.pruned else None
            tx = phase_optimizer(self.recipe, phase, len(self.labels))
            changed = at_timesteps(graph, phase.timesteps)
            taught = at_timesteps(teacher[0], phase.timesteps) if teacher else None
            step = train_step(changed, tx, self.data.mean, self.data.std, taught)
            epoch = make_epoch(step, self.recipe.batch_size)
            key = jax.random.fold_in(jax.random.key(self.recipe.seed), index)
            state = jax.jit(lambda tree, key, tx=tx: init_state(tree, tx, key, ema=True))(variables, key)
            if place.epoch:
                found = checkpoint.latest(self._folder(index))
                assert found is not None
                state = checkpoint.restore(found, state)
            for number in range(place.epoch, phase.epochs):
                started = time.monotonic()
                given = () if teacher is None else (teacher[1],)
                state, loss = epoch(state, self.images, self.labels, jax.random.fold_in(key, number), *given)
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss of {phase.name}, epoch {number + 1}, is {float(loss)}.")
                checkpoint.save(self._folder(index), number + 1, graph, state, {})
                right = accuracy(graph, evaluation_variables(state), self.data.test, self.data)
                seconds = time.monotonic() - started
                self._log(phase, number + 1, float(loss), right, seconds)
                yield (
                    f"{phase.name}: epoch {number + 1}/{phase.epochs}, loss {float(loss):.3f}, "
                    f"held-out accuracy {100 * right:.2f} %, {seconds:.1f} s"
                )
            self._finish(index, graph, evaluation_variables(state))

    def _start(self, index: int) -> tuple[Graph, Any, Place]:
        """The network that a phase starts from, and how far the phase is."""
        if (self.directory / f"phase_{index}.done").exists():
            return self.whole, None, Place(index + 1, 0)
        found = checkpoint.latest(self._folder(index))
        place = Place(index, found.step if found else 0)
        if index == 0:
            return self.whole, init_variables(self.whole, jax.random.key(self.recipe.seed)), place
        return *load_network(self.directory / f"after_{index - 1}"), place

    def _finish(self, index: int, graph: Graph, variables: Any) -> None:
        """Save the network after a phase; before the first phase of fine-tuning it is pruned.

        The weights are averages, which averaged moments of batch-norm do not fit; they are recalibrated.
        """
        phases = self.recipe.phases
        batches = training_batches(self.recipe, self.images, self.data, _RECALIBRATED)
        variables = recalibrate(graph, variables, batches)
        if index + 1 < len(phases) and phases[index + 1].pruned and not phases[index].pruned:
            save_network(self.directory / "whole", graph, variables)
            graph, variables = prune_network(self.recipe, graph, variables, self.images, self.data)
        save_network(self.directory / f"after_{index}", graph, variables)
        (self.directory / f"phase_{index}.done").touch()

    def _folder(self, index: int) -> Path:
        return self.directory / f"phase_{index}"

    def _log(self, phase: Phase, epoch: int, loss: float, right: float, seconds: float) -> None:
        line = {"phase": phase.name, "epoch": epoch, "loss": loss, "held_out": right, "seconds": seconds}
        with (self.directory / "epochs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def result(self, test: Examples) -> dict[str, Any]:
        """Accuracy on the test images, bytes and seconds of a finished run; the packed file is written beside it."""
        path = self.directory / "result.json"
        if path.exists():
            return json.loads(path.read_text())
        graph, variables = load_network(self.directory / f"after_{len(self.recipe.phases) - 1}")
        packed = write_packed(
            self.directory / "network.qpsnn", fold(graph, variables, self.data.mean, self.data.std), {}
        )
        lines = [json.loads(line) for line in (self.directory / "epochs.jsonl").read_text().splitlines()]
        found = {
            "test_accuracy": accuracy(graph, variables, test, self.data),
            "weight_bytes": cost(graph, masks=variables.get("masks")).size_bytes,
            "file_bytes": packed.header_bytes + packed.payload_bytes,
            "seconds": sum(line["seconds"] for line in lines),
            "device": jax.devices()[0].device_kind,
            "recipe": asdict(self.recipe),
        }
        write_atomically(path, json.dumps(found, indent=1).encode())
        return found
