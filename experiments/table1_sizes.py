"""The sizes of the paper's Table 1, computed from the graphs and held against the printed ones.

Command: python -m experiments.table1_sizes [--honest]

Exits with 1 unless all 39 CIFAR, TinyImageNet and DVS cells agree.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from qpsnn_jax import Graph, cost
from qpsnn_jax.model.zoo import resnet20, sew_resnet18, vgg16, vggsnn

BITS = (8, 4, 2)


@dataclass(frozen=True)
class Row:
    """A row of Table 1: how to build its network, its ratios by label, and the MB printed for 8, 4 and 2 bits."""

    data: str
    network: str
    build: Callable[..., Graph]
    ratios: Mapping[str, float]
    published: tuple[float | None, ...]
    checked: bool = True


def _resnet20(stem: float, outputs: float, first: float, middle: float) -> dict[str, float]:
    return {"stem": stem, "outputs": outputs, "first": first, "middle": middle}


def _vgg(early: float, late: float) -> dict[str, float]:
    return {"early": early, "late": late}


_TINY = partial(vgg16, classes=200, input_shape=(64, 64, 3))

# Table 10 prints other ratios for the outputs of stage 2; 0.3 and 0.35 reproduce every published size of ResNet20.
ROWS = (
    Row("cifar10", "resnet20", resnet20, _resnet20(0.1, 0.3, 0.3, 0.6), (6.27, 3.16, 1.61)),
    Row("cifar10", "resnet20", resnet20, _resnet20(0.1, 0.35, 0.35, 0.75), (3.92, 1.98, 1.02)),
    Row("cifar10", "vgg16", vgg16, _vgg(0.45, 0.51), (4.28, 2.16, 1.10)),
    Row("cifar10", "vgg16", vgg16, _vgg(0.49, 0.80), (1.45, 0.74, 0.39)),
    Row("cifar100", "resnet20", partial(resnet20, classes=100), _resnet20(0.1, 0.3, 0.3, 0.6), (6.45, 3.35, 1.79)),
    Row("cifar100", "resnet20", partial(resnet20, classes=100), _resnet20(0.1, 0.35, 0.35, 0.75), (4.10, 2.17, 1.20)),
    Row("cifar100", "vgg16", partial(vgg16, classes=100), _vgg(0.45, 0.70), (2.48, 1.35, 0.79)),
    Row("cifar100", "vgg16", partial(vgg16, classes=100), _vgg(0.45, 0.78), (1.85, 1.04, 0.63)),
    Row("tiny_imagenet", "vgg16", _TINY, _vgg(0.45, 0.51), (5.90, 3.78, 2.72)),
    Row("tiny_imagenet", "vgg16", _TINY, _vgg(0.45, 0.62), (4.67, 3.17, 2.41)),
    Row("cifar10_dvs", "vggsnn", vggsnn, _vgg(0.5, 0.7), (1.61, 0.90, 0.55)),
    Row("cifar10_dvs", "vggsnn", vggsnn, _vgg(0.5, 0.8), (1.05, 0.62, 0.41)),
    Row("cifar10_dvs", "vggsnn", vggsnn, _vgg(0.82, 0.93), (0.40, 0.29, 0.24)),
    # No ratios are published for ImageNet; the published bytes are those of the unpruned network.
    Row("imagenet", "sew_resnet18", sew_resnet18, {}, (13.28, 7.71, None), checked=False),
)


def megabytes(graph: Graph) -> float:
    """Eq. 16 in MB of 10^6 bytes."""
    return cost(graph).size_bytes / 1e6


def honest_megabytes(graph: Graph) -> tuple[float, float]:
    """MB with all that must be stored: first with batch-norm as it is, then folded.

    As it is: Eq. 16, the running mean and variance, and one scale per quantized layer or channel. Folded: each
    batch-norm becomes a factor and an offset per channel, into which the scale goes.
    """
    return cost(graph).footprint_bytes / 1e6, megabytes(graph)


def mismatches() -> list[str]:
    """The checked cells whose size does not agree to the printed digit."""
    wrong = []
    for row in ROWS:
        for bits, published in zip(BITS, row.published, strict=True):
            ours = megabytes(row.build(bits=bits, ratios=row.ratios))
            if row.checked and f"{ours:.2f}" != f"{published:.2f}":
                wrong.append(f"{row.data} {row.network} at {bits} bits: {ours:.4f} MB, published {published:.2f}")
    return wrong


def main() -> int:
    """Print the table; the exit status says whether it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--honest", action="store_true", help="add what Eq. 16 leaves out, and what folding saves")
    honest = parser.parse_args().honest
    head = ["data", "network", "ratios", "parameters", *(f"{bits} bit (paper)" for bits in BITS)]
    head += ["honest, 8/4/2 bit", "folded, 8/4/2 bit"] if honest else []
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in ROWS:
        print("| " + " | ".join(_cells(row, honest)) + " |")
    wrong = mismatches()
    cells = sum(row.checked for row in ROWS) * len(BITS)
    print(f"\n{cells - len(wrong)} of {cells} cells agree to the printed digit.", *wrong, sep="\n")
    return 1 if wrong else 0


def _cells(row: Row, honest: bool) -> list[str]:
    graphs = [row.build(bits=bits, ratios=row.ratios) for bits in BITS]
    cells = [row.data, row.network, ", ".join(f"{r:g}" for r in row.ratios.values()), f"{cost(graphs[0]).params:,}"]
    for graph, published in zip(graphs, row.published, strict=True):
        cells.append(f"{megabytes(graph):.2f} ({'–' if published is None else f'{published:.2f}'})")
    if honest:
        pairs = [honest_megabytes(graph) for graph in graphs]
        cells += [" / ".join(f"{pair[i]:.3f}" for pair in pairs) for i in (0, 1)]
    return cells


if __name__ == "__main__":
    sys.exit(main())
