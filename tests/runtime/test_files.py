"""A file is written whole or not at all."""

import errno
import os
import resource

import pytest

from qpsnn_jax.runtime.files import naming, write_atomically, write_together


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    write_atomically(str(path), b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.json": b"new"}


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.json": b"old"}


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write and fsync do: without a name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.json": b"old"}


def test_a_file_beyond_the_limit_is_not_left_half_written(tmp_path):
    """A real error of the operating system in the midst of writing."""
    path = tmp_path / "large"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_atomically(path, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error"), [(".", IsADirectoryError), ("absent/a", FileNotFoundError), ("a/b", NotADirectoryError)]
)
def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch, name, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(error) as caught:
        write_atomically(name, b"new")
    assert caught.value.filename == name
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


def test_of_several_files_all_are_written_or_none(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_together({tmp_path / "a": b"new", tmp_path / "folder": b"new"})
    assert caught.value.filename == str(tmp_path / "folder")
    assert ((tmp_path / "a").read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 2)
    write_together({tmp_path / "a": b"new", tmp_path / "b": b"newer"})
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"new", b"newer")


def test_naming_keeps_the_kind_of_an_error():
    with pytest.raises(PermissionError) as caught, naming("b"):
        raise PermissionError(errno.EACCES, "no", "a")
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (errno.EACCES, "no", "b")
