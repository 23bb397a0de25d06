"""A folded network: layers of spiking neurons as integers. Uses only NumPy.

The packed file holds it, and every integer export starts from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qpsnn_jax.export.folded_checks import MOST_STEPS, check_image, check_sizes, map_of
from qpsnn_jax.export.folded_layers import Image, Layer, Map, Neurons, Rates, Readout, sources
from qpsnn_jax.runtime.checks import integer


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded network: its input, its layers in order, the readout last, and the number of steps T.

    Raises:
        ValueError: at construction, if anything is inconsistent; the message names the layer.
    """

    image: Image
    layers: tuple[Layer, ...]
    timesteps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "timesteps", integer("timesteps", self.timesteps, 1, MOST_STEPS))
        _ = self.maps

    @cached_property
    def maps(self) -> dict[str, Map]:
        """Shape and largest value of every map, by name."""
        image = self.image
        maps = {image.name: check_image(image)}
        readouts = [index for index, layer in enumerate(self.layers) if isinstance(layer, Readout | Rates)]
        if readouts != [len(self.layers) - 1]:
            raise ValueError("a folded network needs exactly one readout, as its last layer.")
        for layer in self.layers:
            if layer.name in maps:
                raise ValueError(f"layer {layer.name!r}: another layer has the same name.")
            for name in sources(layer):
                if name not in maps:
                    raise ValueError(f"layer {layer.name!r}: its input {name!r} is not an earlier layer.")
                if name == image.name and not (isinstance(layer, Neurons) and name == layer.source):
                    raise ValueError(f"layer {layer.name!r}: only a convolution may read the image.")
            try:
                maps[layer.name] = map_of(layer, maps, image.name)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from None
        check_sizes(self.layers, maps, self.timesteps)
        return maps

    @property
    def readout(self) -> Readout | Rates:
        """The last layer."""
        last = self.layers[-1]
        assert isinstance(last, Readout | Rates)
        return last

    @property
    def classes(self) -> int:
        """The number of outputs."""
        return self.maps[self.readout.name].shape[2]

    @property
    def neurons(self) -> Iterator[Neurons]:
        """The layers of neurons, in order."""
        return (layer for layer in self.layers if isinstance(layer, Neurons))
