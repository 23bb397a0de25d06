"""The experiments: every config builds, trains a step and prunes; the paper's tables come out."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from small_networks import images_of, random_variables

from experiments import levels, table1_sizes, table6_energy
from qpsnn_jax import (
    Criterion,
    allocate,
    channel_groups,
    fold,
    init_state,
    load_network,
    make_train_step,
    prune,
    quantize,
    score,
    select,
    write_packed,
)
from qpsnn_jax.model.costs import cost
from qpsnn_jax.pruning.settings import parse_budget
from qpsnn_jax.runs.config import build_graph, load_config
from qpsnn_jax.runs.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "experiments" / "configs").glob("*.py") if path.name != "setups.py")


def test_every_row_of_table_1_has_a_config():
    configs = [config for config in map(load_config, CONFIGS) if config.prune.budget is None]
    sizes = sorted(f"{cost(build_graph(c, ratios=c.prune.ratios)).size_bytes}" for c in configs)
    rows = [row.build(bits=8 if row.network == "sew_resnet18" else 2, ratios=row.ratios) for row in table1_sizes.ROWS]
    assert sizes == sorted(f"{cost(graph).size_bytes}" for graph in rows)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_names_its_command_and_its_result(path):
    text = path.read_text()
    assert f"qpsnn run experiments/configs/{path.name}" in text
    assert "Ours" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_at_its_ratios(path):
    config = load_config(path)
    ratios = config.prune.ratios
    groups, smaller = (channel_groups(build_graph(config, ratios=r)) for r in (None, ratios))
    assert {name: group.size for name, group in smaller.items()} == {
        name: int(group.size * (1 - ratios.get(group.label or "", 0.0))) for name, group in groups.items()
    }


# One config for each network and data set: the others differ in their ratios.
ALL = {path.stem: load_config(path) for path in CONFIGS} | {name: preset.config for name, preset in PRESETS.items()}
DISTINCT = {(c.network.name, c.data.name, c.network.timesteps): (name, c) for name, c in ALL.items()}.values()


# The first of each network is also compiled: another data set changes only its input and its classes.
COMPILED = {config.network.name: name for name, config in reversed(DISTINCT)}.values()


@pytest.mark.parametrize("name", [name for name, _ in DISTINCT])
def test_config_trains_and_prunes_at_reduced_width(name):
    config = ALL[name]
    full = build_graph(config)
    width = 1 / 8 if config.network.name == "vggsnn" else 1 / 16
    network = dataclasses.replace(config.network, width=width, timesteps=1)
    graph = build_graph(dataclasses.replace(config, network=network))
    variables, images = random_variables(graph), images_of(graph, batch=1)
    tx = optax.sgd(0.01)
    step = make_train_step(graph, tx)
    arguments = init_state(variables, tx, jax.random.key(0)), images, np.zeros(1, np.int32)
    if name in COMPILED:
        state, metrics = jax.jit(step)(*arguments)
        assert np.isfinite(metrics["loss"])
        rate = Criterion(lambda trace: trace.spikes.mean(1), lambda maps: maps.mean((0, 1, 2)))
        scores = score(graph, state.variables, [images], rate)
        variables = jax.device_get(state.variables)
    else:
        jax.eval_shape(step, *arguments)
        scores = {group: np.arange(each.size) for group, each in channel_groups(graph).items()}
    smaller, _ = prune(graph, variables, select(graph, scores, config.prune.ratios))
    for name, group in channel_groups(graph).items():
        ratio = config.prune.ratios.get(group.label or "", 0.0)
        assert channel_groups(smaller)[name].size == int(group.size * (1 - ratio))
    assert [node.name for node in full.nodes] == [node.name for node in smaller.nodes]


def test_the_budget_of_bytes_is_that_of_the_packed_file(tmp_path):
    config = load_config(ROOT / "experiments" / "configs" / "cifar10_98kb.py")
    graph = build_graph(config)
    scores = {name: np.ones(group.size) for name, group in channel_groups(graph).items()}
    budget = parse_budget(config.prune.budget)
    smaller, _ = prune(graph, {}, allocate(graph, scores, **budget, floor=config.prune.floor))
    path = tmp_path / "network.qpsnn"
    write_packed(path, fold(smaller, random_variables(smaller), [0.5] * 3, [0.25] * 3), {})
    assert 0.98 * 98_496 < path.stat().st_size <= 98_496


def test_table_1_agrees_to_the_printed_digit():
    assert table1_sizes.mismatches() == []
    assert sum(row.checked for row in table1_sizes.ROWS) * 3 == 39


def test_table_1_fails_when_a_size_is_wrong(monkeypatch):
    wrong = dataclasses.replace(table1_sizes.ROWS[0], ratios={"stem": 0.2})
    monkeypatch.setattr(table1_sizes, "ROWS", (wrong, *table1_sizes.ROWS[1:]))
    assert len(table1_sizes.mismatches()) == 3


@pytest.mark.parametrize("row", table6_energy.ROWS, ids=lambda row: row.name)
def test_table_6_agrees(row):
    assert abs(table6_energy.deviation(row)) <= 0.005
    if row.name != "vgg16, cifar10, whole":
        assert f"{table6_energy.energy_mj(row):.3f}" == f"{row.published_mj:.3f}"


def test_tables_print(monkeypatch, capsys):
    for name, module in {"table1_sizes": table1_sizes, "table6_energy": table6_energy}.items():
        monkeypatch.setattr(sys, "argv", [name])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(module.__file__, run_name="__main__")
        assert capsys.readouterr().out.count("vgg16") == {"table1_sizes": 6, "table6_energy": 2}[name]
        monkeypatch.setattr(sys, "argv", [name, "--foo"])
        with pytest.raises(SystemExit, match="2"):
            module.main()


def test_levels_in_use_are_measured_by_layer_and_kept(small_run, tmp_path):
    found = CliRunner().invoke(levels.main, [str(small_run), "--out", str(tmp_path / "levels")])
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "levels" / f"{small_run.name}.json").read_text())
    graph, variables = load_network(small_run / "quantized")
    quantized = [node for node in graph.nodes if getattr(node, "quantizer", None)]
    assert list(document["layers"]) == [node.name for node in quantized]
    node: Any = quantized[0]
    kernel, gain = variables["params"][node.name]["kernel"], variables["scales"][node.name]["gain"]
    options = {"gain": gain.reshape(1, 1, 1, -1), "granularity": node.quantizer.granularity}
    weights = quantize(kernel, node.quantizer.bits, **options)
    ratio = jnp.sum(kernel**2) / jnp.sum((kernel - weights) ** 2)
    assert document["layers"][node.name]["snr"] == pytest.approx(10 * np.log10(ratio), rel=1e-4)
    shares = [100 * np.mean([layer["utilization"] for layer in document["layers"].values()])]
    assert f"{shares[0]:.1f} %" in found.output


def test_levels_of_what_is_no_run_are_an_error(tmp_path):
    wrong = CliRunner().invoke(levels.main, [str(tmp_path)])
    assert wrong.exit_code == 2
    assert "is not the directory of a run" in wrong.output
