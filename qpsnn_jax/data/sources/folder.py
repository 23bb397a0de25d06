"""Your own pictures: a folder of classes, or one such folder for training and another for testing.

Classes are named by their folders and numbered in the order of the names. Every picture is reduced to its central
square and resized. All are decoded once (:mod:`qpsnn_jax.data.decoded`).
"""

import hashlib
import unicodedata
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qpsnn_jax.data.catalogue import DataInfo, DataRequest
from qpsnn_jax.data.dataset import DataSet, balanced_order, example_count
from qpsnn_jax.data.decoded import decode_all, examples, identity, statistics
from qpsnn_jax.data.pictures import SUFFIXES, read_square

_USUAL = 32  # default side of the pictures
_TEST_SHARE = 5  # one picture in this many is for testing, of a folder without a split
_LAYOUT = f"train/CLASS/ and test/CLASS/, or CLASS/ alone, with pictures ({', '.join(SUFFIXES)})"


class Pictures(NamedTuple):
    """The pictures of a folder, in the order of their classes and names.

    Attributes:
        paths: of all pictures.
        labels: their classes, int32.
        class_names: in the order of the labels, in Unicode's form NFC.
        train_rows: how many pictures, from the first on, are for training; None where the folder has no split.
    """

    paths: list[Path]
    labels: np.ndarray
    class_names: tuple[str, ...]
    train_rows: int | None


def describe_folder(request: DataRequest) -> DataInfo:
    """Shape and classes of a folder; no picture is opened.

    Raises:
        ValueError: the folder is missing or has fewer than two classes.
    """
    root = _root(request.data_dir)
    split = _has_split(root)
    names = _class_folders(root / "train" if split else root)
    side = _USUAL if request.size is None else request.size
    return DataInfo((side, side, 1 if request.grey else 3), len(names), resizable=True, split_by_seed=not split)


def folder(request: DataRequest) -> DataSet:
    """Your own pictures as a data set; of each the central square, resized.

    Args:
        request: its folder holds ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*``, of which about a fifth of each
            class is the test set, drawn by the seed and the names of class and file, so that a picture that is added
            moves no other, but for classes of a few pictures. Its size is the side of the pictures, 32 by default;
            ``grey`` reads them with one channel instead of three. Hidden files, files of other types and anything but
            regular files and links are ignored.

    Returns:
        Images uint8 ``n h w c``, in memory up to 1 GiB; mean and std are those of the whole training set.

    Raises:
        ValueError: the folder is missing, empty or laid out otherwise, the test set has a class that the training set
            lacks, or pictures cannot be read; the message names all of them.
        OSError: the folder cannot be read, or the cache cannot be written.
    """
    found = list_pictures(request.data_dir)
    shape = describe_folder(request).shape
    if found.train_rows is None:
        train, test = _split_by_name(found, request.seed)
    else:
        train, test = split_rows(found.labels, found.train_rows, request.seed, found.class_names)

    def read(row: int) -> np.ndarray:
        return read_square(found.paths[row], shape[2], shape[0])

    decoded = decode_all("folder", identity(found.paths), len(found.paths), shape, read)
    mean, std = statistics(decoded.moments[train].sum(axis=0), len(train) * shape[0] * shape[1])
    train = train[: example_count("train_examples", request.train_examples, len(train))]
    test = test[: example_count("test_examples", request.test_examples, len(test))]
    return DataSet(
        name="folder",
        train=examples(decoded, train, found.labels[train]),
        test=examples(decoded, test, found.labels[test]),
        classes=len(found.class_names),
        mean=mean,
        std=std,
        class_names=found.class_names,
    )


def list_pictures(data_dir: str | PathLike[str] | None) -> Pictures:
    """Find the pictures of a folder. None is opened.

    Raises:
        ValueError: as :func:`folder`.
    """
    root = _root(data_dir)
    if not _has_split(root):
        paths, labels = _listed(root, names := _class_folders(root))
        return Pictures(paths, labels, tuple(names), None)
    names, tested = (_class_folders(root / part, least) for part, least in (("train", 2), ("test", 1)))
    if unknown := [name for name in tested if name not in names]:
        raise ValueError(f"{tested[unknown[0]]} is a class that {root / 'train'} lacks; add it there or remove it.")
    paths, labels = _listed(root / "train", names)
    others, theirs = _listed(root / "test", {name: tested[name] for name in names if name in tested}, list(names))
    return Pictures([*paths, *others], np.concatenate([labels, theirs]), tuple(names), len(paths))


