"""The command line, ``qpsnn``. Anything heavy is imported by the command that needs it."""

import argparse
import difflib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qpsnn_jax.export import FOLDED, FORMATS

if TYPE_CHECKING:
    from qpsnn_jax.model.graph import Graph
    from qpsnn_jax.runs.config import Config
    from qpsnn_jax.runs.stages import Stage
    from qpsnn_jax.training.steps import Variables


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence, and which takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Take an option with dashes or underscores, as settings are."""
        spelled = (word for name in names for word in (name, name[:2] + name[2:].replace("-", "_")))
        return super().add_argument(*dict.fromkeys(spelled), **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].lower()}{message[1:]} (see {self.prog} --help).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Its status is 0, 2 for a wrong input, 1 for a run that failed or an export that disagrees, 130 or 143 when stopped.
    """
    parser = _Parser(
        prog="qpsnn",
        description="Compress spiking neural networks: quantize, score, prune, fine-tune (QP-SNN, ICLR 2025).",
        epilog="commands:\n"
        + "\n".join(f"  {name:13}{command.__doc__}" for name, command in COMMANDS.items())
        + "\n\nqpsnn COMMAND --help tells more.",
        usage="qpsnn COMMAND …",
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    try:
        given = parser.parse_args(arguments)
        if given.command is None:
            parser.error(f"give a COMMAND, one of {', '.join(COMMANDS)}")
        _keep_compiled()
        return COMMANDS[given.command](given.rest) or 0
    except KeyboardInterrupt as stop:
        from qpsnn_jax.runtime.stopping import Terminated

        print("qpsnn: stopped; a run goes on from its last checkpoint by the same command.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except Exception as error:
        if "qpsnn_jax.runtime.processes" in sys.modules:
            sys.modules["qpsnn_jax.runtime.processes"].exit_if_peer_died(error)
        if not isinstance(error, (ValueError, OSError, FloatingPointError)) or os.environ.get("QPSNN_TRACEBACK"):
            raise
        print(f"qpsnn: error: {_sentence(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _run(arguments: list[str]) -> None:
    """Train, score, prune, fine-tune and report."""
    parser = _config_parser("run", _run)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="directory of the run, new or this run's"
    )
    parser.add_argument("--compare", action="store_true", help="also run the controls: baseline, random, from scratch")
    given, config = _parse_training(parser, arguments)
    from qpsnn_jax.runs import report
    from qpsnn_jax.runs import stages as pipeline

    pipeline.check_run(given.out, config)
    data = pipeline.load_data(config)
    pipeline.open_run(given.out, config)
    stages = pipeline.run(config, given.out, data)
    if given.compare:
        pipeline.run_controls(config, given.out, data)
    controls = pipeline.read_controls(given.out)
    report.write_report(config, given.out, data, stages, controls)
    _say(report.table([*stages, *controls]))
    _say(f"\nreport: {given.out / 'report.md'}")


def _train(arguments: list[str]) -> None:
    """Only the first stage of a run: train the quantized network."""
    parser = _config_parser("train", _train)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="directory of the run, new or this run's"
    )
    given, config = _parse_training(parser, arguments)
    from qpsnn_jax.runs import stages as pipeline

    pipeline.check_run(given.out, config)
    data = pipeline.load_data(config)
    pipeline.open_run(given.out, config)
    _print_stages([pipeline.train(config, given.out, data)])


def _score(arguments: list[str]) -> None:
    """Score the channels of a trained run."""
    directory, config = _parse_run("score", _score, arguments)
    from qpsnn_jax.runs import stages as pipeline

    _require_stage(directory, "quantized", "qpsnn train")
    scores = pipeline.score_channels(config, directory, pipeline.load_data(config))
    for name, values in scores.items():
        _say(f"{name:20} {len(values):5} channels, scores {values.min():.4g} to {values.max():.4g}")
    _say(f"\nscores: {directory / 'pruned' / 'scores.npz'}")


def _prune(arguments: list[str]) -> None:
    """Remove the channels with the lowest scores from a trained run."""
    directory, config = _parse_run("prune", _prune, arguments)
    from qpsnn_jax.runs import stages as pipeline

    _require_stage(directory, "quantized", "qpsnn train")
    _print_stages([pipeline.prune_channels(config, directory, pipeline.load_data(config))])


def _finetune(arguments: list[str]) -> None:
    """Train a pruned run on, and report."""
    directory, config = _parse_run("finetune", _finetune, arguments)
    from qpsnn_jax.runs import report
    from qpsnn_jax.runs import stages as pipeline

    _require_stage(directory, "pruned", "qpsnn prune")
    data = pipeline.load_data(config)
    stages = pipeline.run(config, directory, data)
    report.write_report(config, directory, data, stages, pipeline.read_controls(directory))
    _print_stages(stages)


def _evaluate(arguments: list[str]) -> None:
    """Measure accuracy and cost of a run, one of its stages, or an imported network."""
    parser = _Parser(prog="qpsnn evaluate", description=_evaluate.__doc__)
    parser.add_argument("path", type=Path, metavar="PATH", help="a run, a complete stage, or an imported network")
    parser.add_argument("--data", help="data set; that of the run when left out")
    parser.add_argument("--data-dir", help="data directory; that of the run when left out")
    parser.add_argument("--test-examples", type=int, help="how many test images; those of the run when left out")
    given = parser.parse_args(arguments)
    from qpsnn_jax.data.feed import first
    from qpsnn_jax.runs import stages as pipeline
    from qpsnn_jax.runs.loop import evaluate

    graph, variables = pipeline.load_network(given.path)
    run = pipeline.run_of(given.path)
    config = pipeline.read_config(run) if run else None
    if given.data is None and config is None:
        raise ValueError(f"{given.path} belongs to no run, so say which --data to evaluate on.")
    options = {"data": given.data, "data_dir": given.data_dir, "test_examples": given.test_examples}
    data = pipeline.load_test_data(graph, config, **options)
    shape = first(data.test).images.shape[1:]
    if shape[-3:] != graph.input.shape or len(shape) != 3 + graph.input.frames or data.classes != graph.classes:
        raise ValueError(
            f"{given.path} takes images of shape {graph.input.shape} in {graph.classes} classes, and {data.name} has "
            f"{shape} in {data.classes}; choose another --data."
        )
    started = time.monotonic()
    result = evaluate(graph, variables, data.test, data)
    seconds = time.monotonic() - started
    whole = pipeline.build_graph(config) if config else graph
    _print_stages([pipeline.measured(given.path.name, graph, whole, result, None, seconds)])


def _cost(arguments: list[str]) -> None:
    """Show size and operations of every layer of a preset, a config, or, as measured, of a run or a stage."""
    parser = _config_parser("cost", _cost)
    parser.add_argument("--pruned", action="store_true", help="at the widths that the ratios leave")
    given, rest = parser.parse_known_args(arguments)
    from qpsnn_jax.model.costs import cost
    from qpsnn_jax.runs import report
    from qpsnn_jax.runs import stages as pipeline
    from qpsnn_jax.runs.config import build_graph

    activity = None
    if Path(given.config).is_dir():
        if given.pruned or rest:
            word = "--pruned" if given.pruned else rest[0]
            raise ValueError(f"{given.config} holds a network as it is, so {word} cannot be set.")
        graph, _ = pipeline.load_network(Path(given.config))
        activity = pipeline.read_activity(Path(given.config))
    else:
        config = _chosen(given.config, rest)
        graph = build_graph(config, ratios=config.ratios if given.pruned else None)
    costs = cost(graph, activity)
    print(report.cost_table(costs))


def _import_torch(arguments: list[str]) -> None:
    """Convert a checkpoint of the authors' PyTorch code."""
    parser = _Parser(prog="qpsnn import-torch", description=_import_torch.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a PyTorch checkpoint, or an .npz of its state dict")
    parser.add_argument("--bits", type=int, required=True, help="bits of the quantized weights")
    parser.add_argument("--timesteps", type=int, required=True, help="time steps T")
    parser.add_argument("--input-size", type=int, default=32, help="height and width of a ResNet20's images, 32")
    given = _given_new_place(parser, arguments)
    from qpsnn_jax.export.torch_file import read_state_dict
    from qpsnn_jax.export.torch_import import import_torch

    options = {"bits": given.bits, "timesteps": given.timesteps, "input_size": given.input_size}
    _save_imported(given, *import_torch(read_state_dict(given.file), **options), f"{given.bits} bits")


def _import_nir(arguments: list[str]) -> None:
    """Convert a NIR graph, with its weights in full precision."""
    parser = _Parser(prog="qpsnn import-nir", description=_import_nir.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of the nir package")
    parser.add_argument("--timesteps", type=int, help="time steps T; what the file says when left out")
    parser.add_argument("--dt", type=float, help="length of a step in seconds; what the file says, or 1e-4")
    given = _given_new_place(parser, arguments)
    from qpsnn_jax.export.nir.reader import import_nir, read_nir

    network = import_nir(read_nir(given.file), timesteps=given.timesteps, dt=given.dt)
    _save_imported(given, *network, "full precision")


def _given_new_place(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where to write the network; must be new"
    )
    given = parser.parse_args(arguments)
    if given.out.exists():
        raise ValueError(f"{given.out} exists; choose another --out.")
    return given


def _save_imported(given: argparse.Namespace, graph: "Graph", variables: "Variables", weights: str) -> None:
    from qpsnn_jax.model.costs import cost
    from qpsnn_jax.runs import stages as pipeline

    pipeline.save_network(given.out, graph, variables, {"source": given.file.name})
    print(f"{given.out}: {cost(graph).params:,} parameters, {graph.classes} classes, {weights}")


def _export(arguments: list[str]) -> None:
    """Write the network of a run as a file for a device."""
    parser = _Parser(prog="qpsnn export", description=_export.__doc__)
    parser.add_argument("path", type=Path, metavar="RUN", help="a run or one of its complete stages")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="packed: one small file; c: C99 source and header; onnx: for onnxruntime; nir: for other simulators; "
        "stablehlo: what JAX exports",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write; must be new")
    _add_export_options(parser)
    parser.add_argument("--portable", action="store_true", help="C without a 64-bit popcount, in words of 32 bits")
    given = parser.parse_args(arguments)
    beside = [given.out.with_suffix(".h")] if given.format == "c" else []
    if taken := [path for path in (given.out, *beside) if path.exists()]:
        raise ValueError(f"{taken[0]} exists; choose another --out.")
    if given.portable and given.format != "c":
        raise ValueError("--portable is for --format c.")
    _check_export_options(given)
    from qpsnn_jax.runs.exported import read_run, write_run

    exported = read_run(given.path, given.data_dir, stem_bits=given.stem_bits, readout_bits=given.readout_bits)
    print(f"{given.out}: {write_run(exported, given.out, given.format, portable=given.portable)}")


def _verify(arguments: list[str]) -> int:
    """Run an export of a run beside the trained network, on its test images."""
    parser = _Parser(prog="qpsnn verify", description=_verify.__doc__)
    parser.add_argument("path", type=Path, metavar="RUN", help="a run or one of its complete stages")
    parser.add_argument("--format", choices=FORMATS, required=True, help="the export; c is compiled, all are run")
    parser.add_argument("--test-examples", type=int, help="how many test images; those of the run when left out")
    parser.add_argument("--cc", default="cc -O2", help="C compiler and its options, 'cc -O2' when left out")
    _add_export_options(parser)
    given = parser.parse_args(arguments)
    _check_export_options(given)
    from qpsnn_jax.runs.exported import read_run
    from qpsnn_jax.runs.verify import verify

    options = {"stem_bits": given.stem_bits, "readout_bits": given.readout_bits, "test_examples": given.test_examples}
    verdict = verify(read_run(given.path, given.data_dir, **options), given.format, cc=given.cc)
    print(verdict.text)
    if verdict.broken:
        print(f"qpsnn: the two sides disagree: {verdict.broken}", file=sys.stderr)
    return 1 if verdict.broken else 0


def _infer(arguments: list[str]) -> int:
    """Classify images with a packed network."""
    parser = _Parser(prog="qpsnn infer", description=_infer.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a packed network, *.qpsnn")
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER", help="pictures or .npy arrays of its size")
    given = parser.parse_args(arguments)
    from qpsnn_jax.export.images import Unclassified, classify
    from qpsnn_jax.export.packed.file import load_packed

    broken = 0
    for found in classify(load_packed(given.file).folded, given.images):
        if isinstance(found, Unclassified):
            broken += 1
            print(f"qpsnn: error: {found.reason}", file=sys.stderr)
        else:
            print(f"{found.path}: class {found.label}, current {found.current:.3f}")
    return 2 if broken else 0


def _info(arguments: list[str]) -> None:
    """Show what a packed network holds."""
    parser = _Parser(prog="qpsnn info", description=_info.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a packed network, *.qpsnn")
    given = parser.parse_args(arguments)
    from qpsnn_jax.export.packed.file import load_packed
    from qpsnn_jax.export.summary import summary

    print(summary(load_packed(given.file)))


def _data(arguments: list[str]) -> None:
    """Prepare a data set, or check one: counts, class balance, mean and std."""
    parser = _Parser(prog="qpsnn data", description=_data.__doc__)
    parser.add_argument("action", choices=("prepare", "check"), help="what to do")
    parser.add_argument("name", metavar="NAME", help="data set")
    parser.add_argument("--data-dir", help="TFDS data directory; the digits need none")
    given = parser.parse_args(arguments)
    if given.data_dir is None and given.name != "digits":
        parser.error(f"give the --data-dir of {given.name}")
    if given.action == "prepare":
        from qpsnn_jax.data.prepare import prepare

        print(f"prepared: {prepare(given.name, given.data_dir)}")
        return
    from qpsnn_jax.data.inspection import check, format_report

    report = check(given.name, given.data_dir)
    print(format_report(report))
    if report.problems:
        raise ValueError(f"{given.name} is not what it should be: {report.problems[0]}")


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "run": _run,
    "train": _train,
    "score": _score,
    "prune": _prune,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "cost": _cost,
    "import-torch": _import_torch,
    "import-nir": _import_nir,
    "export": _export,
    "info": _info,
    "verify": _verify,
    "infer": _infer,
    "data": _data,
}


def _check_export_options(given: argparse.Namespace) -> None:
    if given.format not in FOLDED and (given.stem_bits, given.readout_bits) != (32, 32):
        raise ValueError(f"--stem-bits and --readout-bits are for packed, c and onnx; {given.format} keeps float32.")


def _add_export_options(parser: _Parser) -> None:
    parser.add_argument("--data-dir", help="data directory; that of the run when left out")
    for part in ("stem", "readout"):
        parser.add_argument(
            f"--{part}-bits", type=int, default=32, help=f"bits of the {part}'s weights, 8 or 32; 32 when left out"
        )


def _config_parser(name: str, command: Callable) -> _Parser:
    from qpsnn_jax.runs.config import Config
    from qpsnn_jax.runs.presets import PRESETS

    parser = _Parser(
        prog=f"qpsnn {name}",
        description=f"{command.__doc__}\n\nPresets: {', '.join(PRESETS)}.",
        epilog=f"settings, each as --setting value:\n\n{Config.__doc__}",
        usage=f"qpsnn {name} PRESET_OR_CONFIG.py [options] [--setting value …]",
    )
    parser.add_argument("config", metavar="PRESET_OR_CONFIG.py", help="a preset's name or a file that defines `config`")
    return parser


def _parse_training(parser: _Parser, arguments: list[str]) -> tuple[argparse.Namespace, "Config"]:
    _add_process_options(parser)
    given, rest = parser.parse_known_args(arguments)
    _join(given)
    from qpsnn_jax.runtime.processes import fail_together

    return given, fail_together(_chosen)(given.config, rest)


def _chosen(name: str, rest: list[str]) -> "Config":
    """The config of a preset or a file, with the settings given after it."""
    from qpsnn_jax.runs.config import as_dict, from_dict, load_config
    from qpsnn_jax.runs.presets import PRESETS

    changes = _settings(rest)
    if name in PRESETS:
        config = PRESETS[name]
    elif name.endswith(".py"):
        config = load_config(Path(name))
    else:
        raise ValueError(
            f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a .py file; it comes first, then the settings."
        )
    return from_dict(as_dict(config) | changes)


def _settings(rest: list[str]) -> dict[str, Any]:
    """Pairs ``--field value`` or ``--field=value`` as typed values."""
    from qpsnn_jax.runs.config import field_types, parse_value

    changes: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; settings are given as --setting value.")
        option, _, text = word[2:].partition("=")
        name = option.replace("-", "_")
        if name not in field_types():
            near = difflib.get_close_matches(name, field_types(), n=1)
            raise ValueError(f"there is no setting --{option}" + (f"; did you mean --{near[0]}?" if near else "."))
        if "=" not in word and (text := next(words, None)) is None:
            raise ValueError(f"--{option} needs a value.")
        changes[name] = parse_value(name, text)
    return changes


def _parse_run(name: str, command: Callable, arguments: list[str]) -> tuple[Path, "Config"]:
    parser = _Parser(prog=f"qpsnn {name}", description=command.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of the run")
    _add_process_options(parser)
    given = parser.parse_args(arguments)
    _join(given)
    from qpsnn_jax.runs.stages import read_config

    return given.directory, read_config(given.directory)


def _add_process_options(parser: _Parser) -> None:
    parser.add_argument(
        "--processes",
        metavar="N",
        help="how many processes do this together; auto: as Slurm, Open MPI or a TPU pod say",
    )
    parser.add_argument("--process-id", type=int, metavar="I", help="which of them this one is, from 0 on")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others")


def _join(given: argparse.Namespace) -> None:
    """Join the other processes, if there are any; the config is read after, because its file may use JAX."""
    places = [place for place in (given.process_id, given.coordinator) if place is not None]
    if given.processes is None and not places:
        return
    processes = given.processes or ""
    if len(places) != 2 * processes.isdecimal() or not (processes.isdecimal() or processes == "auto"):
        raise ValueError("--processes takes auto, or a number together with --process-id and --coordinator.")
    from qpsnn_jax.runtime.processes import initialize

    initialize(int(processes) if processes.isdecimal() else None, given.process_id, given.coordinator)


def _require_stage(directory: Path, stage: str, command: str) -> None:
    from qpsnn_jax.runs.stages import read_stage

    if read_stage(directory, stage) is None:
        raise ValueError(f"{directory} has no complete stage {stage!r} yet; run `{command}` first.")


def _print_stages(stages: "list[Stage]") -> None:
    from qpsnn_jax.runs.report import table

    _say(table(stages))


def _say(text: str) -> None:
    """Print the result; of several processes, the first does."""
    from qpsnn_jax.runtime.processes import is_process_zero

    if is_process_zero():
        print(text)


def _keep_compiled() -> None:
    """Let JAX keep compiled programs in the user's cache, so that a second start need not compile again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "qpsnn_jax" / "compiled"
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return (str(error).strip() or type(error).__name__).splitlines()[0]
