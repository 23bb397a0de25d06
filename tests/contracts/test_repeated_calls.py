"""Public functions that are called again outside jit, with the same input, compile nothing and keep nothing."""

import gc
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released import state_dict
from small_networks import images_of, random_variables, residual_graph

import qpsnn_jax as qp
from contracts.table import TABLE
from qpsnn_jax.model.zoo import vgg16
from qpsnn_jax.pruning import magnitude_group_scores

STUB = Path(qp.__file__).with_suffix(".pyi")
# Records, settings and namespaces, which compute nothing.
DATA = {"DataSettings", "Precision", "nodes", "zoo", "Cost", "Energy", "Graph", "Output", "AttentionTrace", "Quantizer"}
DATA |= {"NetworkSettings", "LIFTrace", "Codes", "Criterion", "Pruning", "Config", "RunSettings", "Training"}
DATA |= {"TrainState", "Distillation", "OperationsTarget", "sca_criterion", "svs_criterion"}
DATA |= {"QuantizationStats", "reuse_memory"}  # the latter of a whole process, tested in one of its own
GRAPH = qp.Graph(
    (
        qp.nodes.Input("image", (4, 4, 1)),
        qp.nodes.Conv("stem", "image", 4, bias=True, label="a"),
        qp.nodes.BatchNorm("bn", "stem"),
        qp.nodes.LIF("lif", "bn"),
        qp.nodes.Conv("conv", "lif", 4, quantizer=qp.Quantizer(2), label="a"),
        qp.nodes.BatchNorm("bn2", "conv"),
        qp.nodes.LIF("lif2", "bn2"),
        qp.nodes.AveragePool("pool", "lif2", (4, 4), (4, 4)),
        qp.nodes.Flatten("flat", "pool"),
        qp.nodes.Dense("fc", "flat", 3),
    ),
    timesteps=2,
)
MEAN = STD = (0.5,)


