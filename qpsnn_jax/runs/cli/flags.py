"""Commands whose options are the fields of :class:`~qpsnn_jax.runs.config.Config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from qpsnn_jax.runs.config import Config, load_config
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runtime.settings import Setting, kind_of, known_names, parse, settings, updated

FIELDS = {field.name: field for field in settings(Config())}
_METAVARS = {int: "INT", float: "FLOAT", bool: "true|false", Mapping: "NAME=SHARE,…"}


class ConfigCommand(click.Command):
    """A command that takes a preset or a config file, then ``--part.field value`` for each setting that differs.

    Its function receives ``config``, the preset or file by name, and ``changes``, the given settings as text.
    """

    def __init__(self, *args: Any, metavar: str = "PRESET|CONFIG.py", **options: Any) -> None:
        super().__init__(*args, **options)
        self.own = list(self.params)
        self.params = [click.Argument(["config"], metavar=metavar), *self.own]
        self.params += [_option(field) for field in FIELDS.values()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the preset, whose values the help shows."""
        ctx.meta["preset"] = args[0] if args else ""
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the preset first: it must precede the settings."""
        return [*self.params[0].get_usage_pieces(ctx), "[OPTIONS]", "[SETTINGS]"]

    def invoke(self, ctx: click.Context) -> Any:
        """Collect the given settings in ``changes``."""
        found = {name: ctx.params.pop(_identifier(name)) for name in FIELDS}
        ctx.params["changes"] = {name: text for name, text in found.items() if text is not None}
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List presets, options, and settings with the values of the named preset, or the defaults."""
        preset = PRESETS.get(ctx.meta["preset"])
        with formatter.section("Presets"):
            formatter.write_dl([(name, known.help) for name, known in PRESETS.items()])
        with formatter.section("Options"):
            own = (option.get_help_record(ctx) for option in (*self.own, self.get_help_option(ctx)) if option)
            formatter.write_dl([record for record in own if record])
        groups: dict[str, list[tuple[str, str]]] = {}
        for field in settings(preset.config if preset else Config()):
            row = f"--{field.name} {_metavar(field)}", f"{_meaning(field)} [{_shown(field.value)}]"
            groups.setdefault(field.name.partition(".")[0], []).append(row)
        for group, rows in groups.items():
            with formatter.section(f"Settings: {group}"):
                formatter.write_dl(rows, col_max=38)


def chosen(name: str, changes: Mapping[str, str]) -> Config:
    """The config of a preset or a file, with the given settings changed.

    Raises:
        ValueError: there is no such preset or file, or a setting is invalid; the message names it.
    """
    if name in PRESETS:
        config = PRESETS[name].config
    elif name.endswith(".py"):
        config = load_config(Path(name))
    else:
        raise ValueError(
            f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a .py file; it comes first, then the settings."
        )
    new: dict[str, dict[str, Any]] = {}
    for path, text in changes.items():
        part, _, field = path.partition(".")
        new.setdefault(part, {})[field] = parse(FIELDS[path], text)
    return updated(config, new)


def _option(field: Setting) -> click.Option:
    optional = {"is_flag": False, "flag_value": "true"} if kind_of(field) is bool else {}
    return click.Option([_identifier(field.name), f"--{field.name}"], **optional)


def _identifier(name: str) -> str:
    return name.replace(".", "__")


def _metavar(field: Setting) -> str:
    kind = kind_of(field)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return _METAVARS.get(kind, "NAME" if field.names else "TEXT")


def _meaning(field: Setting) -> str:
    return f"{field.help}: {known_names(field)}" if field.names else field.help


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={share:g}" for name, share in value.items()) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
