"""Data sets by name, and their shapes and classes before anything is read. JAX is not imported here."""

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from qpsnn_jax.runtime import naming

if TYPE_CHECKING:
    from qpsnn_jax.data.dataset import DataSet

FrameBinning = Literal["count", "time"]
Answer = TypeVar("Answer")


class DataRequest(NamedTuple):
    """The options of loading a data set.

    Attributes:
        data_dir: the TFDS data directory, None for TFDS's own; the folder of pictures or of event recordings.
        seed: chooses the order, hence the subsets, and the split of a data set that comes without one; 0 or more.
        train_examples: number of training examples, None for all.
        test_examples: number of test examples, None for all.
        timesteps: frames T per recording of events; for recordings only, which need it.
        size: height and width of event frames, crops or resized pictures, None for the usual size.
        grey: read the pictures of a folder with one channel instead of three.
        frame_binning: frames of equal numbers of events (``count``) or of equal duration (``time``).
    """

    data_dir: str | PathLike[str] | None = None
    seed: int = 0
    train_examples: int | None = None
    test_examples: int | None = None
    timesteps: int | None = None
    size: int | None = None
    frame_binning: FrameBinning = "count"
    grey: bool = False


class DataInfo(NamedTuple):
    """The facts of a data set that a network is built for.

    Attributes:
        shape: ``(h, w, c)`` of an image or of one event frame.
        classes: number of classes.
        frames: whether the examples are recordings of events, which become T frames.
        resizable: whether the examples can be resized to a requested size.
        split_by_seed: whether the seed chooses which examples are the test set, as it must where there is no split.
    """

    shape: tuple[int, int, int]
    classes: int
    frames: bool = False
    resizable: bool = False
    split_by_seed: bool = False


class DataSource(NamedTuple):
    """A data set that can be loaded, as two functions. Define one for your own data set.

    Attributes:
        describe: returns shape and classes without reading the examples.
        load: reads it.
    """

    describe: Callable[[DataRequest], DataInfo]
    load: "Callable[[DataRequest], DataSet]"


def describe(source: str | DataSource, request: DataRequest | None = None) -> DataInfo:
    """Shape and classes of a data set, before anything is read.

    Args:
        source: as for :func:`qpsnn_jax.data.load`.
        request: the options it will be loaded with.

    Raises:
        ValueError: an unknown name, a folder or a data set of TFDS that is not there, or a size or ``grey`` for images
            that have their own; or the description of a source of your own fails.
    """
    request = request or DataRequest()
    info = ask(source, "describe", DataInfo, request)
    if request.size is not None and not info.resizable:
        raise ValueError(f"size must be None for images of a fixed size, got {request.size!r}.")
    if request.grey and info.shape[-1] != 1:
        raise ValueError(f"grey must be False for data of {info.shape[-1]} channels.")
    return info


def ask(
    source: str | DataSource, what: Literal["describe", "load"], kind: type[Answer], request: DataRequest
) -> Answer:
    """What a function of a data source returns; an error in a source of your own names it.

    Raises:
        ValueError: the function raises it, or fails, or returns something else than ``kind``.
    """
    found = find(source)
    name = source if isinstance(source, str) else getattr(found.load, "__qualname__", "of your own")
    try:
        answer = getattr(found, what)(request)
    except Exception as error:
        own = isinstance(source, DataSource) or ":" in source
        if not own or isinstance(error, ValueError | OSError | MemoryError):
            raise
        raise ValueError(f"{what} of data set {name} fails with {type(error).__name__}: {error}.") from error
    if not isinstance(answer, kind):
        raise ValueError(
            f"{what} of data set {name} must return a qpsnn_jax.data.{kind.__name__}, got {type(answer).__name__}."
        )
    return answer


def find(source: str | DataSource) -> DataSource:
    """The data source of a name: of :data:`SOURCES`, of TFDS, or ``module:attribute``; a data source is its own.

    Raises:
        ValueError: a module or attribute that does not exist.
    """
    if isinstance(source, DataSource):
        return source
    if source in SOURCES:
        return SOURCES[source]
    if ":" not in source:
        return DataSource(
            lambda request: _of("classification", "describe_prepared")(source, request),
            lambda request: _of("classification", "prepared_set")(source, request),
        )
    found = naming.find(source)
    if not isinstance(found, DataSource):
        raise ValueError(f"{source!r} must be a qpsnn_jax.data.DataSource, got {type(found).__name__}.")
    return found


def _fixed(
    shape: tuple[int, int, int], classes: int, *, split_by_seed: bool = False
) -> Callable[[DataRequest], DataInfo]:
    return lambda request: DataInfo(shape, classes, split_by_seed=split_by_seed)


def _sized(
    usual: int, channels: int, classes: int, *, frames: bool, split_by_seed: bool = False
) -> Callable[[DataRequest], DataInfo]:
    def described(request: DataRequest) -> DataInfo:
        size = usual if request.size is None else request.size
        return DataInfo((size, size, channels), classes, frames, resizable=True, split_by_seed=split_by_seed)

    return described


def _of(module: str, function: str) -> Callable[..., Any]:
    """A function of a module in ``sources``, which is imported now."""
    return getattr(import_module(f"qpsnn_jax.data.sources.{module}"), function)


def _loader(module: str, function: str) -> "Callable[[DataRequest], DataSet]":
    """A loader that is imported when it is first called."""
    return lambda request: _of(module, function)(request)


SOURCES: dict[str, DataSource] = {
    "digits": DataSource(_fixed((8, 8, 1), 10, split_by_seed=True), _loader("digits", "digits")),
    "cifar10": DataSource(_fixed((32, 32, 3), 10), _loader("tfds", "cifar10")),
    "cifar100": DataSource(_fixed((32, 32, 3), 100), _loader("tfds", "cifar100")),
    "tiny_imagenet": DataSource(_fixed((64, 64, 3), 200), _loader("tiny_imagenet", "tiny_imagenet")),
    "imagenet2012": DataSource(_sized(224, 3, 1000, frames=False), _loader("imagenet", "imagenet")),
    "folder": DataSource(lambda request: _of("folder", "describe_folder")(request), _loader("folder", "folder")),
    "nmnist": DataSource(_sized(34, 2, 10, frames=True), _loader("recordings", "nmnist")),
    "cifar10_dvs": DataSource(_sized(48, 2, 10, frames=True, split_by_seed=True), _loader("recordings", "cifar10_dvs")),
}
