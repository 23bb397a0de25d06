"""The program ``qpsnn``: its commands, exit statuses, error messages and compilation cache."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from qpsnn_jax.runs.cli import bits, datasets, exports, networks, training
from qpsnn_jax.runs.cli.flags import ConfigCommand
from qpsnn_jax.runtime.files import user_cache
from qpsnn_jax.runtime.settings import no_setting


class _Commands(click.Group):
    """Lists the commands in their given order, each with its whole line of help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help or "") for name, command in self.commands.items()])


@click.group(
    cls=_Commands,
    commands={
        command.name or "": command
        for room in (training, networks, bits, exports, datasets)
        for command in room.COMMANDS
    },
    context_settings={
        "help_option_names": ["--help", "-h"],
        "max_content_width": 120,
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
    epilog="See qpsnn COMMAND --help for the options of a command.",
    no_args_is_help=False,
    subcommand_metavar="COMMAND …",
    options_metavar="",
)
def qpsnn() -> None:
    """Compress spiking neural networks: quantize, score, prune, fine-tune (QP-SNN, ICLR 2025)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 for a run that failed or an export that disagrees with the network; 2 for an invalid
        input; 130 or 143 when stopped by SIGINT or SIGTERM; 141 when the reader of its output is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _keep_compiled()
        with qpsnn.make_context("qpsnn", list(sys.argv[1:] if arguments is None else arguments)) as context:
            status = qpsnn.invoke(context) or 0
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as done:
        return done.exit_code
    except KeyboardInterrupt as stop:
        from qpsnn_jax.runtime.stopping import Terminated

        print("qpsnn: stopped; the same command resumes a run from its last checkpoint.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if "qpsnn_jax.runtime.processes" in sys.modules:
            sys.modules["qpsnn_jax.runtime.processes"].exit_if_peer_died(error)
        status = _status(error)
        if status is None or os.environ.get("QPSNN_TRACEBACK"):
            raise
        print(f"qpsnn: error: {sentence(error)}", file=sys.stderr)
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an expected error; None for any other, which is a bug."""
    if isinstance(error, FloatingPointError) or _is_out_of_memory(error):
        return 1
    return 2 if isinstance(error, click.ClickException | ValueError | OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def sentence(error: Exception) -> str:
    """An error as one line of text."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        own = [word.lstrip("-") for option in error.ctx.command.params for word in option.opts]
        settings = isinstance(error.ctx.command, ConfigCommand)
        unknown = no_setting(error.option_name.lstrip("-"), own, mark="--")
        return unknown if settings else unknown.replace("setting", "option", 1)
    if isinstance(error, click.UsageError):
        said = " ".join(error.format_message().split()).rstrip(".")
        place = error.ctx.command_path if error.ctx else "qpsnn"
        return f"{said[0].lower()}{said[1:]} (see {place} --help)."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if _is_out_of_memory(error):
        return "there is not enough memory; lower train.batch_size, network.width or network.timesteps."
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r} cannot be written in {error.encoding}; start Python with PYTHONUTF8=1."
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _discard_output() -> None:
    """Discard buffered output, so that Python does not raise when it flushes it at exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _keep_compiled() -> None:
    """Let JAX cache compiled programs, so that a second start need not compile them again."""
    # By default, JAX does not keep what compiled within a second; a run has some forty such programs.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    with suppress(OSError, RuntimeError):  # the cache cannot be written, or there is no home directory
        cache = user_cache() / "compiled"
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
