"""Records of settings: every field is checked, and every error names it."""

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from qpsnn_jax.runtime.settings import (
    FrozenMapping,
    as_dict,
    check,
    from_dict,
    no_setting,
    parse,
    setting,
    settings,
    takes,
)


@dataclass(frozen=True)
class Part:
    count: int = setting(1, "how many", least=1, most=9)
    share: float = setting(0.5, "how much", above=0, below=1)
    limit: float | None = setting(None, "at most", above=0)
    on: bool = setting(False, "whether")
    kind: Literal["a", "b"] = setting("a", "which")
    text: str | None = setting(None, "a path")
    shares: Mapping[str, float] = setting(FrozenMapping(), "by name", least=0, below=1)
    door: str | Callable = setting("known", "which", names=("known", "other"))

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Whole:
    first: Part = field(default_factory=Part)
    second: Part = field(default_factory=lambda: Part(count=2))


FIELDS = {field.name: field for field in settings(Part())}
TAKES = {
    "count": "an integer from 1 to 9",
    "share": "a number above 0 and below 1",
    "limit": "a number above 0, or none",
    "on": "true or false",
    "kind": "one of a, b",
    "text": "text, or none",
    "shares": "numbers by name, such as stem=0.1,middle=0.6, each at least 0 and below 1",
    "door": "one of known, other, or MODULE:NAME",
}
WRONG = {
    "count": [0, 10, 1.0, "1", True, None, 10**400],
    "share": [0, 1, "0.5", None, True, float("nan"), float("inf"), 10**400],
    "limit": [0, -1, "1"],
    "on": [1, "yes", None],
    "kind": ["c", None, 1],
    "text": [3],
    "shares": [0.5, "middle=0.5", {"middle": "0.5"}, {"middle": 1.0}, {"stem": -0.1}, {"stem": True}, None],
    "door": ["unknown", None, 3],
}


@pytest.mark.parametrize("name", TAKES)
def test_what_a_field_takes_is_said(name):
    assert takes(FIELDS[name]) == TAKES[name]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_wrong_value_raises_in_one_sentence(name, value):
    with pytest.raises(ValueError) as caught:
        Part(**{name: value})
    assert str(caught.value).startswith(f"{name} must be {TAKES[name]}, got ")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_values_are_brought_to_their_types():
    part = Part(share=0.25, limit=3, shares={"b": 0, "a": 0.5}, text=Path("some") / "where", door=os.path.join)
    assert (type(part.limit), type(part.shares["b"])) == (float, float)
    assert part.text == os.path.join("some", "where")
    assert part.door == f"{os.path.__name__}:join"
    assert Part(door="own.py:f").door == f"{Path.cwd() / 'own.py'}:f"  # so that it is found from any directory
    with pytest.raises(ValueError, match="door must be a function that can be imported by name: <function"):
        Part(door=lambda: 0)


def test_equal_records_hash_alike_and_are_pickled():
    one, two = Part(shares={"a": 0.5, "b": 0.25}), Part(shares={"b": 0.25, "a": 0.5})
    assert one == two
    assert hash(one) == hash(two)
    assert one != Part(shares={"a": 0.5})
    assert pickle.loads(pickle.dumps(one)) == two
    assert Part().shares == {}


def test_plain_values_there_and_back():
    whole = Whole(Part(shares={"a": 0.5}), Part(count=3, limit=1.0))
    values = as_dict(whole)
    assert values["first"]["shares"] == {"a": 0.5}
    assert type(values["first"]["shares"]) is dict
    assert from_dict(Whole, values) == whole
    assert from_dict(Whole, {"second": {"kind": "b"}}).second == Part(count=2, kind="b")  # its own default stays
    assert [setting.name for setting in settings(whole)][:2] == ["first.count", "first.share"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first": {"count": 0}}, "first.count must be an integer from 1 to 9, got 0."),
        ({"second": {"kount": 1}}, "there is no setting second.kount; did you mean second.count?"),
        ({"third": {}}, "there is no setting third."),
        ({"first": 3}, "first must be an object of settings, got 3."),
        ([], "a config must be an object of settings, got []."),
    ],
)
def test_wrong_plain_values_raise_by_their_whole_name(values, message):
    with pytest.raises(ValueError) as caught:
        from_dict(Whole, values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("share", "1e-3", 1e-3),
        ("limit", "none", None),
        ("limit", "None", None),
        ("limit", "2", 2.0),
        ("on", "True", True),
        ("on", "false", False),
        ("kind", "b", "b"),
        ("text", "some/where", "some/where"),
        ("text", "none", None),
        ("shares", "stem=0.1, middle=0.6", {"stem": 0.1, "middle": 0.6}),
        ("shares", "", {}),
        # Invalid text is left to the check, which names the field.
        ("count", "many", "many"),
        ("count", "1.5", "1.5"),
        ("count", "none", "none"),
        ("on", "yes", "yes"),
        ("shares", "0.5", "0.5"),
        ("shares", "stem=0.1=0.2", "stem=0.1=0.2"),
    ],
)
def test_text_is_parsed_by_type(name, text, value):
    found = parse(FIELDS[name], text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("epochs", "; did you mean --train.epochs or --finetune.epochs?"),
        ("epoch", "; did you mean --train.epochs or --finetune.epochs?"),
        ("train.epoch", "; did you mean --train.epochs?"),
        ("zzz", "."),
    ],
)
def test_a_name_is_guessed(name, meant):
    known = ["train.epochs", "finetune.epochs", "run.seed"]
    assert no_setting(name, known, mark="--") == f"there is no setting --{name}{meant}"
