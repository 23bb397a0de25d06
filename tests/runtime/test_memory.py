"""The memory that a process keeps."""

import platform
import subprocess
import sys

import pytest

import qpsnn_jax

PROGRAM = """
import ctypes, resource
from qpsnn_jax import reuse_memory

def faults():
    # Of a block that is allocated, written and freed.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 28)
    libc.memset(block, 1, 1 << 28)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = [ctypes.c_void_p]
faults(), print(faults())
print(reuse_memory(), reuse_memory())
faults(), print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
@pytest.mark.parametrize("limit", ["", "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))"])
def test_freed_memory_is_not_cleared_again(limit):
    run = subprocess.run([sys.executable, "-c", limit + PROGRAM], capture_output=True, text=True, check=True)
    before, said, after = run.stdout.splitlines()
    assert said == "True True"
    assert int(before) > 100 > int(after)


def test_other_systems_are_left_alone(monkeypatch):
    qpsnn_jax.reuse_memory.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert qpsnn_jax.reuse_memory() is False
    qpsnn_jax.reuse_memory.cache_clear()
