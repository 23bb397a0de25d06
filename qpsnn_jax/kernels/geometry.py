"""Sizes of windows that slide over maps: convolutions, their gradients and pools. No JAX."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jax import Array

from qpsnn_jax.runtime.checks import integer

Pair = tuple[int, int]


def checked_pair(name: str, value: Any, least: int) -> Pair:
    """Two integers, of height and width, ``least`` or more.

    Raises:
        ValueError: ``value`` is something else.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two integers, for height and width, got {value!r}.")
    first, second = (integer(name, each, least) for each in value)
    return first, second


class Geometry(NamedTuple):
    """Rows and columns of a layer's maps and of its window, its strides, zeros around the maps, step of its taps."""

    input_hw: Pair
    kernel: Pair
    strides: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @classmethod
    def of(cls, x: Any, kernel: Any, strides: Pair, padding: Pair, dilation: Pair = (1, 1)) -> "Geometry":
        """The geometry of a convolution of maps ``b h w i`` with a kernel ``h w i o``."""
        return cls(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)

    @property
    def output_hw(self) -> Pair:
        r"""Rows and columns, :math:`\lfloor (n + 2p - d(k - 1) - 1) / s \rfloor + 1`; below 1 if none fits."""
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*self, strict=True))
        return rows, columns

    def tap_view(self, padded: "Array", row: int, column: int) -> "Array":
        """The input of one kernel tap for every output position, from maps ``b h w …`` that are padded already."""
        (h, w), (down, right) = self.output_hw, self.strides
        row, column = row * self.dilation[0], column * self.dilation[1]
        return padded[:, row : row + down * (h - 1) + 1 : down, column : column + right * (w - 1) + 1 : right]
