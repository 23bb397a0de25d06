"""The report of a finished run."""

import importlib.metadata

import jax
import matplotlib.image
import numpy as np
import pytest

from qpsnn_jax import Graph, init_variables, save_network
from qpsnn_jax.model.nodes import LIF, Dense, Flatten, Input
from qpsnn_jax.runs import plots
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.config import Config, load_config
from qpsnn_jax.runs.directory import STAGES
from qpsnn_jax.runs.records import StageResult, write_checked
from qpsnn_jax.runs.report import learned_table, table
from qpsnn_jax.runtime.settings import from_dict

DONE = tuple(name for name in STAGES if name != "masked")  # without a sparsity
FIELDS = {
    "name": str,
    "accuracy_last": float,
    "accuracy_best": float,
    "params": int,
    "size_bytes": int,
    "connection_ratio": float,
    "firing_rates": dict,
    "sops_per_step": float,
    "sops_total": float,
    "energy_mj": float,
    "seconds": float,
}


def test_report_json_has_the_promised_keys(small_report, small_config):
    assert set(small_report) == {"config", "versions", "stages"}
    assert [stage["name"] for stage in small_report["stages"]] == list(DONE)
    for stage in small_report["stages"]:
        assert {name: type(value) for name, value in stage.items()} == FIELDS
        assert set(stage["firing_rates"]) == {"lif1", "lif2", "lif3"}
        assert all(0 <= rate <= 1 for rate in stage["firing_rates"].values())
    assert from_dict(Config, small_report["config"]) == load_config(small_config)
    assert small_report["versions"]["jax"] == importlib.metadata.version("jax")


def test_report_md_holds_the_table_the_plots_and_the_settings(small_run, small_report):
    text = (small_run / "report.md").read_text()
    for stage in small_report["stages"]:
        assert f"| {stage['name']}" in text
        assert f"{100 * stage['accuracy_last']:.2f} %" in text
        assert f"{stage['params']:,}" in text
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert {"plots/training.png", "plots/scores.png", "plots/channels.png", "plots/weights.png"} <= set(pictures)
    assert "plots/raster.png" in pictures
    assert all((small_run / picture).is_file() for picture in pictures)
    removed = 100 * (1 - small_report["stages"][-1]["connection_ratio"])
    assert f"Pruning removed {removed:.1f} % of the quantized weights" in text
    assert '"learning_rate": 0.02' in text


@pytest.mark.parametrize("name", ["summary", "training", "scores", "channels", "weights", "raster"])
def test_plots_are_pictures(small_run, name):
    path = small_run / "plots" / f"{name}.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert len(np.unique(pixels)) > 10


def test_nothing_temporary_is_left(small_run):
    assert not [path for path in small_run.rglob("*") if ".tmp" in path.name]
    assert {path.name for path in small_run.iterdir()} == {
        ".lock",
        "config.json",
        "data.json",
        *DONE,
        "plots",
        "report.json",
        "report.md",
    }


def test_the_table_shows_the_units_it_names():
    stage = StageResult("pruned", 0.9876, 0.99, 12345, 6789, 0.4321, {"a": 0.1, "b": 0.3}, 1.5e6, 3e6, 0.00271, 12.4)
    head, line, row = table([stage]).splitlines()
    cells = [[cell.strip() for cell in text.strip("|").split("|")] for text in (head, row)]
    assert len(head) == len(line) == len(row)
    assert dict(zip(*cells, strict=True)) == {
        "": "pruned",
        "accuracy last": "98.76 %",
        "best": "99.00 %",
        "parameters": "12,345",
        "size": "6.8 kB",
        "connections": "43.2 %",
        "firing rate": "0.200",
        "SOPs/step": "1.500 M",
        "SOPs": "3.000 M",
        "energy": "2.710 µJ",
        "time": "12 s",
    }


def test_training_curves_of_a_run_without_epochs(tmp_path):
    for name in DONE:
        (tmp_path / name).mkdir()
        write_checked(tmp_path / name / "stage.json", {"epochs": []})
    plots._write(plots._training(tmp_path), tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 0


def test_learned_decay_factors_and_thresholds_are_shown(small_run, tmp_path, capsys):
    nodes = (
        Input("image", (8, 8, 1)),
        Flatten("flat", "image"),
        LIF("fixed", "flat"),
        Dense("fc1", "fixed", 2),
        LIF("leak", "fc1", tau="learned", round_tau=True),
        Dense("fc2", "leak", 10),
        LIF("both", "fc2", tau="learned", threshold="learned", granularity="channel"),
    )
    graph = Graph(nodes, timesteps=2)
    first, last = (init_variables(graph, jax.random.key(0)) for _ in range(2))
    last["params"]["leak"]["tau_logit"] = np.asarray([1.0], np.float32)  # sigmoid: 0.731, nearest to 3/4
    last["params"]["both"]["log_threshold"] = np.linspace(0, np.log(3), 10, dtype=np.float32)
    networks = {"quantized": (graph, first), "finetuned": (graph, last)}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in learned_table(networks).splitlines()]
    assert [cells[0], *cells[2:]] == [
        ["layer", "", "quantized", "finetuned"],
        ["leak", "τ", "0.5", "0.75"],
        ["both", "τ", "0.5", "0.5"],
        ["both", "θ", "1", "1 to 3"],
    ]
    save_network(tmp_path / "network", graph, last)
    assert main(["evaluate", str(tmp_path / "network"), "--data", "digits", "--test-examples", "5"]) == 0
    assert learned_table({"network": (graph, last)}) in capsys.readouterr().out
    assert learned_table({"network": (Graph(nodes[:4], timesteps=2), first)}) == ""
    assert "Learned" not in (small_run / "report.md").read_text()
