"""The benchmarks run, at a width that takes seconds, and their networks compute the same everywhere."""

import json
import shutil
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
import optax
import pytest
from small_networks import images_of, random_variables, residual_graph, shallow_graph

from experiments import scaling
from experiments.benchmarks import comparison, curves, edge, events, gpu, isa, memory, networks, speed, svs
from qpsnn_jax import init_state, make_train_step
from qpsnn_jax.kernels import dispatch, int8
from qpsnn_jax.model.nodes import LIF, Quantizer

WIDTH = 1 / 8


def test_edge_program_is_timed_and_right(monkeypatch):
    if shutil.which("cc") is None:
        pytest.skip("cc is not on this machine")
    graph = shallow_graph((32, 32, 3))
    monkeypatch.setattr(networks, "resnet20", lambda **_: graph)
    row = edge.program("cc -O1", 2, WIDTH, "narrow", 2, True, 0.0)
    assert row.name == "narrow"
    assert row.latency > 0
    assert 0 < row.memory < 100
    assert 10_000 < row.file_bytes < 14_000
    assert "working memory 3 kB" in row.note


def test_ranks_are_timed_and_right(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(svs, "resnet20", lambda **_: shallow_graph((32, 32, 3)))
    arguments = ["--images", "2", "--repeats", "1", "--steps", "1", "--width", "0.0625"]
    assert svs.main([*arguments, "--json", str(tmp_path / "svs.json")]) == 0
    found = json.loads((tmp_path / "svs.json").read_text())
    assert found["wrong"] == 0
    assert found["maps_an_image"] == {"32": 4, "16": 4, "8": 4}
    assert all(seconds > 0 for row in found["seconds_a_map"].values() for seconds in row.values())
    assert "exact elimination" in capsys.readouterr().out


def test_a_wrong_rank_is_noticed(monkeypatch):
    maps = np.ones((1, 8, 8, 3), np.uint8)
    assert svs.wrong_ranks(maps) == 0
    monkeypatch.setattr(svs, "_ranks", lambda maps: np.array([[1, 2, 1]]))
    assert svs.wrong_ranks(maps) == 1


def test_torch_computes_what_xla_does():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    graph, variables = networks.network(None, pruned=False, width=WIDTH)
    image = np.random.default_rng(0).normal(size=(1, *graph.input.shape)).astype(np.float32)
    expected = networks.in_xla(graph, variables, image)()
    for channels_last in (False, True):
        found = networks.in_torch(graph, variables, image, channels_last=channels_last)()
        assert np.median(np.abs(found - expected)) < 0.2 * np.std(expected)


def small_case(monkeypatch, graph=None):
    """A network in place of the paper's, which take minutes to compile."""
    graph = graph or shallow_graph()
    case = speed.Case(graph, random_variables(graph), np.asarray(images_of(graph, 4)), np.array([0, 1, 2, 0], np.int32))
    monkeypatch.setattr(speed, "make_case", lambda name, batch, width: case)
    monkeypatch.setattr(memory, "make_case", lambda name, batch, width: case)
    return case


def test_sides_are_timed_and_compute_the_same(monkeypatch, tmp_path, capsys):
    case = small_case(monkeypatch)
    ours = ["--sides", "qpsnn_jax", "plain XLA", "--batches", "4", "--repeats", "2"]
    assert speed.main([*ours, "--json", str(tmp_path / "speed.json")]) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["work"], row["side"]) for row in found] == [
        (work, side) for work in ("training", "inference") for side in ("qpsnn_jax", "plain XLA")
    ]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in found)
    assert "| plain XLA |" in capsys.readouterr().out
    assert all(row["apart"] < 1e-5 for row in found if row["work"] == "inference")
    with pytest.raises(SystemExit):
        speed.main(["--sides", "PyTorch"])
    assert speed.products(case.graph, "inference") < speed.products(case.graph, "training")


def test_plain_xla_is_without_the_fast_algorithms(monkeypatch):
    case = small_case(monkeypatch)
    monkeypatch.setattr(dispatch, "cpu_flags", lambda: frozenset({"amx_int8"}))
    monkeypatch.setattr(int8, "_NARROWEST", 1)
    texts = []
    for within in (nullcontext, speed.plain):
        with within():
            run = jax.jit(lambda tree, images: speed.SpikingNetwork(case.graph).apply(tree, images))
            texts.append(run.lower(case.variables, case.images).as_text())
    assert ["xi8>" in text for text in texts] == [True, False]


