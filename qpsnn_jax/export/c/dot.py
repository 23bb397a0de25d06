"""The innermost function in C: products of patches of spikes with a block of weights in bit planes."""

from typing import NamedTuple

from qpsnn_jax.export.folded_layers import Neurons


class DotKernel(NamedTuple):
    """A function that multiplies ``group`` patches by codes of b bits; for those with a mask also ``ternary``."""

    bits: int
    group: int
    masked: bool
    ternary: int

    @classmethod
    def of(cls, layer: Neurons, group: int) -> "DotKernel":
        """That of a layer."""
        masked = layer.mask is not None
        return cls(layer.bits, group, masked, int(masked and layer.levels is not None))

    @property
    def name(self) -> str:
        """Of the function."""
        return f"dot_{self.bits}_{self.group}" + "_masked" * self.masked + "_ternary" * self.ternary

    @property
    def text(self) -> str:
        """Its source; each counter has a name, to stay in registers.

        Without a mask it returns twice the sums of codes. With one, whose plane is the last, the sums of integers;
        words in which no remaining weight meets a spike are skipped.
        """
        planes = self.bits + self.masked
        names = [[f"s{v}{p}" for p in range(planes)] for v in range(self.group)]
        declared = [f"{name}[LANES] = {{0}}" for row in names for name in row]
        values = f"word {', '.join(f'x{v} = v[{v}]' for v in range(self.group))}"
        lines = [
            f"static void {self.name}(const word *restrict x, const uint16_t *restrict list, int count, int step,",
            "    const word *restrict weights, int32_t *restrict sums) {",
            *(f"  word {', '.join(declared[i : i + 6])};" for i in range(0, len(declared), 6)),
            "  for (int i = 0; i < count; i++) {",
            f"    const word *w = weights + list[i] * {planes} * LANES, *v = x + list[i] * step;",
            f"    const {values};",
            *(self._skip() if self.masked else ()),
            "    UNROLL for (int l = 0; l < LANES; l++) {",
            *(
                f"      {n}[l] += popcount(x{v} & w[{p} * LANES + l]);"
                for v in range(self.group)
                for p, n in enumerate(names[v])
            ),
            "    }",
            "  }",
            "  UNROLL for (int l = 0; l < LANES; l++) {",
            *(f"    sums[{v} * LANES + l] = {self._total(row)};" for v, row in enumerate(names)),
            "  }",
            "}\n",
        ]
        return "\n".join(lines)

    def _skip(self) -> list[str]:
        spikes = " | ".join(f"x{v}" for v in range(self.group))
        return [
            "    word left = 0;",
            f"    UNROLL for (int l = 0; l < LANES; l++) left |= w[{self.bits} * LANES + l];",
            f"    if (!(left & ({spikes}))) continue;",
        ]

    def _total(self, row: list[str]) -> str:
        doubled = " + ".join(f"({name}[l] << {p + 1})" for p, name in enumerate(row[: self.bits]))
        if not self.masked:
            return f"(int32_t)({doubled})"
        return f"(int32_t)({doubled}) - (int32_t)(({row[-1]}[l] << {self.bits}) - ({row[-1]}[l] << {self.ternary}))"
