"""Real handwritten digits within the package: 1,797 scans of 8×8 pixels, for tests and first steps without a download.

The data are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998, https://doi.org/10.24432/C50P49), licensed under CC BY 4.0, in the order of scikit-learn's
``load_digits``. Each pixel counts the dark points of a 4×4 cell of the scanned bitmap, 0 to 16. The file was written
once by ``numpy.savez_compressed`` from ``images`` (uint8, ``1797 8 8 1``) and ``labels`` (uint8).
"""

from importlib import resources

import numpy as np

from qpsnn_jax.data.catalogue import DataRequest
from qpsnn_jax.data.dataset import Arrays, DataSet, balanced_order, example_count

_TRAIN = 1437  # 80 % of 1,797
_LEVELS = 16
_CLASSES = 10


def digits(request: DataRequest) -> DataSet:
    """Split the embedded digits into 1,437 training and 360 test images with the classes in proportion.

    The split is drawn from the seed (:func:`~qpsnn_jax.data.dataset.balanced_order`) and not by writer, because the
    file does not name the writers. So the accuracy on it is higher than on digits of unknown writers.

    Args:
        request: its seed chooses the split and the order; the digits are part of the package.

    Returns:
        Images uint8 ``n 8 8 1`` with the counts 0 to 16 scaled to 0 to 255; mean and std are those of the complete
        training part of this split.

    Raises:
        ValueError: a seed below 0, or too large a number of examples.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. CC BY 4.0.
    """
    counts, labels = read()
    order = balanced_order(labels, request.seed)
    train, test = order[:_TRAIN], order[_TRAIN:]
    images = np.round(counts * (255 / _LEVELS)).astype(np.uint8)
    pixels = images[train] / 255
    train = train[: example_count("train_examples", request.train_examples, len(train))]
    test = test[: example_count("test_examples", request.test_examples, len(test))]
    return DataSet(
        name="digits",
        train=Arrays(images[train], labels[train]),
        test=Arrays(images[test], labels[test]),
        classes=_CLASSES,
        mean=(float(pixels.mean()),),
        std=(float(pixels.std()),),
    )


def read() -> Arrays:
    """All digits of the file, in its order.

    Returns:
        Counts of dark points, uint8 in ``{0, …, 16}``, shape ``1797 8 8 1``, and labels, int32.
    """
    file = resources.files("qpsnn_jax.data.sources").joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return Arrays(stored["images"], stored["labels"].astype(np.int32))
