"""Each addition to the paper's method as an arm beside the plain pipeline, at its bytes and its number of images."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from experiments.claims.data import held_out
from experiments.claims.plan import bytes_of_ratios
from experiments.claims.units import Unit
from qpsnn_jax import Config
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runtime.settings import updated

DIGITS = held_out("digits", 287)  # a fifth of the training images
_RECIPES = {
    "digits": ("1150-45e", {"name": "experiments.worth.plan:DIGITS", "train_examples": 1150}, range(5)),
    "cifar10": (
        "2k-12e",
        {"name": "experiments.claims.data:CIFAR10", "train_examples": 2000, "test_examples": 1000},
        range(3),
    ),
}
_PRESETS = {"digits": "digits", "cifar10": "cifar10-tiny"}
# The changes of an arm, after its own training or after that of the plain pipeline.
_TRAINED: Mapping[str, Mapping[str, Any]] = {
    "gamma": {"network": {"gamma": "learned"}},
    "neurons": {"network": {"learned_tau": True, "learned_threshold": True}},
    "residual": {"network": {"residual_scale": 0.25}},
    "timesteps": {"train": {"timesteps_schedule": "1:0.7,2"}},
    "edges": {"network": {"edge_bits": 8}, "prune": {"budget": "plain"}},
    "ternary": {"network": {"levels": 3}, "prune": {"budget": "plain"}},
    "operations": {"train": {"sops_target": "0.25MSOPs"}, "finetune": {"sops_target": "0.25MSOPs"}},
}
_PRUNED: Mapping[str, Mapping[str, Any]] = {
    "recalibrated": {"prune": {"recalibrate": "always"}},
    "random": {"prune": {"criterion": "random"}},
    "random-recalibrated": {"prune": {"criterion": "random", "recalibrate": "always"}},
    "distilled": {"finetune": {"distill": "quantized"}},
    "budget": {"prune": {"budget": "plain"}},
    "rounds": {"prune": {"rounds": 3}},
}
# Those that are for images of 8x8 pixels alone: others take other numbers of operations.
_DIGITS_ALONE = {"operations"}

QUESTIONS: Mapping[str, str] = {"digits": "plain", "cifar10": "plain", "preset": "digits"}
"""The arm of each question that the others are compared with."""


@cache
def plan() -> tuple[Unit, ...]:
    """All units, each once, every one after what it starts from."""
    return *_arms("digits"), *_arms("cifar10"), *_presets()


def _presets() -> Iterator[Unit]:
    """The preset that the choice led to, beside the plain one, on all training images and the test images."""
    for arm in ("digits_plus", "digits"):
        for seed in range(10):
            changes = {"data": {"train_examples": 1437}, "run": {"seed": seed}}  # all of them
            yield Unit("preset", arm, "1437-45e", updated(PRESETS[arm].config, changes), "run", test="digits")


def _arms(question: str) -> Iterator[Unit]:
    recipe, data, seeds = _RECIPES[question]
    for seed in seeds:
        changes = {"data": data, "run": {"seed": seed, "checkpoint_epochs": 5}, "prune": {"recalibrate": "never"}}
        plain = updated(PRESETS[_PRESETS[question]].config, changes)
        size = bytes_of_ratios(plain)

        def unit(arm: str, config: Config, kind: str = "train", base: Unit | None = None) -> Unit:
            return Unit(question, arm, recipe, config, kind, base, test=None)

        dense = unit("dense", plain)
        pruned = unit("plain", plain, "finetune", dense)
        yield from (dense, pruned, unit("scratch", plain, "scratch", pruned))
        for arm, changed in _PRUNED.items():
            yield unit(arm, _changed(plain, changed, size), "finetune", dense)
        yield unit("mixed", plain, "mixed", dense)
        for arm, changed in _TRAINED.items():
            if question == "digits" or arm not in _DIGITS_ALONE:
                config = _changed(plain, changed, size)
                own = unit(f"{arm}-dense", config)
                yield from (own, unit(arm, config, "finetune", own))


def _changed(config: Config, changes: Mapping[str, Mapping[str, Any]], size: str) -> Config:
    """A config with the changes of an arm, whose budget is the size of the plain network."""
    prune = changes.get("prune", {})
    if prune.get("budget") == "plain":
        config = replace(config, prune=replace(config.prune, ratios={}))
        changes = {**changes, "prune": {**prune, "budget": size}}
    return updated(config, changes)
