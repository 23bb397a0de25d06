"""Convolutions of random shapes: every algorithm's sums and the gradients are the integers that NumPy finds."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from seeds import seeds

from qpsnn_jax.kernels.convolution import conv_spikes, convolve
from qpsnn_jax.kernels.dispatch import SUMS


def drawn(seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Options, spikes and odd integers with a channel of zeros; half of the kernels are 3×3 at stride 1."""
    draw = np.random.default_rng(seed)
    size, channels, bits = draw.integers(1, 10, 2), int(draw.integers(1, 71)), int(draw.integers(1, 9))
    kernel, strides = draw.integers(1, 6, 2), draw.integers(1, 4, 2)
    if seed % 2:
        size, kernel, strides, bits = np.maximum(size, 3), np.array([3, 3]), np.array([1, 1]), 1 + bits % 4
    least = np.maximum(0, -(-(kernel - size) // 2))
    padding = draw.integers(least, np.maximum(least, np.minimum(kernel, 2)) + 1)
    spikes = (draw.random((3, *size, channels)) < 0.4).astype(np.int64)
    integers = 2 * draw.integers(0, 2**bits, (*kernel, channels, int(draw.integers(1, 20)))) - 2**bits + 1
    integers[..., 0] = 0
    strides, padding = (tuple(x.tolist()) for x in (strides, padding))
    return {"bits": bits, "strides": strides, "padding": padding}, spikes, integers


def by_taps(
    x: np.ndarray, kernel: np.ndarray, strides: Any, padding: Any, cotangent: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, and the gradients of their product with ``cotangent``, one tap of the kernel after the other."""
    padded = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    outputs = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel.shape, strides, strict=False)]
    sums = np.zeros((len(x), *outputs, kernel.shape[-1]), np.int64)
    given = np.ones_like(sums) if cotangent is None else cotangent
    to_x, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in product(*map(range, kernel.shape[:2])):
        rows, columns = (slice(k, k + s * (n - 1) + 1, s) for k, s, n in zip((i, j), strides, outputs, strict=True))
        sums += padded[:, rows, columns] @ kernel[i, j]
        to_x[:, rows, columns] += given @ kernel[i, j].T
        to_kernel[i, j] = np.tensordot(padded[:, rows, columns], given, ((0, 1, 2), (0, 1, 2)))
    (ph, pw), (h, w) = padding, x.shape[1:3]
    return sums, to_x[:, ph : ph + h, pw : pw + w], to_kernel


@seeds(12)
def test_every_algorithm_gives_the_exact_sums_and_gradients(seed):
    options, spikes, integers = drawn(seed)
    where = {name: options[name] for name in ("strides", "padding")}
    sums, *_ = by_taps(spikes, integers, **where)
    cotangent = np.random.default_rng(seed).integers(-3, 4, sums.shape)
    _, to_spikes, to_integers = by_taps(spikes, integers, **where, cotangent=cotangent)

    def run(spikes: Any, integers: Any, cotangent: Any) -> Any:
        found = {}
        for algorithm in (*(each.name for each in SUMS), None):
            found[algorithm or "chosen"] = conv_spikes(spikes, integers, **options, algorithm=algorithm)
        return found, jax.vjp(partial(convolve, **where), spikes, integers)[1](cotangent)

    arrays = (jnp.asarray(x, jnp.float32) for x in (spikes, integers, cotangent))
    found, gradients = jax.device_get(jax.jit(run)(*arrays))
    for algorithm, value in found.items():
        np.testing.assert_array_equal(value, sums, err_msg=algorithm)
    np.testing.assert_array_equal(gradients[0], to_spikes)
    np.testing.assert_array_equal(gradients[1], to_integers)
