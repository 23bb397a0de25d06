"""All stages of a run, with several rounds of pruning and fine-tuning; the earlier rounds are in ``rounds/1``, ….

Each round is one of :func:`qpsnn_jax.pruning_rounds`, with scores, masks, recalibration and a training of
its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qpsnn_jax.runs.config import Config, finetuning_parts
from qpsnn_jax.runs.masking import mask_weights
from qpsnn_jax.runs.records import StageResult
from qpsnn_jax.runs.stages import Run, finetune, prune_channels, recalibrate_pruned, train

_SEEDS = 2**31 - 3
_SEEDS_APART = 1000  # those of two rounds, which draw other orders, augmentation and images to score


def run_stages(config: Config, run: Run) -> list[StageResult]:
    """All stages in the paper's order (quantize first, then prune), resumed if an earlier call was interrupted."""
    stages = [train(run, config.train), *prune_in_rounds(config, run)]
    return [*stages, finetune(run, finetuning_parts(config)[-1])]


def prune_in_rounds(config: Config, run: Run, *, source: Path | None = None) -> list[StageResult]:
    """The stages between training and the last fine-tuning: all rounds, of which the last ends before it.

    Args:
        config: of the run; its epochs of fine-tuning are divided among the rounds.
        run: the run.
        source: the stage that holds the trained network, by default the run's own; it may be the teacher.

    Returns:
        The results in order. The name of a stage is its place in the run, such as ``rounds/1/pruned``.
    """
    quantized = source or run.directory / "quantized"
    place, stages = quantized, []
    for number, training in enumerate(finetuning_parts(config)[:-1]):
        own = round_of(run, number)
        stages += _pruned(own, config, place, number)
        stages.append(finetune(own, training, source=quantized))
        place = own.directory / "finetuned"
    return [*stages, *_pruned(run, config, place, config.prune.rounds - 1)]


def round_of(run: Run, number: int) -> Run:
    """The run of a round that is not the last, counted from 0."""
    seed = (run.settings.seed + _SEEDS_APART * (1 + number)) % _SEEDS
    place = f"rounds/{number + 1}/"
    return replace(run, directory=run.directory / place, prefix=place, settings=replace(run.settings, seed=seed))


def _pruned(run: Run, config: Config, source: Path, done: int) -> Iterator[StageResult]:
    yield prune_channels(run, config.prune, source=source, done=done)
    if masked := mask_weights(run, config.prune, done=done):
        yield masked
    if recalibrated := recalibrate_pruned(run, config.prune):
        yield recalibrated
