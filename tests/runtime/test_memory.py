"""The memory that a process keeps."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import qpsnn_jax

PROGRAM = """
import ctypes, resource, threading
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
for _ in range(3):
    thread = threading.Thread(target=lambda: (faults(), print(faults())))
    thread.start(), thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
@pytest.mark.parametrize("limit", [None, "RLIMIT_AS", "RLIMIT_DATA"])
def test_freed_memory_is_not_cleared_again(limit):
    limited = f"import resource; resource.setrlimit(resource.{limit}, (2 << 30, 2 << 30))" if limit else ""
    run = subprocess.run([sys.executable, "-c", limited + PROGRAM], capture_output=True, text=True, check=True)
    before, said, *after = run.stdout.splitlines()
    assert said == "True True"
    assert int(before) > 100 > max(map(int, after))
    assert len(after) == 4  # of the main thread, and of three that began later


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
@pytest.mark.parametrize(
    "limit",
    [
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))",
        "os.environ['MALLOC_PERTURB_'] = '85'",
        "os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.perturb=85'",
        "pass",
    ],
)
def test_no_addresses_are_taken_where_they_count(limit):
    program = f"""
import os, resource
from qpsnn_jax import reuse_memory
{limit}
def addresses():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = addresses()
assert reuse_memory()
print(addresses() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    taken = int(run.stdout)
    assert taken > memory // 3 if limit == "pass" and not strict else taken < 1 << 28


def test_other_systems_are_left_alone(monkeypatch):
    qpsnn_jax.reuse_memory.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert qpsnn_jax.reuse_memory() is False
    qpsnn_jax.reuse_memory.cache_clear()
