"""The training loop, up to a real process that is killed and started again."""

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked
from small_runs import array_checksums, checksums, records

from qpsnn_jax.data import DataSet, feed, load
from qpsnn_jax.data.settings import DataSettings, make_prepare, request
from qpsnn_jax.model.costs import cost
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import Dense, Flatten
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs import evaluation, loop, metrics, programs
from qpsnn_jax.runs.config import Config, build_graph
from qpsnn_jax.runs.evaluation import evaluate
from qpsnn_jax.runs.hooks import Hooks, show_progress
from qpsnn_jax.runs.loading import load_data
from qpsnn_jax.runs.loop import fit
from qpsnn_jax.runs.metrics import write_metrics
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.compiling import low_memory_jit
from qpsnn_jax.runtime.settings import updated
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.settings import Training
from qpsnn_jax.training.state import init_variables


class Course(NamedTuple):
    """The arguments of a training."""

    graph: Graph
    data: DataSet
    training: Training
    prepare: Callable
    run: RunSettings


def course(network, **changes):
    """A short training of the small network; changes to its settings by name."""
    values = {"network.name": network, "data.name": "digits", "data.train_examples": 160, "data.test_examples": 70}
    values |= {"train.batch_size": 32, "train.optimizer": "adam", "run.checkpoint_epochs": 2}
    config = Config()
    for name, value in (values | changes).items():
        part, _, field = name.partition(".")
        config = updated(config, {part: {field: value}})
    asked = request(config.data, seed=config.run.seed, timesteps=2)
    data = load(config.data.name, **asked._asdict())
    return Course(build_graph(config), data, config.train, make_prepare(config.data, data), config.run)


def fitted(course, directory, hooks=()):
    variables = init_variables(course.graph, jax.random.key(0))
    with write_metrics(directory) as metrics, show_progress("test") as shown:
        return fit(
            course.graph,
            variables,
            course.data,
            course.training,
            directory,
            prepare=course.prepare,
            run=course.run,
            hooks=(metrics, shown, *hooks),
        )


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps_saved(directory):
    return sorted(path.name for path in directory.glob("step_*"))


def same(tree, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), tree, expected)


@pytest.fixture(scope="module")
def plan(small_network):
    return course(small_network, **{"train.epochs": 5, "train.learning_rate": 0.05, "network.ste": "plain"})


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return fitted(plan, directory), directory


def test_training_learns_and_logs_every_step(whole):
    trained, directory = whole
    logged = lines(directory)
    assert [line["step"] for line in logged] == list(range(1, 26))
    assert all(set(line) == {"step", "loss", "accuracy"} for line in logged)
    losses = [line["loss"] for line in logged]
    assert losses[0] == pytest.approx(math.log(10), rel=0.3)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert [epoch.epoch for epoch in trained.epochs] == [1, 2, 3, 4, 5]
    for i, epoch in enumerate(trained.epochs):
        assert epoch.train_loss == pytest.approx(np.mean(losses[5 * i : 5 * i + 5]))
    assert trained.epochs[-1].test_accuracy == trained.result.accuracy
    assert trained.result.accuracy > 0.2
    assert trained.seconds > 0
    assert steps_saved(directory) == ["step_20", "step_25"]


def test_evaluation_counts_every_image_once(plan, whole):
    trained, _ = whole
    data, graph = plan.data, plan.graph
    alone = evaluate(graph, trained.variables, data.test, data)
    assert alone.accuracy == trained.result.accuracy
    assert alone.accuracy * 70 == pytest.approx(round(alone.accuracy * 70))


@pytest.mark.parametrize("largest", [35, 32, 69])
def test_the_size_of_a_batch_changes_nothing(plan, whole, monkeypatch, largest):
    trained, _ = whole
    data, graph = plan.data, plan.graph
    expected = evaluate(graph, trained.variables, data.test, data)
    monkeypatch.setattr(feed, "_EVALUATION_BATCH", largest)
    parts = evaluate(graph, trained.variables, data.test, data)
    assert (parts.accuracy, parts.loss) == pytest.approx((expected.accuracy, expected.loss), rel=1e-5)
    for name, activity in expected.activity.items():
        np.testing.assert_allclose(parts.activity[name], activity, rtol=1e-4, atol=1e-6)


