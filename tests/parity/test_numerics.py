"""Numerics against outputs recorded from the authors' released PyTorch code (O I H W, B T C H W)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.numerics.neurons import lif
from qpsnn_jax.numerics.quantization import codes, integer_weights, quantize
from qpsnn_jax.pruning.scores import svs_ranks, svs_scores

over = pytest.mark.parametrize
released = {"granularity": "channel", "ste": "scaled"}


def load(folder: Path, file: str, prefix: str) -> dict[str, np.ndarray]:
    with np.load(folder / file) as arrays:
        return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def to_hwio(weights: np.ndarray) -> np.ndarray:
    return weights.transpose(2, 3, 1, 0)


@over("steps", [2, 4, 10])
def test_lif(vectors: Path, steps: int):
    v = load(vectors, "lif.npz", f"t{steps}_")
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(lif(x, fire=">")[1] * v["cotangent"])))(v["currents"])
    assert v["spikes"].shape[1] == steps
    np.testing.assert_array_equal(lif(v["currents"], fire=">")[1], v["spikes"])
    np.testing.assert_allclose(gradient, v["grad"], rtol=1e-6, atol=1e-6)


@over("bits", [2, 3, 4, 8])
def test_rescaw(vectors: Path, bits: int):
    v = load(vectors, "rescaw.npz", f"b{bits}_")
    quantized, pull = jax.vjp(lambda w: quantize(w, bits, **released), to_hwio(v["weight"]))
    np.testing.assert_allclose(quantized, to_hwio(v["quantized"]), rtol=1e-6, atol=1e-6)
    gradient = to_hwio(v["grad_reference_ste"])
    np.testing.assert_allclose(pull(jnp.asarray(to_hwio(v["cotangent"])))[0], gradient, rtol=1e-4)
    assert codes(to_hwio(v["weight"]), bits, granularity="channel").values.max() == 2**bits - 1


@over("bits", [2, 3, 4, 8])
@over("late_scale", [False, True])
def test_convolution_with_quantized_weights(vectors: Path, bits: int, late_scale: bool):
    v = load(vectors, "rescaw.npz", f"b{bits}_")
    integers, scale = integer_weights(to_hwio(v["weight"]), bits, **released)
    kernel, after = (integers, scale) if late_scale else (integers * scale, jnp.ones_like(scale))
    x, layout = v["x"].transpose(0, 2, 3, 1), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) * after
    np.testing.assert_allclose(y, v["y"].transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@over("case", ["h32t2", "h16t4", "h8t4", "h4t2", "h2t4", "h12t10"])
def test_svs(vectors: Path, case: str):
    v = load(vectors, "svs.npz", f"{case}_")
    spikes = jnp.asarray(v["spikes"].transpose(0, 1, 3, 4, 2))
    np.testing.assert_array_equal(svs_ranks(spikes), v["rank"])
    np.testing.assert_allclose(svs_scores(spikes), v["score"], rtol=1e-6)
