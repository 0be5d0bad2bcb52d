"""The compiled CUDA kernels, called through ctypes. csrc/dmlfast_cuda.h is the interface."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "libdmlfast_cuda.so"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Rows(ctypes.Structure):
    """``dml_rows``: float rows (n, d) of any strides."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("column_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__(rows.data_ptr(), *rows.shape, *rows.stride(), DTYPES[rows.dtype])


def emulated() -> str | None:
    """Where the kernels are as a library for the CPU, which is for tests, if it is to be used."""
    return os.environ.get("DMLFAST_CUDA_EMULATED") or None


def why_no_library() -> str | None:
    """None where the library loads, else the reason."""
    if not (emulated() or LIBRARY.exists()):
        return f"{LIBRARY.name} was not built; reinstall with CUDA's nvcc at hand"
    try:
        library()
    except (OSError, AttributeError) as error:
        return f"the CUDA kernels do not load: {error}"
    return None


@cache
def library() -> ctypes.CDLL:
    """The library with its signatures."""
    found = ctypes.CDLL(emulated() or str(LIBRARY))
    pointer = ctypes.c_void_p
    found.dml_cuda_one_pass_fits.argtypes = [ctypes.c_int64] * 2
    found.dml_cuda_one_pass_scratch.argtypes = [ctypes.c_int64] * 2
    found.dml_cuda_one_pass_scratch.restype = ctypes.c_int64
    found.dml_cuda_lifted_one_pass.argtypes = [*[pointer] * 2, ctypes.c_float, *[pointer] * 4]
    rest = [pointer] * 2, [pointer] * 3  # side and task; two sides and task
    found.dml_cuda_prepare.argtypes = [*rest[0], *[pointer] * 2]
    found.dml_cuda_reduce.argtypes = [*rest[1], *[pointer] * 3]
    found.dml_cuda_positives.argtypes = [*rest[1], *[pointer] * 6]
    found.dml_cuda_gradient.argtypes = [
        *[pointer] * 6,
        ctypes.c_float,
        ctypes.c_int,
        ctypes.c_float,
        *[pointer] * 4,
    ]
    found.dml_cuda_bias_gradient.argtypes = [*rest[1], *[pointer] * 4]
    found.dml_cuda_error.argtypes = [ctypes.c_int]
    found.dml_cuda_error.restype = ctypes.c_char_p
    return found


def stream_of(rows: torch.Tensor) -> int | None:
    """Where kernels are put that read ``rows``: the current stream of its GPU."""
    return torch.cuda.current_stream(rows.device).cuda_stream if rows.is_cuda else None


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def check(status: int, op: str) -> None:
    """Raises what CUDA said."""
    if status:
        words = library().dml_cuda_error(status).decode()
        raise RuntimeError(f"{op}: the CUDA kernels failed: {words}")
