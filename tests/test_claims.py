"""The runner of the claims on the digits: units that are done, resumed, shared and tabulated; the plan itself."""

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from pages import ROOT
from scipy import stats
from small_networks import images_of, random_variables

from experiments.claims import __main__ as runner
from experiments.claims import kinds, sections, tables, verdicts
from experiments.claims.criteria import bn_scale, firing_rate
from experiments.claims.data import held_out
from experiments.claims.kinds import do
from experiments.claims.plan import QUESTIONS, plan
from experiments.claims.results import is_done
from experiments.claims.units import Unit, steps_of
from qpsnn_jax import (
    Config,
    DataSettings,
    Graph,
    NetworkSettings,
    Pruning,
    RunSettings,
    SpikingNetwork,
    Training,
    cost,
    load_network,
    load_packed,
    pretrained,
    score,
)
from qpsnn_jax.data import load
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, GlobalAveragePool, Input
from qpsnn_jax.runs.config import build_graph, check_config
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runtime.stopping import Terminated, termination

DIGITS = held_out("digits", 360)


def unit(arm, kind="train", base=None, *, epochs=1, bits=2, timesteps=1, **pruning):
    train = Training(epochs=epochs, batch_size=32, optimizer="adam", learning_rate=0.01)
    config = Config(
        NetworkSettings("small_runs:tiny", timesteps=timesteps, bits=bits, ste="plain"),
        DataSettings(f"{__name__}:DIGITS", train_examples=64),
        train,
        Pruning(score_batches=1, score_batch_size=32, **pruning),
        dataclasses.replace(train, epochs=int(kind == "continue")),
        RunSettings(checkpoint_epochs=1),
    )
    return Unit("small", arm, "64", config, kind, base, "digits", integer=kind == "finetune")


DENSE = unit("dense")
PRUNED = unit("svs", "finetune", DENSE, ratios={"middle": 0.5}, recalibrate="never")
SCRATCH = unit("scratch", "scratch", PRUNED, epochs=0, ratios={"middle": 0.5})
LONGER = unit("longer", "continue", PRUNED, timesteps=2)
FLOAT = unit("float", epochs=0, bits=None)
LATER = unit("later", "quantize", FLOAT, ratios={"middle": 0.5}, recalibrate="always")
MIXED = unit("mixed", "mixed", DENSE, epochs=0, ratios={"middle": 0.5}, recalibrate="never")
UNITS = [DENSE, PRUNED, SCRATCH, LONGER, FLOAT, LATER, MIXED]


def unexpected(*_):
    raise AssertionError("nothing is left to do")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("claims")
    assert runner.work(UNITS, root / "runs", root / "results", None, None) == 0
    return root


def result(root, unit):
    return json.loads((root / "results" / f"{unit.name}.json").read_bytes())


def test_held_out_images_are_training_images_that_are_not_trained_on():
    whole = load("digits", seed=0)
    data = load(DIGITS, seed=5, train_examples=700)
    np.testing.assert_array_equal(data.test.images, whole.train.images[:360])
    np.testing.assert_array_equal(data.train.images, whole.train.images[360:1060])
    assert np.bincount(data.test.labels).min() >= 34
    few = load(DIGITS, train_examples=10, test_examples=20)
    np.testing.assert_array_equal(few.train.labels, data.train.labels[:10])
    np.testing.assert_array_equal(few.test.labels, data.test.labels[:20])
    with pytest.raises(ValueError, match="test_examples must be an integer from 1 to 360"):
        load(DIGITS, test_examples=361)


def test_every_unit_has_one_small_result(done):
    assert {path.name for path in (done / "results").iterdir()} == {f"{unit.name}.json" for unit in UNITS}
    for one in UNITS:
        found = result(done, one)
        assert (found["question"], found["arm"], found["seed"], found["recipe"]) == ("small", one.arm, 0, "64")
        assert found["test_images"] == 360
        assert len(json.dumps(found)) < 5000
    bits = {one.arm: load_network(done / "runs" / one.name)[0].by_name["conv2"].quantizer for one in UNITS}
    assert bits["float"] is None
    assert all(bits[one.arm].bits == 2 for one in (DENSE, PRUNED, SCRATCH, LONGER, LATER))
    widths = {one.arm: load_network(done / "runs" / one.name)[0].by_name["conv2"].features for one in UNITS}
    assert widths == {"dense": 6, "svs": 3, "scratch": 3, "longer": 3, "float": 6, "later": 3, "mixed": 3}
    # Its only quantized layer gets as many bytes as it had.
    assert bits["mixed"].bits <= 2


