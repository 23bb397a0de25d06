"""Commands that measure a network, or import one."""

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qpsnn_jax.runs.cli.flags import ConfigCommand, chosen
from qpsnn_jax.runs.cli.importing import importing
from qpsnn_jax.runs.cli.margins import MARGIN
from qpsnn_jax.runs.cli.pixels import check_both, normalizing, say_if_unknown, statistics_given
from qpsnn_jax.runs.cli.places import NETWORK

if TYPE_CHECKING:
    from qpsnn_jax.model.graph import Graph
    from qpsnn_jax.training.state import Variables

_PATH = click.Path(path_type=Path)
_NEW = click.option("--out", required=True, type=_PATH, metavar="DIR", help="directory to write; must not exist")
_FILE = click.argument("file", type=_PATH, metavar="FILE")


@click.command()
@click.argument("path", type=NETWORK, metavar="PATH|NAME")
@click.option("--data", metavar="NAME", help="data set (default: that of the run)")
@click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")
@click.option("--test-examples", type=int, help="how many test images (default: as in the run)")
@click.option(
    "--early-exit",
    type=MARGIN,
    metavar="MARGIN",
    help="leave at the first step at which the largest accumulated output exceeds the second by so much",
)
@importing
def evaluate(
    path: Path, data: str | None, data_dir: str | None, test_examples: int | None, early_exit: float | None
) -> None:
    """Measure accuracy and cost of a run, one of its stages, an imported network, or a pretrained one by name."""
    from qpsnn_jax.runs.config import unpruned_graph
    from qpsnn_jax.runs.data_record import check_data
    from qpsnn_jax.runs.directory import load_network, parse_config, run_of
    from qpsnn_jax.runs.evaluation import ExitEvaluation, evaluate, evaluate_early_exit
    from qpsnn_jax.runs.loading import check_fits, load_test_data
    from qpsnn_jax.runs.records import measure
    from qpsnn_jax.runs.report import exit_table, learned_table, table
    from qpsnn_jax.runs.statistics import as_trained, trained_statistics

    graph, variables = load_network(path)
    run = run_of(path)
    config = parse_config(run) if run else None  # whose own data need not be there
    if data is None and config is None:
        raise ValueError(f"{path} does not belong to a run; name a data set with --data.")
    found = load_test_data(graph, config, name=data, data_dir=data_dir, test_examples=test_examples)
    check_fits(path, graph, found)
    if run is not None and data is None:
        otherwise = "name the data set to evaluate on with --data"
        check_data(run, found, train=False, test=test_examples is None, otherwise=otherwise)
    found = as_trained(found, trained_statistics(path))
    started = time.monotonic()
    precision = config.run.precision if config else "auto"
    result = evaluate(graph, variables, found.test, found, precision=precision)
    seconds = time.monotonic() - started
    whole = unpruned_graph(config, graph) if config else graph
    name, network = path.resolve().name, (graph, variables)
    click.echo(table([measure(name, network, whole, result, None, seconds)]))
    if learned := learned_table({name: network}):
        click.echo("\n" + learned)
    if early_exit is not None:
        all_steps = ExitEvaluation(result.accuracy, (0.0,) * (graph.timesteps - 1) + (1.0,))
        leaving = evaluate_early_exit(graph, variables, found.test, found, early_exit, precision=precision)
        click.echo("\n" + exit_table({early_exit: leaving, None: all_steps}))


