"""Records of settings, whose fields have one line of help and bounds, and are checked when a record is created.

A record is a frozen dataclass with fields made by :func:`setting`, whose ``__post_init__`` calls :func:`check`. The
command line, JSON and Python files all derive from these fields.
"""

import dataclasses
import difflib
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from qpsnn_jax.runtime.naming import absolute, name_of

T = TypeVar("T")
Record = TypeVar("Record")


class FrozenMapping(Mapping[str, float]):
    """An immutable, hashable mapping from names to numbers, equal to any mapping with the same items."""

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
    """A field of a record: dotted name, type, one line of help, bounds, known names, other names in words, value."""

    name: str
    hint: Any
    help: str
    bounds: Mapping[str, float]
    names: tuple[str, ...]
    others: str
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
    others: str = "",
) -> T:
    """A field of a record of settings.

    Args:
        default: its default value.
        help: one line that says what it means.
        least, most, above, below: bounds of a number, or of every number in a mapping.
        names: the known names, of a field that also accepts ``module:attribute``.
        others: which other names it accepts, in words; none by default.
    """
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    given = {word: bound for word, bound in bounds.items() if bound is not None}
    metadata = {"help": help, "bounds": given, "names": tuple(names), "others": others}
    return dataclasses.field(default=default, metadata=metadata)


def settings(record: Any, prefix: str = "") -> Iterator[Setting]:
    """The fields of a record and of the records within it, with their values.

    Args:
        record: an instance.
        prefix: prepended to every name.
    """
    for field in dataclasses.fields(record):
        name, value = f"{prefix}{field.name}", getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{name}.")
        else:
            yield _setting(type(record), field, name, value)


def kind_of(field: Setting) -> Any:
    """The type of a field apart from None and functions: a class, ``Mapping`` or a ``Literal``."""
    kinds = (Mapping if get_origin(kind) is Mapping else kind for kind in _kinds(field.hint))
    return next(kind for kind in kinds if kind is not NoneType and get_origin(kind) is not Callable)


def is_optional(field: Setting) -> bool:
    """Whether a field may be None."""
    return NoneType in _kinds(field.hint)


def check(record: Any) -> None:
    """Check the fields of a new record and convert them to their types.

    Numbers become ``int`` or ``float``, mappings are frozen, functions become their names.

    Raises:
        ValueError: a value has the wrong type or is out of bounds; the message names the field and its valid values.
    """
    for field in dataclasses.fields(record):
        own = _setting(type(record), field, field.name, getattr(record, field.name))
        object.__setattr__(record, field.name, _checked(own))


def takes(field: Setting) -> str:
    """The valid values of a field in words, such as ``an integer at least 1, or none``."""
    bounds = " and ".join(f"{word} {bound}" for word, bound in field.bounds.items())
    if field.bounds.keys() == {"at least", "at most"}:
        bounds = f"from {field.bounds['at least']} to {field.bounds['at most']}"
    words = f"{_describe(field)} {bounds}".rstrip()
    return f"{words}, or none" if is_optional(field) else words


def known_names(field: Setting) -> str:
    """The names that a field takes, in words."""
    return ", ".join((*field.names, *([field.others] if field.others else []), "or MODULE:NAME"))


def parse(field: Setting, text: str) -> Any:
    """The value of a text on the command line. Invalid text is returned unchanged, and :func:`check` raises."""
    if is_optional(field) and text.lower() == "none":
        return None
    kind = kind_of(field)
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
    """A record as plain values for JSON; records within it become nested dictionaries."""
    values = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))
    return {name: _plain(value) for name, value in values}


def from_dict(record: type[Record], values: Any) -> Record:
    """A record from plain values; missing fields have their defaults.

    Raises:
        ValueError: a field is unknown or its value is invalid; the message names it.
    """
    return updated(record(), values)


def updated(record: Record, values: Any, prefix: str = "") -> Record:
    """A record with some of its fields replaced.

    Args:
        record: with the values of all other fields.
        values: the new values by name, nested as in :func:`as_dict`.
        prefix: prepended to every name in messages.

    Raises:
        ValueError: a field is unknown or its value is invalid; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'a config'} must be an object of settings, got {_short(values)}.")
    fields: Any = record
    known = {field.name: getattr(record, field.name) for field in dataclasses.fields(fields)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(no_setting(f"{prefix}{unknown[0]}", [f"{prefix}{name}" for name in known]))
    new = {
        name: updated(known[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(known[name]) else value
        for name, value in values.items()
    }
    try:
        return dataclasses.replace(fields, **new)
    except ValueError as error:
        if any(dataclasses.is_dataclass(value) for value in known.values()):
            raise
        raise ValueError(f"{prefix}{error}") from None


def no_setting(name: str, known: Iterable[str], *, mark: str = "") -> str:
    """The error message for an unknown setting, with the closest known names, each after ``mark``."""
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for other in known:
        by_last.setdefault(other.rpartition(".")[2], []).append(other)
    whole = [other for others in by_last.values() for other in others]
    near = difflib.get_close_matches(name, whole, n=1) if "." in name else []
    for close in difflib.get_close_matches(last, by_last, n=1):
        near = near or by_last[close]
    meant = " or ".join(mark + other for other in near)
    return f"there is no setting {mark}{name}" + (f"; did you mean {meant}?" if near else ".")


def _setting(record: type, field: dataclasses.Field, name: str, value: Any) -> Setting:
    hint = _hints(record)[field.name]
    return Setting(name, hint, **field.metadata, value=value)


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a field, including None."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _checked(field: Setting) -> Any:
    value = field.value
    if value is None and is_optional(field):
        return None
    if callable(value) and field.names:
        try:
            return name_of(value)
        except ValueError as error:
            raise ValueError(f"{field.name} must be a function that can be imported by name: {error}") from None
    try:
        return _converted(kind_of(field), field, value)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{field.name} must be {takes(field)}, got {_short(value)}.") from None


def _converted(kind: Any, field: Setting, value: Any) -> Any:
    if kind is str and isinstance(value, PathLike):
        return fspath(value)
    if kind is Mapping:
        return FrozenMapping({str(name): _number(float, field, number) for name, number in value.items()})
    if kind in (int, float):
        return _number(kind, field, value)
    if get_origin(kind) is Literal:
        held = isinstance(value, str) and value in get_args(kind)
    elif field.names:
        held = isinstance(value, str) and (value in field.names or ":" in value or bool(field.others and value))
    else:
        held = isinstance(value, kind)
    if not held:
        raise ValueError
    return absolute(value) if field.names else value


def _number(kind: type, field: Setting, value: Any) -> Any:
    if isinstance(value, bool | str):
        raise TypeError
    number = operator.index(value) if kind is int else float(value)
    bounds = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}
    if not math.isfinite(number) or not all(bounds[word](number, bound) for word, bound in field.bounds.items()):
        raise ValueError
    return number


def _describe(field: Setting) -> str:
    kind = kind_of(field)
    if field.names:
        return f"one of {known_names(field)}"
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