def test_from_scratch_with_the_widths_of_a_released_network(done, tmp_path, monkeypatch):
    asked, (narrow, _) = [], load_network(done / "runs" / PRUNED.name)
    monkeypatch.setattr(kinds, "pretrained", lambda name: asked.append(name) or (narrow, {}))
    released = unit("released", "released", epochs=0)
    assert runner.work([released], tmp_path / "runs", tmp_path / "results", None, None) == 0
    assert asked == ["cifar10-98kb"]
    assert load_network(tmp_path / "runs" / released.name)[0] == narrow


def test_the_released_widths_are_those_of_the_headline(planned):
    (first,) = (one for one in planned if one.name == "headline.98kB-scratch.s0.45k-16e")
    whole, (released, _) = build_graph(first.config), pretrained("cifar10-98kb")
    graph = kinds.with_channels_of(whole, released)
    stored = json.loads(
        (Path(runner.__file__).parents[1] / "results/claims/headline.98kB.s0.45k-16e.json").read_bytes()
    )
    assert cost(graph).params == stored["params"]
    assert cost(graph).size_bytes == stored["weight_bytes"]
    for node in graph.nodes:
        assert getattr(node, "quantizer", None) == getattr(whole.by_name[node.name], "quantizer", None)


def test_a_network_is_trained_on_with_more_time_steps(done):
    (before, old), (after, new) = (load_network(done / "runs" / one.name / "finetuned") for one in (PRUNED, LONGER))
    assert after == dataclasses.replace(before, timesteps=2)
    change = float(jnp.abs(new["params"]["conv1"]["kernel"] - old["params"]["conv1"]["kernel"]).max())
    # Two steps of Adam at a learning rate of 0.01, from the trained weights and not from fresh ones.
    assert 0 < change < 0.03


def test_a_network_is_recalibrated_before_it_is_quantized(done):
    """As in the other order, where batch-norm is recalibrated too; no epoch of fine-tuning comes after it here."""
    names = ("pruned", "recalibrated", "finetuned")
    found = {name: load_network(done / "runs" / LATER.name / name)[1]["batch_stats"] for name in names}
    for moments in ("mean", "var"):
        pruned, recalibrated, finetuned = (np.asarray(found[name]["bn2"][moments]) for name in names)
        assert not np.allclose(pruned, recalibrated)
        np.testing.assert_array_equal(finetuned, recalibrated)


def test_the_seconds_of_a_result_are_those_of_all_rounds(tmp_path):
    rounds = unit("rounds", "run", ratios={"middle": 0.5}, rounds=2)
    config = dataclasses.replace(rounds.config, finetune=dataclasses.replace(rounds.config.finetune, epochs=2))
    own = dataclasses.replace(rounds, config=config)
    do(own, tmp_path / "runs", tmp_path / "results", None, lambda: None)
    directory = tmp_path / "runs" / own.name
    (first, *others), last = (list(place.glob("*/stage.json")) for place in (directory / "rounds" / "1", directory))
    taken = [json.loads(path.read_bytes())["stage"]["seconds"] for path in (first, *others, *last)]
    assert len(taken) > len(last) > 0
    assert result(tmp_path, own)["seconds"] == pytest.approx(sum(taken))


def test_a_result_is_that_of_the_test_images_at_the_end(done):
    found, data = result(done, PRUNED), load("digits")
    graph, variables = load_network(done / "runs" / PRUNED.name)
    images = (data.test.images / 255 - np.asarray(data.mean)) / np.asarray(data.std)
    logits = jax.jit(SpikingNetwork(graph).apply)(variables, jnp.asarray(images, jnp.float32)).currents.mean(1)
    right = float((np.asarray(logits).argmax(1) == data.test.labels).mean())
    assert found["test_accuracy"] == pytest.approx(right, abs=2 / 360)
    assert found["integer_accuracy"] == pytest.approx(right, abs=2 / 360)
    assert found["held_out_accuracy"].keys() == {"pruned", "finetuned"}
    path = done / "runs" / PRUNED.name / "network.qpsnn"
    assert found["file_bytes"] == path.stat().st_size
    assert load_packed(path).notes["unit"] == PRUNED.name
    assert result(done, FLOAT)["file_bytes"] is None


