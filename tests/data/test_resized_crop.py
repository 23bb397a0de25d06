"""Random-resized crop inside jit, against Pillow's bilinear resize of a box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data.augment.resized_crop import _draw, random_resized_crop, resize_boxes

KEY = jax.random.key(0)
SHAPE = (6, 20, 17, 3)


def batch(dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(0, 1, SHAPE), dtype)


def pillow(image, box, size):
    top, left, height, width = box
    area = (left, top, left + width, top + height)
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BILINEAR, box=area)
        for plane in np.moveaxis(np.asarray(image), -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


@pytest.mark.parametrize("size", [1, 8, 16, 33])
def test_is_pillows_resize_of_a_box(size):
    boxes = np.asarray(
        [[0, 0, 20, 17], [3, 2, 8, 8], [5, 5, 1, 1], [12, 0, 8, 17], [2.5, 1.25, 9.5, 7], [0, 16, 20, 1]], np.float32
    )
    result = jax.jit(resize_boxes, static_argnums=2)(batch(), jnp.asarray(boxes), size)
    for image, box, got in zip(batch(), boxes.tolist(), result, strict=True):
        np.testing.assert_allclose(got, pillow(image, box, size), atol=2e-5)


def test_whole_image_at_its_own_size_is_unchanged():
    images = batch()[:, :17]
    crop = jax.jit(lambda key: random_resized_crop(key, images, 17, (1, 1), (1, 1)))
    np.testing.assert_allclose(crop(KEY), images, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1), (3 / 4, 4 / 3)), ((0.3, 0.4), (1, 1)), ((0.3, 0.4), (5, 9)), ((1, 1), (0.1, 0.2))],
)
def test_boxes_lie_within_the_image_and_the_ranges(scale, ratio):
    draws = jax.jit(jax.vmap(lambda key: _draw(key, 224, 160, scale, ratio)))(jax.random.split(KEY, 500))
    top, left, height, width = np.asarray(draws).T
    assert (np.asarray(draws) == np.round(draws)).all()
    assert ((top >= 0) & (left >= 0) & (top + height <= 224) & (left + width <= 160)).all()
    assert (width / height >= ratio[0] - 0.04).all()
    assert (width / height <= ratio[1] * 1.2).all()
    if scale[1] < 1 and ratio == (1, 1):
        assert ((height * width >= 0.29 * 224 * 160) & (height * width <= 0.41 * 224 * 160)).all()


def test_areas_and_places_are_spread_evenly():
    top, left, height, width = np.asarray(
        jax.jit(jax.vmap(lambda key: _draw(key, 100, 100, (0.08, 0.5), (3 / 4, 4 / 3))))(jax.random.split(KEY, 4000))
    ).T
    assert (height * width / 1e4).mean() == pytest.approx(0.29, abs=0.01)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.01)
    for corner, side in ((top, height), (left, width)):
        assert (corner / (100 - side)).mean() == pytest.approx(0.5, abs=0.02)
        assert corner.min() == 0
        assert (corner + side).max() == 100


def test_box_that_never_fits_becomes_the_largest_in_the_middle():
    box = _draw(KEY, 30, 10, (1, 1), (1, 1))
    np.testing.assert_array_equal(box, [10, 0, 10, 10])
    np.testing.assert_array_equal(_draw(KEY, 10, 30, (1, 1), (1, 2)), [0, 5, 10, 20])


def test_each_image_draws_its_own_box_by_key():
    same = jnp.broadcast_to(batch()[:1], SHAPE)
    crop = jax.jit(random_resized_crop, static_argnums=2)
    result = np.asarray(crop(KEY, same, 8))
    assert len(np.unique(result.reshape(len(same), -1), axis=0)) == len(same)
    np.testing.assert_array_equal(result, crop(KEY, same, 8))
    assert not np.array_equal(result, crop(jax.random.key(1), same, 8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_dtype_jit_and_vmap(dtype):
    def crop(key):
        return random_resized_crop(key, batch(dtype), 8)

    plain = jax.jit(crop)(KEY)
    assert (plain.shape, plain.dtype) == ((6, 8, 8, 3), dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    wide = [np.asarray(x, np.float32) for x in (plain, jax.jit(jax.vmap(crop))(KEY[None])[0])]
    for other in wide[1:]:
        np.testing.assert_allclose(other, wide[0], atol=tolerance)


@pytest.mark.parametrize("images", [jnp.zeros(SHAPE, jnp.uint8), jnp.zeros(SHAPE[1:])])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="images must be floating b h w c"):
        random_resized_crop(KEY, images, 8)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"size": 0}, "size"),
        ({"size": 2.0}, "size"),
        ({"size": True}, "size"),
        ({"size": 8, "scale": (0, 1)}, "scale"),
        ({"size": 8, "scale": (0.5, 0.2)}, "scale"),
        ({"size": 8, "scale": (0.5, 1.2)}, "scale"),
        ({"size": 8, "ratio": (0, 1)}, "ratio"),
        ({"size": 8, "ratio": (2, 1)}, "ratio"),
        ({"size": 8, "ratio": (1, float("inf"))}, "ratio"),
        ({"size": 8, "scale": (float("nan"), 1)}, "scale"),
    ],
)
def test_impossible_crops_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        random_resized_crop(KEY, batch(), **arguments)
