"""A unit of work: one training, resumable itself, with one small JSON file as its result."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.integers import classified_right
from qpsnn_jax import allocate_bits, bit_sensitivity, cost, load_network, prune, with_layer_bits
from qpsnn_jax.data import Arrays, load
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs import stages
from qpsnn_jax.runs.config import Config, build_graph, finetuning_parts
from qpsnn_jax.runs.directory import STAGES, open_run, read_stage
from qpsnn_jax.runs.evaluation import evaluate, sensitivity_batches
from qpsnn_jax.runs.hooks import Hooks
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.records import measure, read_notes, versions
from qpsnn_jax.runs.rounds import prune_in_rounds, run_stages
from qpsnn_jax.runs.stages import Run
from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.runtime.settings import as_dict, from_dict
from qpsnn_jax.training.state import Variables, init_variables
from qpsnn_jax.training.timesteps import at_timesteps


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        question: of ``experiments/claims.md``.
        arm: what is done differently, within the question.
        recipe: names the numbers of images and epochs.
        config: all settings; its data are those of :func:`experiments.claims.data.held_out`.
        kind: of :data:`KINDS`.
        base: the unit whose trained network this one starts from; for ``scratch``, whose pruned widths it has.
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


def is_done(unit: Unit, results: Path) -> bool:
    """Whether a unit has a result. Settings that are newer than it have their defaults there.

    Raises:
        ValueError: the result is of other settings than the plan's.
    """
    path = results / f"{unit.name}.json"
    if not path.exists():
        return False
    stored = json.loads(path.read_bytes())["config"]
    parts = {name: stored[name] for name in as_dict(unit.config) if name in stored}
    if _plain(from_dict(Config, parts), stored.get("kind"), stored.get("base"), stored.get("test")) != _settings(unit):
        raise ValueError(f"{path} is the result of other settings than the plan's; give the recipe another name.")
    return True


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
            document = _result(unit, run, final, data_dir)
            results.mkdir(parents=True, exist_ok=True)
            write_atomically(results / f"{unit.name}.json", (json.dumps(document, indent=1) + "\n").encode())
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
    if not read_stage(run.directory, "quantized"):
        pruned, _ = load_network(_base(unit, runs) / "pruned")
        graph = at_timesteps(pruned, run.graph.timesteps)
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
    "mixed": _mixed,
    "run": _run,
}


def _base(unit: Unit, runs: Path) -> Path:
    assert unit.base is not None, f"{unit.name} needs a base"
    return runs / unit.base.name


def _settings(unit: Unit) -> dict[str, Any]:
    """All that a unit is, as plain values; where its data lie and what has no effect are left out."""
    return _plain(unit.config, unit.kind, unit.base and unit.base.name, unit.test)


def _plain(config: Config, kind: str, base: str | None, test: str | None) -> dict[str, Any]:
    settings = as_dict(config)
    settings["data"].pop("data_dir")
    for training in (settings["train"], settings["finetune"]):
        if training["sops_target"] is None:
            training.pop("sops_rate")  # of no effect then, so that its default may change
    return json.loads(json.dumps(settings | {"kind": kind, "base": base, "test": test}))


def _result(unit: Unit, run: Run, final: str, data_dir: str | None) -> dict[str, Any]:
    """What a finished unit gave; the only place where test images are read, except in a run of a preset as it is."""
    graph, variables = load_network(run.directory / final)
    data = run.data
    own = unit.test == unit.config.data.name  # whose split may depend on the seed
    if unit.test is not None and not own:
        other = load(unit.test, data_dir=data_dir, train_examples=1, seed=unit.config.run.seed)
        data = dataclasses.replace(data, test=other.test)
    assert isinstance(data.test, Arrays)
    found = evaluate(graph, variables, data.test, data, precision=run.settings.precision)
    measured = measure(final, (graph, variables), run.graph, found, None, 0.0)
    rates = measured.firing_rates.values()
    named = {name: stage for name in STAGES if (stage := read_stage(run.directory, name))}
    held_out = {} if own else {name: stage.accuracy_last for name, stage in named.items()}
    return {
        "name": unit.name,
        "question": unit.question,
        "arm": unit.arm,
        "seed": unit.seed,
        "recipe": unit.recipe,
        "test_accuracy": None if unit.test is None else found.accuracy,
        "test_images": 0 if unit.test is None else len(data.test.labels),
        "held_out_accuracy": held_out,
        "params": measured.params,
        "weight_bytes": measured.size_bytes,
        "sops": measured.sops_total,
        "energy_mj": measured.energy_mj,
        "firing_rate": sum(rates) / max(1, len(rates)),
        "weights_left": measured.connection_ratio,
        **_packed(unit, run, graph, variables, data.test),
        "seconds": seconds_of(run.directory),
        "config": _settings(unit),
        "versions": versions(),
    }


def seconds_of(directory: Path) -> float:
    """Of all stages of a run, those of its earlier rounds of pruning included."""
    places = (directory, *sorted(directory.glob("rounds/*")))
    stages = (read_stage(place, name) for place in places for name in STAGES)
    return sum(stage.seconds for stage in stages if stage)


def _packed(unit: Unit, run: Run, graph: Graph, variables: Variables, test: Arrays) -> dict[str, Any]:
    """Bytes of the whole packed file, which stays in the run's directory, and the accuracy of the integer network."""
    try:
        folded = fold(graph, variables, run.data.mean, run.data.std)
    except ValueError:  # in full precision there is no integer form
        return {"file_bytes": None, "integer_accuracy": None}
    path = run.directory / "network.qpsnn"
    write_packed(path, folded, {"class_names": list(run.data.class_names), "unit": unit.name})
    found = {"file_bytes": path.stat().st_size, "integer_accuracy": None}
    if unit.integer:
        found["integer_accuracy"] = float(classified_right(folded, test).mean())
    return found


def steps_of(unit: Unit) -> dict[int, int]:
    """Training steps of a unit by their number of time steps T, from its config alone."""
    examples, own = unit.config.data.train_examples, unit.config.network.timesteps
    assert examples is not None, f"{unit.name} must say how many images it trains on"
    train, finetune = unit.config.train, unit.config.finetune
    whole = dataclasses.replace(train, epochs=train.epochs + finetune.epochs)
    training = {"train": train, "scratch": whole, "mixed": whole, "run": whole}.get(unit.kind, finetune)
    epochs = Counter(training.schedule or (own,) * training.epochs)
    return {timesteps: number * (examples // training.batch_size) for timesteps, number in epochs.items()}
