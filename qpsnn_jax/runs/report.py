"""The report of a run: ``report.json``, ``report.md`` and plots."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.data import DataSet
from qpsnn_jax.model.costs import Cost
from qpsnn_jax.model.nodes import LIF
from qpsnn_jax.runs import plots
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import load_network
from qpsnn_jax.runs.evaluation import ExitEvaluation
from qpsnn_jax.runs.records import Network, StageResult, versions, write_json
from qpsnn_jax.runtime.processes import write_on_process_zero
from qpsnn_jax.runtime.settings import as_dict

_COLUMNS = (
    "accuracy last",
    "best",
    "parameters",
    "size",
    "connections",
    "firing rate",
    "SOPs/step",
    "SOPs",
    "energy",
    "time",
)
_CONTROLS = {
    "baseline": "the paper's baseline: vanilla quantization (γ = 1) and SCA, with the same training and fine-tuning",
    "random": "random channels (and weights) removed from the same quantized network, with the same fine-tuning",
    "random_recalibrated": "random channels (and weights) removed and batch-norm recalibrated, without training",
    "scratch": "the pruned widths (and masks) trained from scratch, as long as training and fine-tuning together",
}


def write_report(
    config: Config, directory: Path, data: DataSet, stages: list[StageResult], controls: list[StageResult]
) -> None:
    """Write the report of a finished run into its directory: JSON, Markdown, and PNG plots under ``plots``.

    Args:
        config: of the run.
        directory: of the run.
        data: its data set.
        stages: results of its stages.
        controls: results of the controls; empty if there are none.
    """
    document = {
        "config": as_dict(config),
        "versions": versions(),
        "stages": [dataclasses.asdict(stage) for stage in stages],
    }
    if controls:
        document["controls"] = [dataclasses.asdict(stage) for stage in controls]
    networks = {name: load_network(directory / name) for name in ("quantized", "finetuned")}
    pictures = plots.draw_all(directory, networks, data, [*stages, *controls], config.run.precision)
    text = _markdown(document, stages, controls, pictures, learned_table(networks))
    write_on_process_zero(directory / "report.md", text.encode())
    write_json(directory / "report.json", document)


def table(stages: list[StageResult]) -> str:
    """Results as a Markdown table, one row each."""
    return aligned([("", *_COLUMNS), *((stage.name, *_cells(stage)) for stage in stages)])


def exit_table(results: Mapping[float | None, ExitEvaluation]) -> str:
    """Results with early exit by margin (None: all steps) as a Markdown table, one row each."""
    steps = range(1, 1 + max(len(result.shares) for result in results.values()))
    head = ("margin", "accuracy", "mean steps", *(f"leave at step {step}" for step in steps))
    rows = (
        (
            "none" if margin is None else f"{margin:g}",
            f"{100 * result.accuracy:.2f} %",
            f"{result.mean_steps:.2f}",
            *(f"{100 * share:.1f} %" for share in result.shares),
        )
        for margin, result in results.items()
    )
    return aligned([head, *rows])


def bits_table(losses: Mapping[str, Mapping[int, float]], chosen: Mapping[str, int]) -> str:
    """The loss by layer and bits as a Markdown table, with the bits that were chosen."""
    options = sorted({number for own in losses.values() for number in own})
    head = ("layer", *(f"{number} bits" for number in options), "chosen")
    rows = ((name, *(f"{own[number]:.4f}" for number in options), str(chosen[name])) for name, own in losses.items())
    return aligned([head, *rows])


def learned_table(networks: Mapping[str, Network]) -> str:
    """The learned τ and θ of neurons by layer and network as a Markdown table; empty if none is learned.

    They are those that a network computes with, rounded where it rounds them. Where every channel has its own, the
    smallest and the largest are shown.
    """
    columns = [_learned(network) for network in networks.values()]
    rows = [(*key, *(column[key] for column in columns)) for key in columns[0]]
    return aligned([("layer", "", *networks), *rows]) if rows else ""


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text, the first of which is the head, as a Markdown table of equally wide columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def cost_table(costs: Cost) -> str:
    """The cost of each node that has any, and the totals, as lines of text. Operations are per image."""
    lines = [f"{'':22} {'':13} {'parameters':>12} {'kB':>12} {'dense':>15} {'MACs':>15} {'ACs':>15}"]
    for node in costs.nodes:
        if node.params or node.dense:
            size = f"{node.params:>12,} {node.size_bits / 8000:>12,.3f}"
            lines.append(
                f"{node.name:22} {node.kind:13} {size} {node.dense:>15,} {_number(node.macs)} {_number(node.acs)}"
            )
    dense = sum(node.dense for node in costs.nodes)
    size = f"{costs.params:>12,} {costs.size_bytes / 1000:>12,.3f}"
    lines.append(f"{'total':36} {size} {dense:>15,} {_number(costs.macs_total)} {_number(costs.sops_total)}")
    lines.append(f"\n{costs.neuron_updates:,} neuron updates")
    lines.append(f"{costs.traffic_bytes / 1e6:,.3f} MB of weights and membranes moved")
    lines.append(f"{costs.footprint_bytes / 1000:,.3f} kB with running statistics and scales")
    if costs.energy_mj is not None and costs.activation_sparsity is not None:
        lines.append(f"{1000 * costs.energy_mj:,.3f} µJ; activation sparsity {costs.activation_sparsity:.4f}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'–' if value is None else f'{value:,.0f}':>15}"


def _learned(network: Network) -> dict[tuple[str, str], str]:
    graph, variables = network
    nodes = [node for node in graph.nodes if isinstance(node, LIF) and node.learned]
    constants = {node.name: node.constants(variables["params"][node.name]) for node in nodes}
    symbols = {"tau": "τ", "threshold": "θ"}
    return {(node.name, symbols[key]): _range(constants[node.name][key]) for node in nodes for key in node.learned}


def _range(values: Any) -> str:
    least, most = np.min(values), np.max(values)
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _cells(stage: StageResult) -> tuple[str, ...]:
    rates = stage.firing_rates.values()
    return (
        f"{100 * stage.accuracy_last:.2f} %",
        "–" if stage.accuracy_best is None else f"{100 * stage.accuracy_best:.2f} %",
        f"{stage.params:,}",
        f"{stage.size_bytes / 1000:,.1f} kB",
        f"{100 * stage.connection_ratio:.1f} %",
        f"{sum(rates) / max(1, len(rates)):.3f}",
        f"{stage.sops_per_step / 1e6:.3f} M",
        f"{stage.sops_total / 1e6:.3f} M",
        f"{stage.energy_mj * 1000:.3f} µJ",
        f"{stage.seconds:.0f} s",
    )


def _markdown(
    document: dict[str, Any],
    stages: list[StageResult],
    controls: list[StageResult],
    pictures: list[Path],
    learned: str,
) -> str:
    config = document["config"]
    parts = [
        f"# {config['network']['name']} on {config['data']['name']}: what was gained and what was lost",
        _summary(stages),
        table([*stages, *controls]),
        "Accuracy is measured on the test set: at the last epoch, which is the result, and at the best epoch, which is "
        "shown for comparison with papers that report it; no choice uses it. Size is Eq. 16 (1 kB = 1000 bytes). "
        "Connections are the quantized weights left. The firing rate is the mean over layers of spikes per neuron and "
        "step. SOPs and energy (45 nm: 4.6 pJ per MAC, 0.9 pJ per AC) are per image. Time is that of the "
        "stage, compilation included.",
        *(f"- `{stage.name}`: {_CONTROLS[stage.name]}." for stage in controls),
        *(f"![{picture.stem}]({picture.parent.name}/{picture.name})" for picture in pictures),
        "## Firing rates",
        _rates(stages),
        *(("## Learned decay factors τ and thresholds θ", learned) if learned else ()),
        "## Settings",
        "```json\n" + json.dumps({"config": config, "versions": document["versions"]}, indent=2) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(stages: list[StageResult]) -> str:
    first, last = stages[0], stages[-1]
    points = 100 * (last.accuracy_last - first.accuracy_last)
    return (
        f"Pruning removed {100 * (1 - last.connection_ratio):.1f} % of the quantized weights. The network shrank from "
        f"{first.size_bytes / 1000:,.1f} to {last.size_bytes / 1000:,.1f} kB and from {first.sops_total / 1e6:.3f} to "
        f"{last.sops_total / 1e6:.3f} million synaptic operations per image; test accuracy went from "
        f"{100 * first.accuracy_last:.2f} % to {100 * last.accuracy_last:.2f} % ({points:+.2f} points)."
    )


def _rates(stages: list[StageResult]) -> str:
    names = list(stages[0].firing_rates)
    head = ["| layer | " + " | ".join(stage.name for stage in stages) + " |", "|---" * (len(stages) + 1) + "|"]
    rows = (f"| {n} | " + " | ".join(f"{stage.firing_rates.get(n, 0):.4f}" for stage in stages) + " |" for n in names)
    return "\n".join([*head, *rows])
