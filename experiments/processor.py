"""What the processor is: results of two kinds of it differ in their roundings."""

import platform
from pathlib import Path

from qpsnn_jax.kernels.hardware import cpu_flags

_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}


def processor() -> str:
    """Name, family, model and widest vectors, such as ``AMD EPYC, family 25, model 1, AVX2``; what is known of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {found[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if key in found]
    vectors = next((words for flag, words in _VECTORS.items() if flag in cpu_flags()), None)
    return ", ".join([name, *numbers, *([vectors] if vectors else [])])
