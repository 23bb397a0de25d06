"""ImageNet-1k as TFDS prepared it: files that are read, decoded and cropped while training runs."""

import numpy as np

from qpsnn_jax.data.augment.host_crop import CenterCrop, TrainCrop
from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.dataset import DataSet, Files, Source, example_count
from qpsnn_jax.data.feed import Selected
from qpsnn_jax.data.sources.tfds import source

NAME = "imagenet2012"
# Of the training set, as published with torchvision's models.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet(request: DataRequest) -> DataSet:
    """ImageNet-1k, its validation set as the test set, as :class:`~qpsnn_jax.data.dataset.Files`.

    Training takes random-resized crops; mirroring is done by the augmentation inside the step. Evaluation takes the
    middle of the image, whose shorter side is 8/7 of the size.

    Args:
        request: its data directory holds ``imagenet2012/<version>/``, its seed chooses the subsets, its size is that of
            the crops, 224 by default.

    Raises:
        ValueError: no prepared data in the folder, damaged data, or too large a number of examples.

    References:
        Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.
    """
    size = 224 if request.size is None else request.size
    crop, centre = TrainCrop(size, flip=False), CenterCrop(size, resize=size * 8 // 7)

    def files(split: str, what: str, wanted: int | None) -> Files:
        examples: Source = source(NAME, split, request.data_dir)
        total = len(examples)
        chosen = example_count(what, wanted, total)
        if chosen < total:
            order = np.argsort(np.random.PCG64(request.seed).random_raw(total), kind="stable")
            examples = Selected(examples, order[:chosen])
        return Files(examples, (size, size, 3), crop, centre)

    return DataSet(
        name=NAME,
        train=files("train", "train_examples", request.train_examples),
        test=files("validation", "test_examples", request.test_examples),
        classes=1000,
        mean=_MEAN,
        std=_STD,
    )