def calls(folder: Path) -> dict[str, Callable]:
    """By the name of a public function, a call of it."""
    variables = jax.tree.map(jnp.asarray, random_variables(GRAPH))
    images, labels, key = images_of(GRAPH, 4), jnp.array([0, 1, 2, 0]), jax.random.key(0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)
    network, tx = qp.SpikingNetwork(GRAPH), qp.optimizer("sgd", 0.1)
    folded = qp.fold(GRAPH, variables, MEAN, STD)
    integers, document = qp.IntegerNetwork.of(folded), qp.nir_graph(GRAPH, variables)
    state, scores = qp.init_state(variables, tx, key, ema=True), magnitude_group_scores(GRAPH, variables)
    # Steps are for the caller to compile.
    train, evaluate = jax.jit(qp.make_train_step(GRAPH, tx)), jax.jit(qp.make_eval_step(GRAPH))
    scored = jax.jit(qp.make_score_step(GRAPH))
    schedule = qp.cosine_schedule(0.1, epochs=3, steps_per_epoch=2, warmup_epochs=1)
    gradients = jax.tree.map(jnp.ones_like, variables["params"])
    released = vgg16(bits=qp.Quantizer(2, "mean", "channel", "scaled"), width=1 / 16, timesteps=2)
    tensors = state_dict(released, random_variables(released))
    # The sizes of the layers of the graph, with which they share programs.
    spikes = jnp.ones((4, 2, 4, 4, 4))
    layers = {
        "QuantConv": (qp.QuantConv(4, quantizer=qp.Quantizer(2)), spikes),
        "QuantDense": (qp.QuantDense(3), jnp.ones((4, 2, 4))),
        "BatchNorm": (qp.BatchNorm(), spikes),
        "LIFLayer": (qp.LIFLayer(), spikes),
    }
    prepared = {name: (layer, jax.jit(layer.init)(key, x), x) for name, (layer, x) in layers.items()}
    qp.write_nir(folder / "a.nir", document)
    qp.write_packed(folder / "a.qpsnn", folded, {})
    qp.save_network(folder / "network", GRAPH, variables, {})
    activity = network.apply(variables, images, capture=qp.activity_reducers(GRAPH)).captured
    return {
        **{name: lambda each=each: each[0].apply(*each[1:]) for name, each in prepared.items()},
        "IntegerNetwork": lambda: qp.IntegerNetwork.of(folded)(pixels),
        "SpikingNetwork": lambda: (network.apply(variables, images), network.init(key, images)),
        "activity_reducers": lambda: network.apply(variables, images, capture=qp.activity_reducers(GRAPH)),
        "allocate": lambda: qp.allocate(GRAPH, scores, params=300),
        "allocate_bits": lambda: qp.allocate_bits(GRAPH, {"conv": {1: 2.0, 2: 1.0}}, bytes=400),
        "bit_sensitivity": lambda: qp.bit_sensitivity(GRAPH, variables, [(images, labels)], bits=(1, 4)),
        "c_source": lambda: qp.c_source(integers),
        "channel_groups": lambda: qp.channel_groups(GRAPH),
        "compare": lambda: qp.compare(GRAPH, variables, integers, pixels, MEAN, STD),
        "connection_sparsity": lambda: qp.connection_sparsity(GRAPH, variables),
        "cosine_schedule": lambda: schedule(jnp.array(3)),
        "cost": lambda: qp.cost(GRAPH, activity).energy_mj,
        "current_moments": lambda: qp.current_moments(GRAPH, variables),
        "fold": lambda: qp.fold(GRAPH, variables, MEAN, STD),
        "import_nir": lambda: qp.import_nir(document),
        "import_torch": lambda: qp.import_torch(tensors, bits=2, timesteps=2),
        "init_state": lambda: qp.init_state(variables, tx, key, ema=True),
        "init_variables": lambda: qp.init_variables(GRAPH, key),
        "initial_state": lambda: qp.initial_state(GRAPH, 4),
        "load_network": lambda: qp.load_network(folder / "network"),
        "load_packed": lambda: qp.load_packed(folder / "a.qpsnn"),
        "make_eval_step": lambda: evaluate(variables, images, labels, jnp.ones(4)),
        "make_score_step": lambda: scored(variables, images),
        "make_train_step": lambda: train(state, images, labels),
        "mask_by": lambda: qp.mask_by(qp.weight_magnitude, GRAPH, variables, sparsity=0.5),
        "nir_graph": lambda: qp.nir_graph(GRAPH, variables),
        "normalize": lambda: qp.normalize(pixels, MEAN, STD),
        "onnx_model": lambda: qp.onnx_model(folded),
        "optimizer": lambda: tx.update(gradients, state.opt_state, variables["params"]),
        "pretrained": lambda: qp.pretrained("digits-43kb"),
        "prune": lambda: qp.prune(GRAPH, variables, {"stem": [0, 2], "conv": [1, 3]}),
        "pruning_rounds": lambda: qp.pruning_rounds(2, ratios={"a": 0.5}).init(GRAPH),
        "read_nir": lambda: qp.read_nir(folder / "a.nir"),
        "recalibrate": lambda: qp.recalibrate(GRAPH, variables, [images]),
        "save_network": lambda: qp.save_network(folder / "again", GRAPH, variables, {}),
        "score": lambda: qp.score(GRAPH, variables, [images]),
        "select": lambda: qp.select(GRAPH, scores, {"a": 0.5}),
        "sops_reducers": lambda: network.apply(variables, images, capture=qp.sops_reducers(GRAPH)),
        "stablehlo": lambda: qp.stablehlo(GRAPH, variables, MEAN, STD),
        "timesteps_by_epoch": lambda: qp.timesteps_by_epoch("1:0.5,2", 4),
        "unfold": lambda: qp.unfold(folded, STD, qp.current_moments(GRAPH, variables)),
        "weight_at_random": lambda: qp.weight_at_random(key)(GRAPH, variables, ["conv"]),
        "weight_by_gradient": lambda: qp.weight_by_gradient([(images, labels)])(GRAPH, variables, ["conv"]),
        "weight_by_rate": lambda: qp.weight_by_rate(activity)(GRAPH, variables, ["conv"]),
        "weight_magnitude": lambda: qp.weight_magnitude(GRAPH, variables, ["conv"]),
        "with_residual_scale": lambda: qp.with_residual_scale(residual_graph(), 0.25),
        "with_edge_bits": lambda: qp.with_edge_bits(GRAPH, 8),
        "with_float_weights": lambda: qp.with_float_weights(GRAPH, variables),
        "with_quantizer": lambda: qp.with_quantizer(GRAPH, variables, qp.Quantizer(4, "learned"), layers=["conv"]),
        "with_layer_bits": lambda: qp.with_layer_bits(GRAPH, {"conv": 4}),
        "with_masks": lambda: qp.with_masks(GRAPH, variables, {"conv": np.ones((3, 3, 4, 4))}),
        "write_nir": lambda: qp.write_nir(folder / "b.nir", document),
        "write_packed": lambda: qp.write_packed(folder / "b.qpsnn", folded, {}),
    }


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> dict[str, Callable]:
    return calls(tmp_path_factory.mktemp("calls"))


def public() -> set[str]:
    return set(re.findall(r"(?m)^from \S+ import \w+ as (\w+)$", STUB.read_text(encoding="utf-8")))


def test_every_public_name_is_called_or_computes_nothing(functions):
    contracts = {contract.name.split("-")[0] for contract in TABLE}
    assert public() - functions.keys() - contracts - DATA == set()
    assert functions.keys() | DATA <= public(), "a name that is not public"


def held() -> int:
    gc.collect()
    gc.freeze()  # What is still there need not be looked at again.
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize("name", sorted(public() - DATA - {contract.name.split("-")[0] for contract in TABLE}))
def test_again(name, functions, compilations):
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            functions[name]()
        before = held()
        with compilations() as counted:
            for _ in range(2):
                functions[name]()
        assert counted() == 0
    assert held() == before