def test_evaluation_can_measure_something_else(plan, whole, compilations):
    trained, _ = whole
    data, graph = plan.data, plan.graph
    capture = {"lif1": lambda trace: trace.spikes.mean()}
    rate = evaluate(graph, trained.variables, data.test, data, capture=capture).activity
    usual = evaluate(graph, trained.variables, data.test, data).activity["lif1"]
    assert set(rate) == {"lif1"}
    assert float(rate["lif1"]) == pytest.approx(float(usual.mean()), rel=1e-5)
    with compilations() as counted:
        evaluate(graph, trained.variables, data.test, data, capture=capture)
    assert counted() == 0


def test_a_finished_training_is_only_read(plan, whole, tmp_path):
    trained, directory = whole
    copy = shutil.copytree(directory, tmp_path / "copy")
    again = fitted(plan, copy)
    same(again.variables, trained.variables)
    assert again.epochs == trained.epochs
    assert again.result.accuracy == trained.result.accuracy
    assert lines(copy) == lines(directory)


def interrupt_in_the_fourth_epoch(plan, directory):
    def interrupt(epoch, epochs):
        assert epochs == 5
        if epoch.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(plan, directory, (Hooks(epoch=interrupt),))


def test_an_interrupted_training_goes_on_from_its_checkpoint(plan, whole, tmp_path):
    trained, directory = whole
    interrupt_in_the_fourth_epoch(plan, tmp_path / "new")
    assert steps_saved(tmp_path / "new") == ["step_10"]
    assert len(lines(tmp_path / "new")) == 20
    with (tmp_path / "new" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    same(fitted(plan, tmp_path / "new").variables, trained.variables)
    assert lines(tmp_path / "new") == lines(directory)
    assert checksums(tmp_path / "new") == checksums(directory)


def test_the_device_is_idle_after_an_interrupt_and_training_goes_on(tmp_path):
    """In one process again and again, as in a notebook; each step takes the device a while."""
    digits = course("resnet20", **{"train.epochs": 2, "run.checkpoint_steps": 2})
    graph = Graph((digits.graph.input, Flatten("flat", "image"), Dense("fc", "flat", 10)), 2)

    def prepare(key, images):
        images = normalize(images, digits.data.mean, digits.data.std)
        long = jax.lax.fori_loop(0, 100, lambda _, x: x @ x, jnp.eye(300))
        return images + 0 * long[0, 0]

    plan, told = digits._replace(graph=graph, prepare=prepare), []

    def interrupt(step, values):
        told.append(step)
        if len(told) % 3 == 0:  # the next step runs
            raise KeyboardInterrupt

    def train(name, *hooks):
        options = {"prepare": plan.prepare, "run": plan.run, "hooks": hooks}
        variables = init_variables(graph, jax.random.key(0))
        return fit(graph, variables, plan.data, plan.training, tmp_path / name, **options).variables

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt) as held:
            train("interrupted", Hooks(metrics=interrupt))
        assert held.tb  # with the state of the step that ran, which would otherwise be deleted unseen
        assert all(array.is_ready() for array in jax.live_arrays())
    assert told == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 9]
    same(train("interrupted"), train("whole"))


