"""The command line: help, and one sentence for every wrong input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from forked import Forked
from released import state_dict
from small_networks import random_variables
from small_runs import contents

from qpsnn_jax.model.network import SpikingNetwork
from qpsnn_jax.model.nodes import LIF, Quantizer
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.numerics.normalization import normalize
from qpsnn_jax.runs import metrics
from qpsnn_jax.runs.cli.main import main, qpsnn
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import load_network
from qpsnn_jax.runs.presets import PRESETS
from qpsnn_jax.runtime.settings import kind_of, parse, settings

RUN = ["run", "digits", "--out", "new"]
DIGITS = "'digit' is neither a preset (digits, digits_plus, cifar10, cifar10-tiny, nmnist) nor a .py file;"
MANY = "99999999999999999999"

WRONG = {
    "no command": ([], "missing command (see qpsnn --help)."),
    "unknown command": (["rum"], "no such command 'rum'. Did you mean 'run'?"),
    "no preset": (["run", "--out", "new"], "missing argument 'PRESET|CONFIG.py' (see qpsnn run --help)."),
    "no directory": (["run", "digits"], "missing option '--out' (see qpsnn run --help)."),
    "unknown preset": (["run", "digit", "--out", "new"], DIGITS),
    "unknown setting": (
        [*RUN, "--train.epoch", "3"],
        "no setting --train.epoch; did you mean --train.epochs?",
    ),
    "setting without part": ([*RUN, "--epochs", "3"], "did you mean --train.epochs or --finetune.epochs?"),
    "hopeless setting": ([*RUN, "--zzz", "3"], "there is no setting --zzz."),
    "misspelt option": (
        ["evaluate", "x", "--tset-examples", "3"],
        "no option --tset-examples; did you mean --test-e",
    ),
    "setting without value": ([*RUN, "--train.epochs"], "option '--train.epochs' requires an argument"),
    "loose word": ([*RUN, "fast"], "got unexpected extra argument (fast) (see qpsnn run --help)."),
    "wrong type": ([*RUN, "--train.epochs", "many"], "train.epochs must be an integer from 0 to 1000000, got 'many'."),
    "wrong number": ([*RUN, "--train.learning-rate=-1"], "train.learning_rate must be a number above 0 and at most"),
    "negative word": (
        [*RUN, "--finetune.momentum", "-1"],
        "finetune.momentum must be a number at least 0 and ",
    ),
    "wrong choice": (
        [*RUN, "--network.gamma", "median"],
        "network.gamma must be one of none, max, percentile, mean, mse, learned, or MODULE:NAME, got 'median'.",
    ),
    "bits 0": ([*RUN, "--network.bits", "0"], "network.bits must be an integer from 1 to 8, or none, got 0."),
    "bits 9": ([*RUN, "--network.bits", "9"], "network.bits must be an integer from 1 to 8, or none, got 9."),
    "endless width": (
        [*RUN, "--network.width", "1e300"],
        "network.width must be a number above 0 and at most",
    ),
    "endless time": (
        [*RUN, "--network.timesteps", MANY],
        "network.timesteps must be an integer from 1 to 100",
    ),
    "endless digits": (
        [*RUN, "--network.timesteps", "9" * 9999],
        "network.timesteps must be an integer from 1 to",
    ),
    "ratio 1.0": (
        [*RUN, "--prune.ratios", "middle=1.0"],
        "prune.ratios must be numbers by name, such as stem=",
    ),
    "ratio -0.1": ([*RUN, "--prune.ratios", "middle=-0.1"], "each at least 0 and below 1, got {'middle': -0.1}."),
    "ratio that empties": ([*RUN, "--prune.ratios", "stem=0.99"], "a pruning ratio of 0.99 leaves none of 8 channels"),
    "unknown label": ([*RUN, "--prune.ratios", "head=0.5"], "ratios name 'head'; this network has stem, outputs,"),
    "too many examples": ([*RUN, "--data.train-examples", "9999"], "train_examples must be an integer from 1 to 1437"),
    "too few for a batch": (
        [*RUN, "--data.train-examples", "8"],
        "batch_size 48 is larger than the 8 training images.",
    ),
    "missing data": (
        [*RUN, "--data.name", "cifar10", "--data.data-dir", "nowhere"],
        "prepare it: qpsnn data prepare cifar10",
    ),
    "augmentation of colours": (
        [*RUN, "--data.autoaugment", "true"],
        "autoaugment is for images of 3 channels; turn it off for those of 1.",
    ),
    "missing network": ([*RUN, "--network.name", "nowhere:net"], "'nowhere:net' cannot be found (ModuleNotFoundError"),
    "missing config": (["run", "absent.py", "--out", "new"], "config file absent.py does not exist."),
    "syntax error": (["run", "broken.py", "--out", "new"], "config file broken.py has a syntax error in line 2:"),
    "config that talks": (["run", "talks.py", "--out", "new"], "config file talks.py: one"),
    "no config": (["run", "empty.py", "--out", "new"], "must define `config = qpsnn_jax.Config(…)`."),
    "processes in words": (
        [*RUN, "--processes", "two"],
        "--processes takes auto, or a number together with --process-id and --coordinator.",
    ),
    "processes from nowhere": ([*RUN, "--processes", "2"], "or a number together with --process-id and --coordinator."),
    "automatic places": ([*RUN, "--processes", "auto", "--process-id", "1"], "--processes takes auto, or a number"),
    "places alone": (["score", "absent", "--coordinator", "host:1"], "--processes takes auto, or a number"),
    "no such process": (
        [*RUN, "--processes", "2", "--process-id", "2", "--coordinator", "host:1"],
        "process-id must be at least 0 and below processes, got 2 of 2.",
    ),
    "no port": (
        [*RUN, "--processes", "2", "--process-id", "0", "--coordinator", "host"],
        "coordinator must be HOST:PORT with a port of 1 to 65535, the same for all processes, got 'host'.",
    ),
    "out is a file": (["run", "digits", "--out", "empty.py"], "exists and is not the directory of a run"),
    "out is foreign": (["run", "digits", "--out", "foreign"], "foreign exists and is not the directory of a run"),
    "out is here": (
        ["run", "digits", "--out", "."],
        ". exists and is not the directory of a run;",
    ),
    "train too": (
        ["train", "digits", "--out", "new", "--network.bits", "9"],
        "network.bits must be an integer from 1 to",
    ),
    "score nothing": (["score", "absent"], "absent is not the directory of a run: it has no config.json."),
    "prune nothing": (["prune", "foreign"], "foreign is not the directory of a run: it has no config.json."),
    "finetune nothing": (["finetune", "absent"], "absent is not the directory of a run: it has no config.json."),
    "evaluate nothing": (["evaluate", "absent"], "absent does not hold a complete network"),
    "evaluate no number": (
        ["evaluate", "absent", "--test-examples", "x"],
        "'x' is not a valid integer",
    ),
    "cost of nothing": (["cost", "foreign"], "foreign does not hold a complete network; give a run"),
    "cost of no preset": (["cost", "digit"], DIGITS),
    "import nothing": (
        ["import-torch", "absent.npz", "--bits", "2", "--timesteps", "2", "--out", "new"],
        "absent.npz",
    ),
    "import no checkpoint": (
        ["import-torch", "empty.py", "--bits", "2", "--timesteps", "2", "--out", "new"],
        "empty.py",
    ),
    "import without bits": (["import-torch", "a.npz", "--timesteps", "2", "--out", "new"], "--bits"),
    **{
        f"{command} with {words}": ([command, "a.npz", *options, "--out", "new", *words.split()], message)
        for command, options in (("import-torch", ["--bits", "2", "--timesteps", "2"]), ("import-nir", []))
        for words, message in (
            ("--mean 0.5", "--mean needs --std too"),
            ("--std 0.5,0.5,0.5", "--std needs --mean too"),
            ("--mean 125 --std 0.5", "--mean must be numbers from 0 to 1 separated by commas, for pixels from 0 to 1"),
            ("--mean nan --std 0.5", "--mean must be numbers from 0 to 1 separated by commas"),
            ("--mean 0.5 --std 0.5,0", "--std must be positive numbers separated by commas"),
            ("--mean 0.5 --std inf", "--std must be positive numbers separated by commas"),
            ("--mean 0.5, --std 0.5", "got '0.5,'."),
        )
    },
    "import over something": (
        ["import-torch", "a.npz", "--bits", "2", "--timesteps", "2", "--out", "foreign"],
        "foreign exists; choose another --out.",
    ),
    "import here": (["import-nir", "a.nir", "--out", "."], ". exists; choose another --out."),
    "export nothing": (
        ["export", "absent", "--format", "packed", "--out", "new"],
        "absent does not hold a complete network",
    ),
    "export as what": (["export", "absent", "--out", "new"], "missing option '--format'. Choose from: packed, c, onnx"),
    "export over something": (
        ["export", "absent", "--format", "packed", "--out", "foreign"],
        "foreign exists; choose another --out.",
    ),
    "export here": (["export", "absent", "--format", "c", "--out", "."], ". exists; choose another --out."),
    "export to nowhere": (["export", "absent", "--format", "c", "--out", ""], ". exists; choose another --out."),
    "portable what": (
        ["export", "absent", "--format", "packed", "--portable", "--out", "new"],
        "--portable is for --format c.",
    ),
    "opset of what": (
        ["export", "absent", "--format", "c", "--onnx-opset", "17", "--out", "new"],
        "--onnx-opset is for --format onnx.",
    ),
    "bits of what": (
        ["verify", "absent", "--format", "nir", "--stem-bits", "8"],
        "--stem-bits and --readout-bits are for packed, c and onnx; nir keeps float32.",
    ),
    "verify nothing": (["verify", "absent", "--format", "c"], "absent does not hold a complete network"),
    "infer from nothing": (["infer", "absent.qpsnn", "foreign"], "absent.qpsnn"),
    "info of nothing": (["info", "absent.qpsnn"], "absent.qpsnn"),
    "info of no network": (["info", "empty.py"], "empty.py is not a packed network: it has another signature."),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("x = 1\nconfig = Config(\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "talks.py").write_text("raise ValueError('one\\ntwo')\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(arguments, **environment):
    command = [sys.executable, "-m", "qpsnn_jax", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def one_sentence(stderr: str, message: str) -> None:
    assert stderr.startswith("qpsnn: error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith(("\n",))
    assert "Traceback" not in stderr
    assert message in stderr


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_status_2(name, place, capsys):
    arguments, message = WRONG[name]
    before = contents(place)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    one_sentence(captured.err, message)
    assert contents(place) == before
    assert not (place / "new").exists()


@pytest.mark.parametrize("name", ["bits 9", "syntax error", "missing data", "import nothing"])
def test_wrong_input_in_a_process(name, place):
    arguments, message = WRONG[name]
    before = contents(place)
    out, err = Forked(arguments).ended(2)
    assert out == ""
    one_sentence(err, message)
    assert contents(place) == before


def test_a_corrupted_checkpoint_in_a_process(small_run, place):
    """No library below Python prints a second line either."""
    source = small_run / "finetuned" / "final" / "step_0"
    for path in source.rglob("*"):
        target = place / "step_0" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            data = path.read_bytes()
            target.write_bytes(data[: len(data) // 2] if "/d/" in str(path) else data)
    result = process(["evaluate", "step_0", "--data", "digits"])
    assert result.returncode == 2
    one_sentence(result.stderr, "checkpoint step_0")


def test_the_traceback_is_there_for_who_asks(place):
    _, err = Forked(["cost", "digits", "--network.bits", "9"], environment={"QPSNN_TRACEBACK": "1"}).ended(1)
    assert "Traceback" in err


def test_missing_data_say_how_tfds_gets_them(place, capsys):
    assert main([*RUN, "--data.name", "cifar10", "--data.data-dir", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "cifar10" in message
    assert "qpsnn data prepare cifar10 --data-dir nowhere" in message


def test_a_checkpoint_of_another_network_is_not_evaluated(small_run, tmp_path, capsys):
    graph = resnet20(
        width=1 / 16, lif=LIF("", "", fire=">"), bits=Quantizer(2, "mean", "channel", "scaled"), timesteps=2
    )
    variables = random_variables(graph)
    np.savez(tmp_path / "released.npz", allow_pickle=False, **state_dict(graph, variables))
    command = ["import-torch", str(tmp_path / "released.npz"), "--bits", "2", "--timesteps", "2"]
    assert main([*command, "--out", str(tmp_path / "imported")]) == 0
    said = capsys.readouterr()
    assert "10 classes, 2 bits" in said.out
    assert said.err == (
        "qpsnn: images will be normalized by the mean and std of the data set that they are evaluated on; --mean and "
        "--std state others.\n"
    )
    imported, loaded = load_network(tmp_path / "imported")
    assert imported == graph
    for name, leaves in variables["params"].items():
        for leaf, value in leaves.items():
            np.testing.assert_array_equal(loaded["params"][name][leaf], value)
    assert main(["evaluate", str(tmp_path / "imported"), "--data", "digits"]) == 2
    one_sentence(capsys.readouterr().err, "takes images of shape (32, 32, 3) in 10 classes, and digits has (8, 8, 1)")
    before = contents(tmp_path)
    assert main([*command, "--out", str(tmp_path / "imported")]) == 2
    one_sentence(capsys.readouterr().err, "exists; choose another --out.")
    assert contents(tmp_path) == before


def test_a_checkpoint_is_normalized_by_the_statistics_that_are_given(tmp_path, capsys):
    graph = resnet20(
        width=1 / 16, lif=LIF("", "", fire=">"), bits=Quantizer(2, "mean", "channel", "scaled"), timesteps=2
    )
    variables = random_variables(graph)
    np.savez(tmp_path / "released.npz", allow_pickle=False, **state_dict(graph, variables))
    out, packed = str(tmp_path / "imported"), str(tmp_path / "a.qpsnn")
    command = ["import-torch", str(tmp_path / "released.npz"), "--bits", "2", "--timesteps", "2", "--out", out]
    given = ["--mean", "0.4914,0.4822,0.4465", "--std"]
    assert main([*command, *given, "0.2,0.3"]) == 2
    one_sentence(capsys.readouterr().err, "--std must be one number, or 3 for the input channels, got 2.")
    assert main([*command, *given, "0.2023,0.1994,0.2010"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["export", out, "--format", "packed", "--out", packed]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    capsys.readouterr()
    assert main(["infer", packed, str(tmp_path / "image.npy")]) == 0
    images = normalize(pixels[None], (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    graph, variables = load_network(out)
    currents = SpikingNetwork(graph).apply(variables, images).currents.mean((0, 1))
    assert f"class {currents.argmax()}, current {currents.max():.3f}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", qpsnn.commands)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"qpsnn {name}" in captured.out
    assert " ".join(str(qpsnn.commands[name].help).split()) in " ".join(captured.out.split())


def test_help_names_every_command_with_its_whole_line(capsys):
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {command.help}" in text for name, command in qpsnn.commands.items())


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_help_names_every_setting_with_its_type_and_value(preset, capsys):
    assert main(["run", *([preset] if preset else []), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {known.help}" in text for name, known in PRESETS.items())
    config = PRESETS[preset].config if preset else Config()
    for field in settings(config):
        row = text[text.index(f"--{field.name} ") :]
        kind, rest = row.split(" ", 2)[1:]
        assert kind == {int: "INT", float: "FLOAT", bool: "true|false"}.get(kind_of(field), kind)
        assert rest.startswith(field.help)
        shown = rest[rest.index("[") + 1 : rest.index("]")]
        if isinstance(field.value, Mapping):
            assert parse(field, shown) == field.value or (shown == "none" and not field.value)
        else:
            assert parse(field, shown) == field.value or (shown == "none" and field.value is None)


def test_the_script_and_the_module_are_one():
    script = Path(sys.executable).parent / "qpsnn"
    if not script.exists():
        pytest.skip("the package is not installed")
    found = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert found.stdout == process(["--help"]).stdout
    assert found.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "digits", "--help"], ["export", "--help"]])
def test_help_starts_without_jax(words):
    """The help must not import JAX, which is slow."""
    code = (
        "import sys; from qpsnn_jax.runs.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'numpy', 'matplotlib', 'tensorflow_datasets', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_batch_that_the_devices_cannot_share_claims_no_directory(place, capsys, monkeypatch):
    monkeypatch.setattr("qpsnn_jax.runs.loop.data_mesh", lambda: SimpleNamespace(size=5))
    assert main([*RUN, "--train.batch_size", "50"]) == 2
    one_sentence(capsys.readouterr().err, "finetune.batch_size 48 must be a multiple of the 5 devices that share it.")
    assert not (place / "new").exists()


def test_the_config_of_another_program_makes_no_run(small_run, place, capsys):
    net = shutil.copytree(small_run / "finetuned" / "final", place / "proj" / "net")
    for text in ('{"a": 1}', "[]", "not JSON", '{"config": {}}'):
        (place / "proj" / "config.json").write_text(text)
        assert main(["evaluate", str(net), "--data", "digits", "--test-examples", "7"]) == 0
    (place / "proj" / "quantized").mkdir()
    assert main(["evaluate", str(net), "--data", "digits"]) == 2
    one_sentence(capsys.readouterr().err, "config.json is damaged")


def test_a_preset_is_never_a_folder(place, capsys):
    assert main(["cost", "digits"]) == 0
    expected = capsys.readouterr().out
    (place / "digits").mkdir()
    assert main(["cost", "digits"]) == 0
    assert capsys.readouterr().out == expected


def test_stopping_by_hand_says_how_to_go_on(place, capsys, monkeypatch):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(qpsnn.commands["info"], "callback", stop)
    assert main(["info", "file.qpsnn"]) == 130
    assert "the same command resumes a run from its last checkpoint" in capsys.readouterr().err


def test_too_little_memory_is_a_sentence(place, capsys, monkeypatch):
    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")):

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(qpsnn.commands["info"], "callback", fail)
        assert main(["info", "file.qpsnn"]) == 1
        one_sentence(capsys.readouterr().err, "there is not enough memory; lower train.batch_size")


def test_a_full_disk_is_a_sentence_that_names_the_file(small_config, tmp_path, capsys, monkeypatch):
    real = metrics._Writer.write

    def full(self, step, values):
        if step == 15:
            self._file.close()
            self._file = Full()
        real(self, step, values)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.write("")

    monkeypatch.setattr(metrics._Writer, "write", full)
    network = ["--network.name", "small_runs:tiny", "--prune.ratios", "middle=0.5"]
    assert main(["train", str(small_config), *network, "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()
    assert last[-1] == f"qpsnn: error: {tmp_path / 'run' / 'quantized' / 'metrics.jsonl'}: No space left on device."
    assert sum("epoch" not in line for line in last) == 2  # where the run is, and the error


def test_damaged_metrics_do_not_end_a_run(small_config, small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    shutil.rmtree(copy / "quantized" / "final")
    (copy / "quantized" / "stage.json").unlink()
    (copy / "quantized" / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.warns(UserWarning, match=r"quantized/metrics\.jsonl has lost the metrics of 40 of the first 40 steps"):
        assert main(["train", str(small_config), "--out", str(copy)]) == 0
    assert (copy / "quantized" / "stage.json").exists()


def test_nobody_reads_the_output_any_more(small_run):
    """As in `| head`: silence, also when the output fits a buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "qpsnn_jax", "cost", str(small_run)]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_output_that_is_not_unicode(small_run):
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = process(["cost", str(small_run)], **environment)
    assert result.returncode == 0, result.stderr
    assert "J; activation sparsity" in result.stdout


