"""The devices that losses are measured on: time, memory and the best rate of a product on each."""

import gc
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from dmlfast.bench import memory
from dmlfast.bench.benchmark import Case, Competitor, Problem, Size
from dmlfast.bench.machine import machine_name, memory_bytes

from dmlfast.errors import UserError

GRAPH_ROWS = 1024  # up to here a batch is bound by its launches, which a CUDA graph takes away
MEMORY_MARGIN = 0.1  # of what is free: the allocator's blocks do not fill it to the last byte


class Device(ABC):
    """Where losses are measured.

    torch_device: of the tensors.
    machine: its name, without which figures mean nothing.
    threads: of torch and of the kernels, where no number is asked for.
    memory_limit: bytes that may be used, where no number is asked for.
    triton, cuda: versions of what only a GPU is driven by.
    gemm_shapes: (m, n, k) of products that reach its best rate.
    """

    torch_device: torch.device
    machine: str
    threads: int
    memory_limit: float
    triton: str = ""
    cuda: str = ""
    gemm_shapes: Sequence[tuple[int, int, int]]

    @abstractmethod
    def elapsed(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of so many calls, one after the other."""

    @abstractmethod
    def extra_bytes(
        self,
        benchmark: str,
        provider: str,
        case: Case,
        threads: int,
        call: Callable[[], object],
        problem: Problem,
    ) -> int:
        """The peak memory of a step beyond inputs, loss and gradients.

        Raises `LeftOutError` where it could not be measured.
        """

    def variants(self, competitors: Sequence[Competitor], size: Size) -> tuple[Competitor, ...]:
        """The competitors, and other ways to run them here."""
        return tuple(competitors)

    def release(self) -> None:
        """Gives back memory that nothing uses."""
        gc.collect()

    def products(
        self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor
    ) -> list[Callable[[], object]]:
        """The ways to multiply (m, k) and (n, k) to (m, n)."""
        return [partial(torch.mm, a, b.T, out=out)]

    def gemm_rate(self, dtype: torch.dtype) -> float:
        """The most flops a second that a matrix product of a dtype reaches here and now."""
        best = 0.0
        for m, n, k in self.gemm_shapes:
            a, b = (torch.randn(rows, k, dtype=dtype, device=self.torch_device) for rows in (m, n))
            products = self.products(a, b, a.new_empty(m, n))
            seconds = min(self.elapsed(product, 1) for product in products for _ in range(5))
            best = max(best, 2.0 * m * n * k / seconds)
        return best


class Cpu(Device):
    """Timed by the clock on the wall; memory is that of a fresh process."""

    gemm_shapes = ((1024, 1024, 1024), (2048, 2048, 512), (4096, 4096, 512))

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.machine = machine_name()
        self.threads = torch.get_num_threads()
        self.memory_limit = memory_bytes() / 4

    def elapsed(self, call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - start

    def extra_bytes(
        self,
        benchmark: str,
        provider: str,
        case: Case,
        threads: int,
        call: Callable[[], object],
        problem: Problem,
    ) -> int:
        return memory.extra_bytes(benchmark, provider, case, threads)

    def products(
        self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor
    ) -> list[Callable[[], object]]:
        """In float32 also by oneDNN: MKL holds back on CPUs that are not Intel's."""
        products = super().products(a, b, out)
        if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            products.append(partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], ""))
        return products


class Gpu(Device):
    """An NVIDIA GPU, timed by its own events; memory is what torch's allocator handed out."""

    gemm_shapes = ((4096, 4096, 4096), (8192, 8192, 8192))

    def __init__(self, index: int) -> None:
        torch.cuda.set_device(index)  # events, graphs and launches are the current device's
        self.torch_device = torch.device("cuda", index)
        self.machine = torch.cuda.get_device_name(index)
        self.threads = 1  # which only has to keep the GPU busy
        self.memory_limit = (1 - MEMORY_MARGIN) * torch.cuda.mem_get_info(index)[0]
        self.triton, self.cuda = _installed("triton"), torch.version.cuda or ""

    def elapsed(self, call: Callable[[], object], repeats: int) -> float:
        """From the moment the GPU begins with the first call to when it ends with the last.

        The host waits before and after, and not between.
        """
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def extra_bytes(
        self,
        benchmark: str,
        provider: str,
        case: Case,
        threads: int,
        call: Callable[[], object],
        problem: Problem,
    ) -> int:
        return memory.beyond_gradients(call, problem, memory.gpu_peak_growth)

    def variants(self, competitors: Sequence[Competitor], size: Size) -> tuple[Competitor, ...]:
        """Small batches also as CUDA graphs."""
        graphs = [replace(each, name=f"{each.name}-graph", graph=True) for each in competitors]
        return (*competitors, *(graphs if size.n <= GRAPH_ROWS else ()))

    def release(self) -> None:
        super().release()
        torch.cuda.empty_cache()


def get_device(name: str) -> Device:
    """The device called "auto", "cpu", "cuda" or "cuda:K". Raises `UserError` where there is none.

    "auto" is the GPU where torch sees one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return Cpu()
    index = int(re.sub(r"\D", "", name) or 0)
    if index >= count:
        seen = f"cuda:0 to cuda:{count - 1} only" if count else "no NVIDIA GPU"
        raise UserError(f"device '{name}' cannot be measured: torch sees {seen}")
    return Gpu(index)


def _installed(package: str) -> str:
    """The version of a package, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
