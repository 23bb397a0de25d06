"""A small ImageNet in TFDS's layout: JPEG pictures of all sizes, in two shards."""

import io
import json
from pathlib import Path

import numpy as np

SIZES = {"train": 48, "validation": 20}
FEATURES = "tensorflow_datasets.core.features"


def picture(number: int) -> np.ndarray:
    """A picture of one colour, which identifies it after any crop; its label is its number."""
    shape = (40 + number % 7 * 5, 40 + number % 5 * 9, 3)
    return np.full(shape, (number * 5, 255 - number * 5, 128), np.uint8)


def write(root: Path) -> None:
    """Write ``imagenet2012/5.1.0`` below ``root``; validation numbers follow the training numbers."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}
    label = {"numClasses": "1000"}
    inner = {
        "image": {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": image},
        "label": {"pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel", "classLabel": label},
        "file_name": {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}},
    }
    number, splits = 0, []
    for split, size in SIZES.items():
        for shard in range(2):
            file = folder / f"imagenet2012-{split}.array_record-{shard:05d}-of-00002"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for _ in range(size // 2):
                stream = io.BytesIO()
                Image.fromarray(picture(number)).save(stream, "JPEG")
                message = tf_example_pb2.Example()
                feature = message.features.feature
                feature["file_name"].bytes_list.value.append(f"n{number}.JPEG".encode())
                feature["image"].bytes_list.value.append(stream.getvalue())
                feature["label"].int64_list.value.append(number)
                writer.write(message.SerializeToString())
                number += 1
            writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(size // 2)] * 2
        splits.append({"name": split, "numBytes": "1", "shardLengths": lengths, "filepathTemplate": template})
    info = {"name": "imagenet2012", "version": "5.1.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    wrapped = {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": inner}}
    (folder / "features.json").write_text(json.dumps(wrapped))
