"""The exported networks in snntorch and spikingjelly: the same predictions, and the same spikes in every layer.

snntorch fires above the threshold, as NIR says; spikingjelly fires at it, so there thresholds go up to the next
float32.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from exported import GRAPHS, moments, pixels_of, variables_of
from pages import blocks
from small_networks import images_of, random_variables
from test_nir import ours, shown, sums_graph, tie

from qpsnn_jax.export.agreement import mean_currents
from qpsnn_jax.export.nir.file import write_nir
from qpsnn_jax.export.nir.writer import nir_graph
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs.exported import read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's packages


@pytest.fixture(params=["snntorch", "spikingjelly"])
def simulate(request, capsys):
    """A function from a NIR file and inputs ``b t h w c`` to outputs ``b t n`` and the spikes of every LIF node."""
    reason = f"{request.param} is not installed (the extra simulators)"
    torch, nir, _, _ = (
        pytest.importorskip(name, reason=reason) for name in ("torch", "nir", "nirtorch", request.param)
    )
    if request.param == "snntorch":
        from snntorch.import_nir import import_from_nir
    else:
        from spikingjelly.activation_based.nir_exchange import import_from_nir

    def run(path, images):
        document = nir.read(path)
        neurons = {name: node for name, node in document.nodes.items() if isinstance(node, nir.LIF)}
        if request.param == "spikingjelly":
            for node in neurons.values():
                node.v_threshold = np.nextafter(node.v_threshold, np.float32(np.inf))
        model, counts = import_from_nir(document), dict.fromkeys(neurons, 0)

        def count(name):
            def add(_module, _inputs, output):
                spikes = output[0] if isinstance(output, tuple) else output
                counts[name] += int(spikes.sum())

            return add

        for name in neurons:
            model.get_submodule(name.replace(".", "_")).register_forward_hook(count(name))
        outputs, state = [], None
        frames = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(images, np.float32), -1, 2)))
        with torch.no_grad():
            for step in range(frames.shape[1]):
                output, state = model(frames[:, step], state)
                outputs.append(output.flatten(1).numpy())
        capsys.readouterr()  # snntorch prints the parameters of every neuron
        return np.stack(outputs, 1), counts

    return run


def test_the_code_on_the_page_runs(small_run, tmp_path, monkeypatch, capsys):
    for name in ("torch", "nirtorch", "snntorch"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extra simulators)")
    run = read_run(small_run, compared=True)
    write_nir(tmp_path / "digits.nir", nir_graph(run.graph, run.variables, run.data.mean, run.data.std))
    monkeypatch.chdir(tmp_path)
    first, nudge = (block.text for block in blocks("notebooks/nir.md") if block.language == "python")
    names = {}
    exec(first, names)
    dark = np.zeros((1, *run.graph.input.shape), np.uint8)
    expected = mean_currents(run.graph, run.variables, dark, run.data.mean, run.data.std)
    np.testing.assert_allclose(names["total"], expected, atol=1e-4)
    assert capsys.readouterr().out.endswith(f"tensor([{int(np.argmax(expected))}])\n")
    before = names["graph"].nodes["lif1"].v_threshold.copy()
    exec(nudge, names)
    assert (names["graph"].nodes["lif1"].v_threshold == np.nextafter(before, np.float32(1))).all()


def check(simulate, path, graph, variables, images):
    currents, spikes = ours(graph, variables, images)
    outputs, counts = simulate(path, shown(graph, images))
    assert counts == spikes
    assert min(spikes.values()) > 0
    np.testing.assert_array_equal(outputs.mean(1).argmax(-1), currents.mean(1).argmax(-1))
    np.testing.assert_allclose(outputs, currents, atol=1e-4)


def test_the_digits_network(small_run, simulate, tmp_path):
    run = read_run(small_run, compared=True)
    write_nir(tmp_path / "a.nir", nir_graph(run.graph, run.variables))
    images = normalize(jnp.asarray(run.data.test.images), run.data.mean, run.data.std)
    check(simulate, tmp_path / "a.nir", run.graph, run.variables, images)


@pytest.mark.parametrize("name", ["resnet20", "vggsnn", "dense"])
def test_every_construct(name, simulate, tmp_path):
    graph, variables = GRAPHS[name], variables_of(name)
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables))
    images = normalize(jnp.asarray(pixels_of(graph, 4)), *moments(graph))
    check(simulate, tmp_path / "a.nir", graph, variables, images)


def test_sums_of_spikes(simulate, tmp_path):
    graph = sums_graph()
    variables = random_variables(graph)
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables))
    check(simulate, tmp_path / "a.nir", graph, variables, images_of(graph, 4))


@pytest.mark.parametrize("fire", [">=", ">"])
def test_a_membrane_at_the_threshold(fire, simulate, tmp_path):
    graph, variables = tie(fire)
    write_nir(tmp_path / "a.nir", nir_graph(graph, variables))
    check(simulate, tmp_path / "a.nir", graph, variables, jnp.ones((1, 2, 2, 1)))
