"""Which units there are, in the order in which they are done; see ``experiments/claims.md`` for why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from experiments.claims.units import Unit
from qpsnn_jax import Config, cost
from qpsnn_jax.data.settings import DataSettings
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.config import build_graph
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.training.settings import Training

SEEDS = (0, 1, 2)
HEADLINE_SEEDS = (0, 1)
_GAMMAS = ("none", "mean", "learned", "mse", "max", "percentile")
_CRITERIA = {
    "svs": "svs",
    "sca": "sca",
    "magnitude": "magnitude",
    "bn-scale": "experiments.claims.criteria:bn_scale",
    "firing-rate": "experiments.claims.criteria:firing_rate",
    "random": "random",
}
# Shares of the channels between the two convolutions of a block (middle) and of the others that remove 50.7 and 79.7 %
# of the quantized weights.
_REMOVED = {
    "50": {"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.45},
    "80": {"stem": 0.6, "outputs": 0.6, "first": 0.6, "middle": 0.75},
}


@dataclass(frozen=True)
class Recipe:
    """How much a unit is trained: images, epochs of training and of fine-tuning."""

    name: str
    images: int
    epochs: int
    finetune_epochs: int
    batch_size: int
    learning_rate: float
    timesteps_schedule: str | None = None
    held_out: int = 1000  # images that are evaluated after every epoch


SHORT = Recipe("5k-10e", 5000, 10, 5, 64, 0.01)
LONG = Recipe("45k-16e", 45_000, 16, 12, 64, 0.01, timesteps_schedule="1:0.7,2", held_out=2500)
LONGER = Recipe("45k-68e", 45_000, 28, 40, 64, 0.01, timesteps_schedule="1:0.7,2:0.27,4")
LONGEST = Recipe("45k-102e", 45_000, 68, 34, 64, 0.005, timesteps_schedule="1:0.47,2:0.41,4")


def config_of(recipe: Recipe, network: NetworkSettings, pruning: Pruning, seed: int) -> Config:
    """All settings of a unit; data are augmented by cropping and mirroring."""
    train = Training(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer="adam",
        learning_rate=recipe.learning_rate,
        warmup_epochs=1.0,
        timesteps_schedule=recipe.timesteps_schedule,
    )
    data = DataSettings(
        "experiments.claims.data:CIFAR10",
        train_examples=recipe.images,
        test_examples=recipe.held_out,
        crop_padding=4,
        flip=True,
    )
    finetune = replace(train, epochs=recipe.finetune_epochs, learning_rate=recipe.learning_rate / 2)
    return Config(network, data, train, pruning, finetune, RunSettings(seed=seed, checkpoint_epochs=1))


def bytes_of_ratios(config: Config) -> str:
    """The bytes (Eq. 16) that the ratios of a config lead to, as a budget."""
    return f"{cost(build_graph(config, ratios=config.prune.ratios)).size_bytes:.0f}B"


@cache
def plan() -> tuple[Unit, ...]:
    """All units, each once, every one after what it starts from."""
    units = [*headline(), *gamma(), *criterion(), *table2(), *table3(), *rule(), *distillation()]
    return tuple({unit.name: unit for unit in units}.values())


def headline() -> Iterator[Unit]:
    """MLPerf Tiny's image classification: packed files of at most 98,496, 37,000 and 20,000 bytes."""
    network = replace(_network(2, "learned", width=0.1875, granularity="channel"), edge_bits=8)
    pruned = []
    # The file has about 5 kB beside its numbers, which folding makes about 3 % fewer than the budget counts.
    for size, budget in (("98kB", "95kB"), ("37kB", "33.5kB"), ("20kB", "16kB")):
        for seed in HEADLINE_SEEDS:
            config = _polished(config_of(LONG, network, Pruning(budget=budget, recalibrate="always"), seed))
            dense = Unit("headline", "dense", LONG.name, replace(config, prune=Pruning()))
            finetuned = replace(config, finetune=replace(config.finetune, recalibrate_images=2560))
            pruned.append(Unit("headline", size, LONG.name, finetuned, "finetune", dense, integer=True))
            yield from (dense, pruned[-1])
    largest = [unit for unit in pruned if unit.arm == "98kB"]
    longer = [_longer("98kB-longer", unit, "continue", LONGER) for unit in largest]
    yield from longer
    for unit in longer:
        yield replace(_longer("98kB-longest", _reordered(unit), "continue", LONGEST), base=unit)
    for unit in pruned:
        if unit not in largest:
            yield replace(unit, arm=f"{unit.arm}-scratch", kind="scratch", base=unit)
    for unit in largest:  # the released network has their widths
        yield replace(unit, arm="98kB-scratch", kind="released", base=None)
        yield replace(_longer("98kB-longer-scratch", unit, "released", LONGER), base=None)


def gamma() -> Iterator[Unit]:
    """The rule for γ at 8, 4, 2 and 1 bits, and full precision."""
    arms = [(f"{rule}-{bits}", bits, rule) for bits in (2, 4, 8, 1) for rule in _GAMMAS]
    for arm, bits, rule in [*arms, ("float", None, "none")]:
        yield from (_dense(arm, bits, rule, seed) for seed in SEEDS)


