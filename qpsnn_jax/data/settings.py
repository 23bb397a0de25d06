"""Settings of the data set of a run and of its augmentation.

JAX is imported only when data are read, so that the command line starts quickly.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

from qpsnn_jax.data.augment.records import Augmentation, EventAugmentation
from qpsnn_jax.data.catalogue import SOURCES, DataRequest, FrameBinning
from qpsnn_jax.runtime.settings import check, setting

if TYPE_CHECKING:
    from jax import Array

    from qpsnn_jax.data.dataset import DataSet

_PIXELS = 4096  # largest side of an image, and largest extent of an augmentation, in pixels


@dataclass(frozen=True)
class DataSettings:
    """The data set and its augmentation in training.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    name: str = setting("cifar10", "data set", names=SOURCES, others="any of TFDS by its name")
    data_dir: str | None = setting(None, "directory of TFDS, of the recordings or of the folder's classes")
    train_examples: int | None = setting(None, "training examples; none: all", least=1, most=2**31 - 1)
    test_examples: int | None = setting(None, "test examples; none: all", least=1, most=2**31 - 1)
    size: int | None = setting(
        None, "height and width of frames, crops or resized pictures; none: the usual size", least=1, most=_PIXELS
    )
    grey: bool = setting(False, "read the pictures of a folder in grey")
    frame_binning: FrameBinning = setting("count", "frames of equal numbers of events, or of equal time")
    workers: int = setting(0, "processes that read and decode files; 0: none", least=0, most=1024)
    crop_padding: int = setting(0, "zeros around an image before it is cropped at random", least=0, most=_PIXELS)
    roll: int = setting(0, "largest circular shift of event frames, in pixels", least=0, most=_PIXELS)
    flip: bool = setting(False, "mirror half of the images left to right")
    autoaugment: bool = setting(False, "the CIFAR-10 policy of AutoAugment")
    cutout: int = setting(0, "side of a square that is blanked, in pixels", least=0, most=_PIXELS)
    degrees: float = setting(0.0, "largest rotation, in degrees", least=0, most=180)
    scale: float = setting(0.0, "largest relative change of size", least=0, below=1)
    translate: float = setting(0.0, "largest translation, in pixels", least=0, most=_PIXELS)

    def __post_init__(self) -> None:
        check(self)


def request(settings: DataSettings, *, seed: int, timesteps: int) -> DataRequest:
    """The request to the data set.

    Args:
        settings: of the data.
        seed: chooses the order, hence the subsets.
        timesteps: frames T of a recording of events.
    """
    return DataRequest(
        settings.data_dir,
        seed,
        settings.train_examples,
        settings.test_examples,
        timesteps,
        settings.size,
        settings.frame_binning,
        settings.grey,
    )


def augmentation(settings: DataSettings, *, frames: bool, channels: int) -> Augmentation | EventAugmentation:
    """The augmentation of the settings, for images or for event frames of so many channels.

    Raises:
        ValueError: the settings use an augmentation of the other kind of data, or of other channels.
    """
    kind, others = (EventAugmentation, Augmentation) if frames else (Augmentation, EventAugmentation)
    own, foreign = ({field.name for field in fields(record)} for record in (kind, others))
    for name in sorted(foreign - own):
        if value := getattr(settings, name):
            raise ValueError(f"{name} must be off for {'recordings of events' if frames else 'images'}, got {value!r}.")
    if settings.autoaugment and channels != 3:
        raise ValueError(f"autoaugment is for images of 3 channels; turn it off for those of {channels}.")
    return kind(**{name: getattr(settings, name) for name in own})


def make_prepare(settings: DataSettings, data: "DataSet") -> "Callable[[Array, Array], Array]":
    """Normalization and augmentation in training: from a key and uint8 images or frames to floating ones.

    Raises:
        ValueError: as :func:`augmentation`.
    """
    chosen = augmentation(settings, frames=len(data.shape) == 4, channels=data.shape[-1])
    return _prepare(chosen, data.mean, data.std)


@lru_cache(maxsize=16)
def _prepare(
    chosen: "Augmentation | EventAugmentation", mean: tuple[float, ...], std: tuple[float, ...]
) -> "Callable[[Array, Array], Array]":
    """The same function for the same arguments, so that programs that contain it can be cached."""
    from qpsnn_jax.data.augment.frames import augment_frames
    from qpsnn_jax.data.augment.images import normalize_and_augment
    from qpsnn_jax.numerics.normalization import normalize

    if isinstance(chosen, EventAugmentation):
        return lambda key, pixels: augment_frames(key, normalize(pixels, mean, std), chosen)
    return lambda key, pixels: normalize_and_augment(key, pixels, chosen, mean, std)
