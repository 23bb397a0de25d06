"""Strict JAX for the whole suite, and where the optional recorded data lie."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(os.environ.get("QPSNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine; set QPSNN_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of outputs recorded from the authors' PyTorch implementation."""
    return _present(SHARED / "vectors")


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """TFDS data directory that holds a prepared CIFAR-10."""
    return _present(SHARED / "data" / "tfds")
