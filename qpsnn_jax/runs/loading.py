"""The data of a run, and test data for a trained network."""

import dataclasses
import math
from pathlib import Path

from qpsnn_jax.data import DataRequest, DataSet, describe, load
from qpsnn_jax.data.settings import DataSettings, request
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.precision import reads_pixels_quantized
from qpsnn_jax.runs.config import Config, build_graph
from qpsnn_jax.runs.directory import read_class_names
from qpsnn_jax.runs.loop import whole_batches
from qpsnn_jax.runtime.processes import fail_together


@fail_together
def load_data(config: Config) -> DataSet:
    """The data set of a config.

    Raises:
        ValueError: the data are missing, or fewer than a batch.
    """
    asked = request(config.data, seed=config.run.seed, timesteps=config.network.timesteps)
    data = for_network(build_graph(config), load(config.data.name, **asked._asdict()))
    for training in (config.train, config.finetune):
        whole_batches(data, training.batch_size)
    return data


def load_test_data(
    graph: Graph,
    config: Config | None,
    *,
    name: str | None = None,
    data_dir: str | None = None,
    test_examples: int | None = None,
) -> DataSet:
    """A test set of the shape that a network takes, with a single training example.

    Args:
        graph: the network; its time steps and input size decide the number of frames and the size of crops.
        config: of the run that the network comes from, if any.
        name, data_dir, test_examples: of the data set, by default as in the run.

    Raises:
        ValueError: the data are missing or unknown.
    """
    own = config.data if config else DataSettings()
    if name is None and config is None:
        raise ValueError("a network that does not belong to a run needs the name of a data set.")
    name, data_dir = name or own.name, data_dir or own.data_dir
    data = load(
        name,
        data_dir=data_dir,
        seed=config.run.seed if config else 0,
        train_examples=1,
        test_examples=own.test_examples if test_examples is None else test_examples,
        timesteps=graph.timesteps,
        size=graph.input.shape[0] if describe(name, DataRequest(data_dir)).resizable else None,
        frame_binning=own.frame_binning,
        grey=name == "folder" and graph.input.shape[2] == 1,
    )
    return for_network(graph, data)


def for_network(graph: Graph, data: DataSet) -> DataSet:
    """A data set whose channels have one std, their root mean square, if a quantized layer reads the image.

    The normalization of a pixel is folded into the weights, and integers cannot have a factor for each input.
    """
    if not reads_pixels_quantized(graph):
        return data
    shared = math.sqrt(sum(std**2 for std in data.std) / len(data.std))
    return dataclasses.replace(data, std=(shared,) * len(data.std))


def check_fits(path: Path, graph: Graph, data: DataSet) -> None:
    """Check that a data set has the shape that the network in ``path`` takes, and its classes in the same order.

    Raises:
        ValueError: it has another shape or number of classes, or both have names of classes, which differ.
    """
    own = graph.input.shape if not graph.input.frames else (graph.timesteps, *graph.input.shape)
    if data.shape != own or data.classes != graph.classes:
        raise ValueError(
            f"{path} takes images of shape {own} in {graph.classes} classes, and {data.name} has "
            f"{data.shape} in {data.classes}; choose another --data."
        )
    if differing := differing_classes(read_class_names(path), data):
        trained, found = differing
        raise ValueError(f"{path} was trained on the classes {trained}; {data.name} has {found}.")


def differing_classes(names: tuple[str, ...], data: DataSet) -> tuple[str, str] | None:
    """The names of the classes of a network and of a data set, as text, where both have names that differ."""
    if not names or not data.class_names or names == data.class_names:
        return None
    return ", ".join(names), ", ".join(data.class_names)
