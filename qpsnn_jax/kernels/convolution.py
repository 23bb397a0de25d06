"""Convolutions, each by the algorithm that is fast for its shape and hardware; all algorithms give the same sums."""

import math
from functools import partial
from itertools import product
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from qpsnn_jax.kernels import bfloat16, popcount, winograd
from qpsnn_jax.kernels.geometry import Geometry, Pair
from qpsnn_jax.kernels.hardware import cpu_flags

Algorithm = Literal["float32", "bfloat16", "int8", "winograd", "popcount"]

# Channels from which on Winograd's sums are faster than sums in int8, and gradients in bfloat16 than in float32.
_NARROWEST_SUMS = 128
_NARROWEST_GRADIENTS = 64
# Terms up to which a sum of counts is faster than Winograd's, and up to which the compiler computes it in vectors.
_FEW_TERMS, _MOST_TERMS = 72, 144


def convolve(x: Array, kernel: Array, *, strides: Pair = (1, 1), padding: Pair = (0, 0)) -> Array:
    r"""Convolution of maps with a kernel, zeros around the maps.

    .. math:: y_{bhwo} = \sum_{klc} x_{b,\,s_h h + k - p_h,\,s_w w + l - p_w,\,c}\, K_{klco}

    Args:
        x: maps ``b h w i``.
        kernel: K, ``h w i o``, of the dtype of ``x``.
        strides: vertical and horizontal step s of the window.
        padding: rows and columns p of zeros on either side.

    Returns:
        Sums ``b h w o``, of the dtype of ``x``.
    """
    return _sums(x, kernel, strides, padding, x.dtype)


def conv_spikes(
    spikes: Array,
    integers: Array,
    *,
    bits: int,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    algorithm: Algorithm | None = None,
) -> Array:
    """:func:`convolve` of spikes with the odd integers of quantized weights, in numbers that are as small as can be.

    Every algorithm gives the exact sums that an integer device accumulates, as long as they are below 2^24, rounded at
    the end to the dtype of ``spikes``:

    - ``float32``;
    - ``bfloat16`` operands, whose 8 significant bits hold spikes and weights of up to 8 bits, summed in float32;
    - ``int8`` operands, summed in int32. Weights of 8 bits reach 255; they are computed as 2·m + 1, whose 1 is one sum
      over each window's spikes, the same for all channels;
    - ``winograd``, for kernels of 3×3 at stride 1 and up to 4 bits (:mod:`qpsnn_jax.kernels.winograd`);
    - ``popcount``, which counts bits, 32 channels at once (:mod:`qpsnn_jax.kernels.popcount`).

    Gradients are those of :func:`convolve`. On one CPU device that multiplies bfloat16 fast, in float32, the cotangent
    is rounded to bfloat16 before it is multiplied, from the widths on that gain by it: by the kernel for kernels
    of up to 9 taps, by the maps where those are 3×3 at stride 1 (Winograd's, which round weights of more than 4 bits
    too) or 1×1 without padding. The sums are float32's. Under ``vmap`` nothing is rounded.

    Args:
        spikes: 0 and 1, ``b h w i``, floating.
        integers: odd, or 0 throughout a channel, ``h w i o``, of the dtype of ``spikes``
            (:func:`qpsnn_jax.integer_weights`).
        bits: of the weights.
        strides, padding: as in :func:`convolve`.
        algorithm: one of the above; when left out, what is fastest for the shapes on this hardware.

    Returns:
        Sums ``b h w o``, of the dtype of ``spikes``.

    Raises:
        ValueError: ``spikes`` and ``integers`` differ in their channels, or ``algorithm`` is unknown, or is
            ``winograd`` for other shapes or more bits.
    """
    if spikes.shape[-1] != integers.shape[2]:
        raise ValueError(
            f"spikes {spikes.shape} have {spikes.shape[-1]} channels, but integers {integers.shape} are for "
            f"{integers.shape[2]}."
        )
    if algorithm not in (None, *get_args(Algorithm)):
        raise ValueError(f"algorithm must be float32, bfloat16, int8, winograd or popcount, got {algorithm!r}.")
    if algorithm == "winograd" and not _exact_by_winograd(spikes, integers, bits, strides, padding):
        raise ValueError(
            "algorithm winograd is for kernels of 3×3 at stride 1, padding up to 2, maps of 3×3 or more and up to 4 "
            f"bits; got a kernel {integers.shape} at strides {strides}, padding {padding}, {bits} bits."
        )
    return _accumulate(spikes, integers, bits, strides, padding, algorithm)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def _accumulate(
    spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair, algorithm: Algorithm | None
) -> Array:
    algorithm = algorithm or select_algorithm(spikes, integers, bits, strides, padding)
    return _ALGORITHMS[algorithm](spikes, integers, bits, strides, padding).astype(spikes.dtype)


