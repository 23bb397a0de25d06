"""Objects by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpsnn_jax.runtime.naming import find, find_imported, name_of


def test_a_module_and_a_file_are_found(tmp_path, monkeypatch):
    (tmp_path / "helper_of_a_file.py").write_text("value = 3\n")
    (tmp_path / "nets.py").write_text("from helper_of_a_file import value\ndef net(): return value\n")
    assert find("os.path:join") is os.path.join
    assert find(f"{tmp_path / 'nets.py'}:net")() == 3
    monkeypatch.chdir(tmp_path)
    assert find("nets:net")() == 3
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "'resnet21' is not a name like MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE."),
        (":net", "is not a name like"),
        ("os:", "is not a name like"),
        ("no_such_module:net", "'no_such_module:net' cannot be found (ModuleNotFoundError: No module named"),
        ("absent.py:net", "cannot be found (FileNotFoundError:"),
        ("os:nothing", "'os:nothing' cannot be found: os defines no nothing."),
    ],
)
def test_what_cannot_be_found_is_named(name, message):
    with pytest.raises(ValueError) as caught:
        find(name)
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_a_function_has_the_name_it_is_found_by():
    assert name_of(os.path.join) == f"{os.path.__name__}:join"
    assert find(name_of(Path)) is Path


def test_a_function_of_a_program_is_found_in_its_file_by_others(tmp_path):
    (tmp_path / "program.py").write_text(
        "from qpsnn_jax.runtime.naming import find, name_of\n"
        "def net(): return 5\n"
        "if __name__ == '__main__':\n"
        "    print(name_of(net)); assert find(name_of(net)) is net\n"
    )
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    name = ran.stdout.strip()
    assert name == f"{tmp_path / 'program.py'}:net"
    assert find(name)() == 5


@pytest.mark.parametrize("value", [lambda: 0, (lambda: lambda: 0)(), Path.exists])
def test_what_has_no_name_of_its_own_raises(value):
    with pytest.raises(ValueError, match="cannot be imported by name; define it at the top level"):
        name_of(value)


def test_data_find_what_is_known_and_run_nothing(tmp_path):
    assert find_imported("os.path:join") is os.path.join
    path = tmp_path / "late.py"
    path.write_text("def net(): return 7\n")
    with pytest.raises(ValueError, match="is not imported; import its module first"):
        find_imported(f"{path}:net")
    assert find(f"{path}:net") is find_imported(f"{path}:net")
