"""One run at a time in a directory."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys

import pytest

from qpsnn_jax.runtime import lock
from qpsnn_jax.runtime.lock import directory_lock

# Without JAX, which takes seconds to import: the lock as another program would take it.
OWNER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+b")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write(b"%d" % os.getpid()); file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_raises_until_the_owner_dies(tmp_path):
    directory = tmp_path / "new" / "run"
    with directory_lock(directory):  # makes it
        assert int((directory / lock.LOCK_FILE).read_text()) == os.getpid()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(directory / lock.LOCK_FILE)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        message = re.escape(f"{directory} is in use by another run (process {owner.pid});")
        with pytest.raises(ValueError, match=message), directory_lock(directory):
            raise AssertionError
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    with directory_lock(directory):
        pass


def test_it_is_held_within_one_process_too_and_freed_by_an_error(tmp_path):
    with pytest.raises(KeyError), directory_lock(tmp_path):
        with pytest.raises(ValueError, match="in use"), directory_lock(tmp_path):
            raise AssertionError
        raise KeyError
    with directory_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="files cannot be locked here"), directory_lock(tmp_path):
        pass
