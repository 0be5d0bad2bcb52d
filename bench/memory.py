"""The memory that a loss and its gradient take: on the CPU as the peak of a fresh process."""

import ctypes
import gc
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from dmlfast.bench import get_benchmark
from dmlfast.bench.benchmark import Case, LeftOutError, Problem, Size, leaves, placed, step

WARM_UP_ROWS = 32  # of the tiny problem that loads the libraries
M_MMAP_THRESHOLD = -3  # of mallopt


def extra_bytes(benchmark: str, provider: str, case: Case, threads: int) -> int:
    """The peak memory of a competitor on the CPU beyond inputs, loss and gradients.

    Raises `LeftOutError` where it could not be measured.
    """
    # forked by a server that has imported torch and run nothing: fresh, and there at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmlfast.ops", __name__])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, benchmark, provider, case.size, case.dtype, threads)
    process = context.Process(target=_measure, args=arguments)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        result = f"its process ended with exit code {process.exitcode}"
    except KeyboardInterrupt:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(result, str):
        raise LeftOutError(result)
    return int(result)


def beyond_gradients(
    call: Callable[[], object],
    problem: Problem,
    peak_growth: Callable[[Callable[[], object]], int],
) -> int:
    """The peak growth of a step, less the gradients that it leaves in the problem's tensors."""
    for leaf in leaves(problem):
        leaf.grad = None
    return peak_growth(call) - sum(leaf.nbytes for leaf in leaves(problem))


def gpu_peak_growth(call: Callable[[], object]) -> int:
    """By how many bytes what torch's allocator handed out rises at most while `call` runs."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def peak_growth(call: Callable[[], Any]) -> int:
    """By how many bytes the resident memory rises at most while `call` runs."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present level
    before = _peak()
    result = call()
    growth = _peak() - before
    del result
    return growth


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _measure(
    sender: Connection, name: str, provider: str, size: Size, dtype: torch.dtype, threads: int
) -> None:
    """Sends the bytes, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        result: int | str = _extra_bytes(name, provider, size, dtype, threads)
    except Exception as error:
        result = f"{type(error).__name__}: {error}".partition("\n")[0]
    with suppress(BrokenPipeError):
        sender.send(result)


def _extra_bytes(name: str, provider: str, size: Size, dtype: torch.dtype, threads: int) -> int:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed leaves the process
    torch.set_num_threads(threads)
    benchmark = get_benchmark(name)
    competitor = benchmark.competitor(provider)
    loss, problem = competitor.make(), placed(benchmark.problem(size), dtype)
    tiny = placed(
        benchmark.problem(size._replace(n=WARM_UP_ROWS, classes=min(size.classes, 300))), dtype
    )
    step(loss, problem if competitor.compiles else tiny)
    return beyond_gradients(partial(step, loss, problem), problem, peak_growth)
