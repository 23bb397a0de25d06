"""NumPy's files: they are read back unchanged; damage is one sentence that names the file."""

import contextlib
import io
import random
import tracemalloc

import numpy as np
import pytest

from qpsnn_jax.export.torch_file import read_state_dict
from qpsnn_jax.runtime.arrays import read_npy, read_npz

ARRAY = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def saved(**options):
    stream = io.BytesIO()
    np.save(stream, **options)
    return stream.getvalue()


def npy_header(text, version=b"\1\0"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


@pytest.fixture
def file(tmp_path):
    def write(content, name="a.npy"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def error_of(read, path):
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message


def test_arrays_come_out_as_they_went_in(file, tmp_path):
    np.testing.assert_array_equal(read_npy(str(file(saved(arr=ARRAY)))), ARRAY)
    np.savez_compressed(tmp_path / "b.npz", x=ARRAY, y=ARRAY[0])
    found = read_npz(str(tmp_path / "b.npz"))
    assert {name: array.shape for name, array in found.items()} == {"x": (3, 4, 5), "y": (4, 5)}
    np.testing.assert_array_equal(found["x"], ARRAY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        saved(arr=ARRAY)[:-1],
        saved(arr=np.asarray([{}, None], object), allow_pickle=True),
        npy_header(b"(" * 5000 + b")" * 5000),
        npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 3000 + b"1,)}"),
        npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        npy_header(b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}"),
        npy_header(b"{'descr': '<f4', "),
        npy_header(b"\xff\xfe"),
        npy_header(b"", b"\3\0"),
        b"\x93NUMPY\1\0\xff\xff",
        b"PK\3\4 no archive",
    ],
)
def test_damage_is_one_sentence(file, content):
    tracemalloc.start()
    try:
        error_of(read_npy, file(content))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    error_of(read_npz, file(content, "a.npz"))


def test_one_is_not_the_other(file, tmp_path):
    np.savez(tmp_path / "b.npz", x=ARRAY)
    assert "is not a readable file of arrays" in error_of(read_npy, tmp_path / "b.npz")
    assert "(a single array, not an archive)" in error_of(read_npz, file(saved(arr=ARRAY)))
    assert "is a Git LFS pointer" in error_of(read_npz, file(b"version https://git-lfs.github.com/spec/v1\n"))


def test_an_archive_that_grows(tmp_path):
    zeros = np.zeros((300, 2**20), np.uint8)
    np.savez_compressed(tmp_path / "b.npz", x=zeros)
    assert (tmp_path / "b.npz").stat().st_size < 2**20
    message = "it declares 314,572,928 bytes, and at most 268,435,456 are read from"
    tracemalloc.start()
    try:
        assert message in error_of(read_npz, tmp_path / "b.npz")
        assert message in error_of(read_state_dict, tmp_path / "b.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    np.savez_compressed(tmp_path / "b.npz", x=zeros[:100])
    assert read_npz(tmp_path / "b.npz")["x"].shape == (100, 2**20)


def test_random_damage_to_an_archive_raises_nothing_else(file, tmp_path):
    np.savez_compressed(tmp_path / "b.npz", x=ARRAY, y=ARRAY[0])
    whole, draw = (tmp_path / "b.npz").read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole[: draw.randrange(20, len(whole) + 1)])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        with contextlib.suppress(ValueError):
            read_npz(file(bytes(data), "c.npz"))
