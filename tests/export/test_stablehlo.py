"""StableHLO: one module for any batch, with the currents of the float network."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from exported import GRAPHS, moments, pixels_of, variables_of
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo as dialect

from qpsnn_jax.export.stablehlo import PLATFORMS, stablehlo
from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs.cli.main import main


def test_any_batch_gives_the_float_networks_currents():
    graph, variables = GRAPHS["dense"], variables_of("dense")
    exported, pixels = stablehlo(graph, variables, *moments(graph)), pixels_of(graph, 5)
    run = jax.jit(lambda tree, x: SpikingNetwork(graph).apply(tree, x).currents.mean(1))
    expected = np.asarray(run(variables, normalize(jnp.asarray(pixels), *moments(graph))))
    for batch in (5, 2):
        np.testing.assert_allclose(np.asarray(exported.call(pixels[:batch])), expected[:batch], atol=1e-5)
    assert exported.platforms == PLATFORMS
    assert "stablehlo" in exported.mlir_module()


def test_frames_keep_their_time():
    graph = GRAPHS["vggsnn"]
    exported = stablehlo(graph, variables_of("vggsnn"), *moments(graph))
    assert str(exported.in_avals[0].shape) == "(b, 5, 16, 18, 2)"
    assert str(exported.out_avals[0].shape) == "(b, 10)"


def test_export_of_a_run(small_run, tmp_path, capsys):
    """A module of static shapes that takes the pixels alone, and says nothing of the machine that wrote it."""
    out, command = tmp_path / "small.mlirbc", ["export", str(small_run), "--format", "stablehlo"]
    assert main([*command, "--stablehlo-batch", "3", "--out", str(out)]) == 0
    assert f"{out.stat().st_size:,} bytes" in capsys.readouterr().out
    data = out.read_bytes()
    assert data.startswith(b"ML\xefR")
    assert b".py" not in data
    with ir.Context() as context:
        dialect.register_dialect(context)
        text = str(dialect.deserialize_portable_artifact(context, data))
    assert re.search(r"@main\(%arg0: tensor<3x8x8x1xui8>\S* *({[^}]*})?\) -> \(?tensor<3x10xf32>", text)
    assert not re.search(r"tensor<\?|custom_call|dynamic_broadcast", text)
    assert main([*command, "--stablehlo-batch", "0", "--out", str(tmp_path / "b")]) == 2
    assert "batch" in capsys.readouterr().err
    assert main([*command[:-1], "packed", "--stablehlo-batch", "2", "--out", str(tmp_path / "b")]) == 2
    assert "--stablehlo-batch is for --format stablehlo." in capsys.readouterr().err
