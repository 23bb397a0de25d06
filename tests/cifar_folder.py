"""A small CIFAR in TFDS's layout: random PNG pictures in two shards."""

import io
import json

import numpy as np

SIZES = {"train": 60, "test": 20}
SHARDS = 2
FEATURES = "tensorflow_datasets.core.features"


def features(classes):
    image = {"shape": {"dimensions": ["32", "32", "3"]}, "dtype": "uint8"}
    inner = {
        "id": {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}},
        "image": {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
    return {
        "pythonClassName": f"{FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": inner},
    }


def example(name, image, label):
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    message = tf_example_pb2.Example()
    feature = message.features.feature
    feature["id"].bytes_list.value.append(name.encode())
    feature["image"].bytes_list.value.append(stream.getvalue())
    feature["label"].int64_list.value.append(int(label))
    return message.SerializeToString()


def prepare(folder, name, classes, file_format="array_record"):
    """Write a small CIFAR in TFDS's layout; returns the images and labels of each split in order of id."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    truth, splits = {}, []
    for split, size in SIZES.items():
        images = rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(size) % classes
        truth[split] = images, labels
        stored = rng.permutation(size)
        for shard, rows in enumerate(np.split(stored, SHARDS)):
            file = folder / f"{name}-{split}.{file_format}-{shard:05d}-of-{SHARDS:05d}"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for row in rows:
                writer.write(example(f"{split}_{row:05d}", images[row], labels[row]))
            writer.close()
        lengths = [str(size // SHARDS)] * SHARDS
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "numBytes": "1", "shardLengths": lengths, "filepathTemplate": template})
    info = {"name": name, "version": folder.name, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features(classes)))
    return truth
