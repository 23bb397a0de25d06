"""The command that chooses bits by layer."""

from pathlib import Path

import click

from qpsnn_jax.runs.cli.importing import importing
from qpsnn_jax.runs.cli.places import NETWORK


@click.command()
@click.argument("path", type=NETWORK, metavar="RUN|NAME")
@click.option("--budget", required=True, metavar="SIZE", help="bytes of the network, such as 20kB")
@click.option("--data-dir", metavar="DIR", help="data directory (default: that of the run)")
@importing
def bits(path: Path, budget: str, data_dir: str | None) -> None:
    """Measure how the loss depends on the bits of each layer, and choose them under a budget of bytes."""
    from qpsnn_jax.pruning.bits import allocate_bits, bit_sensitivity
    from qpsnn_jax.pruning.settings import parse_budget
    from qpsnn_jax.runs.config import build_graph
    from qpsnn_jax.runs.data_record import check_data
    from qpsnn_jax.runs.directory import load_network, read_config, run_of
    from qpsnn_jax.runs.evaluation import sensitivity_batches
    from qpsnn_jax.runs.loading import load_data
    from qpsnn_jax.runs.report import bits_table

    limit = parse_budget(budget).get("bytes")
    if limit is None or (run := run_of(path)) is None:
        raise ValueError(f"bits needs a run and a budget of bytes such as 20kB, got {path} and {budget!r}.")
    graph, variables = load_network(path)
    config = read_config(run, data_dir)
    data = load_data(config)
    check_data(run, data, otherwise="train a new run on these")
    batches = sensitivity_batches(data)
    losses = bit_sensitivity(graph, variables, batches, precision=config.run.precision)
    chosen = allocate_bits(graph, losses, bytes=limit, masks=variables.get("masks"))
    click.echo(bits_table(losses, chosen))
    # A network that was read from a packed file has layers of other names than the network of its config.
    if chosen.keys() <= build_graph(config).by_name.keys():
        click.echo(f"\n--network.layer_bits {','.join(f'{name}={number}' for name, number in chosen.items())}")
    else:
        click.echo(f"\nIn Python: qpsnn_jax.with_layer_bits(graph, {chosen})")


COMMANDS = (bits,)
