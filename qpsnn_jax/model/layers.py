"""Layers as Flax Linen modules, for use in your own Flax modules instead of graphs.

They have the same arrays as the nodes of the same kind and compute with the same functions::

    class Block(nn.Module):
        @nn.compact
        def __call__(self, spikes, *, train=False):  # spikes b t h w c
            currents = QuantConv(64, quantizer=Quantizer(4), spiking=True)(spikes)
            return LIFLayer()(BatchNorm()(currents, train=train))

Under NNX, wrap a module and call it as any other; ``mutable`` lets training update the running statistics::

    block = nnx.bridge.ToNNX(Block(), rngs=nnx.Rngs(0)).lazy_init(spikes)
    loss, gradients = nnx.value_and_grad(lambda block: block(spikes, train=True, mutable=["batch_stats"]).mean())(block)
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from qpsnn_jax.kernels.affine import computed
from qpsnn_jax.kernels.dispatch import Precision, check_precision
from qpsnn_jax.kernels.geometry import Pair
from qpsnn_jax.model import nodes
from qpsnn_jax.model.nodes.base import Context, Node, Value
from qpsnn_jax.model.nodes.quantizer import Quantizer
from qpsnn_jax.numerics.gamma import Granularity
from qpsnn_jax.numerics.neurons import Reset
from qpsnn_jax.numerics.surrogate import Fire, Surrogate

_INPUT = "input"


class QuantConv(nn.Module):
    r"""Convolution with quantized weights, or with ``quantizer=None`` at full precision.

    .. math:: y = \frac{γ}{s} \sum (2c - s)\, x + b, \quad s = 2^b - 1

    The sums over the integers 2c - s come first and the scale after, so that on spikes they are exactly those of an
    integer device (:func:`qpsnn_jax.conv_spikes`). Its arrays are ``params`` ``kernel`` h w i/groups o, He-normal over
    the fan-out, and ``bias`` o, and ``scales`` ``gain``, a constant factor on γ, 1 until channels are pruned. A learned
    γ is ``gamma`` of ``params`` in place of the gain, and the mask of a masked layer is ``masks`` ``mask``.

    Args:
        features: output channels o.
        kernel, strides: height and width.
        padding: zeros on each side, as of :class:`qpsnn_jax.nodes.Conv`: by default an odd kernel keeps the size.
        quantizer: how the weights are quantized.
        bias: whether a bias is added.
        groups, dilation, masked: as those of :class:`qpsnn_jax.nodes.Conv`.
        spiking: whether the input consists of 0 and 1 only, which is not checked.
        precision: of the convolution of spikes, as in :func:`qpsnn_jax.conv_spikes`.

    Raises:
        ValueError: an argument is out of range, or the input is not ``b h w i`` or ``b t h w i``.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10.
    """

    features: int
    kernel: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: Pair = None  # type: ignore[assignment]  # see nodes.Conv
    quantizer: Quantizer | None = Quantizer()
    bias: bool = False
    groups: int = 1
    dilation: Pair = (1, 1)
    masked: bool = False
    spiking: bool = False
    precision: Precision = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Currents ``b h w o`` or ``b t h w o``, of the dtype of ``x``, from maps ``b h w i`` or ``b t h w i``."""
        node = nodes.Conv(
            self.name or "QuantConv",
            _INPUT,
            self.features,
            self.kernel,
            self.strides,
            self.padding,
            self.quantizer,
            self.bias,
            groups=self.groups,
            dilation=self.dilation,
            masked=self.masked,
        )
        check_precision(self.precision)
        given = _value(x, spatial=2, spiking=self.spiking)
        return run_node(self, node, x, Context((given,), 1, precision=self.precision))