def test_several_steps_in_one_program(plan, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_at_once", lambda: 3)
    assert list(loop._dispatches(0, 10, 5, None)) == [(3, 3), (4, 1), (5, 1), (8, 3), (9, 1), (10, 1)]
    assert list(loop._dispatches(5, 10, 5, 4)) == [(8, 3), (9, 1), (10, 1)]
    trained = fitted(plan, tmp_path / "whole")
    found, expected = lines(tmp_path / "whole"), lines(whole[1])
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    # Another program rounds differently, and spikes amplify this from step to step.
    np.testing.assert_allclose([x["loss"] for x in found[:5]], [x["loss"] for x in expected[:5]], rtol=1e-3)

    interrupt_in_the_fourth_epoch(plan, tmp_path / "new")
    same(fitted(plan, tmp_path / "new").variables, trained.variables)
    assert lines(tmp_path / "new") == found


@pytest.mark.parametrize(("steps", "saved"), [(7, ["step_21", "step_25"]), (12, ["step_24", "step_25"])])
def test_checkpoints_within_epochs_are_so_many_steps_apart(plan, whole, tmp_path, steps, saved):
    trained = fitted(plan._replace(run=RunSettings(checkpoint_steps=steps, checkpoint_epochs=99)), tmp_path)
    assert steps_saved(tmp_path) == saved
    same(trained.variables, whole[0].variables)


@pytest.mark.parametrize("left", [None, 0, 4, 9, [*range(5), *range(7, 10)]])
def test_metrics_that_a_power_cut_has_lost_stay_lost(plan, whole, tmp_path, left):
    """The checkpoint is whole, so that the training goes on, also where a line is damaged."""
    interrupt_in_the_fourth_epoch(plan, tmp_path)
    path = tmp_path / "metrics.jsonl"
    kept = path.read_bytes().splitlines()[:10]
    path.unlink()
    chosen = [] if left is None else [kept[i] for i in (range(left) if isinstance(left, int) else left)]
    if left is not None:
        path.write_bytes(b"\n".join([*chosen, b"\xff{", b"[" * 100_000, b"3", b'{"step": "5"}', kept[9][:5]]))
    with pytest.warns(UserWarning, match=f"has lost the metrics of {10 - len(chosen)} of the first 10 steps"):
        trained = fitted(plan, tmp_path)
    same(trained.variables, whole[0].variables)
    expected = lines(whole[1])
    assert lines(tmp_path) == [json.loads(line) for line in chosen] + expected[10:]


def test_metrics_are_on_the_disk_before_a_checkpoint(plan, tmp_path, monkeypatch):
    """Else a checkpoint could survive a power cut without them."""
    flushed = []
    real = metrics.os.fsync
    monkeypatch.setattr(
        metrics.os, "fsync", lambda number: (flushed.append(os.readlink(f"/proc/self/fd/{number}")), real(number))
    )
    saved = []

    def save(*_):
        saved.append(f"{tmp_path / 'metrics.jsonl'}" in flushed)
        flushed.clear()

    monkeypatch.setattr(loop.checkpoint, "save", save)
    fitted(plan, tmp_path)
    assert saved == [True] * 3


def test_a_damaged_checkpoint_can_be_deleted(plan, whole, tmp_path):
    copy = shutil.copytree(whole[1], tmp_path / "copy")
    for left in ("step_20", None):
        (newest := sorted(copy.glob("step_*"))[-1]).joinpath("meta.json").write_text("{")
        with pytest.raises(ValueError, match="delete it to resume from the checkpoint before it, or from the start"):
            fitted(plan, copy)
        shutil.rmtree(newest)
        assert steps_saved(copy) == ([left] if left else [])
    same(fitted(plan, copy).variables, whole[0].variables)


def test_a_checkpoint_of_another_training_raises(plan, whole, tmp_path):
    foreign = shutil.copytree(whole[1], tmp_path / "foreign")
    found = checkpoint.latest(foreign)
    assert found is not None
    notes = {name: value for name, value in found.notes.items() if name != "batches"}
    checkpoint.save(foreign, 30, plan.graph, whole[0].variables, notes)
    before = sorted(path.name for path in foreign.iterdir())
    with pytest.raises(ValueError, match="step_30 was not written by this training"):
        fitted(plan, foreign)
    assert sorted(path.name for path in foreign.iterdir()) == before


def test_the_seed_decides(small_network, tmp_path):
    settings = {"train.epochs": 1, "train.learning_rate": 0.02, "data.crop_padding": 1}
    first, again, other = (
        fitted(course(small_network, **settings, **{"run.seed": seed}), tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    same(first.variables, again.variables)
    assert lines(tmp_path / "a") == lines(tmp_path / "b") != lines(tmp_path / "c")
    assert first.epochs != other.epochs


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_callers_variables_survive_donation(small_network, tmp_path, ema_decay):
    plan = course(small_network, **{"train.epochs": 1, "train.ema_decay": ema_decay})
    variables = init_variables(plan.graph, jax.random.key(0))
    before = jax.tree.map(np.array, variables)
    fit(plan.graph, variables, plan.data, plan.training, tmp_path, prepare=plan.prepare, run=plan.run)
    same(variables, before)


def test_an_average_is_kept_evaluated_and_returned(small_network, tmp_path):
    settings = {"train.epochs": 2, "train.learning_rate": 0.02}
    plain, averaged = (
        fitted(course(small_network, **settings, **{"train.ema_decay": decay}), tmp_path / str(decay))
        for decay in (None, 0.9)
    )
    assert lines(tmp_path / "None") == lines(tmp_path / "0.9")
    found = checkpoint.latest(tmp_path / "0.9")
    assert found is not None
    saved = array_checksums(found.path)
    assert saved["ema/params/conv2/kernel"] != saved["variables/params/conv2/kernel"]
    kernels = [trained.variables["params"]["conv2"]["kernel"] for trained in (plain, averaged)]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 1e-3
    assert averaged.epochs[-1].test_accuracy == averaged.result.accuracy


def test_a_penalty_on_operations_reduces_them(small_network, tmp_path):
    totals = []
    for price in (0.0, 40.0):
        settings = {"train.epochs": 4, "train.learning_rate": 0.02, "network.ste": "plain", "train.sops_penalty": price}
        plan = course(small_network, **settings)
        trained = fitted(plan, tmp_path / str(price))
        totals.append(cost(plan.graph, trained.result.activity).sops_total)
        assert trained.result.accuracy > 0.2
        assert all(("penalty" in line) == (price > 0) for line in lines(tmp_path / str(price)))
    assert totals[1] < 0.8 * totals[0]
    logged = lines(tmp_path / "40.0")
    assert logged[0]["loss"] == lines(tmp_path / "0.0")[0]["loss"]  # the logged loss excludes the penalty
    assert logged[-1]["penalty"] < 0.8 * logged[0]["penalty"]


def test_a_batch_larger_than_the_data_raises(small_network, tmp_path):
    config = Config(NetworkSettings(small_network), DataSettings("digits", train_examples=160))
    for part in ("train", "finetune"):
        others = {name: {"batch_size": 161 if name == part else 32} for name in ("train", "finetune")}
        with pytest.raises(ValueError, match="batch_size 161 is larger than the 160 training images"):
            load_data(updated(config, others))
    plan = course(small_network, **{"train.batch_size": 161})
    with pytest.raises(ValueError, match="batch_size 161 is larger"):
        fitted(plan, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_network_raises(plan, whole, small_network, tmp_path):
    copy = shutil.copytree(whole[1], tmp_path / "copy")
    other = course(small_network, **{"network.width": 2.0})
    with pytest.raises(ValueError, match="or holds another network"):
        fitted(other, copy)
    assert lines(copy) == lines(whole[1])


def test_a_loss_that_is_not_finite_stops_at_its_step(plan, whole, tmp_path, monkeypatch):
    real = programs.make_train_step

    def poisoned(*arguments, **options):
        step = real(*arguments, **options)

        def bad(state, images, labels):
            state, metrics = step(state, images, labels)
            return state, metrics | {"loss": jnp.where(state.step == 13, jnp.nan, metrics["loss"])}

        return bad

    monkeypatch.setattr(
        programs, "_jitted_steps", programs._jitted_steps.__wrapped__
    )  # not one that was compiled before
    monkeypatch.setattr(programs, "make_train_step", poisoned)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 13; the checkpoints before it stay in"):
        fitted(plan, tmp_path)
    assert steps_saved(tmp_path) == ["step_10"]
    found, expected = lines(tmp_path), lines(whole[1])[:12]
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    # Another program, which rounds elsewhere.
    np.testing.assert_allclose([x["loss"] for x in found], [x["loss"] for x in expected], rtol=1e-5)
    monkeypatch.undo()
    assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(assert_close, fitted(plan, tmp_path).variables, whole[0].variables)


def test_weights_that_are_not_finite_are_never_saved(plan, tmp_path, monkeypatch):
    real = programs.make_train_step

    def poisoned(*arguments, **options):
        step = real(*arguments, **options)

        def bad(state, images, labels):
            after, metrics = step(state, images, labels)
            bias = after.variables["params"]["fc"]["bias"]
            bias = jnp.where(after.step == 20, jnp.inf, bias)
            params = after.variables["params"] | {"fc": after.variables["params"]["fc"] | {"bias": bias}}
            return after._replace(variables=after.variables | {"params": params}), metrics

        return bad

    monkeypatch.setattr(
        programs, "_jitted_steps", programs._jitted_steps.__wrapped__
    )  # not one that was compiled before
    monkeypatch.setattr(programs, "make_train_step", poisoned)
    with pytest.raises(FloatingPointError, match="a weight is not finite after step 20"):
        fitted(plan, tmp_path)
    assert steps_saved(tmp_path) == ["step_10"]


def test_tensorboard_gets_the_numbers_where_it_is_installed(plan, whole, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, logdir, purge_step):
            written.append((Path(logdir), purge_step))

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", type(sys)("tensorboardX"))
    monkeypatch.setattr(sys.modules["tensorboardX"], "SummaryWriter", SummaryWriter, raising=False)
    fitted(plan, tmp_path)
    assert written[0] == (tmp_path / "tensorboard", 1)
    assert written[-1] == "closed"
    assert [w for w in written[1:-1] if w[0] == "train/loss"] == [
        ("train/loss", line["loss"], line["step"]) for line in lines(tmp_path)
    ]
    accuracies = [(value, step) for tag, value, step in written[1:-1] if tag == "test/accuracy"]
    assert accuracies == [(e.test_accuracy, 5 * e.epoch) for e in whole[0].epochs]


def test_a_killed_run_ends_with_the_same_bits(small_config, small_run, small_report, tmp_path):
    """Terminated while it trains and killed while it fine-tunes, in all stages, like the run that was not."""
    broken = tmp_path / "broken"
    words = ["run", str(small_config), "--out", str(broken), "--run.checkpoint_steps", "4"]

    def saved(stage):
        return any(name.removeprefix("step_").isdigit() for name in steps_saved(broken / stage))

    process = Forked(words)
    process.wait_until(lambda: saved("quantized"))
    process.send(signal.SIGTERM)
    _, said = process.ended(128 + signal.SIGTERM)
    assert said.splitlines()[-1] == "qpsnn: stopped; the same command resumes a run from its last checkpoint."
    last = max(int(name.removeprefix("step_")) for name in steps_saved(broken / "quantized"))
    assert len(lines(broken / "quantized")) == last  # nothing is lost
    assert not (broken / "quantized" / "stage.json").exists()
    process = Forked(words)
    process.wait_until(lambda: saved("finetuned"))
    process.send(signal.SIGKILL)
    process.ended(-signal.SIGKILL)
    assert (broken / "pruned" / "stage.json").exists()
    assert not (broken / "finetuned" / "stage.json").exists()
    Forked(words).ended(0)

    for stage, steps in (("quantized", 40), ("finetuned", 20)):
        found, expected = checksums(broken / stage), checksums(small_run / stage)
        for name in ("final/step_0", f"step_{steps}"):  # the last state of training with its momenta
            assert found[name] == expected[name] != {}
        assert lines(broken / stage) == lines(small_run / stage)
        assert len(lines(broken / stage)) == steps
    assert checksums(broken / "pruned") == checksums(small_run / "pruned") != {}
    assert records(json.loads((broken / "report.json").read_text())) == records(small_report)
    assert small_report["stages"][-1]["connection_ratio"] < 0.5


def test_memory_counts_for_large_networks_alone():
    assert programs._jit(resnet20(bits=2, width=1 / 8), 32) is jax.jit
    assert programs._jit(resnet20(bits=2), 8) is low_memory_jit


@pytest.mark.parametrize("module", [programs, evaluation])
def test_the_compilers_options_reach_the_step_and_the_evaluation(plan, tmp_path, monkeypatch, module):
    monkeypatch.setattr(programs, "_jitted_steps", programs._jitted_steps.__wrapped__)
    monkeypatch.setattr(loop, "activity_step", evaluation.activity_step.__wrapped__)
    monkeypatch.setattr(module, "compiler_options", lambda precision: {f"qpsnn_{precision}": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="qpsnn_auto"):
        fitted(plan, tmp_path)


def test_the_precision_reaches_the_step(plan, tmp_path, monkeypatch):
    def seen(*_arguments, precision, **_options):
        raise RuntimeError(precision)

    monkeypatch.setattr(
        programs, "_jitted_steps", programs._jitted_steps.__wrapped__
    )  # not one that was compiled before
    monkeypatch.setattr(programs, "make_train_step", seen)
    with pytest.raises(RuntimeError, match="exact"):
        fitted(plan._replace(run=RunSettings(precision="exact")), tmp_path)
