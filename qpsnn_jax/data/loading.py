"""Loading a data set by name, or from a source of your own."""

from os import PathLike

from qpsnn_jax.data.catalogue import DataRequest, DataSource, FrameBinning, ask, describe
from qpsnn_jax.data.dataset import DataSet


def load(
    source: str | DataSource,
    *,
    data_dir: str | PathLike[str] | None = None,
    seed: int = 0,
    train_examples: int | None = None,
    test_examples: int | None = None,
    timesteps: int | None = None,
    size: int | None = None,
    frame_binning: FrameBinning = "count",
    grey: bool = False,
) -> DataSet:
    """Load a data set: as arrays in host memory, large ones as files that are read while training runs.

    The order is random but fixed by ``seed``, and n examples are the first n in that order, so smaller subsets lie
    within larger ones. Every prefix of arrays has the classes in proportion.

    Args:
        source: ``digits`` (embedded, 1,437 + 360 images of 8×8×1), ``cifar10`` or ``cifar100`` (50,000 + 10,000 images
            of 32×32×3, from TFDS), ``tiny_imagenet`` (100,000 + 10,000 of 64×64×3), ``imagenet2012`` (1,281,167 +
            50,000, from TFDS), ``folder`` (pictures of your own), ``nmnist`` or ``cifar10_dvs`` (event recordings, as
            frames ``n t h w 2``); any image classification set of TFDS by its name, such as ``fashion_mnist``; a
            :class:`DataSource` of your own, or ``module:attribute``, where it is defined.
        data_dir, seed, train_examples, test_examples, timesteps, size, frame_binning, grey: see :class:`DataRequest`.

    Returns:
        The data set; its mean and std are those of the complete training set.

    Raises:
        ValueError: an unknown name, too large a number of examples, data that are missing or damaged, a source of
            your own that fails, or examples that are not what the source described.

    Example:
        A data set of your own::

            def read(request):
                return DataSet("waves", Arrays(images, labels), Arrays(more, theirs), 3, (0.5,), (0.25,))

            waves = DataSource(lambda request: DataInfo((16, 16, 1), 3), read)
            data = load(waves)  # or load("my_module:waves")
    """
    request = DataRequest(data_dir, seed, train_examples, test_examples, timesteps, size, frame_binning, grey)
    info = describe(source, request)
    if info.frames and timesteps is None:
        raise ValueError("timesteps must be given for recordings of events: how many frames each becomes.")
    data = ask(source, "load", DataSet, request)
    found = (data.shape[-3:], data.classes, len(data.shape) == 4)
    if found != (info.shape, info.classes, info.frames):
        raise ValueError(
            f"{data.name} holds {_described(*found)}, and its source describes "
            f"{_described(info.shape, info.classes, info.frames)}."
        )
    return data


def _described(shape: tuple[int, ...], classes: int, frames: bool) -> str:
    """A data set in words."""
    return f"{'frames (frames=True)' if frames else 'images'} of shape {shape} in {classes} classes"
