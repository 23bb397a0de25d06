"""A witness of this process, which outlives it and speaks for it when it dies without a word of its own."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress

# Every line it reads is what it has to say; an empty one means that all is well. The end of its input, before that,
# means that the process has died, however that came.
_WITNESS = """
while read -r line; do
  [ -n "$line" ] || { rm -f "$1"; exit; }
  said=$line
done
if [ -s "$1" ]; then said="$said (What its libraries said: $1)"; else rm -f "$1"; fi
printf '%s\\n' "$said" >&2
"""


class Witness:
    """Prints a sentence on stderr if this process ends before it is dismissed: a crash within a library is one too.

    What libraries themselves write to the file descriptor of stderr meanwhile goes to a file, which the sentence names
    and which is deleted when all is well. Python's ``sys.stderr`` still writes where it did.
    """

    def __init__(self, sentence: str) -> None:
        """Start it with what it has to say."""
        with tempfile.NamedTemporaryFile(prefix="qpsnn-", suffix=".log", delete=False) as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _WITNESS, "sh", log.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it.
            )
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
            os.dup2(log.fileno(), 2)
        self.instruct(sentence)

    def instruct(self, sentence: str) -> None:
        """Tell it what to say from now on."""
        assert self._process.stdin is not None
        with suppress(OSError):  # Somebody has killed it.
            self._process.stdin.write(sentence.encode() + b"\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Tell it that all is well."""
        self.instruct("")
        self._process.wait()
