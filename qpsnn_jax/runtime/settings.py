"""Records of settings: what each field means and takes, checked where a record is made.

A record is a frozen dataclass whose fields are made by :func:`setting` and whose ``__post_init__`` calls :func:`check`.
The command line, JSON and Python files are readings of the same fields.
"""

import dataclasses
import difflib
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from qpsnn_jax.runtime.naming import name_of

T = TypeVar("T")
Record = TypeVar("Record")


class FrozenMapping(Mapping[str, float]):
    """Numbers by name that never change, so that they can be hashed; equal to every mapping with the same items."""

    def __init__(self, items: Mapping[str, float] | Iterable[tuple[str, float]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> float:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


class Setting(NamedTuple):
    """A field of a record: its dotted name, its type, one line of help, its bounds, known names, and its value."""

    name: str
    hint: Any
    help: str
    bounds: Mapping[str, float]
    names: tuple[str, ...]
    value: Any


def setting(
    default: T,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    names: Iterable[str] = (),
) -> T:
    """A field of a record of settings.

    Args:
        default: its value when left out.
        help: one line that says what it means.
        least, most, above, below: bounds of a number, or of every number in a mapping.
        names: the known names of a field that also takes ``module:attribute``.
    """
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    given = {word: bound for word, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": given, "names": tuple(names)})


def settings(record: Any, prefix: str = "") -> Iterator[Setting]:
    """The fields of a record, and of the records that it is composed of, with their values.

    Args:
        record: an instance.
        prefix: stands before every name.
    """
    for field in dataclasses.fields(record):
        name, value = f"{prefix}{field.name}", getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{name}.")
        else:
            yield _setting(type(record), field, name, value)


def check(record: Any) -> None:
    """Bring the fields of a new record to their types.

    Numbers become ``int`` and ``float``, mappings are frozen, functions become their names.

    Raises:
        ValueError: a value of another type or out of its bounds, naming the field and what it takes.
    """
    for field in dataclasses.fields(record):
        own = _setting(type(record), field, field.name, getattr(record, field.name))
        object.__setattr__(record, field.name, _checked(own))


def takes(field: Setting) -> str:
    """What a field takes, in words: ``an integer at least 1, or none``."""
    kind, optional = _kind(field.hint)
    bounds = " and ".join(f"{word} {bound}" for word, bound in field.bounds.items())
    if field.bounds.keys() == {"at least", "at most"}:
        bounds = f"from {field.bounds['at least']} to {field.bounds['at most']}"
    words = f"{_describe(kind, field.names)} {bounds}".rstrip()
    return f"{words}, or none" if optional else words


def parse(field: Setting, text: str) -> Any:
    """The value that a text on the command line means; text that means none is returned as it is, for :func:`check`."""
    kind, optional = _kind(field.hint)
    if optional and text.lower() == "none":
        return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is Mapping:
            pairs = (item.split("=") for item in text.split(",") if item)
            return {name.strip(): float(value) for name, value in pairs}
    except (ValueError, KeyError):
        pass
    return text


def as_dict(record: Any) -> dict[str, Any]:
    """A record as plain values for JSON, nested as it is composed."""
    values = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))
    return {name: _plain(value) for name, value in values}


def from_dict(record: type[Record], values: Any, prefix: str = "") -> Record:
    """A record from plain values; what is left out has its default.

    Raises:
        ValueError: an unknown field or a wrong value, naming it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'settings'} must be an object of settings, got {_short(values)}.")
    defaults = record()
    known = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}  # pyright: ignore
    if unknown := [name for name in values if name not in known]:
        raise ValueError(no_setting(f"{prefix}{unknown[0]}", [f"{prefix}{name}" for name in known]))
    composed = {
        name: from_dict(type(known[name]), value, f"{prefix}{name}.")
        if dataclasses.is_dataclass(known[name])
        else value
        for name, value in values.items()
    }
    try:
        return record(**composed)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def no_setting(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that no setting has, with those that were probably meant."""
    known = list(known)
    near = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = near or difflib.get_close_matches(name, known, n=1) or _near_last_words(name, known)
    return f"there is no setting {name}" + (f"; did you mean {' or '.join(near)}?" if near else ".")


def _near_last_words(name: str, known: list[str]) -> list[str]:
    words = {other.rpartition(".")[2] for other in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], words, n=1)
    return [other for other in known if other.rpartition(".")[2] in near]


def _setting(record: type, field: dataclasses.Field, name: str, value: Any) -> Setting:
    about = field.metadata
    return Setting(name, _hints(record)[field.name], about["help"], about["bounds"], about["names"], value)


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of a field without None and functions, and whether it may be None."""
    kinds = get_args(hint) if get_origin(hint) is not Literal and get_args(hint) else (hint,)
    if get_origin(hint) is Mapping:
        kinds = (hint,)
    kept = next(kind for kind in kinds if kind is not NoneType and get_origin(kind) is not Callable)
    return get_origin(kept) if get_origin(kept) is Mapping else kept, NoneType in kinds


def _checked(field: Setting) -> Any:
    kind, optional = _kind(field.hint)
    value = field.value
    if value is None and optional:
        return None
    if callable(value) and field.names:
        return name_of(value)
    try:
        return _converted(kind, field, value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{field.name} must be {takes(field)}, got {_short(value)}.") from None


def _converted(kind: Any, field: Setting, value: Any) -> Any:
    if kind is Mapping:
        return FrozenMapping({str(name): _number(float, field, number) for name, number in value.items()})
    if kind in (int, float):
        return _number(kind, field, value)
    if get_origin(kind) is Literal:
        held = isinstance(value, str) and value in get_args(kind)
    elif field.names:
        held = isinstance(value, str) and (value in field.names or ":" in value)
    else:
        held = isinstance(value, kind)
    if not held:
        raise ValueError
    return value


def _number(kind: type, field: Setting, value: Any) -> Any:
    if isinstance(value, bool | str):
        raise TypeError
    number = operator.index(value) if kind is int else float(value)
    bounds = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}
    if not math.isfinite(number) or not all(bounds[word](number, bound) for word, bound in field.bounds.items()):
        raise ValueError
    return number


def _describe(kind: Any, names: tuple[str, ...]) -> str:
    if names:
        return f"one of {', '.join(names)}, or MODULE:NAME"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    return {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        Mapping: "numbers by name, such as stem=0.1,middle=0.6, each",
    }[kind]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _short(value: Any) -> str:
    return reprlib.repr(value)
