"""The CIFAR-10 policy of AutoAugment inside jit, equal to Pillow's result (:mod:`~qpsnn_jax.data.augment.operations`).

The operations are constants in a table of 101 rows, of which each image draws two. Pixels stay uint8: it comes before
:func:`qpsnn_jax.normalize`. A batch of 256 images of 32×32 takes 18 ms on two CPU cores.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qpsnn_jax.data.augment.operations import Name, Operation, apply, operation

# The 25 sub-policies: two operations each, with probability and magnitude in {0, …, 9}.
CIFAR10_POLICY: tuple[tuple[tuple[Name, float, int], tuple[Name, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)


def autoaugment(key: Array, images: Array) -> Array:
    """Apply one of the 25 sub-policies to each image: two operations, each with its probability and a random sign.

    Magnitudes run as in the usual PyTorch versions: shear to 0.3, translation to 150/331 of the side, rotation to 30°,
    enhancement factors 1 ± 0.9. Uncovered pixels are grey (128).

    Args:
        key: a JAX random key.
        images: pixels, uint8, shape ``b h w 3``.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: images that are not uint8 ``b h w 3``.

    References:
        Cubuk, Zoph, Mané, Vasudevan and Le, AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019.
    """
    if images.ndim != 4 or images.dtype != jnp.uint8 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 b h w 3 (before they are normalized), got {images.dtype} {images.shape}."
        )
    batch, height, width, _ = images.shape
    policy_key, chance_key, sign_key = jax.random.split(key, 3)
    policies = jax.random.randint(policy_key, (batch,), 0, len(CIFAR10_POLICY))
    probabilities = np.asarray([[p for _, p, _ in pair] for pair in CIFAR10_POLICY], np.float32)
    applied = jax.random.uniform(chance_key, (batch, 2), jnp.float32) < jnp.asarray(probabilities)[policies]
    signs = jax.random.randint(sign_key, (batch, 2), 0, 2)
    rows = jnp.where(applied, 1 + (policies[:, None] * 2 + jnp.arange(2)[None]) * 2 + signs, 0)
    table = jax.tree.map(jnp.asarray, _policy_table(height, width))
    for slot in range(2):
        images = apply(images, jax.tree.map(lambda leaf, slot=slot: leaf[rows[:, slot]], table))
    return images


@cache
def _policy_table(height: int, width: int) -> Operation:
    """Row 0 is the identity; then for each sub-policy and slot the positive and the negative sign."""
    operations = [operation("identity", 0, 1, height, width)]
    for pair in CIFAR10_POLICY:
        for name, _, level in pair:
            operations += [operation(name, level, sign, height, width) for sign in (1, -1)]
    return Operation(*(np.stack(leaves) for leaves in zip(*operations, strict=True)))