@_accumulate.defjvp
def _accumulate_tangent(
    bits: int, strides: Pair, padding: Pair, algorithm: Algorithm | None, operands: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (spikes, integers), (to_spikes, to_integers) = operands, tangents
    linear = partial(convolve, strides=strides, padding=padding)
    if _rounds_gradients(spikes, integers):
        linear = partial(_convolve_p.bind, strides=strides, padding=padding)
    tangent = linear(to_spikes, integers) + linear(spikes, to_integers)
    return _accumulate(spikes, integers, bits, strides, padding, algorithm), tangent


# A convolution whose gradients are products of bfloat16. A primitive, because nothing else has a gradient of its own
# and can be mapped and differentiated forward too: custom_vjp knows no forward mode, linear_call no vmap.
_convolve_p = Primitive("convolve_with_gradients_in_bfloat16")


def _input_grad(cotangent: Array, x: ad.UndefinedPrimal, kernel: Array, *, strides: Pair, padding: Pair) -> Array:
    geometry = Geometry.of(x.aval, kernel, strides, padding)
    if _fits_winograd(geometry):
        return winograd.input_grad(cotangent, kernel, geometry)
    if geometry.kernel == (1, 1) and padding == (0, 0):
        return bfloat16.input_grad(cotangent, kernel, geometry)
    plain = partial(convolve, kernel=kernel, strides=strides, padding=padding)
    return jax.linear_transpose(plain, x.aval)(cotangent)[0]


def _kernel_grad(cotangent: Array, x: Array, kernel: ad.UndefinedPrimal, *, strides: Pair, padding: Pair) -> Array:
    geometry = Geometry.of(x, kernel.aval, strides, padding)
    fast = winograd if _fits_winograd(geometry) else bfloat16
    return fast.kernel_grad(x, cotangent, geometry)


def _mapped(operands: tuple, axes: tuple, **options: Pair) -> tuple[Array, int]:
    return jax.vmap(partial(convolve, **options), axes)(*operands), 0


def _shape(x: Array, kernel: Array, **options: Pair) -> ShapedArray:
    sums = jax.eval_shape(partial(convolve, **options), x, kernel)
    return ShapedArray(sums.shape, sums.dtype)


_convolve_p.def_impl(convolve)
_convolve_p.def_abstract_eval(_shape)
mlir.register_lowering(_convolve_p, mlir.lower_fun(convolve, multiple_results=False))
ad.defbilinear(_convolve_p, _input_grad, _kernel_grad)
batching.primitive_batchers[_convolve_p] = _mapped


def _in_floats(dtype: jnp.dtype, spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> Array:
    del bits
    return _sums(spikes.astype(dtype), integers.astype(dtype), strides, padding, jnp.float32)


def _in_int8(spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> Array:
    spikes = spikes.astype(jnp.int8)
    if bits < 8:
        return _sums(spikes, integers.astype(jnp.int8), strides, padding, jnp.int32)
    odd = integers.astype(jnp.int32) & 1
    halves = (integers.astype(jnp.int32) >> 1).astype(jnp.int8)
    ones = jnp.ones((*integers.shape[:3], 1), jnp.int8)
    windows = _sums(spikes, ones, strides, padding, jnp.int32)
    return 2 * _sums(spikes, halves, strides, padding, jnp.int32) + windows * odd[:1, :1, :1]


def _by_winograd(spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> Array:
    del bits
    geometry = Geometry.of(spikes, integers, strides, padding)
    return winograd.convolve(spikes.astype(jnp.float32), integers.astype(jnp.float32), geometry)


def _by_popcount(spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> Array:
    return popcount.convolve(spikes, integers, bits, Geometry.of(spikes, integers, strides, padding))


_ALGORITHMS = {
    "float32": partial(_in_floats, jnp.float32),
    "bfloat16": partial(_in_floats, jnp.bfloat16),
    "int8": _in_int8,
    "winograd": _by_winograd,
    "popcount": _by_popcount,
}


def select_algorithm(spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> Algorithm:
    """On this machine: int8 where a CPU multiplies it by the matrix; by the vector, counts, Winograd's sums or int8.

    Measured on a CPU with vector instructions for counting bits, int8 and bfloat16 (Zen 5: AVX-512 VPOPCNTDQ, VNNI and
    BF16). There counts gain from 32 channels on, on maps from the kernel's size on (below, what they save is little
    beside the longer compilation), and int8 from 64 channels on; elsewhere nothing was, so float32 stays.
    """
    if jax.default_backend() != "cpu":
        return "float32"
    flags, narrowest, geometry = cpu_flags(), min(integers.shape[2:]), Geometry.of(spikes, integers, strides, padding)
    if "amx_int8" in flags:
        return "int8" if narrowest >= 16 else "float32"
    terms = bits * math.prod(geometry.kernel) * math.ceil(integers.shape[2] / popcount.WORD)
    large = narrowest >= popcount.WORD and math.prod(geometry.input_hw) >= math.prod(geometry.kernel)
    counts = "avx512_vpopcntdq" in flags and bits <= 4 and large
    if counts and terms <= _FEW_TERMS:
        return "popcount"
    exact = _exact_by_winograd(spikes, integers, bits, strides, padding)
    if "avx512_bf16" in flags and exact and narrowest >= _NARROWEST_SUMS:
        return "winograd"
    if counts and terms <= _MOST_TERMS:
        return "popcount"
    return "int8" if "avx512_vnni" in flags and narrowest >= 64 else "float32"


def _fits_winograd(geometry: Geometry) -> bool:
    within = max(geometry.padding) <= 2 and min(geometry.input_hw) >= 3
    return within and geometry.strides == (1, 1) and geometry.kernel == (3, 3)


def _exact_by_winograd(spikes: Array, integers: Array, bits: int, strides: Pair, padding: Pair) -> bool:
    # The products of all 9 places that a sum is made of, in magnitude, are within 200 times the largest weight.
    largest = 200 * (2**bits - 1) * integers.shape[2]
    return _fits_winograd(Geometry.of(spikes, integers, strides, padding)) and bits <= 4 and largest < 2**24


def _rounds_gradients(spikes: Array, integers: Array) -> bool:
    """Whether gradients by products of bfloat16 are faster on this machine; measured on a Zen 5 (AVX-512 BF16)."""
    # On several devices the product over a whole batch would bring all of it to each of them; and shard_map wants to
    # know over which of its axes a tangent varies, which the primitive does not tell.
    whole = jax.device_count() == 1 and not jax.sharding.get_abstract_mesh().manual_axes
    alone = jax.default_backend() == "cpu" and whole
    fast = alone and not cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"})
    # More taps, seen side by side, are too much to copy; and maps below the kernel are one product as they are.
    fits = math.prod(integers.shape[:2]) <= min(9, math.prod(spikes.shape[1:3]))
    wide = min(integers.shape[2:]) >= _NARROWEST_GRADIENTS
    return fast and fits and wide and spikes.dtype == integers.dtype == jnp.float32


def _sums(x: Array, kernel: Array, strides: Pair, padding: Pair, dtype: jnp.dtype) -> Array:
    pixels, taps = math.prod(x.shape[1:3]), math.prod(kernel.shape[:2])
    # XLA exchanges map and kernel where the kernel is the larger, which is 4 to 80 times slower on a CPU.
    if pixels < taps:
        places = math.prod(Geometry.of(x, kernel, strides, padding).output_hw)
        # A matrix from all pixels to all places is fast as long as it is not much larger than the kernel.
        algorithm = _dense if pixels * places <= 4 * taps else _by_patches
        return algorithm(x, kernel, strides, padding, dtype)
    (ph, pw), dimensions = padding, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, ((ph, ph), (pw, pw)), dimension_numbers=dimensions, preferred_element_type=dtype
    )


def _dense(x: Array, kernel: Array, strides: Pair, padding: Pair, dtype: jnp.dtype) -> Array:
    """One product of whole maps with a matrix: for every place of the sums, the taps by which it sees each pixel."""
    sizes = Geometry.of(x, kernel, strides, padding).output_hw
    axes = tuple(zip(x.shape[1:3], kernel.shape[:2], strides, padding, sizes, strict=True))
    # The taps that place 0 has for the first pixel and beyond, then those of place 1, one stride before, and so on.
    before = [max(0, s * (size - 1) - p) for _, _, s, p, size in axes]
    after = [max(0, p + n - k) for n, k, _, p, _ in axes]
    padded = jnp.pad(kernel, (*zip(before, after, strict=True), (0, 0), (0, 0)))
    first = [[b + p - s * i for i in range(size)] for b, (_, _, s, p, size) in zip(before, axes, strict=True)]
    taps = [padded[i : i + x.shape[1], j : j + x.shape[2]] for i, j in product(*first)]
    matrix = jnp.stack(taps, axis=3).reshape(math.prod(x.shape[1:]), -1)
    sums = jnp.matmul(x.reshape(x.shape[0], matrix.shape[0]), matrix, preferred_element_type=dtype)
    return sums.reshape(x.shape[0], *sizes, kernel.shape[-1])


def _by_patches(x: Array, kernel: Array, strides: Pair, padding: Pair, dtype: jnp.dtype) -> Array:
    """One product of all patches with the kernel, without the taps that see nothing but padding."""
    sizes = tuple(zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True))
    outputs = Geometry.of(x, kernel, strides, padding).output_hw
    rows, columns = (
        [tap for tap in range(k) if any(p <= s * o + tap < p + n for o in range(out))]
        for (n, k, s, p), out in zip(sizes, outputs, strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    ends = [s * (out - 1) + 1 for out, s in zip(outputs, strides, strict=True)]
    seen = [padded[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] for i, j in product(rows, columns)]
    weights = jnp.concatenate([kernel[i, j] for i, j in product(rows, columns)])
    return jnp.matmul(jnp.concatenate(seen, axis=-1), weights, preferred_element_type=dtype)
