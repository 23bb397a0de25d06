"""Convolutions of maps, and of spikes with the integers of quantized weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.experimental import checkify

from qpsnn_jax.kernels import skipping
from qpsnn_jax.kernels.accelerators import BITS
from qpsnn_jax.kernels.affine import Convolution, computed
from qpsnn_jax.kernels.algorithm import ConvSpec
from qpsnn_jax.kernels.bilinear import BILINEAR, convolution
from qpsnn_jax.kernels.dispatch import (
    CONVOLUTION,
    Plan,
    Precision,
    check_precision,
    compute,
    make_plan,
    plan_of,
    runs_natively,
)
from qpsnn_jax.kernels.geometry import Pair, checked_pair
from qpsnn_jax.kernels.native.call import shardings_are_types
from qpsnn_jax.kernels.packed import Spikes
from qpsnn_jax.runtime.checks import integer

_MOST_BITS = 24  # larger integers are not exact in float32


def convolve(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
    precision: Precision = "auto",
    spikes: bool = False,
) -> Array:
    r"""Convolution of maps with a kernel, zeros around the maps.

    .. math:: y_{bhwo} = \sum_{klc} x_{b,\,s_h h + d_h k - p_h,\,s_w w + d_w l - p_w,\,c}\, K_{klco}

    With g groups, output o reads only the channels of its group: c from :math:`⌊o g/O⌋\, I/g` on, I/g of them.

    On a CPU with a C++ compiler, float32 is computed by kernels that skip the zeros of ``x``, forward and backward
    (:mod:`qpsnn_jax.kernels.skipping`); with groups or dilation, ``precision="exact"``, and everywhere else, by XLA.

    Args:
        x: maps ``b h w i``.
        kernel: K, ``h w i/g o``, of the dtype of ``x``.
        strides: vertical and horizontal step s of the window.
        padding: rows and columns p of zeros on either side.
        groups: g; both i and o are multiples of it.
        dilation: vertical and horizontal step d from tap to tap.
        precision: ``exact``, the same program on every machine; ``auto`` or ``fast``.
        spikes: whether ``x`` is 0 and 1, of which GPUs and TPUs keep four to a byte for the gradient. Forward mode
            then raises TypeError unless ``exact``.

    Returns:
        Sums ``b h w o``, of the dtype of ``x``.

    Raises:
        ValueError: ``x``, ``kernel`` and the options do not fit, are not floating or of two dtypes, or ``precision`` is
            unknown.
    """
    check_precision(precision)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    spec = _checked_spec({"x": x, "kernel": kernel}, 8, strides, padding, groups, dilation)
    if spikes and precision != "exact" and not shardings_are_types(x, kernel):
        return compute(x, kernel, spec, _plan(spec, precision, exact=False))
    return convolution(x, kernel, spec, native=precision != "exact")


def conv_spikes(
    spikes: Array,
    integers: Array,
    *,
    bits: int,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
    precision: Precision = "auto",
    algorithm: str | None = None,
    odd: bool = True,
    checked: bool = False,
) -> Array:
    """:func:`convolve` of spikes with the integers of quantized weights, exact in every algorithm.

    The sums are those of an integer device, as long as they are below 2^24, rounded at the end to the dtype of
    ``spikes`` (infinite in float16 beyond 65,504). Spikes other than 0 or 1, and integers that are not odd, give
    different sums in each algorithm without a warning; ``checked`` detects such spikes. A NaN gives NaN at least in its
    own sums.

    ``precision="exact"`` runs float32 convolutions, forward and backward: the same program on every machine, and
    differentiable in every mode. ``"auto"`` uses the fastest algorithm for the platform that it is lowered for. On GPUs
    and TPUs that is ``bfloat16`` up to 8 bits, whose gradients are in float32; with ``"fast"`` they too are products of
    bfloat16 with sums in float32, for which the cotangent is rounded, to a relative error of 2^-9. On a mesh with
    explicit or manual axes it is float32. On a CPU it is float32 with groups or dilation and with several processes,
    and otherwise the fastest for the shapes:

    - ``int8`` multiplies matrices of 8-bit integers (:mod:`qpsnn_jax.kernels.int8`);
    - ``skipping`` adds the weights of every spike or looks their sums up, in C++ (:mod:`qpsnn_jax.kernels.skipping`);
    - ``bfloat16`` multiplies bfloat16; on a CPU only by name.

    With ``"fast"`` on one CPU that multiplies bfloat16 fast, the gradient w.r.t. the spikes rounds the cotangent, and
    weights of more than 4 bits, to bfloat16, for kernels of 3×3 at stride 1 and from 64 channels on, or from 256 where
    float32 looks up the sums of 1 or 2 bits (:mod:`qpsnn_jax.kernels.winograd`); so too under ``vmap``. Derivatives of
    the gradients are in float32.

    Unless ``"exact"`` it is a ``custom_vjp``: forward mode (``jvp``, ``jacfwd``, ``hessian``) raises TypeError. A
    Hessian-vector product in reverse mode, ``grad(lambda p: vdot(grad(f)(p), v))``, works; or use ``"exact"``.

    Args:
        spikes: 0 and 1, ``b h w i``, floating.
        integers: odd, or 0 throughout a channel, ``h w i/g o``, of the dtype of ``spikes``
            (:func:`qpsnn_jax.integer_weights`); with ``odd=False`` any of magnitude up to 2^bits - 1.
        bits: of the weights, from 1; the algorithms ``int8`` and ``bfloat16`` take up to 8.
        strides, padding, groups, dilation: as in :func:`convolve`.
        precision: ``exact``, ``auto`` or ``fast``.
        algorithm: the name of one of the above, or ``float32``, for the sums on every platform; for odd integers.
        odd: whether the integers are as quantization to b bits makes them; masked ones and those of three levels are
            not. On a CPU others are computed as by :func:`convolve`.
        checked: raise if the spikes are not 0 and 1; under ``jit`` this needs
            :func:`jax.experimental.checkify.checkify`.

    Returns:
        Sums ``b h w o``, of the dtype of ``spikes``.

    Raises:
        ValueError: ``spikes``, ``integers`` and the options do not fit, are not floating or of two dtypes,
            ``precision`` or ``algorithm`` is unknown, or the algorithm does not support the shapes, the bits or the
            mesh.
    """
    check_precision(precision)
    spikes, integers = jnp.asarray(spikes), jnp.asarray(integers)
    spec = _checked_spec({"spikes": spikes, "integers": integers}, bits, strides, padding, groups, dilation)
    if checked:
        checkify.check(jnp.all((spikes == 0) | (spikes == 1)), "conv_spikes takes spikes of 0 and 1.")
    typed = shardings_are_types(spikes, integers)
    if typed and algorithm is not None:
        raise ValueError(f"algorithm {algorithm} is not for meshes with explicit or manual axes; leave it out.")
    if typed or (precision == "exact" and algorithm is None):
        wide = np.promote_types(spikes.dtype, np.float32)
        return convolution(spikes.astype(wide), integers.astype(wide), spec, native=False).astype(spikes.dtype)
    if odd or algorithm is not None:
        return compute(spikes, integers, spec, make_plan(spec, (spikes, integers), precision, algorithm))
    return compute(spikes, integers, spec, _plan(spec, precision, exact=spec.bits <= BITS))


def shared_convolution(
    maps: Array | Spikes,
    kernel: Array,
    *,
    bits: int = 8,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
    precision: Precision = "auto",
    odd: bool = False,
) -> Convolution | None:
    """The convolution whose sums neurons may compute themselves, in one native call, if there is a kernel for it.

    Args:
        maps: ``b [t] h w i``.
        kernel, strides, padding, groups, dilation: as in :func:`convolve`.
        bits, precision, odd: as in :func:`conv_spikes`, if the weights are integers.
    """
    # Where nothing is traced, sums that are not used would be computed too.
    numbers = computed(maps)
    traced = any(isinstance(x, Tracer) for x in (numbers, kernel))
    native = runs_natively(precision) and not shardings_are_types(numbers, kernel) and kernel.size > 0
    if not (traced and native and numbers.dtype == kernel.dtype == jnp.float32):
        return None
    one = jax.ShapeDtypeStruct(numbers.shape[-4:], numbers.dtype)  # without steps
    spec = ConvSpec.of(one, kernel, bits, strides, padding, groups, dilation)
    sums = make_plan(spec, (numbers, kernel), precision, None).on_cpu if odd else skipping.SUMS
    return Convolution(maps, kernel, spec) if spec.standard and sums is skipping.SUMS else None


def _plan(spec: ConvSpec, precision: Precision, *, exact: bool) -> Plan:
    """For any kernel."""
    return plan_of(BILINEAR if spec.standard else CONVOLUTION, CONVOLUTION, precision, exact=exact)


def _checked_spec(
    operands: dict[str, Array], bits: int, strides: Pair, padding: Pair, groups: int, dilation: Pair
) -> ConvSpec:
    (first, x), (second, kernel) = operands.items()
    bits, groups = integer("bits", bits, 1, _MOST_BITS), integer("groups", groups, 1)
    strides, dilation = checked_pair("strides", strides, 1), checked_pair("dilation", dilation, 1)
    padding = checked_pair("padding", padding, 0)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != groups * kernel.shape[2] or kernel.shape[3] % groups:
        each, more = ("i", "") if groups == 1 else (f"i/{groups}", f", i and o multiples of the {groups} groups")
        raise ValueError(
            f"{first} must be b h w i and {second} h w {each} o with as many channels i{more}, got {x.shape} and "
            f"{kernel.shape}."
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{first} and {second} must be floating, of one dtype, got {x.dtype} and {kernel.dtype}.")
    spec = ConvSpec.of(x, kernel, bits, strides, padding, groups, dilation)
    if min(spec.geometry.output_hw) < 1:
        taps, maps = ("×".join(map(str, shape)) for shape in (kernel.shape[:2], x.shape[1:3]))
        raise ValueError(f"{second} of {taps} taps does not fit {first} of {maps} with padding {padding}.")
    return spec
