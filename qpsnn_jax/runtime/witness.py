"""A witness: a process that prints a sentence when this one dies without a message of its own."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress

# Each line of its input replaces the sentence; an empty line dismisses it. If the input ends before that, the process
# has died, for whatever reason.
_WITNESS = """
while read -r line; do
  [ -n "$line" ] || { rm -f "$1"; exit; }
  said=$line
done
if [ -s "$1" ]; then said="$said (Output of its libraries: $1)"; else rm -f "$1"; fi
printf '%s\\n' "$said" >&2
"""


class Witness:
    """Prints a sentence on stderr if this process ends before :meth:`dismiss`, even by a crash within a library.

    Until then, what libraries write to the file descriptor of stderr goes to a file, which the sentence names and which
    :meth:`dismiss` deletes. Python's ``sys.stderr`` writes to the terminal as before.
    """

    def __init__(self, sentence: str) -> None:
        """Start the witness with its sentence."""
        with tempfile.NamedTemporaryFile(prefix="qpsnn-", suffix=".log", delete=False) as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _WITNESS, "sh", log.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not reach it
            )
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
            os.dup2(log.fileno(), 2)
        self.instruct(sentence)

    def instruct(self, sentence: str) -> None:
        """Replace its sentence."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it may have been killed
            self._process.stdin.write(sentence.encode() + b"\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """End the witness without printing."""
        self.instruct("")
        self._process.wait()
