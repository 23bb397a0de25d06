"""NIR files: the HDF5 of the package ``nir``, read and written."""

import io
import warnings
from os import PathLike, fspath
from typing import Any

from qpsnn_jax.export.nir.sizes import oversized
from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable, write_atomically


def read_nir(path: str | PathLike[str]) -> Any:
    """Read a NIR file.

    Args:
        path: the file.

    Returns:
        A ``nir.NIRGraph``, for :func:`qpsnn_jax.import_nir`.

    Raises:
        ValueError: the package ``nir`` is not installed, the file is not HDF5, the installed ``nir`` cannot read it, it
            does not hold a graph, or it declares more numbers than its bytes can hold.
        OSError: the file is missing or cannot be opened.
    """
    nir = nir_package()
    import h5py

    with open_regular(path):
        pass
    if not h5py.is_hdf5(fspath(path)):
        raise unreadable(path, "is not a NIR file, which is HDF5")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reason = oversized(path)
            document = None if reason else nir.read(fspath(path))
    except Exception as error:  # h5py and nir raise many types for damaged bytes
        text = f"{type(error).__name__}: {reason_of(error)}"
        raise unreadable(path, f"is HDF5 that nir {nir.__version__} cannot read as a graph ({text})") from None
    if reason:
        raise unreadable(path, reason)
    if not isinstance(document, nir.NIRGraph):
        raise unreadable(path, f"holds a NIR {type(document).__name__}, not a graph")
    return document


def write_nir(path: str | PathLike[str], document: Any) -> int:
    """Write a NIR graph as the HDF5 file of the ``nir`` package, under a temporary name first.

    Args:
        path: the file; an existing one is replaced.
        document: a ``nir.NIRGraph``, such as that of :func:`qpsnn_jax.nir_graph`.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: the package ``nir`` is not installed.
    """
    buffer = io.BytesIO()
    nir_package().write(buffer, document)
    write_atomically(path, buffer.getvalue())
    return len(buffer.getvalue())


def nir_package() -> Any:
    """The package ``nir``.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import nir  # pyright: ignore[reportMissingImports]

        _ = nir.NIRGraph  # where the package is missing, any folder of this name can be imported
    except (ImportError, AttributeError):
        raise ValueError("NIR needs the package nir: pip install '.[nir]' in the checkout.") from None
    return nir
