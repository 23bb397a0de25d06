"""The library of the native kernels, compiled for this processor at first use, then cached.

Every ``.cc`` file of this folder is part of it. It is compiled by ``$CXX``, or by c++, g++ or clang++, whichever is
installed. Without a compiler, or with ``QPSNN_NATIVE=0``, there is no library, and XLA computes everything.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import jax
import jaxlib.version

from qpsnn_jax.kernels.hardware import cpu_flags
from qpsnn_jax.runtime.files import user_cache

_SOURCES = Path(__file__).parent
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w"]
# The instruction sets that XLA's flag can restrict it to, by its names; with those above, the processor decides.
_LEVELS = {"SSE4_2": ["-march=x86-64-v2"], "AVX": ["-march=x86-64-v2", "-mavx"], "AVX2": ["-march=x86-64-v3"]}
_LONGEST_SECONDS = 300
_compiling = threading.Lock()


@cache
def load() -> ctypes.CDLL | None:
    """The library, or None if it is switched off or cannot be compiled, which is logged once."""
    if os.environ.get("QPSNN_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(find_or_compile(cache_directory(), compiler())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home directory
        reason = str(error).strip().splitlines()[0]
        logging.getLogger("qpsnn_jax").warning(
            f"qpsnn: the native kernels cannot be compiled, so XLA computes everything, more slowly: {reason}"
            " (QPSNN_NATIVE=0 hides this)."
        )
        return None


def cache_directory() -> Path:
    """The folder of compiled libraries, in the user's cache.

    Raises:
        RuntimeError: the user has no home directory.
    """
    return user_cache() / "native"


def compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        FileNotFoundError: none is installed, or CXX is not a command.
    """
    if os.environ.get("CXX"):
        try:
            return shlex.split(os.environ["CXX"])
        except ValueError as error:
            raise FileNotFoundError(f"CXX is not a command: {error}") from None
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise FileNotFoundError("no C++ compiler is installed; install g++ or clang++, or set CXX")
    return [found]


def find_or_compile(directory: Path, command: list[str]) -> Path:
    """The path of the library in ``directory``, compiled if it is not there or damaged.

    Its name holds a hash of all that it depends on, and one of its content. Only files and folders of this user that
    nobody else can write are used.

    Raises:
        OSError: the compiler cannot be started, or the directory not be written, or others can write it.
        subprocess.SubprocessError: the compiler fails.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(directory):
        raise PermissionError(f"other users can write {directory}; delete it, or set XDG_CACHE_HOME")
    command = [*command, *_FLAGS, *target(), f"-I{_SOURCES}", f"-I{jax.ffi.include_dir()}"]
    key = _key(command)
    with _compiling:
        return _find(directory, key) or _compile(directory, command, key)


def _find(directory: Path, key: str) -> Path | None:
    for path in directory.glob(f"{key}-*.so"):
        with suppress(OSError):  # another process may delete it too
            if _is_private(path) and path.stem == f"{key}-{_digest(path.read_bytes())}":
                return path
            path.unlink()
    return None


def _compile(directory: Path, command: list[str], key: str) -> Path:
    with tempfile.TemporaryDirectory(dir=directory) as temporary, ThreadPoolExecutor() as pool:
        units = _units()
        objects = [str(Path(temporary) / f"{i}.o") for i in range(len(units))]
        parts = pool.map(lambda unit, to: _run([*command, "-c", "-x", "c++", "-", "-o", to], unit), units, objects)
        list(parts)  # raises what they raised
        built = Path(temporary) / "kernels.so"
        _run([*command, *objects, "-o", str(built)], "")
        built.chmod(0o700)
        return built.replace(directory / f"{key}-{_digest(built.read_bytes())}.so")


def _units() -> tuple[str, str]:
    """Two sources that take about as long to compile: the file that takes longest, and one that includes the others."""
    apart = _SOURCES / "convolution.cc"
    others = sorted(path for path in _SOURCES.glob("*.cc") if path != apart)
    return f'#include "{apart.name}"\n', "".join(f'#include "{path.name}"\n' for path in others)


def target() -> list[str]:
    """The flags that select the processor: this one, restricted as XLA is."""
    limit = re.search(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    if limit and limit[1].upper() in _LEVELS:
        return _LEVELS[limit[1].upper()]
    return ["-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"]


def _key(command: list[str]) -> str:
    paths = [path for pattern in ("*.cc", "*.h") for path in sorted(_SOURCES.glob(pattern))]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    version = _run([*command, "--version"], "")
    # Where the processor cannot be asked, a library stays with its machine.
    machine = (platform.machine(), *(sorted(cpu_flags()) or [platform.node()]))
    return _digest(repr((sources, command, version, jaxlib.version.__version__, machine)).encode())


def _run(command: list[str], text: str) -> str:
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": _LONGEST_SECONDS}
    done = subprocess.run(command, input=text, **options)
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "it said nothing").strip()
        raise subprocess.SubprocessError(f"{command[0]} failed: {said}")
    return done.stdout


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _is_private(path: Path) -> bool:
    """Whether it belongs to this user, and only this user can write it."""
    found = path.lstat()
    owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return owned and not found.st_mode & 0o022
