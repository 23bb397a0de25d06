"""Files of PyTorch tensors, and tensors as float32 arrays. Only PyTorch's own files need PyTorch."""

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from qpsnn_jax.runtime.arrays import read_npz
from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable

_NUMBERS = "fiu"  # kinds of NumPy dtypes


def read_state_dict(path: str | PathLike[str]) -> dict[str, Any]:
    """The tensors of a checkpoint file: what ``torch.save`` wrote (needs PyTorch), or an ``.npz`` of the state dict.

    The state dict may be under ``state_dict`` or ``model``.

    Args:
        path: the file.

    Raises:
        ValueError: the file is unreadable, or PyTorch is needed and not installed.
        OSError: the file is missing or cannot be opened.
    """
    if Path(path).suffix == ".npz":
        return dict(read_npz(path))
    with open_regular(path) as file:
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            reason = "needs PyTorch to be read; install torch, or save the state dict as .npz"
            raise unreadable(path, reason) from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # unpickling damaged bytes raises any exception
            raise unreadable(path, "is not a readable PyTorch checkpoint of plain tensors") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(hasattr(value, "shape") for value in loaded.values()):
        raise unreadable(path, "does not hold a state dict of tensors")
    return dict(loaded)


def float32_array(name: str, tensor: Any) -> np.ndarray:
    """A tensor of PyTorch, NumPy or JAX as float32; half precision and integers are converted.

    Args:
        name: of the tensor, for the message.
        tensor: of floating numbers or integers, dense and on any device.

    Raises:
        ValueError: a tensor that is complex, quantized, sparse or without values, or that holds what is not finite.
    """
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore")
            array = np.asarray(_dense(tensor))
            numbers = array.dtype.kind in _NUMBERS or array.dtype.name.startswith(("bfloat", "float"))
            converted = array.astype(np.float32) if numbers else None
    except Exception as error:  # PyTorch has many exceptions for a tensor without values
        raise ValueError(f"tensor {name!r} cannot be read as plain numbers ({reason_of(error)}).") from None
    if converted is None:
        raise ValueError(f"tensor {name!r} must hold floating numbers or integers, got {array.dtype}.")
    if not np.isfinite(converted).all():
        raise ValueError(f"tensor {name!r} holds numbers that are not finite in float32.")
    return converted


def _dense(tensor: Any) -> Any:
    """An array that NumPy can read: the values of a PyTorch tensor on the host, half precision widened."""
    if not hasattr(tensor, "detach"):
        return tensor
    kinds = {
        "complex": tensor.is_complex(),
        "quantized": tensor.is_quantized,
        "without values, on the meta device": tensor.is_meta,
        "not dense": str(tensor.layout) != "torch.strided",
    }
    if unreadable_kinds := [kind for kind, found in kinds.items() if found]:
        raise ValueError(f"it is {unreadable_kinds[0]}")
    return tensor.detach().cpu().float().numpy()