def test_a_user_without_a_home(tmp_path):
    code = (
        "import os, pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from qpsnn_jax.runs.cli.main import main; sys.exit(main(['cost', 'digits']))"
    )
    kept = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--network.bits", "3"],
        ["--network.bits=3"],
        ["--prune.score_batches", "1", "--network.bits", "3"],
        ["--prune.score-batches", "1", "--network.bits", "3"],
        ["--run.fsdp", "--network.bits", "3"],
        ["--run.fsdp", "true", "--network.bits", "3"],
    ],
)
def test_settings_are_taken_in_every_spelling(words, tmp_path, capsys, monkeypatch):
    from qpsnn_jax.runs import stages

    monkeypatch.setattr(stages, "train", lambda *_: (_ for _ in ()).throw(ValueError("enough")))
    assert main(["train", "digits", *words, "--out", str(tmp_path / "new")]) == 2
    assert "enough" in capsys.readouterr().err
    config = json.loads((tmp_path / "new" / "config.json").read_text())["config"]
    assert config["network"]["bits"] == 3
    assert config["run"]["fsdp"] == ("--run.fsdp" in words)


def kept_compiled(arguments):
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert main(arguments) == 0
    print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    return 0


@pytest.mark.parametrize("home", ["home", "file"])
def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, home):
    (tmp_path / "file").write_text("")
    out, _ = Forked(["cost", "digits"], kept_compiled, {"XDG_CACHE_HOME": str(tmp_path / home)}).ended(0)
    expected = str(tmp_path / home / "qpsnn_jax" / "compiled") if home == "home" else "None"
    assert out.splitlines()[-1] == expected