def criterion() -> Iterator[Unit]:
    """Criteria at two shares of removed weights, on 2-bit networks of :func:`gamma`, and their widths from scratch."""
    for removed in _REMOVED:
        first = [_pruned("criterion", f"svs-{removed}", "mean", 2, "svs", removed, seed) for seed in SEEDS]
        for arm, name in _CRITERIA.items():
            yield from (_pruned("criterion", f"{arm}-{removed}", "mean", 2, name, removed, seed) for seed in SEEDS)
        for seed in SEEDS:  # a second draw, with an order of the images of its own
            again = _pruned("criterion", f"random-again-{removed}", "mean", 2, "random", removed, seed)
            yield _reordered(again)
        for unit in first:
            yield replace(unit, arm=f"scratch-{removed}", kind="scratch", base=unit)


def table2() -> Iterator[Unit]:
    """Vanilla or ReScaW (γ none or mean) with SCA or SVS, at three bit widths."""
    for bits in (2, 4, 8):
        for rule, name in (("none", "sca"), ("mean", "sca"), ("none", "svs"), ("mean", "svs")):
            for seed in SEEDS:
                yield _pruned("table2", f"{rule}-{name}-{bits}", rule, bits, name, "50", seed)


def table3() -> Iterator[Unit]:
    """The order: quantize, then prune; or prune in full precision, then quantize."""
    for seed in SEEDS:
        yield _pruned("table3", "quantize-prune", "mean", 2, "svs", "50", seed)
    for seed in SEEDS:
        unit = _pruned("table3", "prune-quantize", "mean", 2, "svs", "50", seed)
        yield replace(unit, kind="quantize", base=_dense("float", None, "none", seed))


def rule() -> Iterator[Unit]:
    """The widths: by the ratios, or by one ranking of all channels under the bytes that the ratios lead to."""
    for removed in _REMOVED:
        for seed in SEEDS:
            yield _pruned("rule", f"by-hand-{removed}", "mean", 2, "svs", removed, seed)
        for seed in SEEDS:
            unit = _pruned("rule", f"by-rule-{removed}", "mean", 2, "svs", removed, seed)
            prune = replace(unit.config.prune, ratios={}, budget=bytes_of_ratios(unit.config))
            yield replace(unit, config=replace(unit.config, prune=prune))


def distillation() -> Iterator[Unit]:
    """Fine-tuning alone, or with the unpruned network as teacher."""
    for removed in _REMOVED:
        for seed in SEEDS:
            yield _pruned("distillation", f"plain-{removed}", "mean", 2, "svs", removed, seed)
        for seed in SEEDS:
            unit = _pruned("distillation", f"distilled-{removed}", "mean", 2, "svs", removed, seed)
            finetune = replace(unit.config.finetune, distill="quantized")
            yield replace(unit, config=replace(unit.config, finetune=finetune))


QUESTIONS: Mapping[str, str] = {
    "headline": "98kB",
    "gamma": "none",
    "criterion": "random",
    "table2": "none-sca",
    "table3": "prune-quantize",
    "rule": "by-hand",
    "distillation": "plain",
}
"""The arm of each question that the others are compared with: of the same bits or share, where it has several."""


def _network(bits: int | None, rule: str, *, width: float = 0.125, granularity: str = "layer") -> NetworkSettings:
    settings = NetworkSettings(width=width, bits=bits, gamma=rule, ste="plain")
    return replace(settings, granularity=granularity)


def _dense(arm: str, bits: int | None, rule: str, seed: int) -> Unit:
    return Unit("gamma", arm, SHORT.name, config_of(SHORT, _network(bits, rule), Pruning(), seed))


def _pruned(question: str, arm: str, rule: str, bits: int, name: str, removed: str, seed: int) -> Unit:
    pruning = Pruning(criterion=name, ratios=_REMOVED[removed], recalibrate="always")
    config = config_of(SHORT, _network(bits, rule), pruning, seed)
    return Unit(question, arm, SHORT.name, config, "finetune", _dense(f"{rule}-{bits}", bits, rule, seed))


def _reordered(unit: Unit) -> Unit:
    """The same, with an order of the images of its own."""
    return replace(unit, config=replace(unit.config, run=replace(unit.config.run, seed=unit.seed + 100)))


def _longer(arm: str, unit: Unit, kind: str, recipe: Recipe) -> Unit:
    """A unit of the headline with more epochs, which begin at the learning rate of the recipe and end with T = 4."""
    config, schedule = unit.config, recipe.timesteps_schedule
    train = replace(config.train, epochs=recipe.epochs, timesteps_schedule=schedule)
    finetune = replace(config.finetune, epochs=recipe.finetune_epochs, timesteps_schedule=schedule)
    longer = replace(
        config,
        network=replace(config.network, timesteps=4),
        data=replace(config.data, test_examples=recipe.held_out),
        train=train,
        finetune=replace(finetune, learning_rate=recipe.learning_rate),
    )
    return replace(unit, arm=arm, recipe=recipe.name, config=longer, kind=kind, base=unit)


def _polished(config: Config) -> Config:
    """What the headline's trainings have beside the plain recipe."""
    train = replace(config.train, label_smoothing=0.1, ema_decay=0.999)
    finetune = replace(config.finetune, label_smoothing=0.1, ema_decay=0.999)
    return replace(config, train=train, finetune=finetune)
