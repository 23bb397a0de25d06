"""Event data sets from the folders in which they are distributed: N-MNIST and CIFAR10-DVS.

The examples are frames, uint8 of shape ``n t h w 2``: the exact counts of :mod:`qpsnn_jax.data.sources.frames`, except
that a cell with more than 255 events in one step (a flickering pixel, at the usual numbers of steps) is 255. With
mean 0 and standard deviation 1/255, :func:`qpsnn_jax.numerics.normalization.normalize` returns the counts. Only the
requested recordings are read.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np

from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.dataset import Arrays, DataSet, balanced_order, example_count, subset
from qpsnn_jax.data.sources.events import Events, read_aedat, read_atis
from qpsnn_jax.data.sources.frames import frames_by_count, frames_by_time
from qpsnn_jax.runtime.checks import integer

_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NMNIST_SOURCE = "unpack N-MNIST from https://www.garrickorchard.com/datasets/n-mnist"
_CIFAR10_DVS_SOURCE = "unpack CIFAR10-DVS from https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"


def nmnist(request: DataRequest) -> DataSet:
    """Read N-MNIST: 60,000 + 10,000 recordings of 34×34 pixels and about 300 ms, ten digits.

    Args:
        request: its folder holds ``Train/<digit>/*.bin`` and ``Test/<digit>/*.bin``; a size of 34, the default, keeps
            the sensor's pixels.

    Returns:
        Frames uint8 ``n t h w 2``, the last axis OFF, ON; mean 0 and std 1/255, so that normalized frames are counts.

    Raises:
        ValueError: a folder that does not exist or lacks a class, a damaged recording, or a number out of range.

    References:
        Orchard, Jayawant, Cohen and Thakor, Converting Static Image Datasets to Spiking Neuromorphic Datasets Using
        Saccades, Frontiers in Neuroscience 9:437, 2015.
    """
    make = _maker(request, 34)
    root = _root(request.data_dir, _NMNIST_SOURCE)
    train, test = (_find(root / part, _DIGITS, ".bin", _NMNIST_SOURCE) for part in ("Train", "Test"))
    chosen = subset(train[1], request.seed, "train_examples", request.train_examples)
    tested = subset(test[1], request.seed, "test_examples", request.test_examples)
    return _data_set("nmnist", _read(*train, chosen, read_atis, make), _read(*test, tested, read_atis, make))


def cifar10_dvs(request: DataRequest) -> DataSet:
    """Read CIFAR10-DVS: 10,000 recordings of 128×128 pixels and about 1.3 s, ten classes, split 9:1 by seed.

    The data set has no split of its own. A tenth of each class, to within two recordings, is the test set.

    Args:
        request: its folder holds ``<class>/*.aedat`` for the ten classes of CIFAR-10; its seed chooses the split too;
            10 frames of 48×48 (the default size) are customary.

    Returns:
        Frames uint8 ``n t h w 2``, the last axis OFF, ON; mean 0 and std 1/255, so that normalized frames are counts.

    Raises:
        ValueError: a folder that does not exist or lacks a class, a damaged recording, or a number out of range.

    References:
        Li, Liu, Ji, Li and Shi, CIFAR10-DVS: An Event-Stream Dataset for Object Classification, Frontiers in
        Neuroscience 11:309, 2017.
    """
    make = _maker(request, 48)
    paths, labels = _find(_root(request.data_dir, _CIFAR10_DVS_SOURCE), _CIFAR10, ".aedat", _CIFAR10_DVS_SOURCE)
    order = balanced_order(labels, request.seed)
    train, test = np.split(order, [len(order) - len(order) // 10])
    train = train[: example_count("train_examples", request.train_examples, len(train))]
    test = test[: example_count("test_examples", request.test_examples, len(test))]
    train, test = (_read(paths, labels, part, _read_upright, make) for part in (train, test))
    return _data_set("cifar10_dvs", train, test, _CIFAR10)


def _read_upright(path: Path) -> Events:
    # The images were shown to the camera with rows and columns exchanged; other libraries undo it in the same way.
    events = read_aedat(path)
    return events._replace(x=events.y, y=events.x, size=events.size[::-1])


def _maker(request: DataRequest, usual: int) -> Callable[[Events], np.ndarray]:
    """From events to frames, uint8 ``t h w 2``."""
    binnings = {"count": frames_by_count, "time": frames_by_time}
    if request.frame_binning not in binnings:
        raise ValueError(f"frame_binning must be 'count' or 'time', got {request.frame_binning!r}.")
    frames, size = binnings[request.frame_binning], usual if request.size is None else request.size
    steps = integer("timesteps", request.timesteps, 1)
    return lambda events: np.minimum(np.asarray(frames(events, steps, (size, size))), 255).astype(np.uint8)


def _root(data_dir: str | PathLike[str] | None, source: str) -> Path:
    if data_dir is None:
        raise ValueError(f"data_dir must be given: {source} and name the folder.")
    return Path(data_dir).expanduser()


def _find(folder: Path, classes: tuple[str, ...], suffix: str, source: str) -> tuple[list[Path], np.ndarray]:
    """Recordings of all classes in a fixed order, and their labels."""
    found = [sorted((folder / name).glob(f"[!.]*{suffix}")) for name in classes]
    missing = [name for name, paths in zip(classes, found, strict=True) if not paths]
    if missing:
        remedy = f"{source} and give its folder as data_dir"
        raise ValueError(f"{folder / missing[0]} holds no {suffix} recordings; {remedy}.")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in found])
    return [path for paths in found for path in paths], labels


def _read(
    paths: list[Path],
    labels: np.ndarray,
    indices: np.ndarray,
    read: Callable[[Path], Events],
    make: Callable[[Events], np.ndarray],
) -> Arrays:
    frames = []
    for index in indices:
        events = read(paths[index])
        if not len(events.t):
            raise ValueError(f"{paths[index]} holds no events.")
        frames.append(make(events))
    return Arrays(np.stack(frames), labels[indices])


def _data_set(name: str, train: Arrays, test: Arrays, class_names: tuple[str, ...] = ()) -> DataSet:
    return DataSet(name, train, test, classes=10, mean=(0.0, 0.0), std=(1 / 255, 1 / 255), class_names=class_names)
