"""The plan of what is worth having: each arm is checked, and differs from the plain one as the page says."""

from pathlib import Path

from experiments.claims.units import steps_of
from experiments.worth import plan as module
from experiments.worth.plan import QUESTIONS, plan
from qpsnn_jax.data import load
from qpsnn_jax.runs.config import check_config
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runtime.settings import settings


def steps(unit):
    return sum(steps_of(unit).values())


def test_the_plan_goes_together():
    units = plan()
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names)
    for place, one in enumerate(units):
        assert one.base is None or one.base.name in names[:place]
        # The test images show what came out of the choice, and have no part in it.
        assert one.test == ("digits" if one.question == "preset" else None)
    for config in {unit.arm: unit.config for unit in units}.values():
        check_config(config)
    seeds = {question: {one.seed for one in units if one.question == question} for question in QUESTIONS}
    assert seeds == {"digits": set(range(5)), "cifar10": set(range(3)), "preset": set(range(10))}
    assert all(arm in {one.arm for one in units if one.question == name} for name, arm in QUESTIONS.items())


def test_an_arm_differs_in_one_thing_and_sees_as_many_images():
    units = {one.arm: one for one in plan() if (one.question, one.seed) == ("digits", 0)}
    plain = {field.name: field.value for field in settings(units["plain"].config)}
    page = (Path(module.__file__).parents[1] / "worth.md").read_text(encoding="utf-8")
    for arm, one in units.items():
        changed = {field.name for field in settings(one.config) if field.value != plain[field.name]}
        assert len(changed) <= 3
        if one.kind == "finetune":
            assert f"| `{arm}` |" in page
            assert one.base is not None
            assert steps(one) + steps(one.base) == steps(units["dense"]) + steps(units["plain"])
    assert steps(units["scratch"]) == steps(units["dense"]) + steps(units["plain"])
    assert units["budget"].config.prune.budget == units["ternary"].config.prune.budget


def test_the_presets_run_as_they_are_but_for_their_seed():
    units = [one for one in plan() if one.question == "preset"]
    for one in units:
        usual = {field.name: field.value for field in settings(PRESETS[one.arm].config)}
        changed = {field.name for field in settings(one.config) if field.value != usual[field.name]}
        assert changed <= {"data.train_examples", "run.seed"}
    data = load("digits")
    assert {one.config.data.train_examples for one in units} == {len(data.train.labels)}


def test_the_held_out_digits_are_a_fifth():
    data = load(module.DIGITS, seed=3, train_examples=1150)
    assert (len(data.train.labels), len(data.test.labels), data.evaluated) == (1150, 287, "held-out")