def test_curves_vary_one_thing_at_a_time(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(speed.NETWORKS, "resnet20", lambda bits, width: shallow_graph())
    monkeypatch.setattr(curves, "POINTS", {"rate": (-1.0, 1.0), "batch": (1, 3)})
    file = tmp_path / "curves.json"
    options = ["--sides", "qpsnn_jax", "plain XLA", "--batch", "2", "--repeats", "1", "--json", str(file)]
    assert curves.main(options) == 0
    low, high, *batches = json.loads(file.read_text())
    assert low["rate"] < batches[0]["rate"] < high["rate"]
    assert [point["value"] for point in batches] == [1, 3]
    for point in (low, high):
        assert all(seconds > 0 for sides in point["seconds"].values() for seconds in sides.values())
    printed = capsys.readouterr().out
    for text in (f"| {low['rate']:.3f} |", "| batch | firing rate |", "inference, plain XLA", " times)"):
        assert text in printed


def test_sides_run_as_often_as_each_other(monkeypatch):
    runs, now = {"fast": 0, "slow": 0}, [0.0]
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: now[0])

    def side(name, seconds):
        def run():
            runs[name] += 1
            now[0] += seconds
            return 1.0

        return lambda case: run

    case: Any = None  # of no use to these sides
    fast, slow = comparison.compare(case, {"fast": side("fast", 0.015), "slow": side("slow", 0.5)}, 3)
    assert fast.seconds == pytest.approx([0.015] * 3)
    assert slow.seconds == pytest.approx([0.5] * 3)
    assert runs["fast"] == runs["slow"] == 3 + 3 * 2 * 14


def test_the_loss_of_inference_is_the_cross_entropy():
    logits = np.random.default_rng(0).normal(0, 30, (5, 7)).astype(np.float32)
    labels = np.arange(5)
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(speed._loss_of(logits, labels), wanted, rtol=1e-6)


