"""Training at fewer time steps: its schedule, merged frames, and the loop against one of its own."""

import dataclasses

import jax
import numpy as np
import pytest
from small_networks import random_variables

from qpsnn_jax.data import Arrays, DataSet
from qpsnn_jax.data.feed import feed
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes import LIF, BatchNorm, Dense, Flatten, Input
from qpsnn_jax.runs.config import Config, check_config
from qpsnn_jax.runs.hooks import Hooks, show_progress
from qpsnn_jax.runs.loop import fit
from qpsnn_jax.runs.programs import make_optimizer
from qpsnn_jax.runs.settings import RunSettings
from qpsnn_jax.runtime.settings import updated
from qpsnn_jax.training.settings import Training, timesteps_by_epoch
from qpsnn_jax.training.state import init_state
from qpsnn_jax.training.steps import make_train_step
from qpsnn_jax.training.timesteps import check_timesteps, merge_frames, prepare_at


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("1:0.7,2", 10, [1] * 7 + [2] * 3),
        ("1:0.7,2:0.3", 10, [1] * 7 + [2] * 3),
        (" 1 : .5 , 2:0.25, 4", 8, [1, 1, 1, 1, 2, 2, 4, 4]),
        ("2", 3, [2, 2, 2]),
        ("2:1", 2, [2, 2]),
        ("1:0.7,2", 2, [1, 2]),
        ("1:0.7,2", 0, []),
    ],
)
def test_the_time_steps_of_every_epoch(schedule, epochs, expected):
    assert list(timesteps_by_epoch(schedule, epochs)) == expected


@pytest.mark.parametrize(
    "wrong",
    ["", "1:0.7", "1,2", "1:0.7,2:0.2", "1:0.7,2:0.4", "0:0.5,2", "1:0,2", "1:1,2", "1:0.5,,2", "x:0.5,2", "-1"],
)
def test_what_is_no_schedule_raises(wrong):
    with pytest.raises(ValueError, match="timesteps_schedule must be time steps with shares"):
        Training(timesteps_schedule=wrong)


def frames_graph(timesteps: int, binary: bool = False) -> Graph:
    nodes = (Input("x", (1, 1, 3), frames=True, binary=binary), Flatten("flat", "x"), Dense("fc", "flat", 2))
    return Graph(nodes, timesteps)


def test_a_schedule_that_does_not_fit_raises():
    with pytest.raises(ValueError, match=r"'1:0.1,2' gives T = 1 no epoch of 3; train for more epochs"):
        Training(epochs=3, timesteps_schedule="1:0.1,2")
    for schedule in ("1:0.5,4", "3:0.5,2", "1"):
        with pytest.raises(ValueError, match=r"finetune.timesteps_schedule must end at the T = 2 of the network"):
            check_config(updated(Config(), {"finetune": {"timesteps_schedule": schedule}}))
    with pytest.raises(ValueError, match="4 frames cannot be merged equally into 3; choose a divisor of 4"):
        check_timesteps(Training(timesteps_schedule="3:0.5,4"), frames_graph(4))
    with pytest.raises(ValueError, match="distill_membranes needs a teacher; name one with distill"):
        Training(distill_membranes={"lif1": 1.0})


def test_frames_are_merged_by_mean_or_by_maximum():
    frames = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    pairs = [[(frames[b, 2 * t] + frames[b, 2 * t + 1]) / 2 for t in range(3)] for b in range(2)]
    np.testing.assert_allclose(merge_frames(frames, 3), pairs, rtol=1e-6)
    graph = frames_graph(6, binary=True)
    halves = prepare_at(lambda key, x: x + key, graph, 2)(1, (frames > 1).astype(np.float32))
    np.testing.assert_array_equal(halves, 1 + np.stack([(frames[:, :3] > 1).any(1), (frames[:, 3:] > 1).any(1)], 1))
    assert prepare_at(abs, graph, 6) is abs


NODES = (
    Input("image", (2, 2, 1)),
    Flatten("flat", "image"),
    Dense("hidden", "flat", 6),
    BatchNorm("bn", "hidden"),
    LIF("lif", "bn"),
    Dense("fc", "lif", 3),
)
GRAPH = Graph(NODES, timesteps=2)
TRAINING = Training(
    epochs=3, batch_size=4, optimizer="adam", learning_rate=0.1, timesteps_schedule="1:0.4,2", ema_decay=0.5
)


def prepare(key, images):
    return (images / 255 + jax.random.normal(key, images.shape)).astype(np.float32)


def test_a_schedule_resumes_and_equals_a_loop_by_hand(tmp_path, capsys):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (13, 2, 2, 1), np.uint8), draw.integers(0, 3, 13)
    data = DataSet("noise", Arrays(images, labels), Arrays(images, labels), 3, (0.5,), (0.5,), evaluated="held-out")
    variables = {"scales": {}} | random_variables(GRAPH)

    def interrupt(step, values):
        if step == 5:  # in the second epoch, the first at T = 2
            raise KeyboardInterrupt

    def train(directory, *hooks):
        with show_progress("noise", data.evaluated) as shown:
            options = {"prepare": prepare, "run": RunSettings(checkpoint_steps=2), "hooks": (shown, *hooks)}
            return fit(GRAPH, variables, data, TRAINING, directory, **options)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Hooks(metrics=interrupt))
    capsys.readouterr()
    trained = train(tmp_path)
    assert [epoch.timesteps for epoch in trained.epochs] == [1, 2, 2]
    assert "noise: epoch 2/3, T = 2, train loss" in capsys.readouterr().err

    tx, batches = make_optimizer(TRAINING, 3), feed(data.train, 4, 0)
    state = init_state(jax.tree.map(np.asarray, variables), tx, jax.random.key(0), ema=True)
    for timesteps in (1, 2):
        graph = dataclasses.replace(GRAPH, timesteps=timesteps)
        step = jax.jit(make_train_step(graph, tx, prepare=prepare, ema_decay=0.5))
        for _ in range(3 * timesteps):
            state, _ = step(state, *next(batches))
    expected = state.variables | state.ema
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), trained.variables, expected)
