import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qpsnn_jax.pruning.scores import (
    magnitude_scores,
    random_scores,
    sca_scores,
    singular_values,
    svs_ranks,
    svs_scores,
)

over = pytest.mark.parametrize
SHAPES = over("shape", [(3, 2, 8, 8, 7), (2, 4, 4, 9, 3), (2, 3, 12, 5, 4), (2, 1, 1, 1, 3), (1, 2, 16, 16, 6)])


def low_rank_spikes(shape: tuple, seed: int = 0) -> np.ndarray:
    """Unions of a few binary rectangles, so that ranks vary; the first channel is silent."""
    b, t, h, w, c = shape
    draw = np.random.default_rng(seed)
    rows, columns = draw.random((b, t, h, 1, c, 2)) < 0.4, draw.random((b, t, 1, w, c, 2)) < 0.4
    spikes = (rows & columns).any(-1)
    spikes[..., 0] = False
    return spikes


def maps(spikes: np.ndarray) -> np.ndarray:
    """Integer maps T·S_avg in float64, shape b c h w."""
    return np.moveaxis(spikes.astype(np.float64).sum(1), -1, 1)


@SHAPES
def test_ranks_are_exact(shape: tuple):
    spikes = low_rank_spikes(shape)
    wanted = [[np.linalg.matrix_rank(m) for m in image] for image in maps(spikes)]

    @jax.jit
    def results(spikes):
        return svs_ranks(spikes), svs_ranks(spikes, threshold="exact"), svs_scores(spikes)

    ranks, exact, means = results(spikes)
    assert ranks.dtype == jnp.int32
    assert np.ptp(wanted) > 0
    np.testing.assert_array_equal(ranks, wanted)
    np.testing.assert_array_equal(exact, wanted)
    np.testing.assert_allclose(means, np.mean(wanted, axis=0), rtol=1e-6)


@over("epsilon", [None, 0.05, 0.3])
def test_absolute_threshold(epsilon: float | None):
    spikes = low_rank_spikes((3, 4, 8, 8, 7))
    values = np.linalg.svd(maps(spikes) / 4, compute_uv=False)
    wanted = (values > (1e-6 if epsilon is None else epsilon)).sum(-1)
    np.testing.assert_array_equal(svs_ranks(jnp.asarray(spikes), epsilon=epsilon, threshold="absolute"), wanted)
    scores = svs_scores(jnp.asarray(spikes), epsilon=epsilon, threshold="absolute")
    np.testing.assert_allclose(scores, wanted.mean(0), rtol=1e-6)


@over("epsilon", [0.1, 0.5])
def test_relative_threshold_scales_with_the_largest(epsilon: float):
    spikes = low_rank_spikes((3, 4, 8, 8, 7))
    values = np.linalg.svd(maps(spikes), compute_uv=False)
    wanted = (values > epsilon * values[..., :1]).sum(-1)
    np.testing.assert_array_equal(svs_ranks(jnp.asarray(spikes), epsilon=epsilon), wanted)


@over(("size", "relative", "absolute"), [(1, 4, 3), (100, 4, 5)])
def test_default_tolerances(size: float, relative: int, absolute: int):
    spikes = size * np.diag(np.float32([1, 1e-3, 1e-5, 9e-7, 2e-7]))[None, None, :, :, None]
    assert svs_ranks(spikes).item() == relative
    assert svs_ranks(spikes, threshold="absolute").item() == absolute


@SHAPES
def test_singular_values(shape: tuple):
    spikes = low_rank_spikes(shape)
    got = singular_values(jnp.asarray(spikes))
    assert got.shape == (shape[0], shape[4], min(shape[2:4]))
    np.testing.assert_allclose(got, np.linalg.svd(maps(spikes) / shape[1], compute_uv=False), atol=1e-5)


@over("dtype", [bool, jnp.uint8, jnp.int32, jnp.bfloat16])
def test_spikes_of_any_dtype(dtype):
    spikes = low_rank_spikes((2, 3, 6, 6, 4))
    both = jax.jit(lambda *given: [svs_scores(each) for each in given])(spikes.astype(dtype), spikes.astype(np.float32))
    np.testing.assert_array_equal(*both)


