"""Each augmentation against its definition in NumPy."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from qpsnn_jax.data import Augmentation
from qpsnn_jax.data.augment.images import augment, cutout, random_affine, random_crop, random_flip

KEY = jax.random.key(0)
SHAPE = (16, 9, 7, 3)
ALL = Augmentation(crop_padding=2, flip=True, cutout=3, degrees=15.0, scale=0.1, translate=1.0)
FUNCTIONS = {
    "crop": partial(random_crop, padding=2),
    "flip": random_flip,
    "cutout": partial(cutout, size=3),
    "affine": partial(random_affine, degrees=15.0, scale=0.1, translate=1.0),
    "all": partial(augment, augmentation=ALL),
}
JITTED = {name: jax.jit(function) for name, function in FUNCTIONS.items()}
EVERY = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
EVERY_JITTED = pytest.mark.parametrize("function", JITTED.values(), ids=JITTED.keys())
EVERY_NAME = pytest.mark.parametrize("name", FUNCTIONS)
crop, blank, affine = (
    jax.jit(function, static_argnums=range(2, count))
    for function, count in ((random_crop, 3), (cutout, 3), (random_affine, 5))
)


def batch(shape=SHAPE, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(1, 1, shape), dtype)


def shifted(image, down, right):
    """Move an image by slicing, zeros behind it."""
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    rows, columns = (slice(max(0, m), max(0, n + min(0, m))) for m, n in ((down, height), (right, width)))
    source = (slice(max(0, -down), max(0, height - max(0, down))), slice(max(0, -right), max(0, width - max(0, right))))
    result[rows, columns] = image[source]
    return result


@EVERY
def test_keeps_shape_and_dtype(function):
    for dtype in (jnp.float32, jnp.bfloat16):
        result = jax.eval_shape(function, KEY, batch(dtype=dtype))
        assert (result.shape, result.dtype) == (SHAPE, dtype)


@EVERY_JITTED
def test_same_key_same_draw_other_key_another(function):
    first, again, other = function(KEY, batch()), function(KEY, batch()), function(jax.random.key(1), batch())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@EVERY_NAME
def test_jit_agrees(name):
    np.testing.assert_allclose(JITTED[name](KEY, batch()), FUNCTIONS[name](KEY, batch()), rtol=1e-4, atol=1e-5)


@EVERY_NAME
def test_vmap_over_keys_agrees(name):
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(FUNCTIONS[name], in_axes=(0, None)))(keys, batch())
    for one, key in zip(together, keys, strict=True):
        np.testing.assert_allclose(one, JITTED[name](key, batch()), rtol=1e-4, atol=1e-5)


@EVERY_JITTED
def test_images_of_a_batch_draw_independently(function):
    same = jnp.broadcast_to(batch()[:1], SHAPE)
    result = np.asarray(function(KEY, same)).reshape(SHAPE[0], -1)
    assert len(np.unique(result, axis=0)) > 1


@EVERY
@pytest.mark.parametrize("images", [jnp.zeros(SHAPE, jnp.uint8), jnp.zeros(SHAPE[1:])], ids=["uint8", "3d"])
def test_other_images_raise(function, images):
    with pytest.raises(ValueError, match="images must be floating b h w c"):
        function(KEY, images)


@pytest.mark.parametrize("pixels", [1, 3])
def test_every_crop_is_a_slice_within_reach(pixels):
    images = np.asarray(batch((200, 6, 5, 2)))
    results = np.asarray(crop(KEY, jnp.asarray(images), pixels))
    reach = range(-pixels, pixels + 1)
    seen = set()
    for image, result in zip(images, results, strict=True):
        found = [m for m in itertools.product(reach, reach) if np.array_equal(result, shifted(image, *m))]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 0.7 * len(reach) ** 2


def test_flip_mirrors_half_of_them():
    images = np.asarray(batch((400, 4, 5, 1)))
    results = np.asarray(JITTED["flip"](KEY, jnp.asarray(images)))
    mirrored = [np.array_equal(r, i[:, ::-1]) for r, i in zip(results, images, strict=True)]
    kept = [np.array_equal(r, i) for r, i in zip(results, images, strict=True)]
    assert np.logical_xor(mirrored, kept).all()
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_cutout_blanks_one_clipped_square(size):
    height, width = 8, 6
    blanked = np.asarray(blank(KEY, jnp.ones((300, height, width, 2)), size)) == 0
    assert (blanked[..., 0] == blanked[..., 1]).all()

    def square(y, x):
        mask = np.zeros((height, width), bool)
        top, left = y - size // 2, x - size // 2
        mask[max(0, top) : top + size, max(0, left) : left + size] = True
        return mask.tobytes()

    possible = {square(y, x) for y in range(height) for x in range(width)}
    seen = {mask.tobytes() for mask in blanked[..., 0]}
    assert seen <= possible
    assert len(seen) > 0.9 * len(possible)
    areas = blanked[..., 0].sum((1, 2))
    assert areas.max() == size**2
    assert areas.min() >= -(-size // 2) * (size // 2)


def test_cutout_keeps_the_rest_exactly():
    images = batch()
    result = blank(KEY, images, 4)
    np.testing.assert_array_equal(jnp.where(result == 0, images, result), images)


def test_affine_is_bilinear_sampling_of_the_rotated_grid():
    images = batch((5, 8, 10, 2))
    degrees, scale, translate = 30.0, 0.2, 1.5
    results = affine(KEY, images, degrees, scale, translate)
    angle_key, scale_key, move_key = jax.random.split(KEY, 3)
    angles = np.deg2rad(jax.random.uniform(angle_key, (5,), jnp.float32, minval=-degrees, maxval=degrees))
    factors = np.asarray(jax.random.uniform(scale_key, (5,), jnp.float32, minval=1 - scale, maxval=1 + scale))
    moves = np.asarray(jax.random.uniform(move_key, (5, 2), jnp.float32, minval=-translate, maxval=translate))
    center = np.array([3.5, 4.5])
    for image, result, angle, factor, move in zip(np.asarray(images), results, angles, factors, moves, strict=True):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        back = np.linalg.inv(factor * turn)
        for channel in range(2):
            expected = scipy.ndimage.affine_transform(
                image[..., channel], back, center - back @ (center + move), order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(result[..., channel], expected, rtol=1e-4, atol=1e-4)


def test_affine_quarter_of_a_pixel_blends_two_neighbours():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))
    result = np.asarray(affine(KEY, ramp, 0.0, 0.0, 0.25))[0, 2:6, 2:6, 0]
    steps = np.diff(result, axis=0)
    np.testing.assert_allclose(steps, 1, atol=1e-5)
    assert np.abs(result - np.arange(2, 6)[:, None]).max() <= 0.25 + 1e-5


def test_identity_is_bit_for_bit():
    images = batch()
    for result in (
        augment(KEY, images, Augmentation()),
        random_crop(KEY, images, 0),
        cutout(KEY, images, 0),
        random_affine(KEY, images, 0.0, 0.0, 0.0),
    ):
        np.testing.assert_array_equal(result, images)


def test_turning_one_on_does_not_change_the_draws_of_another():
    images = batch()
    jitted = jax.jit(augment, static_argnums=2)
    cropped_only = jitted(KEY, images, Augmentation(crop_padding=2))
    with_cutout = jitted(KEY, images, Augmentation(crop_padding=2, cutout=3))
    np.testing.assert_array_equal(jnp.where(with_cutout == 0, cropped_only, with_cutout), cropped_only)


def test_augmentation_is_a_static_argument():
    jitted = jax.jit(augment, static_argnames="augmentation")
    np.testing.assert_array_equal(jitted(KEY, batch(), Augmentation()), batch())
    assert jitted(KEY, batch(), ALL).shape == SHAPE
    assert hash(Augmentation(crop_padding=4)) == hash(Augmentation(crop_padding=4))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop_padding": -1}, "crop_padding must be an integer"),
        ({"crop_padding": 1.5}, "crop_padding must be an integer"),
        ({"cutout": -4}, "cutout must be an integer"),
        ({"cutout": True}, "cutout must be an integer"),
        ({"degrees": -1.0}, "degrees must be between 0 and 180"),
        ({"degrees": 181.0}, "degrees must be between 0 and 180"),
        ({"degrees": float("nan")}, "degrees must be between 0 and 180"),
        ({"scale": -0.1}, "scale must be at least 0 and below 1"),
        ({"scale": 1.0}, "scale must be at least 0 and below 1"),
        ({"translate": -1.0}, "translate must be a finite number"),
        ({"translate": float("inf")}, "translate must be a finite number"),
        ({"flip": 0.5}, "flip must be True or False"),
    ],
)
def test_impossible_values_raise(values, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**values)


@pytest.mark.parametrize(
    "call",
    [
        lambda images: random_crop(KEY, images, -1),
        lambda images: cutout(KEY, images, -1),
        lambda images: random_affine(KEY, images, -1.0, 0.0, 0.0),
    ],
)
def test_functions_raise_where_their_description_does(call):
    with pytest.raises(ValueError, match="must be"):
        call(batch())
