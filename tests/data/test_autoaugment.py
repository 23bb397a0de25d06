"""Each AutoAugment operation against Pillow's own result, and the policy's statistics."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from qpsnn_jax.data import Augmentation
from qpsnn_jax.data.augment.autoaugment import CIFAR10_POLICY, autoaugment
from qpsnn_jax.data.augment.images import augment, normalize_and_augment
from qpsnn_jax.data.augment.operations import apply, operation
from qpsnn_jax.numerics.normalization import normalize

KEY = jax.random.key(0)
SIZES = [(32, 32), (20, 27)]
LEVELS = (0, 2, 3, 7, 8, 9)


def pictures(height, width):
    """Noise, a dark smooth picture, a two-valued one, a constant one, and one with nearly empty histograms."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([40 + 3 * x, 30 + 2 * y, 20 + x + y], -1)
    two = np.where((x + y)[..., None] % 2, [200, 10, 100], [50, 250, 101])
    constant = np.full((height, width, 3), [3, 128, 255])
    peaked = np.where(rng.random((height, width, 3)) < 0.02, noise, 77)
    return np.stack([noise, smooth, two, constant, peaked]).astype(np.uint8)


def moved(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128,) * 3)


def with_pillow(name, level, sign, image):
    share = sign * level / 9
    factor = 1 + 0.9 * share
    width, height = image.size
    return {
        "identity": lambda: image,
        "shear_x": lambda: moved(image, (1, 0.3 * share, 0, 0, 1, 0)),
        "shear_y": lambda: moved(image, (1, 0, 0, 0.3 * share, 1, 0)),
        "translate_x": lambda: moved(image, (1, 0, 150 / 331 * share * width, 0, 1, 0)),
        "translate_y": lambda: moved(image, (1, 0, 0, 0, 1, 150 / 331 * share * height)),
        "rotate": lambda: image.rotate(30 * share, Image.Resampling.NEAREST, fillcolor=(128,) * 3),
        "invert": lambda: ImageOps.invert(image),
        "solarize": lambda: ImageOps.solarize(image, 256 - 256 * level / 9),
        "posterize": lambda: ImageOps.posterize(image, round(8 - 4 * level / 9)),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "equalize": lambda: ImageOps.equalize(image),
        "autocontrast": lambda: ImageOps.autocontrast(image),
    }[name]()


NAMES = [
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "invert", "solarize", "posterize"),
    *("brightness", "contrast", "color", "sharpness", "equalize", "autocontrast"),
]
JITTED, POLICY = jax.jit(apply), jax.jit(autoaugment)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_operation_is_pillows(name, height, width):
    images = pictures(height, width)
    for level in LEVELS:
        for sign in (1, -1):
            one = operation(name, level, sign, height, width)
            result = JITTED(jnp.asarray(images), jax.tree.map(lambda leaf: np.stack([leaf] * len(images)), one))
            expected = np.stack([with_pillow(name, level, sign, Image.fromarray(image)) for image in images])
            difference = np.asarray(result).astype(int) - expected
            assert difference.min() >= 0, (level, sign)
            assert difference.max() <= (name == "autocontrast"), (level, sign)


def test_smoothing_is_pillows():
    images = pictures(32, 32)
    zero = operation("sharpness", 9, -1, 32, 32)._replace(products=np.zeros(511, np.float32))
    result = JITTED(jnp.asarray(images), jax.tree.map(lambda leaf: np.stack([leaf] * len(images)), zero))
    expected = np.stack([Image.fromarray(image).filter(ImageFilter.SMOOTH) for image in images])
    np.testing.assert_array_equal(result, expected)


def test_policy_is_the_papers_in_number_and_range():
    assert len(CIFAR10_POLICY) == 25
    for name, probability, level in (entry for pair in CIFAR10_POLICY for entry in pair):
        assert name in NAMES
        assert 0 <= probability <= 1
        assert level in range(10)


def test_every_result_is_a_sub_policy_at_its_frequency():
    picture = pictures(12, 12)[1]
    count = 4096
    results = np.asarray(POLICY(KEY, jnp.broadcast_to(jnp.asarray(picture), (count, 12, 12, 3))))
    chances = {}
    for first, second in CIFAR10_POLICY:
        for apply_first in (0, 1):
            for apply_second in (0, 1):
                chance = (first[1] if apply_first else 1 - first[1]) * (second[1] if apply_second else 1 - second[1])
                for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                    image = jnp.asarray(picture)[None]
                    for (name, _, level), sign, on in zip(
                        (first, second), signs, (apply_first, apply_second), strict=True
                    ):
                        one = operation(name, level, sign, 12, 12)
                        image = JITTED(image, jax.tree.map(lambda leaf: np.asarray(leaf)[None], one)) if on else image
                    seen = np.asarray(image[0]).tobytes()
                    chances[seen] = chances.get(seen, 0) + chance / 100
    assert sum(chances.values()) == pytest.approx(1)
    counts = Counter(image.tobytes() for image in results)
    assert set(counts) <= set(chances)
    for image, chance in chances.items():
        assert counts[image] / count == pytest.approx(chance, abs=5 * (chance / count) ** 0.5 + 1e-3)


def test_same_key_same_draw_also_under_vmap():
    images = jnp.asarray(pictures(32, 32))
    keys = jax.random.split(KEY, 2)
    first, second = (POLICY(key, images) for key in keys)
    assert (first.shape, first.dtype) == (images.shape, jnp.uint8)
    np.testing.assert_array_equal(first, POLICY(keys[0], images))
    assert not np.array_equal(first, second)
    together = jax.jit(jax.vmap(autoaugment, in_axes=(0, None)))(keys, images)
    np.testing.assert_array_equal(together, jnp.stack([first, second]))


def test_tiny_images_survive():
    images = jnp.zeros((3, 2, 1, 3), jnp.uint8)
    assert jax.eval_shape(autoaugment, KEY, images).shape == images.shape


@pytest.mark.parametrize(
    "images", [jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.zeros((8, 8, 3), jnp.uint8)]
)
def test_other_images_raise(images):
    with pytest.raises(ValueError, match="images must be uint8 b h w 3"):
        autoaugment(KEY, images)


def test_comes_before_normalizing_and_leaves_the_other_draws_alone():
    images, mean, std = jnp.asarray(pictures(32, 32)), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    both, others = Augmentation(flip=True, cutout=8, autoaugment=True), Augmentation(flip=True, cutout=8)
    run = jax.jit(normalize_and_augment, static_argnums=(2, 3, 4))
    plain = jax.jit(augment, static_argnums=2)
    before = POLICY(jax.random.fold_in(KEY, 4), images)
    keys = jax.random.key_data(jax.random.split(KEY, 4)).tolist()
    assert jax.random.key_data(jax.random.fold_in(KEY, 4)).tolist() not in keys
    np.testing.assert_allclose(
        run(KEY, images, both, mean, std), plain(KEY, normalize(before, mean, std), others), atol=1e-5
    )
    np.testing.assert_allclose(
        run(KEY, images, others, mean, std), plain(KEY, normalize(images, mean, std), others), atol=1e-5
    )
    with pytest.raises(ValueError, match="autoaugment must be True or False"):
        Augmentation(autoaugment=1)
