"""Counting and measuring the data sets on disk: ``qpsnn data check``."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike

import numpy as np

from qpsnn_jax.data.augment.host_crop import open_image
from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.sources.digits import digits
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
    """The content of a data set, and its problems, one sentence each (none if all is well)."""

    name: str
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]


def check(name: str, data_dir: str | PathLike[str] | None = None) -> Report:
    """Read all images of a data set and count; at most a few hundred are in memory at a time.

    Args:
        name: one of :data:`SPLITS`.
        data_dir: the TFDS data directory, or for ``tiny_imagenet`` the folder that holds the official one.

    Returns:
        Exact counts and statistics, and what differs from the published ones.

    Raises:
        ValueError: unknown name, or data that are missing or damaged.
    """
    check_name(name)
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
    counts: dict[int, int] = {}
    pixels, total, squares = 0, 0, 0
    for images, labels in chunks:
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
        for image in images:
            flat = image.reshape(-1, image.shape[-1])
            pixels += len(flat)
            # Python's integers, because the squares of ImageNet would come near the limit of int64.
            total = total + flat.sum(axis=0, dtype=np.int64).astype(object)
            squares = squares + np.square(flat, dtype=np.int64).sum(axis=0).astype(object)
    if not pixels:
        raise ValueError(f"{name} holds no images.")
    sums = list(zip(np.atleast_1d(total), np.atleast_1d(squares), strict=True))
    mean = tuple(float(s / (255 * pixels)) for s, _ in sums)
    std = tuple(float(((pixels * q - s * s) / (255 * pixels) ** 2) ** 0.5) for s, q in sums)
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
    verdict = [f"  problem: {problem}" for problem in report.problems] or ["  ok"]
    return "\n".join(lines + verdict)


def check_name(name: str) -> None:
    """Check that a name is in :data:`SPLITS`.

    Raises:
        ValueError: unknown name.
    """
    if name not in SPLITS:
        raise ValueError(f"name must be one of {', '.join(SPLITS)}, got {name!r}.")


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
