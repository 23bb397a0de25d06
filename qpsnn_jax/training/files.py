"""The files of a checkpoint on the disk."""

import os
import zlib
from pathlib import Path


def flush(folder: Path) -> None:
    """Flush a folder and all that it holds to the disk: otherwise a power cut can leave a name without its content.

    Raises:
        OSError: the disk is full or broken.
    """
    for path in (*folder.rglob("*"), folder):
        flush_name(path)


def flush_name(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found