def test_what_is_done_is_not_done_again(done, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "do", unexpected)
    assert runner.work(UNITS, done / "runs", done / "results", None, None) == 0
    other = dataclasses.replace(DENSE.config, network=dataclasses.replace(DENSE.config.network, bits=4))
    with pytest.raises(ValueError, match=f"{DENSE.name}.json is the result of other settings than the plan's"):
        is_done(dataclasses.replace(DENSE, config=other), done / "results")
    # A result from before there was a setting: it had the default.
    older = json.loads((done / "results" / f"{DENSE.name}.json").read_bytes())
    del older["config"]["prune"]["rounds"]
    (tmp_path / f"{DENSE.name}.json").write_text(json.dumps(older))
    assert is_done(DENSE, tmp_path)


def test_a_result_from_elsewhere_is_not_read_again_when_its_network_is_needed(done, tmp_path, monkeypatch):
    """Another machine did FLOAT; its network is trained here again, for LATER, without reading the test images."""
    (tmp_path / f"{FLOAT.name}.json").write_bytes((done / "results" / f"{FLOAT.name}.json").read_bytes())
    tested = []

    def result_of(unit, *_):
        tested.append(unit.arm)
        return {"name": unit.name, "config": {}}

    monkeypatch.setattr("experiments.claims.kinds.result_of", result_of)
    do(LATER, tmp_path / "runs", tmp_path, None, lambda: None)
    assert tested == ["later"]


def test_units_that_are_the_same_training_are_trained_once(done, tmp_path, monkeypatch):
    root = tmp_path / "claims"
    shutil.copytree(done, root)
    monkeypatch.setattr(runner, "do", unexpected)
    again = dataclasses.replace(PRUNED, question="other", arm="plain")
    assert runner.work([again], root / "runs", root / "results", None, None) == 0
    own = {"name": again.name, "question": "other", "arm": "plain", "trained_as": PRUNED.name}
    assert result(root, again) == result(root, PRUNED) | own


@pytest.mark.parametrize("case", ["other settings", "trained elsewhere"])
def test_a_unit_that_is_another_training_is_trained(done, tmp_path, monkeypatch, case):
    root, tried = tmp_path / "claims", []
    shutil.copytree(done, root)
    again = dataclasses.replace(PRUNED, arm="plain")
    if case == "other settings":
        again = dataclasses.replace(again, base=FLOAT)
    else:
        (root / "runs" / PRUNED.name / "done").unlink()
    monkeypatch.setattr(runner, "do", lambda unit, *_: tried.append(unit.arm))
    assert runner.work([again], root / "runs", root / "results", None, None) == 1
    assert tried == ["plain"]


