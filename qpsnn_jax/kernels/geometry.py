"""Sizes of windows that slide over maps: convolutions, their gradients and pools. No JAX."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jax import Array

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Rows and columns of a layer's maps and of its window, its strides, and the zeros on either side of the maps."""

    input_hw: Pair
    kernel: Pair
    strides: Pair = (1, 1)
    padding: Pair = (0, 0)

    @classmethod
    def of(cls, x: Any, kernel: Any, strides: Pair, padding: Pair) -> "Geometry":
        """The geometry of a convolution of maps ``b h w i`` with a kernel ``h w i o``."""
        return cls(x.shape[1:3], kernel.shape[:2], strides, padding)

    @property
    def output_hw(self) -> Pair:
        r"""Rows and columns of the output, :math:`\lfloor (n + 2p - k) / s \rfloor + 1` each; below 1 if none fits."""
        rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(*self, strict=True))
        return rows, columns

    def tap_view(self, padded: "Array", row: int, column: int) -> "Array":
        """The input of one kernel tap for every output position, from maps ``b h w …`` that are padded already."""
        (h, w), (down, right) = self.output_hw, self.strides
        return padded[:, row : row + down * (h - 1) + 1 : down, column : column + right * (w - 1) + 1 : right]
