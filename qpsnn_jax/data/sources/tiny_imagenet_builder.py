"""Tiny ImageNet as a TFDS data set, prepared from the official folder without TensorFlow.

TFDS calls TensorFlow only to encode arrays and to unpack archives. This builder copies the JPEG files unchanged from
a folder that is already unpacked, so it needs neither. Importing this file imports TFDS; import it late.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from qpsnn_jax.data.sources.tfds import FACTS
from qpsnn_jax.data.sources.tiny_imagenet import NAME, Listing, list_folder, read_image


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """The builder; its manual directory is the official folder ``tiny-imagenet-200``."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip."

    def _info(self) -> Any:
        # Not dataset_info_from_configs, which looks for metadata files beside this one.
        return tfds.core.DatasetInfo(
            builder=self,
            description="100,000 + 10,000 images of 64×64 pixels in 200 classes of ImageNet.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=FACTS[NAME].shape, encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=FACTS[NAME].classes),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        train, test = list_folder(Path(dl_manager.manual_dir))
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, listing: Listing) -> Iterator[tuple[str, dict[str, Any]]]:
        for row, (path, label) in enumerate(zip(listing.paths, listing.labels.tolist(), strict=True)):
            read_image(path)  # a damaged file is an error now
            # The numbered id keeps the order of the folder, so both ways of reading draw the same subsets.
            name = f"{row:06d}_{path.name}"
            yield name, {"id": name, "image": path.read_bytes(), "label": label}


def build(folder: Path, data_dir: Path) -> Path:
    """Prepare the official folder in array_record format.

    Args:
        folder: the official folder.
        data_dir: the TFDS data directory to write to.

    Returns:
        The written folder.

    Raises:
        ValueError: the official folder is incomplete or holds damaged images.
    """
    builder = TinyImagenet(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)