def test_any_network_is_computed_in_torch(monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.benchmarks.torch_network import TorchNetwork

    case = small_case(monkeypatch, residual_graph(Quantizer(2)))
    # PyTorch's layers have no gain, which is 1 where training begins.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones_like(leaf) if path[-1].key == "gain" else leaf, case.variables
    )
    expected = jax.jit(speed.SpikingNetwork(case.graph).apply)(variables, case.images).currents
    images = torch.from_numpy(np.array(case.images)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        found = TorchNetwork(case.graph, variables).eval()(images).transpose(0, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize("timed", [True, False])
def test_spikingjellys_neurons_are_those_of_the_torch_network(timed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from experiments.benchmarks import spikingjelly_neurons, torch_network

    node, given = (
        LIF("lif", "image", tau=0.25, threshold=0.7),
        torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4, 5, 5))),
    )
    found = []
    for neurons in (torch_network.neurons, spikingjelly_neurons.neurons):
        currents = given.clone().requires_grad_()
        spikes = neurons(currents, node, 3, timed)
        (spikes * torch.linspace(1, 2, spikes.numel()).reshape(spikes.shape)).sum().backward()
        found.append((spikes.detach().numpy(), currents.grad.numpy()))
    (spikes, gradient), (their_spikes, their_gradient) = found
    assert len(spikes) == (6 if timed else 18)
    assert 0.05 < spikes.mean() < 0.5
    np.testing.assert_array_equal(their_spikes, spikes)
    np.testing.assert_allclose(their_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_a_network_in_torch_is_the_one_in_jax():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.benchmarks.torch_network import TorchNetwork

    case = speed.make_case("resnet20", 4, WIDTH)
    state, tx = init_state(case.variables, optax.sgd(0.1), jax.random.key(0)), optax.sgd(0.1)
    apply = jax.jit(speed.SpikingNetwork(case.graph).apply)
    expected = apply(case.variables, case.images).currents
    after, _ = jax.jit(make_train_step(case.graph, tx))(state, case.images, case.labels)
    network = TorchNetwork(case.graph, case.variables)
    images = torch.from_numpy(np.array(case.images)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        found = network.eval()(images).transpose(0, 1).numpy()
    # A spike on the verge of the threshold may differ in the last bit, and what follows from it.
    assert np.median(np.abs(found - expected)) < 0.05 * np.std(expected)
    loss = torch.nn.functional.cross_entropy(network.train()(images).mean(0), torch.from_numpy(case.labels).long())
    loss.backward()
    for name in ("conv1", "layer3.2.conv2", "fc"):
        kernel = case.variables["params"][name]["kernel"]
        moved = np.asarray(kernel - after.variables["params"][name]["kernel"]) / 0.1
        gradient = network.layers[name.replace(".", "_")].weight.grad.numpy()
        gradient = gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient.T
        assert np.corrcoef(moved.ravel(), gradient.ravel())[0, 1] > 0.98, name
        np.testing.assert_allclose(np.linalg.norm(moved), np.linalg.norm(gradient), rtol=0.1)
    assert memory.in_torch(case) > 4 * case.images.size


def test_memory_is_counted(monkeypatch, capsys):
    case = small_case(monkeypatch)
    assert memory.main(["--networks", "vgg16", "--batch", "4"]) == 0
    assert "| vgg16 | 0 MB |" in capsys.readouterr().out
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(case.variables["params"]))
    assert weights < memory.in_jax(case, jax.jit) < 100 * weights


def test_memory_on_accelerators_is_less_with_spikes_in_bits(monkeypatch, capsys):
    monkeypatch.setitem(scaling.NETWORKS, "vgg16", lambda bits, width: shallow_graph())
    assert memory.main(["--networks", "vgg16", "--batch", "32", "--accelerators"]) == 0
    *_, times, _ = capsys.readouterr().out.splitlines()[-1].split("|")
    assert 1.2 < float(times.removesuffix("times ")) < 2
    with pytest.raises(SystemExit, match="2"):
        memory.main(["--networks", "spikingformer"])
    assert "spikingformer needs --accelerators" in capsys.readouterr().err


def test_what_the_gpu_script_did_not_reach_says_so(capsys):
    assert gpu.main(["--minutes", "0", "--networks", "vgg16", "--batches", "4"]) == 1
    told = capsys.readouterr().out
    assert told.count("not yet run") == 1 + len(gpu.WAYS) + 3


def test_the_gpu_script_measures_on_any_device(monkeypatch):
    case = small_case(monkeypatch)
    for name, way in gpu.WAYS.items():
        if way.library == "jax":
            found = gpu._train(way, case, 1)
            assert found["seconds"] > 0, name
            assert found["peak"] > 0, name
    assert gpu._score(case)["images"] == 640
    limits = {name: rate for each in gpu._limits(1e-6, 1) for name, rate in each.items()}
    assert len(limits) == 5
    assert min(limits.values()) > 0
    assert gpu._attempt(lambda: 1 / 0) == "ZeroDivisionError: division by zero"
    rows = {f"vgg16 4 {name}": {"seconds": 0.5, "peak": 2e9} for name in gpu.WAYS} | limits | {"device": "it"}
    given = gpu.argparse.Namespace(networks=["vgg16"], batches=[4], width=0.0625)
    told = "\n".join(gpu._report(given, rows | {"scoring": "OutOfMemory: it is"}))
    assert told.count("| 8 | ") == len(gpu.WAYS)
    assert "scoring: OutOfMemory: it is" in told


def test_training_on_events_is_timed(tmp_path, capsys):
    arguments = ["--timesteps", "2", "--batch", "2", "--size", "8", "--repeats", "1", "--learned"]
    with jax.numpy_dtype_promotion("standard"):  # for Adam
        assert events.main([*arguments, "--sides", "qpsnn_jax", "--json", str(tmp_path / "events.json")]) == 0
    (row,) = json.loads((tmp_path / "events.json").read_text())
    assert row["side"] == "qpsnn_jax"
    assert 0 < row["seconds"][0] < row["first"]
    assert "Firing rates at the start: lif1 0." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize(("side", "module"), [("snnTorch", "snntorch"), ("SpikingJelly", "spikingjelly")])
@pytest.mark.parametrize(("norm", "learned"), [(False, False), (True, False), (False, True)])
def test_the_others_train_the_same_network_on_events(side, module, norm, learned):
    pytest.importorskip(module, reason=f"{side} is not installed")
    case = events.make_case(3, 8, 8, None, norm=norm, learned=learned)
    assert 0.02 < events.firing_rates(case)["lif2"] < 0.5
    if norm and side == "snnTorch":
        pytest.skip("its batch-norm sees one step at a time")
    with jax.numpy_dtype_promotion("standard"):  # for Adam
        ours, theirs = (events.SIDES[name](case) for name in ("qpsnn_jax", side))
    losses, their_losses = ([step() for _ in range(3)] for step in (ours, theirs))
    np.testing.assert_allclose(losses[0], their_losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses, their_losses, rtol=0.05)
    assert losses[-1] < losses[0]


def test_a_benchmark_restarts_for_fewer_instructions(monkeypatch):
    began = []
    monkeypatch.setattr(isa.os, "execve", lambda *given: began.append(given[-1]))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    isa.restart_with("native")
    assert not began
    isa.restart_with("avx2")
    assert began[0]["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2 --xla_cpu_max_isa=AVX2"
    for name in ("XLA_FLAGS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.setenv(name, began[0][name])
    isa.restart_with("avx2")
    assert len(began) == 1
    assert "avx2" in isa.described()
