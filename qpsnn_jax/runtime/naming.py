"""Objects by name, ``module:attribute`` or ``file.py:attribute``, for settings that refer to code."""

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class NotImportedError(ValueError):
    """A name in a file refers to code that has not been imported."""


# Objects named in this process. They are found again without importing their file, which may be the running program.
_named: dict[str, Any] = {}
# The variables of the files that have been run, by their paths.
_run: dict[str, dict[str, Any]] = {}


def find(name: str) -> Any:
    """The object that ``module:attribute`` or ``file.py:attribute`` names; the module is imported, so its code runs.

    Modules are searched in the working directory too.

    Raises:
        ValueError: the name has no colon, or there is no such module or attribute.
    """
    if name in _named:
        return _named[name]
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ValueError(f"{name!r} is not a name like MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE.")
    try:
        return _attributes(place)[attribute]
    except KeyError:
        raise ValueError(f"{name!r} cannot be found: {place} defines no {attribute}.") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name!r} cannot be found ({type(error).__name__}: {error}).") from None


def find_imported(name: str) -> Any:
    """The object of such a name, if its module is imported or its file has been run.

    Nothing is imported or run here, because the name may come from untrusted data.

    Raises:
        NotImportedError: it is not imported yet.
    """
    place, _, attribute = str(name).rpartition(":")
    known = vars(sys.modules[place]) if place in sys.modules else _run.get(place, {})
    if name in _named or attribute in known:
        return _named[name] if name in _named else known[attribute]
    raise NotImportedError(f"{name!r} is not imported; import its module first (qpsnn: --import MODULE).")


def import_code(place: str) -> None:
    """Import a module, also from the working directory, or run a file ``FILE.py``, once.

    Raises:
        ValueError: there is no such module or file, or it fails.
    """
    try:
        _attributes(place)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{place!r} cannot be imported ({type(error).__name__}: {error}).") from None


def absolute(name: str) -> str:
    """``FILE.py:attribute`` with the absolute path of the file; other names unchanged."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else name


def without_folder(name: str) -> str:
    """``FILE.py:attribute`` with the name of the file alone; other names unchanged."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).name}:{attribute}" if place.endswith(".py") else name


def name_of(value: Callable[..., Any]) -> str:
    """The name by which :func:`find` finds a function or class, in this process and in later ones.

    Raises:
        ValueError: it is not defined at the top level of a module or file.
    """
    attribute = getattr(value, "__qualname__", "")
    module = getattr(value, "__module__", None)
    if not module or not attribute.isidentifier():
        raise ValueError(f"{value!r} cannot be imported by name; define it at the top level of a module or file.")
    # A file that is run as a program or as a configuration cannot be imported as a module.
    file = getattr(value, "__globals__", {}).get("__file__") if module in ("__main__", "<run_path>") else None
    name = f"{Path(file).resolve() if file else module}:{attribute}"
    _named[name] = value
    return name


@contextmanager
def search_path(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, modules in ``folder`` can be imported."""
    sys.path.insert(0, os.fspath(folder))
    try:
        yield
    finally:
        sys.path.remove(os.fspath(folder))


def _attributes(place: str) -> dict[str, Any]:
    if place.endswith(".py"):
        path = Path(place).resolve()
        if str(path) not in _run:
            with search_path(path.parent):
                _run[str(path)] = runpy.run_path(str(path))
        return _run[str(path)]
    with search_path(Path.cwd()):
        return vars(importlib.import_module(place))
