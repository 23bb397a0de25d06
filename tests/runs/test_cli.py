"""The command line: help, and one sentence for every wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_networks import random_variables
from small_runs import contents
from test_torch_import import state_dict

from qpsnn_jax.model.nodes import LIF, Quantizer
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.runs.cli import COMMANDS, main
from qpsnn_jax.runs.stages import load_network

RUN = ["run", "digits", "--out", "new"]

WRONG = {
    "no command": ([], "give a COMMAND, one of run, train"),
    "unknown command": (["rum"], "argument COMMAND: invalid choice: 'rum'"),
    "no preset": (["run", "--out", "new"], "the following arguments are required: PRESET_OR_CONFIG.py"),
    "no directory": (["run", "digits"], "the following arguments are required: --out"),
    "unknown preset": (["run", "digit", "--out", "new"], "'digit' is neither a preset (digits) nor a .py file;"),
    "unknown setting": ([*RUN, "--epoch", "3"], "there is no setting --epoch; did you mean --epochs?"),
    "hopeless setting": ([*RUN, "--zzz", "3"], "there is no setting --zzz."),
    "setting without value": ([*RUN, "--epochs"], "--epochs needs a value."),
    "loose word": ([*RUN, "fast"], "unexpected argument 'fast'; settings are given as --setting value."),
    "wrong type": ([*RUN, "--epochs", "many"], "--epochs takes a whole number, got 'many'."),
    "wrong number": ([*RUN, "--learning-rate=-1"], "learning_rate must be positive, got -1.0."),
    "wrong choice": ([*RUN, "--gamma", "median"], "gamma takes one of none, max, percentile, mean, mse, got 'median'."),
    "bits 0": ([*RUN, "--bits", "0"], "bits must be an integer from 1 to 8, got 0."),
    "bits 9": ([*RUN, "--bits", "9"], "bits must be an integer from 1 to 8, got 9."),
    "ratio 1.0": ([*RUN, "--ratios", "middle=1.0"], "ratio of 'middle' must be at least 0 and below 1, got 1.0."),
    "ratio -0.1": ([*RUN, "--ratios", "middle=-0.1"], "ratio of 'middle' must be at least 0 and below 1, got -0.1."),
    "ratio that empties": ([*RUN, "--ratios", "stem=0.99"], "a pruning ratio of 0.99 leaves none of 8 channels"),
    "unknown label": ([*RUN, "--ratios", "head=0.5"], "ratios name 'head'; this network has stem, outputs,"),
    "too many examples": ([*RUN, "--train-examples", "9999"], "train_examples must be a whole number from 1 to 1437"),
    "too few for a batch": ([*RUN, "--train-examples", "8"], "batch_size 48 is larger than the 8 training images."),
    "missing data": ([*RUN, "--data", "cifar10", "--data-dir", "nowhere"], "download_and_prepare"),
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
        "coordinator must be HOST:PORT, the same for all processes, got 'host'.",
    ),
    "out is a file": (["run", "digits", "--out", "empty.py"], "exists and is not the directory of a run"),
    "out is foreign": (["run", "digits", "--out", "foreign"], "foreign exists and is not the directory of a run"),
    "train too": (["train", "digits", "--out", "new", "--bits", "9"], "bits must be an integer from 1 to 8, got 9."),
    "score nothing": (["score", "absent"], "absent is not the directory of a run: it has no config.json."),
    "prune nothing": (["prune", "foreign"], "foreign is not the directory of a run: it has no config.json."),
    "finetune nothing": (["finetune", "absent"], "absent is not the directory of a run: it has no config.json."),
    "evaluate nothing": (["evaluate", "absent"], "absent holds no finished network"),
    "evaluate no number": (
        ["evaluate", "absent", "--test-examples", "x"],
        "argument --test-examples/--test_examples",
    ),
    "cost of nothing": (["cost", "foreign"], "foreign holds no finished network; give a run"),
    "cost of no preset": (["cost", "absent"], "'absent' is neither a preset (digits) nor a .py file;"),
    "import nothing": (
        ["import-torch", "absent.npz", "--bits", "2", "--timesteps", "2", "--out", "new"],
        "absent.npz",
    ),
    "import no checkpoint": (
        ["import-torch", "empty.py", "--bits", "2", "--timesteps", "2", "--out", "new"],
        "empty.py",
    ),
    "import without bits": (["import-torch", "a.npz", "--timesteps", "2", "--out", "new"], "--bits"),
    "import over something": (
        ["import-torch", "a.npz", "--bits", "2", "--timesteps", "2", "--out", "foreign"],
        "foreign exists; choose another --out.",
    ),
    "export nothing": (["export", "absent", "--format", "packed", "--out", "new"], "absent holds no finished network"),
    "export as what": (["export", "absent", "--out", "new"], "the following arguments are required: --format"),
    "export over something": (
        ["export", "absent", "--format", "packed", "--out", "foreign"],
        "foreign exists; choose another --out.",
    ),
    "portable what": (
        ["export", "absent", "--format", "packed", "--portable", "--out", "new"],
        "--portable is for --format c.",
    ),
    "verify nothing": (["verify", "absent", "--format", "c"], "absent holds no finished network"),
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
    result = process(arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    one_sentence(result.stderr, message)
    assert contents(place) == before


def test_a_corrupted_checkpoint_in_a_process(small_run, place):
    """Nothing that lies below Python prints a second line either."""
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
    result = process(["cost", "digits", "--bits", "9"], QPSNN_TRACEBACK="1")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_missing_data_say_how_tfds_gets_them(place, capsys):
    assert main([*RUN, "--data", "cifar10", "--data-dir", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "cifar10" in message
    assert "tensorflow_datasets" in message or "tfds" in message


def test_a_checkpoint_of_another_network_is_not_evaluated(small_run, tmp_path, capsys):
    graph = resnet20(
        width=1 / 16, lif=LIF("", "", fire=">"), bits=Quantizer(2, "mean", "channel", "scaled"), timesteps=2
    )
    variables = random_variables(graph)
    np.savez(tmp_path / "released.npz", allow_pickle=False, **state_dict(graph, variables))
    command = ["import-torch", str(tmp_path / "released.npz"), "--bits", "2", "--timesteps", "2"]
    assert main([*command, "--out", str(tmp_path / "imported")]) == 0
    assert "10 classes, 2 bits" in capsys.readouterr().out
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"qpsnn {name}" in captured.out
    assert str(COMMANDS[name].__doc__) in captured.out


def test_help_names_every_command_and_setting(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    from qpsnn_jax.runs.config import field_types

    assert all(f"``{name}``" in text for name in field_types())


def test_the_script_and_the_module_are_one():
    script = Path(sys.executable).parent / "qpsnn"
    if not script.exists():
        pytest.skip("the package is not installed")
    found = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert found.stdout == process(["--help"]).stdout
    assert found.stderr == ""


def test_help_does_not_wait_for_jax():
    code = (
        "import sys, qpsnn_jax.runs.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("False False\n")


def test_stopping_by_hand_says_how_to_go_on(place, capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "cost", stop)
    assert main(["cost", "digits"]) == 130
    assert "a run goes on from its last checkpoint by the same command" in capsys.readouterr().err


@pytest.mark.parametrize("word", [["--bits", "3"], ["--bits=3"], ["--score_batches", "1", "--bits", "3"]])
def test_settings_are_taken_in_every_spelling(word, tmp_path, capsys, monkeypatch):
    from qpsnn_jax.runs import stages as pipeline

    monkeypatch.setattr(pipeline, "train", lambda config, directory, data: (_ for _ in ()).throw(ValueError("enough")))
    assert main(["train", "digits", *word, "--out", str(tmp_path / "new")]) == 2
    capsys.readouterr()
    assert json.loads((tmp_path / "new" / "config.json").read_text())["config"]["bits"] == 3


def test_help_starts_without_jax():
    """Importing JAX takes longer than reading the help."""
    code = (
        "import sys; from qpsnn_jax.runs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'numpy', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("home", ["home", "file"])
def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, home):
    (tmp_path / "file").write_text("")
    code = (
        "import os; from qpsnn_jax.runs.cli import main; assert main(['cost', 'digits']) == 0\n"
        "print(os.environ.get('JAX_COMPILATION_CACHE_DIR'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / home)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    expected = str(tmp_path / home / "qpsnn_jax" / "compiled") if home == "home" else "None"
    assert result.stdout.splitlines()[-1] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("tunables", [None, "", "glibc.malloc.hugetlb=0"])
def test_the_command_takes_memory_in_large_pages_unless_told_otherwise(tunables):
    code = (
        "import os, sys; from qpsnn_jax.__main__ import start\n"
        "print('started', os.getpid(), os.environ.get('GLIBC_TUNABLES'), sep=',', flush=True); sys.exit(start())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "QPSNN_STARTED")}
    environment |= {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    command = [sys.executable, "-c", code, "cost", "digits"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    starts = [line.split(",")[1:] for line in result.stdout.splitlines() if line.startswith("started")]
    assert len({pid for pid, _ in starts}) == 1
    wanted = ["None", "glibc.malloc.hugetlb=1"] if tunables is None else [tunables]
    assert [setting for _, setting in starts] == wanted
    privileged = subprocess.run(command, capture_output=True, text=True, env=environment | {"QPSNN_STARTED": "1"})
    assert privileged.stdout.count("started") == 1
    assert "parameters" in result.stdout
