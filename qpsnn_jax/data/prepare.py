"""Preparing data sets on disk: ``qpsnn data prepare``."""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from qpsnn_jax.data.inspection import check_name
from qpsnn_jax.data.sources.tfds import find, is_prepared
from qpsnn_jax.data.sources.tiny_imagenet import find_folder
from qpsnn_jax.runtime.files import reason_of

_IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")  # behind a registration, so TFDS cannot fetch them


def prepare(name: str, data_dir: str | PathLike[str] | None) -> Path:
    """Prepare a data set in TFDS's layout and array_record format; an existing one is not changed.

    Args:
        name: a data set of TFDS, such as ``cifar10``, is downloaded; ``tiny_imagenet`` is packed from
            ``data_dir/tiny-imagenet-200``; ``imagenet2012`` from its two tar files in ``data_dir/downloads/manual``.
        data_dir: the TFDS data directory.

    Returns:
        The folder of the prepared data set.

    Raises:
        ValueError: unknown name, TensorFlow or the files are missing, or a download that failed.
    """
    check_name(name)
    if name == "digits":
        raise ValueError("digits are part of the package; there is nothing to prepare.")
    if name == "folder":
        raise ValueError("pictures in a folder are read as they are; there is nothing to prepare.")
    if data_dir is None:
        raise ValueError(f"data_dir must be given: where to prepare {name}.")
    root = Path(data_dir).expanduser()
    if is_prepared(name, root):
        return find(name, root)
    if name == "tiny_imagenet":
        folder = find_folder(root)
        from qpsnn_jax.data.sources.tiny_imagenet_builder import build

        return build(folder, root)
    if find_spec("tensorflow") is None:
        raise ValueError(
            f"Preparing {name} needs TensorFlow, whose tar and image code TFDS uses to unpack and encode it: "
            "pip install tensorflow (reading the prepared data does not need it)."
        )
    manual = root / "downloads" / "manual"
    for file in _IMAGENET if name == "imagenet2012" else ():
        if not (manual / file).is_file():
            raise ValueError(f"{manual / file} is missing; download it from https://image-net.org after registering.")
    return _download(name, root)


def _download(name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # TFDS passes on any exception of the network, the archive or TensorFlow
        raise ValueError(f"{name} could not be prepared in {root} ({reason_of(error)}).") from error
    return find(name, root)
