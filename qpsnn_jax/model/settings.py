"""The settings of a network, and the graph that they describe. JAX is imported only when the graph is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qpsnn_jax.runtime.naming import find
from qpsnn_jax.runtime.settings import FrozenMapping, check, setting

if TYPE_CHECKING:
    from qpsnn_jax.model.graph import Graph

NETWORKS = {
    name: f"qpsnn_jax.model.zoo.{module}:{name}"
    for name, module in {
        "resnet20": "resnet20",
        "vgg16": "vgg",
        "vggsnn": "vgg",
        "sew_resnet18": "sew_resnet18",
        "spikingformer": "spikingformer",
        "mobilenet": "separable",
        "ds_cnn": "separable",
    }.items()
}


@dataclass(frozen=True)
class NetworkSettings:
    """The network. A name may also be that of your own function; see :func:`build`.

    Raises:
        ValueError: a field has the wrong type or is out of range; the message names it.
    """

    name: str | Callable[..., Any] = setting("resnet20", "network", names=NETWORKS)
    width: float = setting(1.0, "factor on the number of channels", above=0, most=100)
    timesteps: int = setting(2, "time steps T", least=1, most=1_000_000)
    bits: int | None = setting(2, "bits of the quantized weights; none: full precision", least=1, most=8)
    levels: int | None = setting(None, "3: ternary weights in place of 2^bits levels, with 2 bits", least=3, most=3)
    edge_bits: int | None = setting(
        None, "bits of the first and the last layer, in training too; none: full precision", least=1, most=8
    )
    layer_bits: Mapping[str, float] = setting(
        FrozenMapping(), "other bits of single layers, by their names", least=1, most=8
    )
    gamma: str = setting(
        "mean", "rule for the scale γ of weights", names=("none", "max", "percentile", "mean", "mse", "learned")
    )
    granularity: Literal["layer", "channel"] = setting("layer", "what shares one γ: the layer, or each output channel")
    ste: str = setting("clipped", "straight-through gradient of the quantizer", names=("clipped", "plain", "scaled"))
    learned_tau: bool = setting(False, "learn the decay factor τ of every layer of neurons (PLIF)")
    round_tau: bool = setting(False, "round learned decay factors to shifts, which the integer export needs")
    learned_threshold: bool = setting(False, "learn the threshold θ of every layer of neurons")
    residual_scale: float = setting(
        1.0, "scale at which the last batch-norm of every residual branch starts", above=0, most=100
    )
    fire: Literal[">=", ">"] = setting(">=", "when a membrane fires at the threshold")
    surrogate: str = setting(
        "triangular", "derivative of the firing step", names=("triangular", "rectangular", "sigmoid", "arctan")
    )

    def __post_init__(self) -> None:
        check(self)
        if self.bits is None and (self.edge_bits, self.levels) != (None, None):
            raise ValueError("edge_bits and levels need bits: the other layers must be quantized too.")
        if self.levels is not None and self.bits != 2:
            raise ValueError(f"levels needs 2 bits, got {self.bits}.")
        if self.round_tau and not self.learned_tau:
            raise ValueError("round_tau needs learned_tau: it rounds the decay factors that are learned.")
        if whole := [name for name, bits in self.layer_bits.items() if bits != int(bits)]:
            raise ValueError(f"layer_bits must be integers, got {self.layer_bits[whole[0]]} of {whole[0]!r}.")


def build(
    settings: NetworkSettings,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    frames: bool = False,
    ratios: Mapping[str, float] | None = None,
) -> "Graph":
    """The graph of a network.

    Your own function is called as those of the zoo, with the keywords ``bits`` (a :class:`Quantizer` or None),
    ``timesteps``, ``classes``, ``input_shape``, ``width``, ``ratios`` and ``lif`` (a :class:`LIF` with the options of
    all neurons), and must return a :class:`Graph`.

    Args:
        settings: of the network.
        input_shape: ``(h, w, c)`` of an image or frame.
        classes: number of classes.
        frames: whether the data are event frames.
        ratios: pruning ratios by label; the network then has the widths after pruning. None builds the whole network.

    Raises:
        ValueError: the network cannot be built, or does not take such data; the message names the setting or the node.
    """
    from qpsnn_jax.model.graph import Graph, to_json
    from qpsnn_jax.model.nodes import LIF, Quantizer
    from qpsnn_jax.model.precision import with_edge_bits, with_layer_bits
    from qpsnn_jax.model.residual import with_residual_scale

    name = str(settings.name)
    make = find(NETWORKS.get(name, name))
    quantizer = None
    if settings.bits is not None:
        options = (_option(settings.gamma), settings.granularity, _option(settings.ste), settings.levels)
        quantizer = Quantizer(settings.bits, *options)
    neurons: dict[str, Any] = {
        "tau": "learned" if settings.learned_tau else LIF.tau,
        "threshold": "learned" if settings.learned_threshold else LIF.threshold,
        "fire": settings.fire,
        "surrogate": _option(settings.surrogate),
        "round_tau": settings.round_tau,
    }
    options = {
        "bits": quantizer,
        "timesteps": settings.timesteps,
        "classes": classes,
        "input_shape": input_shape,
        "width": settings.width,
        "lif": LIF("", "", **neurons),
        "ratios": ratios,
    }
    graph = _made(name, make, options)
    if not isinstance(graph, Graph):
        raise ValueError(f"network {name} must return a qpsnn_jax.Graph, got {type(graph).__name__}.")
    if graph.input.frames != frames:
        kind = "recordings of events" if frames else "still images"
        raise ValueError(f"network {name} does not take {kind}.")
    if settings.residual_scale != 1:
        graph = with_residual_scale(graph, settings.residual_scale)
    if settings.edge_bits is not None:
        graph = with_edge_bits(graph, settings.edge_bits)
    graph = with_layer_bits(graph, {name: int(bits) for name, bits in settings.layer_bits.items()})
    to_json(graph)  # raises before training what would only raise when the network is saved
    return graph


def _made(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """What the function of a network returns; an error in a function of your own names it."""
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"network {name} cannot be built ({error}).") from error
    except ValueError as error:
        raise error if name in NETWORKS else ValueError(f"network {name}: {error}") from error
    except Exception as error:
        if name in NETWORKS:
            raise
        raise ValueError(f"network {name} fails with {type(error).__name__}: {error}.") from error


def _option(name: str) -> Any:
    """A known name as it is, or the function that ``module:attribute`` names."""
    return find(name) if ":" in name else name
