import jax
import numpy as np
import pytest

from qpsnn_jax.numerics.losses import cross_entropy, temporal_cross_entropy

over = pytest.mark.parametrize
T, CLASSES = 3, 5


def example(lead: tuple) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(*lead, T, CLASSES)).astype(np.float32), draw.integers(0, CLASSES, lead)


def numpy_targets(labels, smoothing: float):
    return (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES


def numpy_entropy(logits, targets):
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum(-1)) - (targets * logits).sum(-1)


mean_entropy = jax.jit(cross_entropy)
temporal = jax.jit(temporal_cross_entropy)
leads = over("lead", [(), (4,), (2, 3)])
smoothings = over("smoothing", [0.0, 0.1])


@leads
@smoothings
def test_cross_entropy_of_the_time_mean(lead: tuple, smoothing: float):
    currents, labels = example(lead)
    got = mean_entropy(currents, labels, label_smoothing=smoothing)
    assert got.shape == lead
    np.testing.assert_allclose(got, numpy_entropy(currents.mean(-2), numpy_targets(labels, smoothing)), rtol=1e-5)


@over("labels", [np.zeros((4, 1), int), np.zeros((), int), np.zeros(4), np.zeros((4, CLASSES), int)], ids=np.shape)
def test_labels_are_one_integer_for_each_example(labels):
    for loss in (cross_entropy, temporal_cross_entropy):
        with pytest.raises(ValueError, match="labels must be integers of shape"):
            loss(example((4,))[0], labels)


def test_currents_need_a_time_axis():
    with pytest.raises(ValueError, match=r"labels must be integers of shape … for currents … t classes, got int32"):
        cross_entropy(np.zeros((4, CLASSES), np.float32), np.zeros(4, np.int32))


@smoothings
def test_cross_entropy_gradient_is_softmax_minus_target(smoothing: float):
    currents, labels = example((4,))
    got = jax.jit(jax.grad(lambda o: cross_entropy(o, labels, label_smoothing=smoothing).sum()))(currents)
    powers = np.exp(currents.mean(-2))
    want = (powers / powers.sum(-1, keepdims=True) - numpy_targets(labels, smoothing)) / T
    np.testing.assert_allclose(got, np.repeat(want[:, None], T, 1), rtol=1e-4, atol=1e-6)


@leads
@smoothings
@over("weight", [0.0, 0.05, 1.0])
def test_temporal_cross_entropy(lead: tuple, smoothing: float, weight: float):
    currents, labels = example(lead)
    got = temporal(currents, labels, target_current=0.7, weight=weight, label_smoothing=smoothing)
    steps = [numpy_entropy(currents[..., t, :], numpy_targets(labels, smoothing)) for t in range(T)]
    pull = np.square(currents.astype(np.float64) - 0.7).mean((-2, -1))
    assert got.shape == lead
    np.testing.assert_allclose(got, (1 - weight) * np.mean(steps, axis=0) + weight * pull, rtol=1e-5)


def test_the_losses_agree_on_constant_currents_and_not_otherwise():
    currents, labels = example((4,))
    constant = np.broadcast_to(currents[:, :1], currents.shape)
    both = jax.jit(lambda o: (cross_entropy(o, labels), temporal_cross_entropy(o, labels)))
    np.testing.assert_allclose(*both(constant), rtol=1e-5)
    of_mean, of_steps = map(np.asarray, both(currents))
    assert np.all(of_steps > of_mean)


def test_large_currents_stay_finite():
    currents, labels = np.array([[[1e4, -1e4, 0.0]]], np.float32), np.array([1])
    value, gradient = jax.jit(jax.value_and_grad(lambda o: cross_entropy(o, labels).sum()))(currents)
    assert value == pytest.approx(2e4)
    assert np.isfinite(gradient).all()


@over("function", [cross_entropy, temporal_cross_entropy])
@over("smoothing", [1.0, -0.1])
def test_label_smoothing_is_bounded(function, smoothing: float):
    with pytest.raises(ValueError, match=f"label_smoothing must be .* got {smoothing}"):
        function(*example((2,)), label_smoothing=smoothing)


@over("weight", [1.5, -0.5])
def test_weight_is_bounded(weight: float):
    with pytest.raises(ValueError, match=f"weight must be .* got {weight}"):
        temporal_cross_entropy(*example((2,)), weight=weight)


def test_numbers_of_losses_can_be_mapped_over():
    """vmap over the weights of smoothing and of the second term equals the single results."""
    currents, labels = example((4,))
    smoothings, weights = np.float32([0, 0.1, 0.5]), np.float32([0, 0.05, 1])
    got = jax.jit(jax.vmap(lambda s: cross_entropy(currents, labels, label_smoothing=s)))(smoothings)
    want = [numpy_entropy(currents.mean(-2), numpy_targets(labels, s)) for s in smoothings]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    run = jax.vmap(lambda s, w: temporal_cross_entropy(currents, labels, weight=w, label_smoothing=s))
    got = jax.jit(run)(smoothings, weights)
    want = [
        temporal(currents, labels, weight=float(w), label_smoothing=float(s))
        for s, w in zip(smoothings, weights, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)
