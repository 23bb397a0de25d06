"""Files of tensors as PyTorch's users keep them, and tensors as float32 arrays. Only PyTorch's own need PyTorch."""

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qpsnn_jax.runtime.arrays import read_npz
from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable

_NUMBERS = "fiu"  # kinds of NumPy dtypes
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_BESIDE = (np.generic, int, float, str, type(None))  # what is no tensor of a network
_SAFETENSORS: dict[str, Any] = {
    **{f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def read_state_dict(path: str | PathLike[str]) -> dict[str, Any]:
    """The tensors of a checkpoint file: what ``torch.save`` wrote, a ``.safetensors`` file, or an ``.npz``.

    In a file of PyTorch the state dict may be under ``state_dict``, ``model_state_dict``, ``model`` or ``net``, also
    one within another. Numbers and texts beside its tensors, such as an epoch, are left out.

    Args:
        path: the file.

    Raises:
        ValueError: the file is unreadable, or its package (``torch``, ``safetensors``) is not installed.
        OSError: the file is missing or cannot be opened.
    """
    read = {".npz": read_npz, ".safetensors": _read_safetensors}.get(Path(path).suffix, _read_torch)
    loaded, tensors = unwrapped(read(path)), {}
    if isinstance(loaded, Mapping):
        tensors = {name: value for name, value in loaded.items() if not isinstance(value, _BESIDE)}
    if not tensors or not all(hasattr(value, "shape") for value in tensors.values()):
        raise unreadable(path, "does not hold a state dict of tensors")
    return tensors


def unwrapped(loaded: Any) -> Any:
    """The state dict that a checkpoint is, or has under ``state_dict``, ``model_state_dict``, ``model`` or ``net``."""
    while isinstance(loaded, Mapping) and (found := _wrapped(loaded)) is not None:
        loaded = found
    return loaded


def _wrapped(loaded: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mapping that a checkpoint holds a state dict under."""
    return next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)


def _read_torch(path: str | PathLike[str]) -> Any:
    with open_regular(path) as file:
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            reason = "needs PyTorch to be read; install torch, or save the state dict as .safetensors or .npz"
            raise unreadable(path, reason) from None
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # unpickling damaged bytes raises any exception
            raise unreadable(path, "is not a readable PyTorch checkpoint of plain tensors") from None


def _numpy_scalars() -> list[Any]:
    """What a pickled number of NumPy is made of, under the names of NumPy 1 and 2, for PyTorch's restricted reader."""
    kinds = [type(np.dtype(kind)) for kind in "?bhilqBHILQefd"]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [np.dtype, *kinds, scalar, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def _read_safetensors(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    with open_regular(path) as file:
        try:
            from safetensors import deserialize  # pyright: ignore[reportMissingImports]
        except ImportError:
            reason = "needs the package safetensors to be read: pip install '.[safetensors]' in the checkout"
            raise unreadable(path, reason) from None
        data = file.read()
    try:
        views = dict(deserialize(data))
    except Exception:  # damaged bytes raise more than one exception
        raise unreadable(path, "is not a readable file of safetensors") from None
    if unknown := next((view["dtype"] for view in views.values() if view["dtype"] not in _SAFETENSORS), None):
        raise unreadable(path, f"holds tensors of the type {unknown}, which cannot be read")
    return {
        name: np.frombuffer(view["data"], _SAFETENSORS[view["dtype"]]).reshape(view["shape"])
        for name, view in views.items()
    }


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