@click.command(cls=ConfigCommand, metavar="PRESET|CONFIG.py|RUN")
@click.option("--pruned", is_flag=True, help="show the widths after pruning by the ratios")
@importing
def cost(config: str, changes: dict[str, str], *, pruned: bool) -> None:
    """Show size and operations of every layer; of a run or a stage with its measured activity."""
    from qpsnn_jax.model.costs import cost
    from qpsnn_jax.pruning.ratios import pruned_graph
    from qpsnn_jax.runs.config import build_graph
    from qpsnn_jax.runs.directory import load_network, read_activity
    from qpsnn_jax.runs.report import cost_table

    activity, masks, note, place = None, None, "", _place(config)
    if place is not None:
        if pruned or changes:
            word = "pruned" if pruned else next(iter(changes))
            raise ValueError(f"{place} holds a finished network, so --{word} cannot be set.")
        graph, variables = load_network(place)
        masks = variables.get("masks")
        activity = read_activity(place)
    else:
        settings = chosen(config, changes)
        if pruned and settings.prune.budget is not None:
            raise ValueError("--pruned needs ratios: the widths under a budget follow from the scores.")
        graph = build_graph(settings)
        if pruned:
            graph = pruned_graph(graph, settings.prune.ratios, multiple_of=settings.prune.multiple_of)
        if pruned and settings.prune.masks:
            note = "\nmasks of single weights are not counted: they follow from the scores"
    click.echo(cost_table(cost(graph, activity, masks=masks)) + note)


@click.command("import-torch")
@_FILE
@click.option("--bits", type=int, required=True, help="bits of the quantized weights")
@click.option("--timesteps", type=int, required=True, help="time steps T")
@click.option("--input-size", type=int, default=32, show_default=True, help="height and width of a ResNet20's images")
@normalizing
@_NEW
def import_torch(file: Path, out: Path, bits: int, mean: Any, std: Any, **options: Any) -> None:
    """Convert a checkpoint of the authors' PyTorch code, or a .safetensors or .npz file of its state dict."""
    _check_new(out)
    check_both(mean, std)
    from qpsnn_jax.export.torch_file import read_state_dict
    from qpsnn_jax.export.torch_import import import_torch

    graph, variables = import_torch(read_state_dict(file), bits=bits, **options)
    notes = {"source": file.name, **statistics_given(graph.input.shape[2], mean, std)}
    _save(out, graph, variables, notes, f"{bits} bits")
    say_if_unknown(notes)


@click.command("import-nir")
@_FILE
@click.option("--timesteps", type=int, help="time steps T (default: those of the file)")
@click.option("--dt", type=float, help="length of a step (default: that of the file, or 1e-4 s); 1 for a file in steps")
@click.option(
    "--frames/--image",
    default=None,
    help="an input of its own at every step, or one for all (default: that of the file, or one)",
)
@normalizing
@_NEW
def import_nir(file: Path, out: Path, mean: Any, std: Any, **options: Any) -> None:
    """Convert a NIR graph, with its weights in full precision."""
    _check_new(out)
    check_both(mean, std)
    from qpsnn_jax.export.nir.file import read_nir
    from qpsnn_jax.export.nir.reader import import_nir, pixel_statistics

    document = read_nir(file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        graph, variables = import_nir(document, **options)
    known = statistics_given(graph.input.shape[2], mean, std) or pixel_statistics(document)
    notes = {"source": file.name, **known}
    _save(out, graph, variables, notes, "full precision")
    for warning in caught:
        print(f"qpsnn: warning: {warning.message}", file=sys.stderr)
    say_if_unknown(notes)


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
def pretrained(name: str | None) -> None:
    """List the networks that come with the package, or show the card of one."""
    from qpsnn_jax.export.pretrained import cards, packed_path
    from qpsnn_jax.runs.pretrained import card_text, cards_table

    click.echo(cards_table() if name is None else card_text(cards()[packed_path(name).stem]))


COMMANDS = (evaluate, cost, pretrained, import_torch, import_nir)


def _place(config: str) -> Path | None:
    """The directory that ``qpsnn cost`` names; None for a preset, which is never a path, and for a config file."""
    from qpsnn_jax.export.pretrained import names
    from qpsnn_jax.runs.presets import PRESETS

    named = Path(config).exists() or config in names()
    if config in PRESETS or config.endswith(".py") or not named:
        return None
    return NETWORK.convert(config, None, None)


def _check_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out.")


def _save(out: Path, graph: "Graph", variables: "Variables", notes: dict[str, Any], weights: str) -> None:
    from qpsnn_jax.model.costs import cost
    from qpsnn_jax.runs.directory import save_network

    save_network(out, graph, variables, notes)
    click.echo(f"{out}: {cost(graph).params:,} parameters, {graph.classes} classes, {weights}")
