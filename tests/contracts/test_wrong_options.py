"""Options that do not fit are refused by one sentence that names them, before anything is computed from them."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import images_of, random_variables, residual_graph

import qpsnn_jax as qp
from qpsnn_jax.model import nodes

WEIGHTS = jnp.ones((3, 3, 4, 1))
CURRENTS = jnp.ones((1, 2, 4))
INTEGERS = jnp.array([[[5, 1], [9, 1]]], jnp.int32)


TWO_LABELS = qp.Graph(
    (
        nodes.Input("image", (4, 4, 1)),
        nodes.Conv("first", "image", 4, label="a"),
        nodes.LIF("lif", "first"),
        nodes.Conv("second", "lif", 4, label="b"),
        nodes.Add("add", "second", "lif"),
        nodes.LIF("spikes", "add"),
        nodes.GlobalAveragePool("pool", "spikes"),
        nodes.Dense("fc", "pool", 2),
    ),
    2,
)


def with_learned_tau():
    variables = qp.init_variables(TWO_LABELS, jax.random.key(0))
    variables["params"]["lif"] = {"tau_logit": jnp.zeros(1)}
    return variables


def step_with(**options):
    return qp.make_train_step(residual_graph(), qp.optimizer("adam", 0.1), **options)


WRONG = {
    "a gain of another shape": (
        lambda: qp.quantize(WEIGHTS, 2, gain=jnp.ones(7)),
        "gain of shape (7,) does not broadcast against weights of shape (3, 3, 4, 1).",
    ),
    "a number in place of a function that captures": (
        lambda: qp.SpikingNetwork(TWO_LABELS).init(jax.random.key(0), jnp.ones((1, 4, 4, 1)), capture={"lif": 3}),
        "capture must be a list of names, or functions by name, got {'lif': 3}.",
    ),
    "no weights": (
        lambda: qp.quantize(jnp.ones((3, 0)), 2),
        "weights must have numbers, of which γ is taken, got the shape (3, 0).",
    ),
    "a file to save a network in": (
        lambda: qp.save_network(__file__, residual_graph(), random_variables(residual_graph())),
        f"save_network writes a directory, and {__file__} is a file; give another path.",
    ),
    "a gamma of another shape": (
        lambda: qp.quantize(WEIGHTS, 2, gamma=jnp.ones((2, 1, 1, 1, 1))),
        "gamma of shape (2, 1, 1, 1, 1) does not broadcast against weights of shape (3, 3, 4, 1).",
    ),
    "a tau of another shape": (
        lambda: qp.lif_step(0.0, jnp.ones((1, 4)), tau=jnp.ones((5, 4))),
        "tau of shape (5, 4) does not fit one step, (1, 4).",
    ),
    "a tau that is a time constant": (
        lambda: qp.lif(CURRENTS, tau=2.0),
        "tau must be from 0 to 1, got 2.0; it is the decay factor, for a time constant T of SpikingJelly 1 - 1/T.",
    ),
    "one tau of several below 0": (
        lambda: qp.lif_trace(CURRENTS, tau=np.array([0.5, -0.25, 0.5], np.float32)[: CURRENTS.shape[-1]]),
        "tau must be from 0 to 1, got -0.25;",
    ),
    "one tau of a list above 1": (
        lambda: qp.lif(CURRENTS, tau=[0.5, 0.5, 0.5, 1 + 1e-9]),  # pyright: ignore[reportArgumentType]
        "tau must be from 0 to 1, got 1.000000001;",
    ),
    "a tau in text": (
        lambda: qp.lif(CURRENTS, tau=["0.5"]),  # pyright: ignore[reportArgumentType]
        "tau must be a number or an array of numbers, got ['0.5'].",
    ),
    "no membrane": (
        lambda: qp.lif_step(None, CURRENTS),  # pyright: ignore[reportArgumentType]
        "membrane must be an array of the shape of current, or a number; 0.0 is a neuron at rest.",
    ),
    "a complex threshold": (
        lambda: qp.lif(CURRENTS, threshold=np.complex64(1)),  # pyright: ignore[reportArgumentType]
        "threshold must be a number or an array of numbers, got",
    ),
    "a threshold that is no float": (
        lambda: qp.lif(CURRENTS, threshold=10**400),
        "threshold must be a number or an array of numbers, got 1000",
    ),
    "a tau of neurons that is a time constant": (
        lambda: qp.nodes.LIF("lif", "x", tau=2.0),
        "'learned' trains it; τ is the decay factor, for a time constant T of SpikingJelly 1 - 1/T.",
    ),
    "rounding of what is not learned": (
        lambda: qp.NetworkSettings(round_tau=True),
        "round_tau needs learned_tau: it rounds the decay factors that are learned.",
    ),
    "a threshold of NaN": (lambda: qp.lif_step(0.0, 1.0, threshold=np.nan), "threshold must be a number, got NaN."),
    "a neuron of the zoo by name": (
        lambda: qp.zoo.resnet20(lif="learned"),  # pyright: ignore[reportArgumentType]
        "lif must be a neuron with the options, such as LIF('', '', tau=0.25), got 'learned'.",
    ),
    "an option that does not exist": (lambda: qp.lif(CURRENTS, tua=0.9), "there is no option tua; choose from tau,"),
    "a budget as text": (lambda: qp.pruning_rounds(2, bytes="40kB"), "the budget must be one positive number"),
    "a budget below 0": (lambda: qp.pruning_rounds(2, bytes=-5), "the budget must be one positive number"),
    "two budgets": (lambda: qp.pruning_rounds(2, bytes=4e4, params=1e5), "the budget must be one positive number"),
    "a budget of nothing": (lambda: qp.pruning_rounds(2, byte=4), "a budget is of bytes, params, sops, got byte."),
    "bits as text": (lambda: qp.quantize(WEIGHTS, "2"), "bits must be an integer between 1 and 8, got '2'."),
    "a loss by name": (lambda: step_with(loss="mse"), "loss must be a function of currents and labels, got 'mse'."),
    "a mask in place of channel numbers": (
        lambda: qp.prune(residual_graph(), random_variables(residual_graph()), {"conv1": np.ones(4, bool)}),
        "keep['conv1'] must be a non-empty list of channel numbers, integers, got bool of shape (4,).",
    ),
    "integer frames to merge": (
        lambda: qp.merge_frames(np.zeros((1, 4, 2), np.uint8), 2),
        "frames must be floating to be merged, got uint8; normalize them first.",
    ),
    "variables of another graph": (
        lambda: qp.SpikingNetwork(residual_graph()).apply(
            {"params": random_variables(residual_graph())["params"]}, images_of(residual_graph(), 1)
        ),
        "the variables are not those of the graph: ",
    ),
    "folded in place of integers": (lambda: qp.c_source(residual_graph(), "net"), "network must be an IntegerNetwork,"),
    "a number in place of a quantizer": (
        lambda: qp.with_quantizer(residual_graph(), random_variables(residual_graph()), 2),
        "quantizer must be a Quantizer, such as Quantizer(2), got 2.",
    ),
    "a layer without weights": (
        lambda: qp.with_quantizer(residual_graph(), random_variables(residual_graph()), qp.Quantizer(2), layers=["lf"]),
        "layers name 'lf', which is not a layer with weights; there are ",
    ),
    "a layer in place of a list": (
        lambda: qp.with_quantizer(residual_graph(), random_variables(residual_graph()), qp.Quantizer(2), layers="fc"),
        "layers must be a list of names, got 'fc'; use ['fc'].",
    ),
    "one number of bits for all layers": (
        lambda: qp.with_layer_bits(residual_graph(), 4),
        "bits must be a mapping from names of layers, such as {'conv': 4}, got 4.",
    ),
    "a pretrained network by number": (lambda: qp.pretrained(3), "there is no pretrained network '3'; there are "),
    "a module in place of a graph": (
        lambda: qp.make_train_step(qp.SpikingNetwork(residual_graph()), qp.optimizer("adam", 0.1)),
        "graph must be a Graph, got a SpikingNetwork.",
    ),
    "no graph": (
        lambda: qp.SpikingNetwork(None).apply({}, images_of(residual_graph())),  # pyright: ignore[reportArgumentType]
        "graph must be a Graph, got a NoneType.",
    ),
    "variables in place of a graph": (
        lambda: qp.cost(random_variables(residual_graph())),  # pyright: ignore[reportArgumentType]
        "graph must be a Graph, got a dict.",
    ),
    "graph and variables in the wrong order": (
        lambda: qp.prune(random_variables(residual_graph()), residual_graph(), {}),
        "graph must be a Graph, got a dict.",
    ),
    "no images": (
        lambda: qp.SpikingNetwork(residual_graph()).apply(
            random_variables(residual_graph()),
            None,  # pyright: ignore[reportArgumentType]
        ),
        "images must be an array of numbers, got NoneType.",
    ),
    "a decay factor as text": (
        lambda: qp.lif(np.zeros((1, 2, 3), np.float32), tau="learned"),  # pyright: ignore[reportArgumentType]
        "tau must be a number or an array of numbers, got 'learned'.",
    ),
    "a threshold that is not there": (
        lambda: qp.lif(np.zeros((1, 2, 3), np.float32), threshold=None),  # pyright: ignore[reportArgumentType]
        "threshold must be a number or an array of numbers, got None.",
    ),
    "a misspelt word for a decay factor": (
        lambda: qp.nodes.LIF("lif", "x", tau="learnt"),  # pyright: ignore[reportArgumentType]
        "got 'learnt'; a tuple has one for each channel, and 'learned' trains it; τ is the decay factor",
    ),
    "a learned decay factor of neurons whose own is a number": (
        lambda: qp.SpikingNetwork(TWO_LABELS).apply(with_learned_tau(), jnp.ones((1, 4, 4, 1))),
        "the variables are not those of the graph: it has no params/lif/tau_logit.",
    ),
    "train as text": (
        lambda: qp.SpikingNetwork(residual_graph()).apply(
            random_variables(residual_graph()), images_of(residual_graph()), train="yes"
        ),
        "train must be True or False, got 'yes'.",
    ),
    "a number in place of an optimizer": (
        lambda: qp.make_train_step(residual_graph(), 0.1),
        "tx must be an Optax optimizer, such as optax.adam(1e-3), got a float.",
    ),
    "variables and optimizer in the wrong order": (
        lambda: qp.init_state(qp.optimizer("adam", 0.1), random_variables(residual_graph()), jax.random.key(0)),
        "tx must be an Optax optimizer, such as optax.adam(1e-3), got a dict.",
    ),
    "variables in place of a state": (
        lambda: step_with()(random_variables(residual_graph()), images_of(residual_graph()), np.zeros(2, int)),
        "a step needs the state of init_state(variables, tx, key), got a dict.",
    ),
    "a step with distillation without its teacher": (
        lambda: step_with(distillation=qp.Distillation(residual_graph()))(
            qp.init_state(random_variables(residual_graph()), qp.optimizer("adam", 0.1), jax.random.key(0)),
            images_of(residual_graph()),
            np.zeros(2, int),
        ),
        "a step with distillation needs the teacher's variables: ",
    ),
    "one weight for all examples": (
        lambda: qp.make_eval_step(residual_graph())(
            random_variables(residual_graph()), images_of(residual_graph()), np.zeros(2, int), np.ones(1, np.float32)
        ),
        "weights need one number for each label, (2,), got the shape (1,).",
    ),
    "a criterion by name": (
        lambda: qp.mask_by("magnitude", residual_graph(), random_variables(residual_graph()), sparsity=0.5),
        "criterion must be a function, such as weight_magnitude, got 'magnitude'.",
    ),
    "layers of two labels that are removed together": (
        lambda: qp.select(TWO_LABELS, {}, 0.5),
        "layers whose channels are removed together need one label: first has 'a', second has 'b'.",
    ),
    "bool currents": (
        lambda: qp.early_exit(INTEGERS > 3, 1),
        "early_exit takes floating or integer currents, got bool.",
    ),
    "integer currents": (
        lambda: qp.cross_entropy(INTEGERS, jnp.zeros(1, jnp.int32)),
        "currents must be floating, got int32.",
    ),
    "a fraction for a bound": (
        lambda: qp.matrix_ranks(jnp.ones((1, 2, 2), jnp.int32), largest=2.5),
        "largest must be an integer from 1 to 16777215, got 2.5.",
    ),
    "a name in place of names": (
        lambda: qp.SpikingNetwork(residual_graph()).apply(
            random_variables(residual_graph()), images_of(residual_graph(), 1), capture="fc"
        ),
        "capture must be a list of names, or functions by name, got 'fc'; use ['fc'].",
    ),
    "an empty batch": (
        lambda: qp.BatchNorm().init_with_output(jax.random.key(0), jnp.ones((0, 3)), train=True),
        "an empty batch of shape (0, 3) has no mean to train with.",
    ),
    "an integer distance": (
        lambda: qp.fire_step(INTEGERS),
        "the distance to the threshold must be floating, got int32.",
    ),
    "a surrogate of one number": (
        lambda: jax.grad(lambda x: qp.fire_step(x, lambda x: 1.0).sum())(CURRENTS),
        "a surrogate must give one number for each of its input, (1, 2, 4), got ().",
    ),
    "a surrogate of one number over time": (
        lambda: jax.grad(lambda x: qp.lif(x, surrogate=jnp.sum).spikes.sum())(CURRENTS),
        "a surrogate must give one number for each of its input, (1, 4), got ().",
    ),
    "a negative learning rate": (
        lambda: qp.optimizer("adam", -0.1),
        "learning_rate must be a number that is not negative, or a schedule, got -0.1.",
    ),
    "a momentum of 1": (
        lambda: qp.optimizer("sgd", 0.1, momentum=1),
        "momentum must be at least 0 and below 1, got 1.",
    ),
    "a decay of 1": (lambda: step_with(ema_decay=1.0), "ema_decay must be at least 0 and below 1, got 1.0."),
    "a target of nothing": (
        lambda: step_with(target=qp.OperationsTarget(0.0)),
        "the operations of a target must be positive, got 0.0.",
    ),
    "a rate below 0": (
        lambda: step_with(target=qp.OperationsTarget(1e6, -1.0)),
        "the rate of a target must be positive, got -1.0.",
    ),
    "a temperature of 0": (
        lambda: step_with(distillation=qp.Distillation(residual_graph(), temperature=0)),
        "the temperature of distillation must be positive, got 0.",
    ),
    "membranes of a negative weight": (
        lambda: step_with(distillation=qp.Distillation(residual_graph(), membranes={"lif1": -1.0})),
        "the weight of the membranes of 'lif1' must not be negative, got -1.0.",
    ),
    "batches without labels": (
        lambda: qp.weight_by_gradient([images_of(residual_graph(), 1)]),
        "batches must be pairs of images and labels, got ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_named(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("threshold", [2**40, np.int64(2**40), np.uint64(2**63 + 5)])
def test_a_threshold_beyond_32_bits_is_never_reached(threshold):
    assert qp.early_exit(INTEGERS, threshold).steps == 2


def test_thresholds_of_integers():
    for threshold, steps in ((-4, 1), (4, 1), (5, 2), (12, 2)):
        assert qp.early_exit(INTEGERS, threshold).steps == steps
        assert jax.jit(qp.early_exit)(INTEGERS, threshold).steps == steps
        for kind in (np.int8, np.int32, jnp.int32):
            assert qp.early_exit(INTEGERS, kind(threshold)).steps == steps


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, jnp.float32])
def test_a_ratio_is_the_number_that_it_prints_as(kind):
    graph = qp.zoo.resnet20(width=10 / 128, ratios={"middle": kind(0.8)})
    assert graph.by_name["layer1.1.conv1"].features == 2


def test_numbers_of_numpy_need_no_warning():
    """Whose float64 is float32 in JAX."""
    draw = np.random.default_rng(0)
    spikes, kernel = (draw.random((1, 4, 4, 2)) < 0.5).astype(float), draw.choice([-1.0, 1.0], (3, 3, 2, 3))
    maps, currents, labels = draw.random((1, 2, 3, 3, 4)), draw.random((2, 3, 5)), np.array([1, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            qp.conv_spikes(spikes, kernel, bits=1, precision="exact"),
            qp.sca_scores(maps),
            qp.cross_entropy(currents, labels),
            qp.temporal_cross_entropy(currents, labels),
            qp.lsq_gamma(np.ones(3), count=4, bits=2),
        ]
    assert {x.dtype for x in found} == {jnp.result_type(float)}