def split_rows(
    labels: np.ndarray, train_rows: int | None, seed: int, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test examples in a balanced order drawn by the seed.

    Args:
        labels: of all examples, those for training first.
        train_rows: how many are for training; None draws a fifth for testing.
        seed: chooses the split, where there is none, and the order.
        class_names: of all classes, for messages.

    Raises:
        ValueError: a class of which no example is left for training.
    """
    if train_rows is not None:
        return balanced_order(labels[:train_rows], seed), train_rows + balanced_order(labels[train_rows:], seed)
    order = balanced_order(labels, seed)
    train, test = np.split(order, [len(order) - max(1, len(order) // _TEST_SHARE)])
    if missing := set(labels.tolist()) - set(labels[train].tolist()):
        raise _too_few(class_names[min(missing)])
    return train, test


def _split_by_name(found: Pictures, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`split_rows` of a folder without a split. Each picture is drawn by itself.

    Were the rows drawn, a picture that is added would move others, and a run that goes on, or is evaluated, would test
    on images that it was trained on.
    """
    numbers = np.asarray([_drawn(seed, found.class_names[label], path) for path, label in zip(*found[:2], strict=True)])
    tested = numbers < 1 / _TEST_SHARE
    for label, name in enumerate(found.class_names):
        rows = np.flatnonzero(found.labels == label)
        if len(rows) < 2:
            raise _too_few(name)
        order = rows[np.argsort(numbers[rows], kind="stable")]
        tested[order[0]], tested[order[-1]] = True, False
    train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
    return train[balanced_order(found.labels[train], seed)], test[balanced_order(found.labels[test], seed)]


def _drawn(seed: int, class_name: str, path: Path) -> float:
    """A number in [0, 1) that depends on the seed and on the names of the class and of the file alone."""
    text = f"{seed}/{class_name}/{unicodedata.normalize('NFC', path.name)}"
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _too_few(class_name: str) -> ValueError:
    return ValueError(f"class {class_name} has too few pictures to be split by seed; add some.")


def _root(data_dir: str | PathLike[str] | None) -> Path:
    if data_dir is None:
        raise ValueError(f"data_dir must be given: a folder that holds {_LAYOUT}.")
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"data_dir {root} is not a folder; give one that holds {_LAYOUT}.")
    return root


def _has_split(root: Path) -> bool:
    """Whether there is a folder ``train`` of classes. A folder ``train`` of pictures is a class of that name."""
    if not (root / "train").is_dir() or not any(path.is_dir() for path in _visible(root / "train")):
        return False
    if not (root / "test").is_dir():
        raise ValueError(
            f"{root} holds train and no test; add test, or give {root / 'train'} to have it split by seed."
        )
    return True


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path, least: int = 2) -> dict[str, Path]:
    """Folders of classes by name. The same name may be spelled in two ways (NFC, NFD) on two systems."""
    found: dict[str, Path] = {}
    for path in _visible(folder):
        if path.is_dir():
            name = unicodedata.normalize("NFC", path.name)
            if name in found:
                raise ValueError(f"{folder} holds two folders that are both called {name}; give one another name.")
            found[name] = path
        elif path.suffix.lower() in SUFFIXES:
            raise ValueError(f"{path} lies in no class; put it into the folder of its class.")
    if len(found) < least:
        held = f"the class {next(iter(found))} alone" if found else "no classes"
        raise ValueError(f"{folder} holds {held}; it must hold {_LAYOUT}, of two classes at least.")
    return dict(sorted(found.items()))


def _listed(folder: Path, classes: dict[str, Path], names: list[str] | None = None) -> tuple[list[Path], np.ndarray]:
    """The pictures of classes, and their labels: indices into ``names``, by default the names of the classes."""
    found = {name: _pictures(path) for name, path in classes.items()}
    order = {name: label for label, name in enumerate(names or classes)}
    labels = np.repeat([order[name] for name in found], [len(paths) for paths in found.values()])
    return [path for paths in found.values() for path in paths], labels.astype(np.int32)


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a class, including broken links, so that an error names them."""
    entries = _visible(folder)
    for path in entries:
        if path.is_dir():
            raise ValueError(f"{path} is a folder within a class; put its pictures into {folder}.")
    suffixed = (path for path in entries if path.suffix.lower() in SUFFIXES)
    found = [path for path in suffixed if path.is_file() or path.is_symlink()]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    return found
