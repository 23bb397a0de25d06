"""The result of a finished unit: one small JSON file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.claims.units import Unit, plain, settings_of
from experiments.integers import classified_right
from experiments.processor import processor
from qpsnn_jax import load_network
from qpsnn_jax.data import Arrays, load
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.packed.file import write_packed
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import STAGES, read_stage
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runs.records import measure, versions
from qpsnn_jax.runs.stages import Run
from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.runtime.settings import as_dict, from_dict
from qpsnn_jax.training.state import Variables


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
    if plain(from_dict(Config, parts), stored.get("kind"), stored.get("base"), stored.get("test")) != settings_of(unit):
        raise ValueError(f"{path} is the result of other settings than the plan's; give the recipe another name.")
    return True


def write_result(document: dict[str, Any], results: Path) -> None:
    """Write a result to the file of its name."""
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / f"{document['name']}.json", (json.dumps(document, indent=1) + "\n").encode())


def take_result(unit: Unit, runs: Path, results: Path) -> bool:
    """Take the result of a finished unit that is the same training, such as the same arm of another question.

    Its run must be in ``runs``, so that it was trained here: roundings on another machine would not be paired with
    those of the arms beside it. The result says so in ``trained_as``.

    Returns:
        Whether there is such a unit.
    """
    for path in sorted(results.glob(f"*.s{unit.seed}.{unit.recipe}.json")):
        found = json.loads(path.read_bytes())
        done = (runs / found["name"] / "done").exists()
        if done and found["config"] == settings_of(unit) and (found["integer_accuracy"] is not None) >= unit.integer:
            own = {"name": unit.name, "question": unit.question, "arm": unit.arm, "trained_as": found["name"]}
            write_result(found | own, results)
            return True
    return False


def result_of(unit: Unit, run: Run, final: str, data_dir: str | None) -> dict[str, Any]:
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
        "config": settings_of(unit),
        "versions": versions(),
        "processor": processor(),
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
