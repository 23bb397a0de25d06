"""Commands that export a network, check the export, and run it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qpsnn_jax.export import FOLDED, FORMATS
from qpsnn_jax.runs.cli.importing import importing
from qpsnn_jax.runs.cli.margins import MARGIN
from qpsnn_jax.runs.cli.places import NETWORK, PACKED

_PATH = click.Path(path_type=Path)
_RUN = click.argument("path", type=NETWORK, metavar="RUN|NAME")
_FILE = click.argument("file", type=PACKED, metavar="FILE|NAME")


def _folding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that fold a run's network."""
    bits = click.Choice(("8", "32"))
    for part in ("readout", "stem"):
        command = click.option(
            f"--{part}-bits", type=bits, default="32", show_default=True, help=f"bits of the {part}'s weights"
        )(command)
    command = click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")(command)
    return click.option("--data", metavar="NAME", help="data set of an imported network")(command)


def _for_onnx(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ONNX models."""
    options = (
        click.option(
            "--onnx-bits",
            type=click.Choice(("2", "4", "8")),
            help="fewest bits of a weight in the file (default: 2); 8 for runtimes without 2- and 4-bit integers",
        ),
        click.option(
            "--onnx-opset", type=int, metavar="N", help="opset, from 13 (default: the first that has the integers)"
        ),
        click.option("--onnx-batch", type=int, metavar="N", help="images in every batch (default: any number)"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_RUN
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    required=True,
    help="packed: one small file; c: C99 source and header; onnx: for onnxruntime; nir: for other simulators; "
    "stablehlo: for XLA",
)
@click.option("--out", type=_PATH, required=True, metavar="FILE", help="file to write; must not exist")
@_folding
@importing
@click.option("--portable", is_flag=True, help="C with 32-bit words and no 64-bit popcount")
@click.option("--stablehlo-batch", type=int, metavar="N", help="images that the module takes (default: 1)")
@_for_onnx
def export(path: Path, format_: str, out: Path, *, portable: bool, stablehlo_batch: int | None, **options: Any) -> None:
    """Write the network of a run, or of one of its complete stages, as a file for a device."""
    header = [Path(f"{out.with_suffix('')}.h")] if format_ == "c" and out.name else []
    for path_ in (out, *header):
        if path_.exists():
            raise ValueError(f"{path_} exists; choose another --out.")
    if portable and format_ != "c":
        raise ValueError("--portable is for --format c.")
    if stablehlo_batch is not None and format_ != "stablehlo":
        raise ValueError("--stablehlo-batch is for --format stablehlo.")
    onnx, bits = _onnx(format_, options), _bits(format_, options)
    from qpsnn_jax.runs.exported import read_run, write_run

    exported = read_run(path, options["data_dir"], data=options["data"], **bits)
    given = {"portable": portable, "onnx": onnx, "batch": 1 if stablehlo_batch is None else stablehlo_batch}
    click.echo(f"{out}: {write_run(exported, out, format_, **given)}")


@click.command()
@_RUN
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), required=True, help="the export; c is compiled, all are run"
)
@click.option("--test-examples", type=int, help="how many test images (default: as in the run)")
@click.option("--cc", default="cc -O2", show_default=True, help="C compiler and its options")
@click.option(
    "--early-exit",
    type=MARGIN,
    metavar="MARGIN",
    help="of c: leave at the first step at which the largest accumulated output exceeds the second by so much",
)
@_folding
@importing
@_for_onnx
def verify(
    path: Path, format_: str, test_examples: int | None, cc: str, early_exit: float | None, **options: Any
) -> int:
    """Compare an export of a run with the trained network, on its test images."""
    if early_exit is not None and format_ != "c":
        raise ValueError("--early-exit is for --format c; qpsnn evaluate has it for the trained network.")
    onnx, bits = _onnx(format_, options), _bits(format_, options)
    from qpsnn_jax.runs.exported import read_run
    from qpsnn_jax.runs.verify import verify

    given = {"data": options["data"], "test_examples": test_examples, "compared": True, **bits}
    exported = read_run(path, options["data_dir"], **given)
    verdict = verify(exported, format_, cc=cc, early_exit=early_exit, onnx=onnx)
    click.echo(verdict.text)
    if verdict.failures:
        print(f"qpsnn: the export disagrees with the network: {verdict.failures}", file=sys.stderr)
    return 1 if verdict.failures else 0


@click.command()
@_FILE
@click.argument("images", type=_PATH, metavar="IMAGE|FOLDER")
def infer(file: Path, images: Path) -> int:
    """Classify pictures (their middle squares, resized) or .npy arrays with a *.qpsnn file or a pretrained network."""
    from qpsnn_jax.export.images import Unclassified, classify
    from qpsnn_jax.export.packed.file import load_packed

    failed, packed = False, load_packed(file)
    names = dict(enumerate(packed.class_names))
    for found in classify(packed.folded, images):
        if isinstance(found, Unclassified):
            failed = True
            print(f"qpsnn: error: {found.reason}", file=sys.stderr)
        else:
            name = f" ({names[found.label]})" if found.label in names else ""
            click.echo(f"{found.path}: class {found.label}{name}, current {found.current:.3f}")
    return 2 if failed else 0


@click.command()
@_FILE
def info(file: Path) -> None:
    """Show the contents of a packed network: a *.qpsnn file, or a pretrained one by name."""
    from qpsnn_jax.export.packed.file import load_packed
    from qpsnn_jax.export.summary import summary

    click.echo(summary(load_packed(file)))


COMMANDS = (export, info, verify, infer)


def _onnx(format_: str, options: dict[str, Any]) -> dict[str, int]:
    found = {name: options[f"onnx_{name}"] for name in ("bits", "opset", "batch")}
    onnx = {name: int(value) for name, value in found.items() if value is not None}
    if onnx and format_ != "onnx":
        raise ValueError(f"--onnx-{next(iter(onnx))} is for --format onnx.")
    return onnx


def _bits(format_: str, folding: dict[str, Any]) -> dict[str, Any]:
    bits = {name: int(folding[name] or 32) for name in ("stem_bits", "readout_bits")}
    if format_ not in FOLDED and set(bits.values()) != {32}:
        raise ValueError(f"--stem-bits and --readout-bits are for packed, c and onnx; {format_} keeps float32.")
    return bits
