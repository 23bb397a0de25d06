"""Distillation: its loss against NumPy, its place in a training step, and teachers that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import images_of, random_variables

from qpsnn_jax import (
    Distillation,
    Graph,
    Quantizer,
    SpikingNetwork,
    distillation_loss,
    init_state,
    make_train_step,
    sops_reducers,
)
from qpsnn_jax.model.nodes import LIF, BatchNorm, Conv, Dense, GlobalAveragePool, Input


def network(quantizer: Quantizer | None, hidden: int = 5, classes: int = 3) -> Graph:
    nodes = (
        Input("image", (4, 4, 1)),
        Conv("stem", "image", 4),
        BatchNorm("bn0", "stem"),
        LIF("lif0", "bn0"),
        Conv("conv", "lif0", hidden, quantizer=quantizer),
        BatchNorm("bn1", "conv"),
        LIF("lif1", "bn1"),
        GlobalAveragePool("pool", "lif1"),
        Dense("fc", "pool", classes),
    )
    return Graph(nodes, timesteps=2)


STUDENT, TEACHER = network(Quantizer(2)), network(None, hidden=7)
TAUGHT = random_variables(TEACHER, 1)
LABELS = jnp.asarray([0, 2])


def test_a_teacher_of_images_that_are_normalized_otherwise():
    """The student's mean and std are 0.5 and 0.25, the teacher's 0.4 and 0.2; both see the same pixels."""
    pixels = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
    rescaled = Distillation(TEACHER, rescale=((0.25 / 0.2,), ((0.5 - 0.4) / 0.2,)))
    found = rescaled.targets(TAUGHT, (pixels - 0.5) / 0.25, "auto").currents
    expected = Distillation(TEACHER).targets(TAUGHT, (pixels - 0.4) / 0.2, "auto").currents
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_loss_against_numpy():
    draw = np.random.default_rng(0)
    own, teacher = draw.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = np.zeros(3)
    for b in range(3):
        for t in range(4):
            p, q = (np.exp(x[b, t].astype(np.float64) / 3) for x in (teacher, own))
            p, q = p / p.sum(), q / q.sum()
            expected[b] += 9 * (p * np.log(p / q)).sum() / 4
    np.testing.assert_allclose(distillation_loss(own, teacher, temperature=3.0), expected, rtol=1e-4)
    np.testing.assert_allclose(distillation_loss(own, own + 2), 0, atol=1e-6)
    with pytest.raises(ValueError, match="must have the shape of the currents"):
        distillation_loss(own, teacher[:1])
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        distillation_loss(own, teacher, temperature=0.0)


def test_a_step_takes_the_gradient_of_the_weighted_sum():
    """By plain SGD, from the losses of the two networks computed by hand."""
    variables, images = random_variables(STUDENT), images_of(STUDENT)
    mixed = Distillation(TEACHER, weight=0.75, temperature=2.0, membranes={"lif0": 0.1})
    reducers = sops_reducers(STUDENT)
    penalty = {name: (lambda value, reduce=reduce: 1e-3 * reduce(value)) for name, reduce in reducers.items()}
    tx = optax.sgd(1.0)
    step = jax.jit(make_train_step(STUDENT, tx, distillation=mixed, penalty=penalty))
    state, metrics = step(init_state(variables, tx, jax.random.key(0)), images, LABELS, TAUGHT)

    target, captured, _ = jax.jit(lambda *given: SpikingNetwork(TEACHER).apply(*given, capture=["lif0"]))(
        TAUGHT, images
    )

    def by_hand(params):
        given = variables | {"params": params}
        capture = ["lif0", *reducers]
        (currents, traces, _), _ = SpikingNetwork(STUDENT).apply(
            given, images, train=True, mutable=["batch_stats"], capture=capture
        )
        labelled = optax.softmax_cross_entropy_with_integer_labels(currents.mean(1), LABELS).mean()
        soft = jax.nn.softmax(target / 2)
        distilled = 4 * (soft * (jnp.log(soft) - jax.nn.log_softmax(currents / 2))).sum(-1).mean()
        drawn = jnp.square(traces["lif0"].membranes - captured["lif0"].membranes).mean()
        spent = sum(reduce(traces[name]) for name, reduce in reducers.items())
        return 0.25 * labelled + 0.75 * distilled + 0.1 * drawn + 1e-3 * spent, (labelled, distilled)

    gradients, (labelled, distilled) = jax.jit(jax.grad(by_hand, has_aux=True))(variables["params"])
    expected = jax.tree.map(lambda w, g: w - g, variables["params"], gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.variables["params"], expected
    )
    np.testing.assert_allclose(metrics["loss"], labelled, rtol=1e-5)
    np.testing.assert_allclose(metrics["distillation"], distilled, rtol=1e-4)
    assert set(metrics) == {"loss", "accuracy", "penalty", "distillation"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Distillation(network(None, classes=4)), "the classes of the teacher must be those of the network, 3, not 4"),
        (Distillation(dataclasses.replace(TEACHER, timesteps=3)), "the time steps of the teacher must be those"),
        (Distillation(TEACHER, weight=2.0), "the weight of distillation must be from 0 to 1, got 2.0"),
        (Distillation(TEACHER, membranes={"lif9": 1.0}), "name 'lif9', which are not neurons of the network"),
        (
            Distillation(TEACHER, membranes={"lif1": 1.0}),
            r"shape \(4, 4, 7\) in the teacher and \(4, 4, 5\) here",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_train_step(STUDENT, optax.sgd(0.1), distillation=wrong)
