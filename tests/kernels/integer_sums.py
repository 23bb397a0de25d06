"""Plain sums of integers, and spikes and weights for them."""

from itertools import product

import numpy as np

# Maps larger than, as large as, and smaller than the kernel; with taps that see only padding.
CASES = [
    ((8, 8), (3, 3), (1, 1), (1, 1)),
    ((9, 8), (3, 3), (2, 2), (1, 1)),
    ((3, 3), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (2, 2), (1, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (2, 2), (1, 1)),
    ((2, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 4), (1, 7), (1, 1), (0, 3)),
    ((2, 2), (5, 3), (2, 1), (3, 1)),
    ((3, 1), (1, 5), (1, 1), (0, 2)),
    ((4, 1), (2, 3), (1, 1), (0, 1)),
    ((4, 4), (5, 5), (1, 1), (2, 2)),
    ((5, 3), (7, 4), (2, 1), (3, 2)),
]


def by_sums(x, kernel, strides, padding):
    x = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    y = np.zeros((x.shape[0], (h - kh) // strides[0] + 1, (w - kw) // strides[1] + 1, kernel.shape[3]), np.int64)
    for i, j in product(range(y.shape[1]), range(y.shape[2])):
        window = x[:, i * strides[0] :, j * strides[1] :][:, :kh, :kw]
        y[:, i, j] = np.einsum("bklc,klco->bo", window, kernel)
    return y


def gradients_by_sums(x, kernel, cotangent, strides, padding):
    """By x and by the kernel, of the sums of their products with the cotangent; in float64."""
    around = ((0, 0), *((p, p) for p in padding), (0, 0))
    x, kernel, cotangent = (np.asarray(each, np.float64) for each in (x, kernel, cotangent))
    padded, (kh, kw) = np.pad(x, around), kernel.shape[:2]
    by_x, by_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in product(range(cotangent.shape[1]), range(cotangent.shape[2])):
        place = np.s_[:, i * strides[0] : i * strides[0] + kh, j * strides[1] : j * strides[1] + kw]
        by_x[place] += np.tensordot(cotangent[:, i, j], kernel, (1, 3))
        by_kernel += np.tensordot(padded[place], cotangent[:, i, j], (0, 0))
    (top, left), (h, w) = padding, x.shape[1:3]
    return by_x[:, top : top + h, left : left + w], by_kernel


def spikes_and_integers(shape, kernel, bits, channels=40):
    """Spikes, and odd integers with both ends of their range; the third channel's are zero."""
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    integers = 2 * rng.integers(0, top + 1, (*kernel, channels, 16)) - top
    integers[..., 0], integers[..., 1], integers[..., 2] = top, -top, 0
    return (rng.random((5, *shape, channels)) < 0.4).astype(np.int64), integers
