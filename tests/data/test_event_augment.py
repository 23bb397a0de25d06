"""Each augmentation of event frames against its definition in NumPy."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from qpsnn_jax.data.augment.frames import augment_frames, random_roll
from qpsnn_jax.data.augment.records import EventAugmentation

KEY = jax.random.key(0)
SHAPE = (8, 3, 9, 7, 2)
ALL = EventAugmentation(flip=True, roll=2, degrees=20.0)
FUNCTIONS = {
    "flip": partial(augment_frames, augmentation=EventAugmentation(flip=True)),
    "roll": partial(augment_frames, augmentation=EventAugmentation(roll=2)),
    "rotation": partial(augment_frames, augmentation=EventAugmentation(degrees=20.0)),
    "random_roll": partial(random_roll, pixels=2),
    "all": partial(augment_frames, augmentation=ALL),
}
EVERY = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


def batch(shape=SHAPE, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).poisson(1.0, shape), dtype)


@EVERY
def test_keeps_shape_and_dtype(function):
    for dtype in (jnp.float32, jnp.bfloat16):
        result = jax.eval_shape(function, KEY, batch(dtype=dtype))
        assert (result.shape, result.dtype) == (SHAPE, dtype)


@EVERY
def test_same_key_same_draw_other_key_another(function):
    first, again, other = function(KEY, batch()), function(KEY, batch()), function(jax.random.key(1), batch())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_jit_and_vmap_agree():
    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(FUNCTIONS["all"], in_axes=(0, None)))(keys, batch())
    for one, key in zip(together, keys, strict=True):
        np.testing.assert_allclose(one, FUNCTIONS["all"](key, batch()), rtol=1e-4, atol=1e-5)


@EVERY
def test_all_steps_and_polarities_of_a_recording_move_together(function):
    """If every step and polarity shows the same picture, they still do afterwards."""
    frames = jnp.broadcast_to(batch()[:, :1, :, :, :1], SHAPE)
    result = np.asarray(function(KEY, frames))
    np.testing.assert_allclose(result, np.broadcast_to(result[:, :1, :, :, :1], SHAPE), rtol=1e-6)


@EVERY
def test_steps_and_polarities_stay_in_place(function):
    """Constant pictures tell which step and polarity they are."""
    names = jnp.arange(6, dtype=jnp.float32).reshape(1, 3, 1, 1, 2)
    result = np.asarray(function(KEY, jnp.broadcast_to(names, SHAPE)))
    np.testing.assert_allclose(result[:, :, 4, 3], np.broadcast_to(names[:, :, 0, 0], (8, 3, 2)), rtol=1e-5)


@EVERY
def test_recordings_draw_independently(function):
    same = jnp.broadcast_to(batch()[:1], SHAPE)
    assert len(np.unique(np.asarray(function(KEY, same)).reshape(SHAPE[0], -1), axis=0)) > 1


@EVERY
@pytest.mark.parametrize("frames", [jnp.zeros(SHAPE, jnp.uint8), jnp.zeros(SHAPE[1:])], ids=["uint8", "4d"])
def test_other_frames_raise(function, frames):
    with pytest.raises(ValueError, match="frames must be floating b t h w c"):
        function(KEY, frames)


@pytest.mark.parametrize("pixels", [1, 3])
def test_every_roll_is_a_roll_within_reach(pixels):
    frames = np.asarray(batch((150, 2, 8, 8, 2)))
    results = np.asarray(random_roll(KEY, jnp.asarray(frames), pixels))
    reach = range(-pixels, pixels + 1)
    seen = set()
    for recording, result in zip(frames, results, strict=True):
        moves = itertools.product(reach, reach)
        found = [m for m in moves if np.array_equal(result, np.roll(recording, m, axis=(1, 2)))]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 0.7 * len(reach) ** 2


def test_flip_mirrors_half_of_them():
    frames = np.asarray(batch((400, 2, 4, 5, 2)))
    results = np.asarray(FUNCTIONS["flip"](KEY, jnp.asarray(frames)))
    mirrored = [np.array_equal(r, f[:, :, ::-1]) for r, f in zip(results, frames, strict=True)]
    kept = [np.array_equal(r, f) for r, f in zip(results, frames, strict=True)]
    assert np.logical_xor(mirrored, kept).all()
    assert 160 < sum(mirrored) < 240


def test_rotation_is_a_rotation_within_reach():
    """A smooth picture, turned by scipy at many angles: one of them must fit."""
    y, x = np.mgrid[:21, :21] - 10.0
    picture = np.exp(-((x - 4) ** 2 + y**2) / 8).astype(np.float32)
    frames = np.broadcast_to(picture[None, None, :, :, None], (6, 1, 21, 21, 2))
    results = np.asarray(augment_frames(KEY, jnp.asarray(frames), EventAugmentation(degrees=30.0)))
    angles = np.arange(-40, 41)
    turned = np.stack([scipy.ndimage.rotate(picture, angle, reshape=False, order=1) for angle in angles])
    best = [np.abs(turned - result[0, :, :, 1]).mean((1, 2)) for result in results]
    assert max(errors.min() for errors in best) < 0.003
    fits = [int(angles[errors.argmin()]) for errors in best]
    assert all(-30 <= fit <= 30 for fit in fits)
    assert len(set(fits)) > 3


def test_flip_and_roll_keep_every_event():
    frames = batch()
    result = augment_frames(KEY, frames, EventAugmentation(flip=True, roll=4))
    np.testing.assert_array_equal(result.sum((2, 3)), frames.sum((2, 3)))


def test_nothing_on_changes_nothing():
    np.testing.assert_array_equal(augment_frames(KEY, batch(), EventAugmentation()), batch())
    np.testing.assert_array_equal(random_roll(KEY, batch(), 0), batch())


def test_turning_one_on_leaves_the_draws_of_the_others():
    both = augment_frames(KEY, batch(), EventAugmentation(flip=True, roll=2))
    roll_alone = augment_frames(KEY, batch(), EventAugmentation(roll=2))
    flipped = augment_frames(KEY, batch(), EventAugmentation(flip=True))
    same = [np.array_equal(a, b) for a, b in zip(both, roll_alone, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(flipped, batch(), strict=True)]
    assert same == kept
    assert 0 < sum(kept) < SHAPE[0]


def test_description_is_static_under_jit():
    jitted = jax.jit(augment_frames, static_argnums=2)
    assert jitted(KEY, batch(), ALL).shape == SHAPE
    assert hash(EventAugmentation(roll=5)) == hash(EventAugmentation(roll=5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"roll": -1}, "roll must be an integer"),
        ({"roll": 1.5}, "roll must be an integer"),
        ({"roll": True}, "roll must be an integer"),
        ({"degrees": -1.0}, "degrees must be between 0 and 180"),
        ({"degrees": float("nan")}, "degrees must be between 0 and 180"),
        ({"flip": 1}, "flip must be True or False"),
    ],
)
def test_impossible_values_raise(values, words):
    with pytest.raises(ValueError, match=words):
        EventAugmentation(**values)


def test_random_roll_raises_where_its_description_does():
    with pytest.raises(ValueError, match="pixels must be an integer"):
        random_roll(KEY, batch(), -1)
