"""Data sets from outside the package, and the facts of each before it is read."""

import subprocess
import sys

import numpy as np
import pytest

from qpsnn_jax.data import Arrays, DataInfo, DataRequest, DataSet, DataSource, describe, load
from qpsnn_jax.data.catalogue import SOURCES


def read(request):
    number = request.train_examples or 12
    images = np.arange(number * 6, dtype=np.uint8).reshape(number, 3, 2, 1)
    part = Arrays(images, np.arange(number) % 3)
    return DataSet("stripes", part, part, 3, (0.5,), (0.25,))


STRIPES = DataSource(lambda request: DataInfo((3, 2, 1), 3), read)


@pytest.mark.parametrize("source", [STRIPES, f"{__name__}:STRIPES"])
def test_a_source_from_outside_is_loaded_like_any_other(source):
    assert describe(source) == DataInfo((3, 2, 1), 3)
    data = load(source, train_examples=6)
    assert (data.name, data.shape, len(data.train.labels)) == ("stripes", (3, 2, 1), 6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mnits", "there is no data set 'mnits'; choose one of digits, cifar10, .* or give module:attribute"),
        ("no_such_module:x", "'no_such_module:x' cannot be found"),
        (f"{__name__}:missing", "defines no missing"),
        (":x", "is not a name like MODULE:ATTRIBUTE"),
        (f"{__name__}:read", "must be a qpsnn_jax.data.DataSource, got function"),
    ],
)
def test_other_names_raise(source, words):
    with pytest.raises(ValueError, match=words):
        load(source)


@pytest.mark.parametrize("info", [DataInfo((3, 3, 1), 3), DataInfo((3, 2, 1), 4), DataInfo((3, 2, 1), 3, frames=True)])
def test_what_is_read_must_be_what_was_described(info):
    with pytest.raises(ValueError, match=r"stripes holds images of shape \(3, 2, 1\) in 3 classes, and its source"):
        load(DataSource(lambda request: info, read), timesteps=2)


def test_sizes_are_those_asked_for_where_there_is_a_choice():
    assert describe("nmnist", DataRequest(size=20)) == DataInfo((20, 20, 2), 10, frames=True, resizable=True)
    assert describe("imagenet2012").shape == (224, 224, 3)
    with pytest.raises(ValueError, match="size must be None for images of a fixed size, got 20"):
        describe("digits", DataRequest(size=20))
    with pytest.raises(ValueError, match="timesteps must be given for recordings of events"):
        load("nmnist", data_dir="nowhere")


def test_names_and_shapes_need_no_heavy_import():
    code = (
        "import sys; from qpsnn_jax.data import describe; from qpsnn_jax.data.catalogue import SOURCES\n"
        "shapes = [describe(name).shape for name in SOURCES if name != 'folder']\n"
        "print(len(shapes), sorted({'jax', 'numpy', 'PIL', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split(maxsplit=1) == [str(len(SOURCES) - 1), "[]\n"]


def careless(request):
    return {}["images"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DataSource(careless, read), "describe of data set read fails with KeyError: 'images'."),
        (DataSource(lambda request: None, read), "describe of data set read must return a qpsnn_jax.data.DataInfo"),
        (STRIPES._replace(load=careless), "load of data set careless fails with KeyError: 'images'."),
        (STRIPES._replace(load=lambda request: None), "must return a qpsnn_jax.data.DataSet, got NoneType."),
    ],
)
def test_a_mistake_in_a_source_of_ones_own_is_a_sentence(source, words):
    with pytest.raises(ValueError) as caught:
        load(source)
    assert words in str(caught.value)


def test_an_error_in_a_source_of_the_package_is_not_hidden(monkeypatch):
    monkeypatch.setitem(SOURCES, "digits", SOURCES["digits"]._replace(load=careless))
    with pytest.raises(KeyError):
        load("digits")
