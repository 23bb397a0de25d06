"""What a unit of work is: one training, resumable itself, with one small JSON file as its result."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from qpsnn_jax.runs.config import Config
from qpsnn_jax.runtime.settings import as_dict


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        question: of ``experiments/claims.md``.
        arm: what is done differently, within the question.
        recipe: names the numbers of images and epochs.
        config: all settings; its data are those of :func:`experiments.claims.data.held_out`.
        kind: of :data:`KINDS`.
        base: the unit whose trained network this one starts from; for ``scratch``, whose pruned widths it has. None
            for ``released``, which has those of the released network of 98 kB.
        test: the data set whose test images are read once, when the unit is finished; None for a unit that serves a
            choice, which has its held-out images alone. If it is the data set of the config itself, none are held out,
            and every epoch is measured on the test images, as in ``qpsnn run``.
        integer: whether the integer network classifies the test images too.
    """

    question: str
    arm: str
    recipe: str
    config: Config
    kind: str = "train"
    base: "Unit | None" = None
    test: str | None = "cifar10"
    integer: bool = False

    @property
    def seed(self) -> int:
        """That of the config; seeds that differ by hundreds stand side by side, as draws of the same network do."""
        return self.config.run.seed % 100

    @property
    def name(self) -> str:
        """Of the run's directory and of the result."""
        return f"{self.question}.{self.arm}.s{self.seed}.{self.recipe}"


def steps_of(unit: Unit) -> dict[int, int]:
    """Training steps of a unit by their number of time steps T, from its config alone."""
    examples, own = unit.config.data.train_examples, unit.config.network.timesteps
    assert examples is not None, f"{unit.name} must say how many images it trains on"
    train, finetune = unit.config.train, unit.config.finetune
    whole = dataclasses.replace(train, epochs=train.epochs + finetune.epochs)
    kinds = {"train": train, **dict.fromkeys(("scratch", "released", "mixed", "run"), whole)}
    training = kinds.get(unit.kind, finetune)
    epochs = Counter(training.schedule or (own,) * training.epochs)
    return {timesteps: number * (examples // training.batch_size) for timesteps, number in epochs.items()}


def settings_of(unit: Unit) -> dict[str, Any]:
    """All that a unit is, as plain values; where its data lie and what has no effect are left out."""
    return plain(unit.config, unit.kind, unit.base and unit.base.name, unit.test)


def plain(config: Config, kind: str, base: str | None, test: str | None) -> dict[str, Any]:
    settings = as_dict(config)
    settings["data"].pop("data_dir")
    for training in (settings["train"], settings["finetune"]):
        if training["sops_target"] is None:
            training.pop("sops_rate")  # of no effect then, so that its default may change
    return json.loads(json.dumps(settings | {"kind": kind, "base": base, "test": test}))
