"""Strict JAX for the whole suite, a finished run to look at, and where the optional recorded data lie."""

import fcntl
import gc
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time. Tests that look at compiled programs ask for optimized ones.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

gc.set_threshold(50_000, 20, 20)  # the default looks at young objects every 700 of them
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(os.environ.get("QPSNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled programs for this session, which its workers inherit."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = {"JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="qpsnn-jax-tests-")}
    config.add_cleanup(lambda: shutil.rmtree(cache["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True))
    os.environ |= cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    jax.config.update("jax_compilation_cache_dir", cache["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def freeze_traced_programs() -> None:
    """Traced programs are many small objects that stay: to look at all of them again and again takes minutes."""
    gc.collect()
    gc.freeze()


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine; set QPSNN_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def nir_files() -> Path:
    """Folder of NIR files written by other programs."""
    return _present(SHARED / "data" / "nir")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of outputs recorded from the authors' PyTorch implementation."""
    return _present(SHARED / "vectors")


@pytest.fixture(scope="session")
def compilations() -> Callable[[], AbstractContextManager[Callable[[], int]]]:
    """``with compilations() as counted: …; counted()``: how many programs were compiled within."""
    programs = itertools.count()
    seen = [next(programs)]

    def listen(event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen[0] = next(programs)

    jax.monitoring.register_event_duration_secs_listener(listen)

    @contextmanager
    def within() -> Iterator[Callable[[], int]]:
        before = seen[0]
        yield lambda: seen[0] - before

    return within


@pytest.fixture(scope="session")
def native_library() -> None:
    """The library of native kernels is compiled; without a compiler the test is skipped."""
    from qpsnn_jax.kernels.native import library

    try:
        library.compiler()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert library.load() is not None


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """TFDS data directory that holds a prepared CIFAR-10."""
    return _present(SHARED / "data" / "tfds")


@pytest.fixture(scope="session")
def small_network() -> str:
    """Name of a network that compiles in a second, so that whole runs fit in a test."""
    return "small_runs:small"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once(name, make)``: a directory that the first worker to ask fills with ``make(directory)``."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (done := shared / f"{name}.done").exists():
                make(shared / name)
                done.touch()
        return shared / name

    return made


@pytest.fixture(scope="session")
def small_config(small_network: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file of a run that takes seconds."""
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from qpsnn_jax import Config, DataSettings, NetworkSettings, Pruning, RunSettings, Training\n"
        "train = Training(epochs=4, batch_size=32, optimizer='adam', learning_rate=0.02)\n"
        "config = Config(\n"
        f"    network=NetworkSettings({small_network!r}),\n"
        "    data=DataSettings('digits', train_examples=320, test_examples=100, crop_padding=1),\n"
        "    train=train,\n"
        "    prune=Pruning(ratios={'stem': 0.3, 'middle': 0.55}, score_batches=2, score_batch_size=100),\n"
        "    finetune=replace(train, epochs=2, learning_rate=0.01),\n"
        "    run=RunSettings(checkpoint_epochs=1),\n"
        ")\n"
    )
    return path


@contextmanager
def programs_compiled() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles within."""
    found: list[str] = []

    class Names(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.extend(re.findall(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()))

    logger, handler = logging.getLogger("jax"), Names(logging.WARNING)
    logger.addHandler(handler)
    with jax.log_compiles():
        yield found
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def small_run(small_config: Path, once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Directory of a finished run of that config, and beside it what it compiled. Not to be changed; copy it."""
    from qpsnn_jax.runs.cli.main import main

    def run(directory: Path) -> None:
        jax.clear_caches()  # So that it compiles all of its programs.
        with programs_compiled() as compiled:
            assert main(["run", str(small_config), "--out", str(directory)]) == 0
        directory.with_name("small_compiled.txt").write_text("\n".join(compiled))

    return once("small", run)


@pytest.fixture(scope="session")
def small_report(small_run: Path) -> dict:
    """Its ``report.json``."""
    return json.loads((small_run / "report.json").read_text())


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come without their plots, which take a second."""
    from qpsnn_jax.runs import plots

    monkeypatch.setattr(plots, "draw_all", lambda *_: [])
