"""The compiled CUDA kernels, called through ctypes. csrc/dmlfast_cuda.h is the interface."""

import ctypes
import os
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dmlfast.ops.native import check_interface

LIBRARY = Path(__file__).parents[1] / "libdmlfast_cuda.so"
INTERFACE = 0xFC08B712  # the CRC-32 of csrc/dmlfast.h and csrc/dmlfast_cuda.h
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# What the functions that launch kernels take before the stream; pointers to structures come first.
_P, _FLOAT, _INT, _LONG = ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_int64
KERNELS: dict[str, list[Any]] = {
    "dml_cuda_prepare": [_P] * 3,
    "dml_cuda_order": [_P, _LONG, _P, _LONG, *[_P] * 3],
    "dml_cuda_reduce": [_P] * 7,
    "dml_cuda_order_statistics": [_P] * 6,
    "dml_cuda_factors": [_P] * 7,
    "dml_cuda_mean": [_P] * 6,
    "dml_cuda_positives": [_P] * 8,
    "dml_cuda_gradient": [*[_P] * 6, _FLOAT, _INT, _FLOAT, *[_P] * 2],
    "dml_cuda_columns": [*[_P] * 2, _LONG],
    "dml_cuda_weights": [*[_P] * 6, _FLOAT, _INT, *[_P] * 2, _INT, *[_P] * 2],
    "dml_cuda_finish": [*[_P] * 6, _LONG, _FLOAT, *[_P] * 2],
    "dml_cuda_near": [*[_P] * 6, _FLOAT, _INT, _P, _FLOAT, *[_P] * 2],
    "dml_cuda_bias_gradient": [_P] * 6,
    "dml_cuda_lay_out": [_P, _LONG, ctypes.c_int32, _P, _P, _FLOAT, _P, _P],
    "dml_cuda_exponentials": [_P, _INT],
    "dml_cuda_lifted_one_pass": [*[_P] * 2, _FLOAT, *[_P] * 3],
}


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
    except AttributeError as error:
        return f"the CUDA kernels are of another version, install dmlfast again: {error}"
    except OSError as error:
        return f"the CUDA kernels do not load: {error}"
    return None


def why_no_code() -> str | None:
    """None where the GPU at hand, with its driver, can run the kernels, else the reason."""
    status = library().dml_cuda_find_code()
    return f"the CUDA kernels do not run on this GPU: {words_of(status)}" if status else None


@cache
def library() -> ctypes.CDLL:
    """The library with its signatures."""
    found = ctypes.CDLL(emulated() or str(LIBRARY))
    found.dml_cuda_interface.restype = ctypes.c_uint32
    if not emulated():
        check_interface(found.dml_cuda_interface(), INTERFACE)
    for name, arguments in KERNELS.items():
        getattr(found, name).argtypes = [*arguments, ctypes.c_void_p]
    found.dml_cuda_one_pass_fits.argtypes = [_LONG] * 2
    found.dml_cuda_one_pass_scratch.argtypes = [_LONG]
    found.dml_cuda_one_pass_scratch.restype = _LONG
    found.dml_cuda_reduce_slots.argtypes = [_P] * 3
    found.dml_cuda_weights_fit.argtypes = [_P] * 3
    found.dml_cuda_exponentials_fit.argtypes = []
    found.dml_cuda_find_code.argtypes = []
    found.dml_cuda_error.argtypes = [ctypes.c_int]
    found.dml_cuda_error.restype = ctypes.c_char_p
    return found


@cache
def exponentials_fit(device: torch.device) -> bool:
    """Whether a device has kernels for the exponentials of a softmax, of bfloat16 rows."""
    if why_no_library():
        return False
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return bool(library().dml_cuda_exponentials_fit())


def launch(op: str, name: str, rows: torch.Tensor, *arguments: Any) -> None:
    """Calls a function that launches kernels, for ``op``, on the current stream of ``rows``."""
    stream = torch.cuda.current_stream(rows.device).cuda_stream if rows.is_cuda else None
    status = getattr(library(), name)(*arguments, stream)
    if status:
        raise RuntimeError(f"{op}: the CUDA kernels failed: {words_of(status)}")


def words_of(status: int) -> str:
    words: bytes = library().dml_cuda_error(status)
    return words.decode()


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
