"""Training images with some held out, on which all choices are made. The test images are not in here."""

from dataclasses import replace

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
        kept = example_count("test_examples", request.test_examples, number)
        split, (images, labels) = hold_out(whole, number), whole.train
        name = f"{base} without {number:,} images"
        return replace(split, name=name, test=Arrays(images[:kept], labels[:kept]))

    return DataSource(described, read)


def hold_out(data: DataSet, number: int) -> DataSet:
    """The data set with the first training images as its test images, and the others to train on.

    The order in which :func:`qpsnn_jax.data.load` gives them is balanced, so that the classes are in proportion.
    """
    assert isinstance(data.train, Arrays)
    images, labels = data.train
    first = Arrays(images[:number], labels[:number])
    return replace(data, train=Arrays(images[number:], labels[number:]), test=first, evaluated="held-out")


CIFAR10 = held_out("cifar10", 5000)