def test_silent_and_constant_channels():
    spikes = np.stack([np.zeros((2, 3, 6, 6)), np.ones((2, 3, 6, 6))], axis=-1).astype(np.float32)
    thresholds = ("relative", "absolute", "exact")
    found = jax.jit(lambda spikes: [svs_scores(spikes, threshold=threshold) for threshold in thresholds])(spikes)
    np.testing.assert_array_equal(found, [[0, 1]] * 3)


def test_sca_is_the_mean_l1_norm():
    u = np.random.default_rng(0).normal(size=(3, 2, 4, 5, 6)).astype(np.float32)
    wanted = [sum(np.abs(u[b, t, :, :, c]).sum() for b in range(3) for t in range(2)) / 6 for c in range(6)]
    np.testing.assert_allclose(sca_scores(u), wanted, rtol=1e-5)


@over("shape", [(5,), (4, 5), (3, 3, 2, 5)])
def test_magnitude_is_the_l1_norm_of_a_filter(shape: tuple):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted = [np.abs(kernel[..., o]).sum() for o in range(5)]
    np.testing.assert_allclose(magnitude_scores(kernel), wanted, rtol=1e-5)


def test_random_scores_follow_the_key():
    first, again, other = (random_scores(jax.random.key(k), 1000) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == ((1000,), jnp.float32)
    assert 0 <= first.min() < 0.05 < 0.95 < first.max() < 1


@over(
    ("function", "name"),
    [(svs_scores, "spikes"), (svs_ranks, "spikes"), (singular_values, "spikes"), (sca_scores, "membranes")],
)
@over("rank", [4, 6])
def test_wrong_rank(function, name: str, rank: int):
    with pytest.raises(ValueError, match=f"{name} must have the shape b t h w c, got"):
        function(np.zeros((2,) * rank, np.float32))


@over("function", [svs_scores, svs_ranks])
def test_unknown_threshold(function):
    with pytest.raises(ValueError, match="threshold must be absolute, relative or exact, got 'auto'"):
        function(np.zeros((1, 1, 2, 2, 1), np.float32), threshold="auto")


def test_exact_takes_no_epsilon():
    with pytest.raises(ValueError, match="threshold exact takes no epsilon"):
        svs_ranks(np.zeros((1, 1, 2, 2, 1), np.float32), epsilon=0.1, threshold="exact")


def test_ranks_of_many_time_steps():
    spikes = np.zeros((1, 70_000, 2, 2, 1), np.float32)  # counts above 16 bits
    spikes[:, :, 0, 0], spikes[:, ::2, 1, 1] = 1, 1
    np.testing.assert_array_equal(svs_ranks(spikes, threshold="exact"), [[2]])


@over("threshold", ["absolute", "relative", "exact"])
def test_nan_comes_out_as_nan(threshold: str):
    spikes = low_rank_spikes((3, 4, 8, 8, 7)).astype(np.float32)
    spikes[1, 2, 3, 4, 5] = np.nan
    assert np.isnan(svs_scores(spikes, threshold=threshold)).tolist() == [channel == 5 for channel in range(7)]


def test_counts_beyond_16_bits_have_exact_ranks():
    """More steps than a uint16 counts: the rank is that of the counts in NumPy."""
    spikes = np.zeros((1, 70_000, 3, 3, 1), np.float32)
    counts = np.array([[70_000, 4464, 0], [4464, 70_000, 1], [2, 0, 65_536]])  # modulo 2^16 two rows would be equal
    for (row, column), count in np.ndenumerate(counts):
        spikes[0, :count, row, column, 0] = 1
    assert svs_scores(spikes, threshold="exact").tolist() == [np.linalg.matrix_rank(counts)]


def test_the_bound_can_be_mapped_over():
    spikes, bounds = (
        (np.random.default_rng(0).random((2, 3, 5, 5, 2)) < 0.4).astype(np.float32),
        np.float32([0.1, 1, 2]),
    )
    for threshold in ("absolute", "relative"):
        run = jax.jit(lambda e, threshold=threshold: svs_scores(spikes, epsilon=e, threshold=threshold))
        found, expected = jax.jit(jax.vmap(run))(bounds), [run(e) for e in bounds]
        np.testing.assert_array_equal(found, expected)
