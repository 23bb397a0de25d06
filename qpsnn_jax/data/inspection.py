"""Counting and measuring the data sets on disk: ``qpsnn data check``."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike

import numpy as np

from qpsnn_jax.data.augment.host_crop import open_image
from qpsnn_jax.data.catalogue import SOURCES, DataRequest
from qpsnn_jax.data.decoded import moments_of, statistics, unreadable_pictures
from qpsnn_jax.data.pictures import decode_picture, read_picture
from qpsnn_jax.data.sources.classification import check_known, read_description
from qpsnn_jax.data.sources.digits import digits
from qpsnn_jax.data.sources.folder import list_pictures
from qpsnn_jax.data.sources.tfds import FACTS, is_prepared, read_chunks
from qpsnn_jax.data.sources.tiny_imagenet import find_folder, list_folder, read_image

# Splits and their sizes.
SPLITS: dict[str, dict[str, int]] = {
    "digits": {"train": 1437, "test": 360},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "tiny_imagenet": {"train": 100_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
}
_TOLERANCE = 1e-3  # of mean and std against the published ones


@dataclass(frozen=True)
class SplitReport:
    """The content of one split.

    Attributes:
        name: of the split.
        counts: number of examples of each class that occurs, by label.
        mean: exact mean of each channel, pixels scaled to [0, 1].
        std: exact standard deviation of each channel, on the same scale.
    """

    name: str
    counts: dict[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Report:
    """The content of a data set, and its problems, one sentence each (none if all is well).

    ``class_names`` are those of pictures of one's own.
    """

    name: str
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def check(name: str, data_dir: str | PathLike[str] | None = None) -> Report:
    """Read all images of a data set and count; at most a few hundred are in memory at a time.

    Args:
        name: one of :data:`SPLITS`, ``folder``, or an image classification set of TFDS.
        data_dir: the TFDS data directory, for ``tiny_imagenet`` the folder that holds the official one, for ``folder``
            that of the pictures.

    Returns:
        Exact counts and statistics of the pictures as they are, and what differs from the published ones; of pictures
        that cannot be read, all their names.

    Raises:
        ValueError: unknown name, or data that are missing or damaged.
    """
    check_name(name)
    if name == "folder":
        return _check_folder(data_dir)
    if name not in SPLITS:
        return _check_prepared(name, data_dir)
    splits = tuple(measure(split, _chunks(name, split, data_dir)) for split in SPLITS[name])
    return Report(name, splits, tuple(_problems(name, splits)))


def measure(name: str, chunks: Iterable[tuple[list[np.ndarray], list[int]]]) -> SplitReport:
    """Count the classes of a split, and compute mean and std exactly, with integers up to the last division.

    Args:
        name: of the split.
        chunks: lists of images, uint8 ``h w c`` of any size, with lists of their labels; at least one image in all.

    Returns:
        The counts and statistics.

    Raises:
        ValueError: no image at all.
    """
    counts: Counter[int] = Counter()
    pixels, moments = 0, np.zeros(1, np.int64)
    for images, labels in chunks:
        counts.update(labels)
        pixels += sum(image.shape[0] * image.shape[1] for image in images)
        moments = moments + np.sum([moments_of(image) for image in images], axis=0)
    if not counts:
        raise ValueError(f"{name} holds no images.")
    mean, std = statistics(moments, pixels)
    return SplitReport(name, dict(sorted(counts.items())), mean, std)


def format_report(report: Report) -> str:
    """Format a report as lines of text.

    Args:
        report: from :func:`check`.

    Returns:
        One line for each split, then one for each problem, or ``ok``.
    """
    lines = [report.name]
    for split in report.splits:
        fewest, most = min(split.counts.values()), max(split.counts.values())
        each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        mean, std = (" ".join(f"{x:.4f}" for x in values) for values in (split.mean, split.std))
        classes = f"{len(split.counts):,} classes of {each}"
        lines.append(f"  {split.name}: {split.examples:,} images, {classes}, mean {mean}, std {std}")
        if report.class_names:
            each = (f"{report.class_names[label]} {count:,}" for label, count in split.counts.items())
            lines.append(f"    {', '.join(each)}")
    verdict = [f"  problem: {problem}" for problem in report.problems] or ["  ok"]
    return "\n".join(lines + verdict)


def check_name(name: str) -> None:
    """Check that a name is of images that can be checked: in :data:`SPLITS`, ``folder``, or of TFDS.

    Raises:
        ValueError: unknown name.
    """
    if name in SOURCES and name not in (*SPLITS, "folder"):
        raise ValueError(f"{name} is read from its files as distributed; there is nothing to prepare or to check.")
    if name not in SOURCES:
        check_known(name)


def _check_folder(data_dir: str | PathLike[str] | None) -> Report:
    found, reasons = list_pictures(data_dir), list[str]()

    def chunks(rows: range) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        for row in rows:
            try:
                yield [read_picture(found.paths[row], 3)], [int(found.labels[row])]
            except ValueError as error:
                reasons.append(str(error).rstrip("."))
            except OSError as error:
                reasons.append(f"{error.filename}: {error.strerror}")

    total, first = len(found.paths), found.train_rows
    parts = {"train": range(first), "test": range(first, total)} if first else {"pictures": range(total)}
    try:
        splits = tuple(measure(part, chunks(rows)) for part, rows in parts.items())
    except ValueError:  # none of them can be read
        raise unreadable_pictures("folder", reasons) from None
    problems = [str(unreadable_pictures("folder", reasons))] if reasons else []
    return Report("folder", splits, (*problems, *_missing_classes(splits, found.class_names)), found.class_names)


def _check_prepared(name: str, data_dir: str | PathLike[str] | None) -> Report:
    found = read_description(name, data_dir)

    def chunks(split: str) -> Iterator[tuple[list[np.ndarray], list[int]]]:
        for chunk in read_chunks(name, split, data_dir, image=found.image, label=found.label):
            pictures = (decode_picture(data, found.shape[2]) for data, _ in chunk)
            pixels = [np.asarray(picture).reshape(picture.height, picture.width, -1) for picture in pictures]
            yield pixels, [label for _, label in chunk]

    splits = tuple(measure(split, chunks(split)) for split in found.splits if split)
    names = found.class_names or tuple(map(str, range(found.classes)))
    return Report(name, splits, tuple(_missing_classes(splits, names)))


def _missing_classes(splits: tuple[SplitReport, ...], names: tuple[str, ...]) -> Iterator[str]:
    for split in splits:
        if missing := [name for label, name in enumerate(names) if label not in split.counts]:
            yield f"{split.name} holds no picture of {', '.join(missing)}."


def _chunks(
    name: str, split: str, data_dir: str | PathLike[str] | None
) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    if name == "digits":
        arrays = getattr(digits(DataRequest()), split)
        yield list(arrays.images), arrays.labels.tolist()
    elif name == "tiny_imagenet" and not is_prepared(name, data_dir):
        if data_dir is None:
            raise ValueError("data_dir must be given: the folder that holds tiny-imagenet-200 or its prepared copy.")
        listing = list_folder(find_folder(data_dir))[split == "test"]
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            yield [read_image(path)], [label]
    else:
        for chunk in read_chunks(name, split, data_dir):
            yield [np.asarray(open_image(image)) for image, _ in chunk], [label for _, label in chunk]


def _problems(name: str, splits: tuple[SplitReport, ...]) -> Iterator[str]:
    classes = {"digits": 10, "imagenet2012": 1000}.get(name) or FACTS[name].classes
    for split in splits:
        expected = SPLITS[name][split.name]
        if split.examples != expected:
            yield f"{split.name} holds {split.examples:,} images where {expected:,} are expected."
        if sorted(split.counts) != list(range(classes)):
            yield f"{split.name} holds {len(split.counts):,} classes where {classes:,} are expected."
        if name in FACTS and len(set(split.counts.values())) > 1:
            yield f"{split.name} holds classes of unequal size."
    if name in FACTS:
        facts, train = FACTS[name], splits[0]
        for what, ours, theirs in (("mean", train.mean, facts.mean), ("std", train.std, facts.std)):
            if not np.allclose(ours, theirs, rtol=0, atol=_TOLERANCE):
                yield f"{what} of train is {tuple(round(x, 4) for x in ours)} where {theirs} is published."
