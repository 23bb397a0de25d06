"""Training images with some held out, on which all choices are made. The test images are not in here."""

from qpsnn_jax.data import Arrays, DataInfo, DataRequest, DataSet, DataSource, describe, load
from qpsnn_jax.data.dataset import example_count

_ORDER = 0  # the seed of the order of the images: every unit, of any seed, holds out the same ones


def held_out(base: str, number: int) -> DataSource:
    """A data set whose "test" images are training images of ``base`` that are not trained on.

    Args:
        base: the name of a data set in memory.
        number: how many training images are held out, with the classes in proportion.
    """

    def described(request: DataRequest) -> DataInfo:
        return describe(base, request)

    def read(request: DataRequest) -> DataSet:
        wanted = None if request.train_examples is None else number + request.train_examples
        whole = load(base, data_dir=request.data_dir, seed=_ORDER, train_examples=wanted, test_examples=1)
        assert isinstance(whole.train, Arrays)
        images, labels = whole.train
        kept = example_count("test_examples", request.test_examples, number)
        return DataSet(
            name=f"{base} without {number:,} images",
            train=Arrays(images[number:], labels[number:]),
            test=Arrays(images[:kept], labels[:kept]),
            classes=whole.classes,
            mean=whole.mean,
            std=whole.std,
            class_names=whole.class_names,
            evaluated="held-out",
        )

    return DataSource(described, read)


CIFAR10 = held_out("cifar10", 5000)
