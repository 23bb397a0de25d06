"""PNG plots of a finished run."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.data import DataSet
from qpsnn_jax.data.feed import first
from qpsnn_jax.kernels.dispatch import Precision
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import Conv
from qpsnn_jax.runs.directory import STAGES
from qpsnn_jax.runs.evaluation import normalizer
from qpsnn_jax.runs.records import Network, StageResult, read_arrays, read_notes
from qpsnn_jax.runtime.compiling import fast_compile_jit
from qpsnn_jax.runtime.files import write_atomically
from qpsnn_jax.runtime.processes import on_process_zero

_RASTER_NEURONS = 64


def draw_all(
    directory: Path,
    networks: Mapping[str, Network],
    data: DataSet,
    records: list[StageResult],
    precision: Precision,
) -> list[Path]:
    """Draw every plot of a run into ``plots`` below its directory.

    Args:
        directory: of a run; its stages must be complete.
        networks: those of the stages ``quantized`` and ``finetuned``.
        data: its data set; the raster shows the first test image.
        records: results of the stages and controls, for the summary.
        precision: of the run.

    Returns:
        Paths of the PNG files.
    """
    whole, final = networks["quantized"], networks["finetuned"]
    stored = directory / "pruned" / "scores.npz"
    figures = {"summary": partial(_summary, records), "training": partial(_training, directory)}
    if stored.exists():  # there are none in a run that starts from a pretrained network
        keep, scores = read_notes(stored.with_name("stage.json"), "keep"), read_arrays(stored, "score again")
        figures |= {"scores": partial(_scores, scores, keep), "channels": partial(_channels, scores, keep)}
    figures |= {"weights": partial(_weights, whole, final), "raster": partial(_raster, final, data, precision)}
    paths = {name: directory / "plots" / f"{name}.png" for name in figures}
    on_process_zero(lambda: [_write(figure(), paths[name]) for name, figure in figures.items()])
    return list(paths.values())


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def _write(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, drawn.getvalue())


def _summary(records: list[StageResult]) -> Any:
    panels = {
        "test accuracy, last epoch (%)": [100 * record.accuracy_last for record in records],
        "size (kB)": [record.size_bytes / 1000 for record in records],
        "SOPs per image (million)": [record.sops_total / 1e6 for record in records],
    }
    figure, axes = _figure(1, len(panels), 10, 0.35 * len(records) + 1.1)
    names = [record.name for record in records]
    colors = ["tab:blue" if name.rpartition("/")[2] in STAGES else "tab:gray" for name in names]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.barh(names, values, color=colors)
        axis.bar_label(bars, fmt="%.4g", padding=2, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.22)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8, labelleft=axis is axes[0])
    return figure


def _training(directory: Path) -> Any:
    figure, (loss, accuracy) = _figure(1, 2, 9, 3.2)
    done = 0
    rounds = sorted((directory / "rounds").glob("*"), key=lambda place: int(place.name))
    for name in ("quantized", *(f"rounds/{place.name}/finetuned" for place in rounds), "finetuned"):
        epochs = read_notes(directory / name / "stage.json", "epochs")
        x = [done + epoch["epoch"] for epoch in epochs]
        loss.plot(x, [epoch["train_loss"] for epoch in epochs], label=name)
        accuracy.plot(x, [100 * epoch["test_accuracy"] for epoch in epochs], label=name)
        done += len(epochs)
    loss.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    accuracy.legend()
    return figure


def _scores(scores: dict[str, np.ndarray], keep: dict[str, list[int]]) -> Any:
    columns = min(5, len(scores))
    rows = -(-len(scores) // columns)
    figure, axes = _figure(rows, columns, 2.4 * columns, 1.7 * rows)
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        order = np.argsort(-values, kind="stable")
        kept = np.isin(order, keep.get(name, order))
        for shown, color in ((kept, "tab:blue"), (~kept, "tab:red")):
            axis.stairs(np.where(shown, values[order], 0), fill=True, color=color)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(scores) :]:
        axis.axis("off")
    figure.suptitle("channel scores, sorted (blue: kept, red: removed)", fontsize=9)
    return figure


def _channels(scores: dict[str, np.ndarray], keep: dict[str, list[int]]) -> Any:
    figure, (axis,) = _figure(1, 1, 8, 0.25 * len(scores) + 1)
    names = list(scores)
    axis.barh(names, [len(scores[n]) for n in names], color="tab:red", label="removed")
    axis.barh(names, [len(keep.get(n, scores[n])) for n in names], color="tab:blue", label="kept")
    axis.invert_yaxis()
    axis.set(xlabel="channels")
    axis.tick_params(labelsize=7)
    axis.legend()
    return figure


def _weights(whole: Network, final: Network) -> Any:
    names = [node.name for node in whole[0].nodes if isinstance(node, Conv) and node.input != whole[0].input.name]
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, 6).astype(int))]
    figure, axes = _figure(2, 3, 9, 4.4)
    for axis, name in zip(axes, shown, strict=False):
        for label, (_, variables) in (("before pruning", whole), ("fine-tuned", final)):
            kernel = np.asarray(variables["params"][name]["kernel"])
            if name in variables.get("masks", {}):
                kernel = kernel[np.asarray(variables["masks"][name]["mask"]) != 0]
            normed = kernel.ravel() / max(np.abs(kernel).mean(), 1e-12)
            density, edges = np.histogram(normed, bins=80, range=(-4, 4), density=True)
            axis.stairs(density, edges, fill=True, alpha=0.5, label=label)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(shown) :]:
        axis.axis("off")
    axes[0].legend(fontsize=7)
    figure.suptitle("weights over their mean magnitude", fontsize=9)
    return figure


def _raster(network: Network, data: DataSet, precision: Precision) -> Any:
    graph, variables = network
    layers = graph.neurons
    image, labels = first(data.test)
    spiking = SpikingNetwork(graph, precision)
    apply = fast_compile_jit(lambda tree, x: spiking.apply(tree, normalizer(data)(x), capture=layers))
    traces = apply(variables, image).captured
    figure, (picture, axis) = _figure(1, 2, 10, 0.28 * len(layers) + 1.6)
    frame = image[0] if image.ndim == 4 else image[0].max(0)
    picture.imshow(frame[..., 0] if frame.shape[-1] != 3 else frame, cmap="gray")
    picture.set_title(f"test image, class {int(labels[0])}", fontsize=9)
    picture.axis("off")
    for row, layer in enumerate(layers):
        spikes = np.asarray(traces[layer].spikes)[0].reshape(graph.timesteps, -1)
        some = spikes[:, np.linspace(0, spikes.shape[1] - 1, _RASTER_NEURONS).astype(int)]
        step, neuron = np.nonzero(some)
        axis.plot(step + (neuron + 0.5) / _RASTER_NEURONS, np.full(len(step), row), "|", color="black", markersize=6)
    axis.set_yticks(range(len(layers)), layers, fontsize=7)
    axis.set_xticks(range(graph.timesteps + 1))
    axis.grid(axis="x", linewidth=0.8)
    axis.set(xlim=(0, graph.timesteps), xlabel=f"time step (within it, {_RASTER_NEURONS} neurons side by side)")
    axis.invert_yaxis()
    axis.set_title("spikes", fontsize=9)
    return figure
