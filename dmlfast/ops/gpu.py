"""Whether the kernels for GPUs can be used here, and on which device they run."""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from dmlfast.ops.cuda import library


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels on the CPU, which is for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def emulated() -> bool:
    """Whether the CUDA kernels run on the CPU, which is for tests."""
    return library.emulated() is not None


def why_no_triton() -> str | None:
    """None where Triton kernels run, else the reason."""
    if not _has_triton():
        return "the package triton is not installed; it comes with torch's CUDA build"
    if interpreted():
        return None
    return _why_no_gpu()


def why_no_cuda() -> str | None:
    """None where the CUDA kernels run, else the reason."""
    reason = library.why_no_library()
    return reason if reason or emulated() else _why_no_gpu() or library.why_no_code()


def _why_no_gpu() -> str | None:
    if torch.version.hip:
        return "this torch is built for AMD GPUs, and the kernels are for NVIDIA's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and 8.0 is needed"
    return None


def triton_declines(device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve tensors of a device type and a dtype, or None."""
    return _declines("cpu" if interpreted() else "cuda", device, dtype)


def cuda_declines(device: str, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot serve tensors of a device type and a dtype, or None."""
    return _declines("cpu" if emulated() else "cuda", device, dtype)


def _declines(served: str, device: str, dtype: torch.dtype) -> str | None:
    if device != served:
        return f"it serves '{served}' tensors, and these are on '{device}'"
    if dtype == torch.float64:
        return "it computes in float32, and these are float64"
    return None


def exact_products() -> bool:
    """Whether torch was told to take float32 products as they are, in either of its two ways."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer way was used
        return str(torch.backends.cuda.matmul.fp32_precision) in ("ieee", "none")


def multiprocessors(otherwise: int) -> int:
    """How many the current GPU has; ``otherwise`` where kernels are interpreted."""
    if interpreted() or not torch.cuda.is_available():
        return otherwise
    return _multiprocessors(torch.cuda.current_device())


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(rows, ...)`` with the GPU of the rows as the current one, where kernels start."""

    @functools.wraps(function)
    def call(rows: torch.Tensor, *args: Any, **options: Any) -> Any:
        if rows.device.type != "cuda":
            return function(rows, *args, **options)
        with torch.cuda.device(rows.device):
            return function(rows, *args, **options)

    return call
