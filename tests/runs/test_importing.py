"""Commands on a network with a node class of the user's own, which they import by name."""

import sys
from itertools import count

import numpy as np
import pytest

from qpsnn_jax import load_network, nodes, save_network
from qpsnn_jax.model.graph import Graph
from qpsnn_jax.model.nodes.base import KINDS
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runtime import naming

SOURCE = """
from dataclasses import dataclass
from qpsnn_jax.model.nodes import Result, Unary

@dataclass(frozen=True)
class {kind}(Unary):
    def infer(self, inputs):
        return inputs[0]._replace(spiking=False)

    def run(self, leaves, inputs, context):
        return Result(2 * inputs[0])
"""
_KINDS = (f"Doubling{i}" for i in count())


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A saved network with a class of a module ``own_nodes`` in the working directory, and no memory of the class."""
    kind = next(_KINDS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nodes.py").write_text(SOURCE.format(kind=kind))
    naming.import_code("own_nodes.py")
    layers = (KINDS[kind]("twice", "image"), nodes.Dense("readout", "flat", 2))
    graph = Graph((nodes.Input("image", (1, 1, 2)), layers[0], nodes.Flatten("flat", "twice"), layers[1]))
    readout = {"kernel": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    save_network("network", graph, {"params": {"readout": readout}})
    del KINDS[kind]
    naming._run.clear()
    sys.modules.pop("own_nodes", None)
    return kind


@pytest.mark.parametrize("place", ["own_nodes", "own_nodes.py"])
def test_a_command_imports_the_nodes_of_a_network(network, place, capsys):
    assert main(["cost", "network"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(
        f"node 'twice' is of the kind {network!r}, which is not imported; import its module first "
        "(qpsnn: --import MODULE).\n"
    )
    assert main(["cost", "network", "--import", place]) == 0
    assert "readout" in capsys.readouterr().out
    assert isinstance(load_network("network")[0].by_name["twice"], KINDS[network])


@pytest.mark.parametrize("place", ["absent_nodes", "absent.py"])
def test_a_module_that_cannot_be_imported_is_named(network, place, capsys):
    assert main(["evaluate", "network", "--import", place]) == 2
    assert f"{place!r} cannot be imported (" in capsys.readouterr().err
