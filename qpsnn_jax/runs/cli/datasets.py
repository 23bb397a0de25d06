"""Commands about data sets."""

import click

_NAMES = (
    "NAME is digits, cifar10, cifar100, tiny_imagenet, imagenet2012, any image classification set of TFDS, such as "
    "fashion_mnist, or folder: pictures of your own in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/."
)


@click.command(epilog=_NAMES)
@click.argument("action", type=click.Choice(("prepare", "check")))
@click.argument("name", metavar="NAME")
@click.option("--data-dir", metavar="DIR", help="TFDS data directory, or the folder of pictures; the digits need none")
def data(action: str, name: str, data_dir: str | None) -> None:
    """Prepare a data set, or check one: counts, class balance, mean and std."""
    if data_dir is None and name != "digits":
        raise ValueError(f"data set {name} needs --data-dir.")
    if action == "prepare":
        from qpsnn_jax.data.prepare import prepare

        click.echo(f"prepared: {prepare(name, data_dir)}")
        return
    from qpsnn_jax.data.inspection import check, format_report

    report = check(name, data_dir)
    click.echo(format_report(report))
    if report.problems:
        raise ValueError(f"data set {name} fails its check: {report.problems[0]}")


COMMANDS = (data,)
