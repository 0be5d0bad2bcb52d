"""The memory that a loss and its gradient take, as the peak of a fresh process."""

import ctypes
import gc
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dmlfast.bench import get_benchmark
from dmlfast.bench.benchmark import LeftOutError, Size, leaves, step

WARM_UP_ROWS = 32  # of the tiny problem that loads the libraries
M_MMAP_THRESHOLD = -3  # of mallopt


def extra_bytes(benchmark: str, provider: str, size: Size, threads: int) -> int:
    """The peak memory of a competitor beyond inputs, loss and gradients.

    Raises `LeftOutError` where it could not be measured.
    """
    # forked by a server that has imported torch and run nothing: fresh, and there at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmlfast.ops", __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, benchmark, provider, size, threads))
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


def _measure(sender: Connection, name: str, provider: str, size: Size, threads: int) -> None:
    """Sends the bytes, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        result: int | str = _extra_bytes(name, provider, size, threads)
    except Exception as error:
        result = f"{type(error).__name__}: {error}".partition("\n")[0]
    with suppress(BrokenPipeError):
        sender.send(result)


def _extra_bytes(name: str, provider: str, size: Size, threads: int) -> int:
    import torch

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed leaves the process
    torch.set_num_threads(threads)
    benchmark = get_benchmark(name)
    competitor = benchmark.competitor(provider)
    loss, problem = competitor.make(), benchmark.problem(size)
    step(loss, problem if competitor.compiles else benchmark.problem(Size(WARM_UP_ROWS, size.d)))
    for leaf in leaves(problem):
        leaf.grad = None
    growth = peak_growth(lambda: step(loss, problem))
    return growth - sum(leaf.nbytes for leaf in leaves(problem))
