"""Tensors of torch as numpy arrays and back. The only module that imports torch."""

import ml_dtypes
import numpy as np
import torch

_VIEWED = {
    torch.bfloat16: ("bfloat16", torch.int16),
    torch.float8_e4m3fn: ("float8_e4m3fn", torch.int8),
    torch.float8_e4m3fnuz: ("float8_e4m3fnuz", torch.int8),
    torch.float8_e5m2: ("float8_e5m2", torch.int8),
    torch.float8_e5m2fnuz: ("float8_e5m2fnuz", torch.int8),
    torch.float8_e8m0fnu: ("float8_e8m0fnu", torch.int8),
}
_TORCH = {
    np.dtype(getattr(ml_dtypes, name)): (dtype, bits) for dtype, (name, bits) in _VIEWED.items()
}


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array: its own memory on the CPU, else a copy.

    Args:
        tensor: of any dense type; bfloat16 and fp8 become `ml_dtypes` arrays.

    Raises:
        ValueError: numpy has no such element type.
    """
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype in _VIEWED:
        name, bits = _VIEWED[tensor.dtype]
        return tensor.view(bits).numpy().view(getattr(ml_dtypes, name))
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ValueError(f"tensor: cannot be stored, got {tensor.dtype} ({error})") from None


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor that shares its memory where torch can, else as a copy.

    Args:
        array: numpy or `ml_dtypes` elements; read-only, negatively strided and big-endian
            arrays are copied.
    """
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if array.dtype in _TORCH:
        dtype, bits = _TORCH[array.dtype]
        return torch.from_numpy(array.view(np.int16 if bits == torch.int16 else np.int8)).view(
            dtype
        )
    return torch.from_numpy(array)
