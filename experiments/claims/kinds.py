"""How a unit is trained, by its kind."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from experiments.claims.results import is_done, result_of, write_result
from experiments.claims.units import Unit
from qpsnn_jax import (
    allocate_bits,
    bit_sensitivity,
    channel_groups,
    cost,
    load_network,
    pretrained,
    prune,
    with_layer_bits,
)
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Shortcut
from qpsnn_jax.pruning.channels import spiking_members
from qpsnn_jax.runs import stages
from qpsnn_jax.runs.config import build_graph, finetuning_parts
from qpsnn_jax.runs.directory import open_run, read_stage
from qpsnn_jax.runs.evaluation import sensitivity_batches
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.records import read_notes
from qpsnn_jax.runs.rounds import prune_in_rounds, run_stages
from qpsnn_jax.runs.stages import Run
from qpsnn_jax.training.state import Variables, init_variables
from qpsnn_jax.training.timesteps import at_timesteps


def do(unit: Unit, runs: Path, results: Path, data_dir: str | None, check: Callable[[], None]) -> None:
    """Train a unit, or go on with it, then read its test images once and write its result.

    What it starts from is trained first where its network is not in ``runs``.

    Args:
        unit: what to do.
        runs: the folder of the directories of all units.
        results: the folder of the results.
        data_dir: where the data lie.
        check: called before every training; raises an exception to stop.
    """
    if unit.base is not None and not (runs / unit.base.name / "done").exists():
        do(unit.base, runs, results, data_dir, check)
    config = dataclasses.replace(unit.config, data=dataclasses.replace(unit.config.data, data_dir=data_dir))
    directory, data = runs / unit.name, load_data(config)
    with open_run(directory, config):
        hooks = (Hooks(start=lambda *_: check()),)
        run = stages.prepare_run(config, directory, data, hooks)
        final = KINDS[unit.kind](unit, run, runs)
        if not is_done(unit, results):
            write_result(result_of(unit, run, final, data_dir), results)
        (directory / "done").touch()


def _train(unit: Unit, run: Run, runs: Path) -> str:
    stages.train(run, unit.config.train)
    return "quantized"


def _finetune(unit: Unit, run: Run, runs: Path) -> str:
    """Prune the network of the base, recalibrate it as the config says, and fine-tune."""
    source = _base(unit, runs) / "quantized"
    prune_in_rounds(unit.config, run, source=source)
    stages.finetune(run, finetuning_parts(unit.config)[-1], source=source)
    return "finetuned"


def _continue(unit: Unit, run: Run, runs: Path) -> str:
    """Train the final network of the base on, ending with the T of the config."""
    if not read_stage(run.directory, "finetuned"):
        graph, variables = load_network(_base(unit, runs) / "finetuned")
        settings = dataclasses.replace(run.settings, seed=run.settings.seed + 3)
        own = at_timesteps(graph, run.graph.timesteps)
        stages.train_stage(run, "finetuned", own, variables, unit.config.finetune, settings)
    return "finetuned"


def _quantize(unit: Unit, run: Run, runs: Path) -> str:
    """Prune the base, which is of other bits, recalibrate it as the config says, and fine-tune with the config's."""
    base = unit.base
    assert base is not None
    whole = dataclasses.replace(run, graph=build_graph(base.config))
    stages.prune_channels(whole, unit.config.prune, source=runs / base.name / "quantized")
    recalibrated = stages.recalibrate_pruned(whole, unit.config.prune)
    if not read_stage(run.directory, "finetuned"):
        keep = read_notes(run.directory / "pruned" / "stage.json", "keep")
        graph, _ = prune(run.graph, {}, keep)
        _, trained = load_network(run.directory / ("recalibrated" if recalibrated else "pruned"))
        fresh = init_variables(graph, jax.random.key(run.settings.seed))
        settings = dataclasses.replace(run.settings, seed=run.settings.seed + 1)
        stages.train_stage(run, "finetuned", graph, _over(fresh, trained), unit.config.finetune, settings)
    return "finetuned"


def _scratch(unit: Unit, run: Run, runs: Path) -> str:
    """Fresh weights of the pruned widths of the base, trained for as many epochs as training and fine-tuning."""
    return _train_anew(unit, run, lambda: load_network(_base(unit, runs) / "pruned")[0])


def _released(unit: Unit, run: Run, runs: Path) -> str:
    """As :func:`_scratch`, with the channels of the released network of 98 kB."""
    del runs
    return _train_anew(unit, run, lambda: with_channels_of(run.graph, pretrained("cifar10-98kb")[0]))


def with_channels_of(graph: Graph, other: Graph) -> Graph:
    """``graph`` with as many channels as ``other``, whose neurons have the same names and whose shortcuts it gets."""
    keep = {}
    for name, group in channel_groups(graph).items():
        first, *_ = spiking_members(graph, group)
        keep[name] = np.arange(other.values[first].shape[-1])
    pruned, _ = prune(graph, {}, keep)
    sources = iter([node.source for node in other.nodes if isinstance(node, Shortcut)])
    nodes = [
        dataclasses.replace(node, source=next(sources)) if isinstance(node, Shortcut) else node for node in pruned.nodes
    ]
    return dataclasses.replace(pruned, nodes=tuple(nodes))


def _train_anew(unit: Unit, run: Run, graph_of: Callable[[], Graph]) -> str:
    if not read_stage(run.directory, "quantized"):
        graph = at_timesteps(graph_of(), run.graph.timesteps)
        variables = init_variables(graph, jax.random.key(run.settings.seed + 2))
        epochs = unit.config.train.epochs + unit.config.finetune.epochs
        recalibrated = unit.config.finetune.recalibrate_images
        training = dataclasses.replace(unit.config.train, epochs=epochs, recalibrate_images=recalibrated)
        stages.train_stage(run, "quantized", graph, variables, training, run.settings)
    return "quantized"


def _over(fresh: Variables, trained: Variables) -> Variables:
    """``trained``, and of ``fresh`` what only a quantized network has."""
    return {
        kind: {node: {**leaves, **trained.get(kind, {}).get(node, {})} for node, leaves in nodes.items()}
        for kind, nodes in fresh.items()
    }


def _run(unit: Unit, run: Run, runs: Path) -> str:
    """All stages, as ``qpsnn run``."""
    run_stages(unit.config, run)
    return "finetuned"


def _mixed(unit: Unit, run: Run, runs: Path) -> str:
    """The network of the base with other bits in each layer, of as many bytes, trained and pruned as it was."""
    if read_stage(run.directory, "quantized"):
        graph, _ = load_network(run.directory / "quantized")
    else:
        whole, variables = load_network(_base(unit, runs) / "quantized")
        losses = bit_sensitivity(whole, variables, sensitivity_batches(run.data), precision=run.settings.precision)
        graph = with_layer_bits(whole, allocate_bits(whole, losses, bytes=cost(whole).size_bytes))
    own = dataclasses.replace(run, graph=graph)
    stages.train(own, unit.config.train)
    prune_in_rounds(unit.config, own)
    stages.finetune(own, finetuning_parts(unit.config)[-1])
    return "finetuned"


KINDS: Mapping[str, Callable[[Unit, Run, Path], str]] = {
    "train": _train,
    "finetune": _finetune,
    "continue": _continue,
    "quantize": _quantize,
    "scratch": _scratch,
    "released": _released,
    "mixed": _mixed,
    "run": _run,
}


def _base(unit: Unit, runs: Path) -> Path:
    assert unit.base is not None, f"{unit.name} needs a base"
    return runs / unit.base.name
