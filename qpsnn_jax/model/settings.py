"""Which network a run trains, as settings, and the graph that they describe. Nothing heavy is imported before that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qpsnn_jax.runtime.naming import find
from qpsnn_jax.runtime.settings import check, setting

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
    }.items()
}


@dataclass(frozen=True)
class NetworkSettings:
    """The network. A name may also be that of a function of one's own; see :func:`build`.

    Raises:
        ValueError: a field of the wrong type or out of range, naming it.
    """

    name: str | Callable[..., Any] = setting("resnet20", "which network, a function that builds it", names=NETWORKS)
    width: float = setting(1.0, "multiplies the number of channels", above=0, most=100)
    timesteps: int = setting(2, "time steps T", least=1, most=1_000_000)
    bits: int | None = setting(2, "bits of the quantized weights; none: full precision", least=1, most=8)
    gamma: str = setting("mean", "rule for the scale γ of weights", names=("none", "max", "percentile", "mean", "mse"))
    granularity: Literal["layer", "channel"] = setting("layer", "what has a γ of its own")
    ste: str = setting("clipped", "straight-through gradient of the quantizer", names=("clipped", "plain", "scaled"))
    fire: Literal[">=", ">"] = setting(">=", "when a membrane fires at the threshold")
    surrogate: str = setting(
        "triangular", "derivative of the firing step", names=("triangular", "rectangular", "sigmoid", "arctan")
    )

    def __post_init__(self) -> None:
        check(self)


def build(
    settings: NetworkSettings,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    frames: bool = False,
    ratios: Mapping[str, float] | None = None,
) -> "Graph":
    """The graph of a network.

    A function of one's own is called as those of the zoo are, with the keywords ``bits`` (a :class:`Quantizer`, or
    None), ``timesteps``, ``classes``, ``input_shape``, ``width``, ``ratios`` and ``lif`` (a :class:`LIF` whose options
    all neurons take), and returns a :class:`Graph`.

    Args:
        settings: which network.
        input_shape: ``(h, w, c)`` of an image or frame.
        classes: outputs.
        frames: whether the data are frames of events, which the network must take.
        ratios: widths are those that pruning by these ratios leaves; None builds the whole network.

    Raises:
        ValueError: the network cannot be built, naming the setting or the node at fault, or takes other data.
    """
    from qpsnn_jax.model.graph import Graph, to_json
    from qpsnn_jax.model.nodes import LIF, Quantizer

    name = str(settings.name)
    make = find(NETWORKS.get(name, name))
    quantizer = None
    if settings.bits is not None:
        quantizer = Quantizer(settings.bits, _option(settings.gamma), settings.granularity, _option(settings.ste))
    options = {
        "bits": quantizer,
        "timesteps": settings.timesteps,
        "classes": classes,
        "input_shape": input_shape,
        "width": settings.width,
        "lif": LIF("", "", fire=settings.fire, surrogate=_option(settings.surrogate)),
        "ratios": ratios,
    }
    try:
        graph = make(**options)
    except TypeError as error:
        raise ValueError(f"network {name} cannot be built ({error}).") from error
    if not isinstance(graph, Graph):
        raise ValueError(f"network {name} must return a qpsnn_jax.Graph, got {type(graph).__name__}.")
    if graph.input.frames != frames:
        kind = "recordings of events" if frames else "still images"
        raise ValueError(f"network {name} does not take {kind}.")
    to_json(graph)  # what cannot be saved is told before it is trained
    return graph


def _option(name: str) -> Any:
    """A known name, or the function that ``module:attribute`` names."""
    return find(name) if ":" in name else name