def test_a_choice_reads_no_test_images(done, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.claims.results.load", unexpected)
    chosen = dataclasses.replace(FLOAT, test=None)
    do(chosen, tmp_path / "runs", tmp_path, None, lambda: None)
    found = json.loads((tmp_path / f"{chosen.name}.json").read_bytes())
    assert (found["test_accuracy"], found["test_images"]) == (None, 0)
    assert f"{100 * found['held_out_accuracy']['quantized']:.2f}" in tables.table("small", ["float"], "svs", [found])


@pytest.mark.parametrize("name", ["digits", f"{__name__}:DIGITS"])
def test_the_test_images_of_another_seed_are_its_own(tmp_path, name):
    """The split of the digits depends on the seed; with that of another, images that were trained on would be read."""
    base = unit("run", "run", epochs=3, ratios={"middle": 0.5})
    data = dataclasses.replace(base.config.data, name=name, train_examples=256)
    config = dataclasses.replace(base.config, data=data, run=dataclasses.replace(base.config.run, seed=3))
    own = dataclasses.replace(base, config=config)
    do(own, tmp_path / "runs", tmp_path / "results", None, lambda: None)
    found = result(tmp_path, own)
    graph, variables = load_network(tmp_path / "runs" / own.name / "finetuned")
    test = load("digits", seed=3)
    expected = evaluate(graph, variables, test.test, test).accuracy
    assert found["test_accuracy"] == pytest.approx(expected)
    assert bool(found["held_out_accuracy"]) == (name != "digits")
    assert expected != evaluate(graph, variables, load("digits").test, test).accuracy


def test_the_time_is_over(tmp_path, monkeypatch):
    with termination() as terminated, runner.deadline(1e-9):
        until = time.monotonic() + 10
        while not terminated() and time.monotonic() < until:
            time.sleep(0.01)
        assert terminated()

    def stopped(unit, runs, results, data_dir, check):
        raise Terminated

    monkeypatch.setattr(runner, "do", stopped)
    assert runner.work(UNITS, tmp_path, tmp_path, None, 1.0) == len(UNITS)


def test_a_training_that_diverges_does_not_hold_the_others_up(tmp_path, monkeypatch, capsys):
    tried = []

    def diverges(unit, *_):
        tried.append(unit.arm)
        raise FloatingPointError("the loss is nan at step 3.")

    monkeypatch.setattr(runner, "do", diverges)
    assert runner.work(UNITS, tmp_path, tmp_path, None, None) == len(UNITS)
    assert tried == [one.arm for one in UNITS]
    assert f"{DENSE.name}: the loss is nan at step 3." in capsys.readouterr().err


def test_a_stop_comes_before_the_next_training(tmp_path):
    def check():
        raise Terminated

    with pytest.raises(Terminated):
        do(DENSE, tmp_path / "runs", tmp_path / "results", None, check)
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def planned():
    return plan()


def test_machines_share_the_plan_by_what_starts_from_one_network(planned, monkeypatch):
    units = planned
    monkeypatch.setattr(runner, "plan", lambda: units)
    parts = [runner.shared(units, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(u.name for part in parts for u in part) == sorted(u.name for u in units)
    for part in parts:
        assert {u.base.name for u in part if u.base is not None} <= {u.name for u in part}
        assert len(part) < len(units) / 2
    for wrong in ("3/2", "0/2", "x", "1/"):
        assert CliRunner().invoke(runner.main, ["--list", "--share", wrong]).exit_code == 2


def test_the_plan_goes_together(planned):
    units = planned
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names)
    assert list(dict.fromkeys(unit.question for unit in units)) == list(QUESTIONS)
    for place, one in enumerate(units):
        assert one.base is None or (one.base.name in names[:place] and one.base == units[names.index(one.base.name)])
        assert one.config.data.name == "experiments.claims.data:CIFAR10"
        assert min(steps_of(one).values()) > 0
        assert one.test == "cifar10"
    seeds = {(one.question, one.arm): set() for one in units}
    for one in units:
        seeds[one.question, one.arm].add(one.seed)
    fewest = {"headline": {0, 1}}
    assert all(found == fewest.get(question, {0, 1, 2}) for (question, _), found in seeds.items())
    arms = {name: {one.arm for one in units if one.question == name} for name in QUESTIONS}
    for name, reference in QUESTIONS.items():
        alone = [arm for arm in arms[name] if tables.reference_of(arm, reference, arms[name]) is None]
        assert alone == (["float"] if name == "gamma" else [])
    for config in {(u.config.network, u.config.prune): u.config for u in units}.values():
        check_config(config)
    page = (Path(runner.__file__).parents[1] / "claims.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in (*QUESTIONS, *{one.recipe for one in units}))


def test_the_hours_of_the_plan_are_those_of_its_steps(planned, monkeypatch):
    def seconds(unit, timesteps, _):
        return timesteps * (1.0 if unit.config.network.bits else 0.5)

    monkeypatch.setattr(runner, "_seconds_of_a_step", seconds)
    units = [one for one in planned if one.question in ("headline", "gamma", "table3")]
    said = runner.hours_needed(units, None)
    # 5,000 images are 78 batches of 64: 10 epochs of 72 quantized networks and 3 in full precision, 5 of 6 networks.
    assert f"gamma: {(72 * 2 + 3) * 10 * 78 / 3600:.1f} hours" in said
    assert f"table3: {6 * 2 * 5 * 78 / 3600:.1f} hours" in said
    # 45,000 images are 703 batches: 2 dense networks, 11 epochs at T = 1 and 5 at T = 2; 6 pruned, 8 and 4; 6 from
    # scratch, 20 and 8; 2 for longer, 28, 11 and 1 at T = 4, 2 for still longer, 16, 14 and 4, and 2 from scratch, 48,
    # 18 and 2.
    longer = 2 * (28 + 22 + 4) + 2 * (16 + 28 + 16) + 2 * (48 + 36 + 8)
    assert f"headline: {(2 * (11 + 10) + 6 * (8 + 8) + 6 * (20 + 16) + longer) * 703 / 3600:.1f} hours" in said
    assert "float resnet20 of width 0.125, T = 2, batch 64: 1.0000 s a step" in said


def row(arm, seed, accuracy):
    other = {"held_out_accuracy": {"quantized": 0.5}, "file_bytes": 1000, "sops": 1e6, "energy_mj": 0.001}
    return {"question": "q", "arm": arm, "seed": seed, "test_accuracy": accuracy, **other}


def test_paired_differences_by_the_book():
    found = tables.difference({0: 3.0, 1: 4.0, 2: 8.0, 9: 100.0}, {0: 1.0, 1: 3.0, 2: 5.0})
    # Differences 2, 1, 3: mean 2, s = 1; t(0.975, 2) = 4.30265 from a printed table.
    assert (found.mean, found.pairs) == (2.0, 3)
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert tables.standard_error([2.0, 1.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(tables.difference({0: 1.0}, {0: 2.0}).half_width)
    with pytest.raises(ValueError, match="share no seed"):
        tables.difference({0: 1.0}, {1: 2.0})


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_the_detectable_difference_is_found_in_four_of_five_repetitions(pairs):
    """Of as many draws as there are pairs, with the standard deviation of the values."""
    values = np.linspace(-1, 1, pairs)
    found = tables.contrast([(1, dict(enumerate(values.tolist())))])
    draws = np.random.default_rng(0).normal(found.detectable, values.std(ddof=1), (400_000, pairs))
    error = draws.std(1, ddof=1) / math.sqrt(pairs)
    above = draws.mean(1) > stats.t(pairs - 1).ppf(0.975) * error
    assert above.mean() == pytest.approx(0.8, abs=0.003)


def test_a_table_has_a_row_for_every_arm():
    results = [row("a", 0, 0.5), row("a", 1, 0.6), row("b", 0, 0.52), row("b", 1, 0.64)]
    lines = tables.table("q", ["a", "b", "c"], "a", results).splitlines()
    assert lines[4] == "| a | 2 | 55.00 ± 5.00 | – | – | 50.00 ± 0.00 | 1,000 bytes | 1.000 M | 1.000 µJ |"
    assert lines[5].startswith("| b | 2 | 58.00 ± 6.00 | +3.00 ± 12.71 | ")
    assert lines[6].startswith("| c | 0 | not yet run | ")


def test_an_arm_is_compared_with_the_reference_of_its_own_share():
    accuracy = {"svs-50": 0.5, "random-50": 0.4, "svs-80": 0.3, "random-80": 0.25}
    results = [row(arm, seed, value + seed / 100) for arm, value in accuracy.items() for seed in (0, 1)]
    lines = tables.table("q", list(accuracy), "random", results).splitlines()[4:]
    assert [line.split(" | ")[3] for line in lines] == ["+10.00 ± 0.00", "–", "+5.00 ± 0.00", "–"]


def test_results_of_two_recipes_are_not_mixed(tmp_path):
    both = [row("a", 0, 0.5) | {"name": f"q.a.s0.{recipe}"} for recipe in ("short", "long")]
    with pytest.raises(ValueError, match=r"q\.a\.s0\.short and q\.a\.s0\.long are of one arm and seed"):
        tables.table("q", ["a"], "a", both)
    for found in both:
        (tmp_path / f"{found['name']}.json").write_text(json.dumps(found))
    assert tables.read_results(tmp_path, ["q.a.s0.long", "q.b.s0.long"]) == both[1:]
    # The command shows those of the plan alone.
    one = next(unit for unit in plan() if unit.question == "table3")
    for recipe, accuracy in ((one.recipe, 0.4321), ("other", 0.9)):
        name = f"{one.question}.{one.arm}.s0.{recipe}"
        found = row(one.arm, 0, accuracy) | {"question": "table3", "name": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    shown = CliRunner().invoke(runner.main, ["--tables", "--only", "table3", "--results", str(tmp_path)])
    assert shown.exit_code == 0
    assert f"| {one.arm} | 1 | 43.21 ± – |" in shown.output


def test_the_commands_say_what_there_is(done):
    listed = CliRunner().invoke(runner.main, ["--list", "--only", "table3"])
    assert len(listed.output.splitlines()) == 6
    shown = CliRunner().invoke(runner.main, ["--tables", "--only", "table3", "--results", str(done / "results")])
    assert shown.output.count("not yet run") == 2
    assert CliRunner().invoke(runner.main, ["--only", "table9"]).exit_code == 2
    words = ["--data-dir", str(done / "nowhere"), "--runs", str(done / "no"), "--results", str(done / "none")]
    found = CliRunner().invoke(runner.main, words)
    assert found.exit_code == 2
    assert "nowhere does not exist" in found.output


def test_criteria_beside_those_of_the_package():
    nodes = (
        Input("image", (4, 4, 2)),
        Conv("conv", "image", 5, label="a"),
        BatchNorm("bn", "conv"),
        LIF("lif", "bn"),
        GlobalAveragePool("pool", "lif"),
        Dense("fc", "pool", 3),
    )
    graph = Graph(nodes, 2)
    variables, images = random_variables(graph), images_of(graph, batch=3)
    scale = variables["params"]["bn"]["scale"]
    found = bn_scale(
        graph, {**variables, "params": {**variables["params"], "bn": {"scale": -scale}}}, jax.random.key(0)
    )
    np.testing.assert_allclose(found["conv"], scale, rtol=1e-6)
    spikes = SpikingNetwork(graph).apply(variables, images, capture={"lif": lambda trace: trace.spikes}).captured["lif"]
    rates = score(graph, variables, [images], firing_rate)["conv"]
    np.testing.assert_allclose(rates, np.asarray(spikes).mean((0, 1, 2, 3)), rtol=1e-6)


def of_arms(question: str, **arms: list[float]) -> list[dict]:
    """Results by arm of one question, of seeds 0, 1, …"""
    return [
        {"question": question, "arm": arm.replace("_", "-"), "seed": seed, "test_accuracy": accuracy / 100}
        for arm, values in arms.items()
        for seed, accuracy in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((3.0, 3.2, 2.8), "**held**"),
        ((-3.0, -3.2, -2.8), "**did not hold**"),
        ((3.0, -3.2, 1.0), "inconclusive (minimum detectable difference 10.3 points)"),
        ((3.0, 3.2), "2 of 3 seeds run"),
        ((3.0,), "1 of 3 seeds run"),
        ((), "not yet run"),
    ],
)
def test_the_verdict_on_a_claim(values, words):
    """Of a difference of differences, whose arms vary far more than it does."""
    (claim,) = (claim for claim in verdicts.PAPER if len(claim.factors) == 4)
    base = (40.0, 55.0, 30.0)
    arms = {"mean_2": [b + v for b, v in zip(base, values, strict=False)], "none_2": base}
    arms |= {"mean_8": [b + 1.5 for b in base], "none_8": [b + 1.5 for b in base]}
    assert verdicts.verdict(claim, of_arms("gamma", **arms))[1] == words


def test_a_verdict_says_where_arms_were_trained_on_different_processors():
    (claim,) = (claim for claim in verdicts.PAPER if claim.question == "table3")
    results = of_arms("table3", quantize_prune=[50, 51, 52], prune_quantize=[40, 41, 42.1])
    for number, found in enumerate(results):
        found["processor"] = "one"
        words = verdicts.verdict(claim, results)[1]
        assert words == "**held**" + (", on different processors" if number < len(results) - 1 else "")


def test_the_tables_of_criteria_and_of_table_2():
    """A stage that an arm has not is empty; a difference needs all seeds of both arms, of one processor."""
    found = of_arms("criterion", svs_50=[44, 46, 48], random_50=[43, 45, 44], scratch_50=[45, 45])
    for one in found:
        one["held_out_accuracy"] = {"pruned": 0.1, "recalibrated": 0.3, "finetuned": 0.4 + 0.1 * one["seed"]}
        if one["arm"] == "scratch-50":
            one["held_out_accuracy"] = {"quantized": 0.425}
    rows = sections.criterion_table(found).splitlines()
    assert "| svs-50 | 3 | 10.0 | 30.0 | 50.0 | 46.00 ± 1.15 | +2.00 ± 4.30 |" in rows
    assert "| random-50 | 3 | 10.0 | 30.0 | 50.0 | 44.00 ± 0.58 | – |" in rows
    assert "| scratch-50 | 2 | – | – | 42.5 | 45.00 ± 0.00 | – |" in rows
    assert "| sca-50 | 0 | – | – | – | not yet run | – |" in rows
    found[0]["processor"] = "another"
    assert "| svs-50 | 3 | 10.0 | 30.0 | 50.0 | 46.00 ± 1.15 | – |" in sections.criterion_table(found).splitlines()
    rows = sections.table2(of_arms("table2", none_sca_4=[40, 41, 42], mean_svs_4=[44, 46, 45])).splitlines()
    assert "| mean-svs-4 | 3 | 45.00 ± 0.58 | +4.00 ± 2.48 |" in rows
    assert "| none-svs-4 | 0 | not yet run | – |" in rows


def of_headline(*runs: tuple[float, int]) -> list[dict]:
    names = ("integer_accuracy", "file_bytes")
    return [
        {"question": "headline", "arm": "98kB", "seed": seed, **dict(zip(names, run, strict=True))}
        for seed, run in enumerate(runs)
    ]


def test_the_verdict_of_the_headline_needs_both_seeds_and_the_bytes():
    assert "| 86.00 % | 98,000 | not yet run (1 of 2 seeds) |" in verdicts.page(of_headline((0.86, 98_000)), [], [])
    assert "| 85.00 %, 86.00 % | 98,496, 98,000 | **reached** |" in verdicts.page(
        of_headline((0.85, 98_496), (0.86, 98_000)), [], []
    )
    assert "**not reached**" in verdicts.page(of_headline((0.85, 98_497), (0.86, 98_000)), [], [])
    assert "**not reached**" in verdicts.page(of_headline((0.8499, 98_496), (0.86, 98_000)), [], [])


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ([(1, 1)] * 3, "**held**"),
        ([(0, 1), (1, 0), (0, 0)], "**did not hold**"),
        ([(1, 1), (1, 0), (0, 0)], "inconclusive"),
        ([(1, 1)] * 2, "2 of 3 networks measured"),
        ([(1, 1), (1, math.nan), (1, 1)], "inconclusive (where all channels of a layer score alike"),
    ],
)
def test_the_verdict_on_stability_needs_both_measures(above, words):
    def measures(cosine: float, spearman: float) -> dict:
        return {"cosine_least": 0.9 + cosine / 20, "spearman": 0.7 + spearman / 10}

    found = [{"measures": {"SVS, ε = 1e-06": measures(*each), "SCA": measures(0.5, 0.5)}} for each in above]
    assert verdicts.stability(found).startswith(words)


def test_the_page_is_that_of_the_results_and_its_arms_are_those_of_the_plan():
    arms = {(unit.question, unit.arm) for unit in plan()}
    assert {(c.question, arm) for c in (*verdicts.PAPER, *verdicts.ADDITIONS) for arm in c.factors} <= arms
    page = ROOT / "notebooks" / "what_held_up.md"
    planned = tables.read_results(verdicts.RESULTS, {unit.name for unit in plan()})
    measured = map(tables.read_results, (verdicts.SCORES, verdicts.LEVELS))
    assert page.read_text(encoding="utf-8") == verdicts.page(planned, *measured)
