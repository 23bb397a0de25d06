"""Commands that bring a network to a device, and that run it there."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qpsnn_jax.export import FOLDED, FORMATS

_PATH = click.Path(path_type=Path)
_RUN = click.argument("path", type=_PATH, metavar="RUN")
_FILE = click.argument("file", type=_PATH, metavar="FILE")


def _folding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that fold a run's network."""
    bits = click.Choice(("8", "32"))
    for part in ("readout", "stem"):
        command = click.option(
            f"--{part}-bits", type=bits, default="32", show_default=True, help=f"bits of the {part}'s weights"
        )(command)
    return click.option("--data-dir", metavar="DIR", help="data directory; that of the run when left out")(command)


@click.command()
@_RUN
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    required=True,
    help="packed: one small file; c: C99 source and header; onnx: for onnxruntime; nir: for other simulators; "
    "stablehlo: what JAX exports",
)
@click.option("--out", type=_PATH, required=True, metavar="FILE", help="what to write; must be new")
@_folding
@click.option("--portable", is_flag=True, help="C without a 64-bit popcount, in words of 32 bits")
def export(path: Path, form: str, out: Path, *, portable: bool, **folding: str | None) -> None:
    """Write the network of a run, or of one of its complete stages, as a file for a device."""
    taken = [
        place
        for place in (out, *([Path(f"{out.with_suffix('')}.h")] if form == "c" and out.name else []))
        if place.exists()
    ]
    if taken:
        raise ValueError(f"{taken[0]} exists; choose another --out.")
    if portable and form != "c":
        raise ValueError("--portable is for --format c.")
    bits = _bits(form, folding)
    from qpsnn_jax.runs.exported import read_run, write_run

    exported = read_run(path, folding["data_dir"], **bits)
    click.echo(f"{out}: {write_run(exported, out, form, portable=portable)}")


@click.command()
@_RUN
@click.option(
    "--format", "form", type=click.Choice(FORMATS), required=True, help="the export; c is compiled, all are run"
)
@click.option("--test-examples", type=int, help="how many test images; those of the run when left out")
@click.option("--cc", default="cc -O2", show_default=True, help="C compiler and its options")
@_folding
def verify(path: Path, form: str, test_examples: int | None, cc: str, **folding: str | None) -> int:
    """Run an export of a run beside the trained network, on its test images."""
    bits = _bits(form, folding)
    from qpsnn_jax.runs.exported import read_run
    from qpsnn_jax.runs.verify import verify

    verdict = verify(read_run(path, folding["data_dir"], test_examples=test_examples, **bits), form, cc=cc)
    click.echo(verdict.text)
    if verdict.broken:
        print(f"qpsnn: the two sides disagree: {verdict.broken}", file=sys.stderr)
    return 1 if verdict.broken else 0


@click.command()
@_FILE
@click.argument("images", type=_PATH, metavar="IMAGE|FOLDER")
def infer(file: Path, images: Path) -> int:
    """Classify pictures or .npy arrays with a packed network, a *.qpsnn file."""
    from qpsnn_jax.export.images import Unclassified, classify
    from qpsnn_jax.export.packed.file import load_packed

    broken = 0
    for found in classify(load_packed(file).folded, images):
        if isinstance(found, Unclassified):
            broken += 1
            print(f"qpsnn: error: {found.reason}", file=sys.stderr)
        else:
            click.echo(f"{found.path}: class {found.label}, current {found.current:.3f}")
    return 2 if broken else 0


@click.command()
@_FILE
def info(file: Path) -> None:
    """Show what a packed network holds, a *.qpsnn file."""
    from qpsnn_jax.export.packed.file import load_packed
    from qpsnn_jax.export.summary import summary

    click.echo(summary(load_packed(file)))


COMMANDS = (export, info, verify, infer)


def _bits(form: str, folding: dict[str, str | None]) -> dict[str, int]:
    bits = {name: int(folding[name] or 32) for name in ("stem_bits", "readout_bits")}
    if form not in FOLDED and set(bits.values()) != {32}:
        raise ValueError(f"--stem-bits and --readout-bits are for packed, c and onnx; {form} keeps float32.")
    return bits
