"""The instructions that all sides of a benchmark compile for, and how they allocate."""

import argparse
import os
import sys

import jax

from qpsnn_jax.runtime.memory import reuse_memory

# A processor with AVX-512 then computes as one with AVX2: XLA, oneDNN, and PyTorch's own kernels.
_ENVIRONMENT = {
    "avx2": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
}
CHOICES = ("native", *_ENVIRONMENT)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`apply` takes."""
    parser.add_argument("--isa", choices=CHOICES, default="native", help="instructions that all sides compile for")
    parser.add_argument(
        "--reuse-memory", action="store_true", help="all sides keep freed memory: qpsnn_jax.reuse_memory"
    )


def apply(given: argparse.Namespace) -> None:
    """Do what the options ask for; before the first computation."""
    restart_with(given.isa)
    if given.reuse_memory:
        reuse_memory()


def restart_with(isa: str) -> None:
    """Begin the program anew with the instructions ``isa``, unless it runs with them already.

    Libraries read their environment when they start.
    """
    wanted = _ENVIRONMENT.get(isa, {})
    missing = {name: value for name, value in wanted.items() if value not in os.environ.get(name, "")}
    if not missing:
        return
    if "XLA_FLAGS" in missing:
        missing["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {missing['XLA_FLAGS']}".strip()
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def described() -> str:
    """The kind of device, the cores that this process may use, and the instructions if they are fewer than it has."""
    given = os.environ.get("XLA_FLAGS", "")
    limited = next((isa for isa, wanted in _ENVIRONMENT.items() if wanted["XLA_FLAGS"] in given), "native")
    return f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, instructions: {limited}"