class QuantDense(nn.Module):
    r"""Fully connected layer with quantized weights, or with ``quantizer=None`` at full precision.

    .. math:: y_o = \frac{γ}{s} \sum_i (2c_{io} - s)\, x_i + b_o, \quad s = 2^b - 1

    Its arrays are those of :class:`QuantConv`, with ``kernel`` i o, LeCun-normal.

    Args:
        features: outputs o.
        quantizer: how the weights are quantized.
        bias: whether a bias is added.
        masked: as that of :class:`qpsnn_jax.nodes.Conv`.

    Raises:
        ValueError: an argument is out of range, or the input is not ``b i`` or ``b t i``.

    References:
        QP-SNN (ICLR 2025), Eq. 4-6 and 9-10.
    """

    features: int
    quantizer: Quantizer | None = Quantizer()
    bias: bool = True
    masked: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Currents ``b o`` or ``b t o``, of the dtype of ``x``, from ``b i`` or ``b t i``."""
        node = nodes.Dense(
            self.name or "QuantDense", _INPUT, self.features, self.quantizer, self.bias, masked=self.masked
        )
        return run_node(self, node, x, Context((_value(x, spatial=0),), 1))


class BatchNorm(nn.Module):
    r"""Batch normalization over everything but the channels, :math:`y = w (x - μ) / \sqrt{σ^2 + ε} + β`.

    Its arrays are ``params`` ``scale`` and ``bias``, and ``batch_stats`` ``mean`` and ``var``, the unbiased variance as
    in the released code; those enter as ``momentum · old + (1 - momentum) · new`` where ``batch_stats`` is mutable.

    Args:
        momentum: decay of the running statistics, 0 to 1.
        epsilon: ε, at least 0.
        scale_init: the scale w at the start, at least 0.

    Raises:
        ValueError: an argument is out of range.

    References:
        Ioffe and Szegedy, ICML 2015.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: float = 1.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """``… c`` normalized by the running statistics, or with ``train`` by those of the batch."""
        node = nodes.BatchNorm(self.name or "BatchNorm", _INPUT, self.momentum, self.epsilon, self.scale_init)
        return run_node(self, node, x, Context((Value(x.shape[-1:], timed=False, spiking=False),), 1, train))


class LIFLayer(nn.Module):
    """Leaky integrate-and-fire neurons: :func:`qpsnn_jax.lif` as a module, with arrays for a learned τ or θ.

    Args:
        tau, threshold, fire, reset, detach_reset: as in :func:`qpsnn_jax.lif_step`.
        surrogate: derivative of the firing step, by its name or as a function of U - θ.
        granularity: whether a learned τ or θ is one number for the ``"layer"`` or one for each ``"channel"``.
        precision: ``"exact"`` for the same program on every machine, as in :class:`qpsnn_jax.SpikingNetwork`.
        round_tau: whether τ is rounded to the nearest 2⁻ᵏ or 1 - 2⁻ᵏ, as integers need it.

    Raises:
        ValueError: an argument is unknown or not finite.

    References:
        QP-SNN (ICLR 2025), Eq. 1-3.
    """

    tau: float | tuple[float, ...] | Literal["learned"] = 0.5
    threshold: float | tuple[float, ...] | Literal["learned"] = 1.0
    fire: Fire = ">="
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: str | Surrogate = "triangular"
    precision: Precision = "auto"
    granularity: Granularity = "layer"
    round_tau: bool = False

    @nn.compact
    def __call__(self, currents: Array) -> Array:
        """Spikes 0 and 1, ``b t …``, of the dtype of the currents ``b t …``."""
        options = (self.tau, self.threshold, self.fire, self.reset, self.detach_reset, self.surrogate)
        node = nodes.LIF(self.name or "LIFLayer", _INPUT, *options, self.granularity, self.round_tau)
        check_precision(self.precision)
        if currents.ndim < 3:
            raise ValueError(f"currents must have the shape b t … c, got {currents.shape}.")
        given = Value(currents.shape[2:], timed=True, spiking=False)
        return run_node(self, node, currents, Context((given,), 1, precision=self.precision))


def run_node(module: nn.Module, node: Node, x: Array, context: Context) -> Array:
    """Runs a node with one input in a Linen module, whose variables are the arrays of the node.

    This turns any node into a layer, also one of your own.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the input must be floating, got {x.dtype}; convert it with .astype(jnp.float32).")
    node.infer(context.inputs)  # raises what a graph would
    leaves: dict[str, Array] = {}
    others: dict[str, nn.Variable[Any]] = {}
    for name, leaf in node.leaves(context.inputs).items():
        if leaf.collection == "params":
            leaves[name] = module.param(name, lambda key, leaf=leaf: leaf.start(key, leaves))
        else:
            others[name] = module.variable(
                leaf.collection, name, lambda leaf=leaf: leaf.start(jax.random.key(0), leaves)
            )
            leaves[name] = others[name].value
    result = node.run(leaves, [x], context)
    for name, value in (result.updates or {}).items():
        if module.is_mutable_collection(others[name].collection) and not module.is_initializing():
            others[name].value = value
    return computed(result.output)


def _value(x: Array, *, spatial: int, spiking: bool = False) -> Value:
    """The value of an input. It has a time axis if it has one axis more than batch, positions and channels."""
    plain = spatial + 2
    if x.ndim not in (plain, plain + 1):
        wanted = " ".join("hw"[:spatial]) + " i" if spatial else "i"
        raise ValueError(f"the input must have the shape b {wanted} or b t {wanted}, got {x.shape}.")
    return Value(x.shape[-spatial - 1 :], timed=x.ndim > plain, spiking=spiking)
