"""Arrays as they are given, and as NumPy and torch work with them."""

import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike

Array = np.ndarray | torch.Tensor


def to_numpy(array: ArrayLike | torch.Tensor) -> np.ndarray:
    """What torch works with too: the array, or a tensor's values on the CPU. bfloat16, which NumPy
    lacks, is float32, and longer floats than float64 are that. Copied only where it must be.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    array = np.asarray(array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.copy() if min(array.strides, default=0) < 0 else array


def to_tensor(array: Array) -> torch.Tensor:
    """A tensor as it is, but detached; any other array in the same memory, or as `to_numpy` has it.
    It is not to be written to.
    """
    if isinstance(array, torch.Tensor):
        return array.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an array that is read-only
        return torch.from_numpy(to_numpy(array))
