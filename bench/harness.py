"""Checks competitors against the truth, then measures them in turns."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial

import numpy as np
import torch
from dmlfast.bench import memory
from dmlfast.bench.benchmark import (
    Benchmark,
    Competitor,
    LeftOutError,
    Loss,
    Problem,
    Size,
    double,
    leaves,
    step,
)
from dmlfast.bench.machine import busy_elsewhere, cpu_clock, machine_name
from dmlfast.bench.report import Row

import dmlfast

TOLERANCE = 1e-3  # of value and gradient, relative to the truth
BLOCK_SECONDS = 0.02  # a measurement is at least so long: short calls are repeated
TINY = Size(8, 4)  # of the problem that tells the dtype
GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 512), (4096, 4096, 512))


@dataclass(frozen=True)
class Settings:
    """How to measure.

    rounds: measurements of each competitor, one a round.
    seconds: a competitor that has taken longer at a size leaves out further rounds.
    threads: of torch and of the kernels.
    memory_limit: bytes; a competitor or a size that is predicted to need more is left out.
    compile: whether to measure what has to be compiled first.
    command: the command to repeat the measurement, kept with the rows.
    """

    rounds: int
    seconds: float
    threads: int
    memory_limit: float
    compile: bool
    command: str


@dataclass(frozen=True)
class Solution:
    """A loss and its gradients."""

    value: torch.Tensor
    gradients: list[torch.Tensor]


def run(
    benchmark: Benchmark,
    competitors: Sequence[Competitor],
    sizes: Sequence[Size],
    settings: Settings,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Row]]:
    """Measures the competitors at every size; the first one called dmlfast-... is the yardstick.

    Yields the rows of a size when they are timed, and again with their memory. `tell` hears of
    each of the `count_steps` steps before it is taken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        gemm_rate = 0.0
        for size in sizes:
            gemm_rate = max(gemm_rate, best_gemm_rate())
            rows = _timed_rows(benchmark, competitors, size, settings, gemm_rate, tell)
            yield rows
            yield [_with_memory(row, tell) for row in rows]
    finally:
        torch.set_num_threads(threads)


def count_steps(competitors: int, sizes: int, rounds: int) -> int:
    """How often `run` tells of a step."""
    return sizes * (2 * competitors + rounds)


def _timed_rows(
    benchmark: Benchmark,
    competitors: Sequence[Competitor],
    size: Size,
    settings: Settings,
    gemm_rate: float,
    tell: Callable[[str], None],
) -> list[Row]:
    @cache
    def prepared() -> tuple[Problem, Solution]:
        """The problem and its truth, made only where a competitor is admitted."""
        problem = benchmark.problem(size)
        return problem, solve(benchmark.truth, double(problem))

    blank = Row(
        op=benchmark.name,
        provider="",
        n=size.n,
        d=size.d,
        dtype=str(leaves(benchmark.problem(TINY))[0].dtype).removeprefix("torch."),
        threads=settings.threads,
        machine=machine_name(),
        flops=benchmark.product_flops(size),
        dmlfast=dmlfast.__version__,
        torch=torch.__version__,
        date=date.today().isoformat(),
        command=settings.command,
    )
    rows, calls = {}, {}
    for competitor in competitors:
        name = competitor.name
        tell(f"{size} check {name}")
        rows[name] = replace(blank, provider=name)
        try:
            loss = admit(benchmark, competitor, size, settings)
            problem, truth = prepared()
            rows[name].gradient_error = gradient_error(solve(loss, problem), truth)
            calls[name] = partial(step, loss, problem)
        except LeftOutError as reason:
            rows[name].reason = str(reason)
        except Exception as error:
            rows[name].reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    start = cpu_clock()
    times = time_rounds(calls, settings, lambda text: tell(f"{size} {text}"))
    busy = busy_elsewhere(start)
    yardstick = next((times[name] for name in times if name.startswith("dmlfast-")), None)
    for name, measured in times.items():
        rows[name].busy_elsewhere = busy
        _fill_in(rows[name], measured, yardstick, gemm_rate)
    return list(rows.values())


def _fill_in(
    row: Row, measured: np.ndarray, yardstick: np.ndarray | None, gemm_rate: float
) -> None:
    """The statistics of the seconds measured in each round."""
    row.p20_ms, row.median_ms, row.p80_ms = 1e3 * np.nanpercentile(measured, (20, 50, 80))
    row.rounds = int(np.isfinite(measured).sum())
    if yardstick is not None:
        row.ratio_to_dmlfast = median_ratio(measured, yardstick)
    if row.provider.startswith("dmlfast-") and row.flops:
        row.gemm_ratio = row.median_ms * 1e-3 * gemm_rate / row.flops


def _with_memory(row: Row, tell: Callable[[str], None]) -> Row:
    tell(f"{row.n}x{row.d} memory {row.provider}")
    if row.median_ms is None:
        return row
    try:
        size = Size(row.n, row.d)
        extra = memory.extra_bytes(row.op, row.provider, size, row.threads)
        return replace(row, extra_mib=max(0, extra) / 2**20)
    except LeftOutError as reason:
        return replace(row, reason=f"memory: {reason}")


def admit(benchmark: Benchmark, competitor: Competitor, size: Size, settings: Settings) -> Loss:
    """The competitor's loss; raises `LeftOutError` where it is not to be measured at this size."""
    if competitor.compiles and not settings.compile:
        raise LeftOutError("left out: compiling takes its time")
    if competitor.largest is not None and size.n > competitor.largest:
        raise LeftOutError(f"left out above {competitor.largest} rows: it takes too long")
    needed = max(memory(size) for memory in (benchmark.memory, competitor.memory) if memory)
    if needed > settings.memory_limit:
        limit = settings.memory_limit / 2**30
        raise LeftOutError(f"would need {needed / 2**30:,.1f} GiB, the limit is {limit:.1f} GiB")
    return competitor.make()


def solve(loss: Loss, problem: Problem) -> Solution:
    """The loss and its gradients by the problem's tensors."""
    value = step(loss, problem)
    return Solution(
        value, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves(problem)]
    )


def gradient_error(found: Solution, truth: Solution) -> float:
    """The relative error of the gradients; raises `LeftOutError` where a result is wrong."""
    value = relative_error(found.value, truth.value)
    gradient = max(map(relative_error, found.gradients, truth.gradients))
    if not max(value, gradient) <= TOLERANCE:
        raise LeftOutError(
            f"wrong: relative error {value:.1e} of the loss, {gradient:.1e} of the gradient"
        )
    return gradient


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The norm of the difference over that of the truth."""
    norm = torch.linalg.vector_norm
    return float(norm(found.double() - truth) / norm(truth).clamp_min(1e-30))


def median_ratio(measured: np.ndarray, yardstick: np.ndarray) -> float:
    """The median of the ratios in each round; NaN stands for what was not measured."""
    return float(np.nanmedian(measured / yardstick))


def time_rounds(
    calls: Mapping[str, Callable[[], object]], settings: Settings, tell: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Seconds of a call of each by rounds, in an order that rotates; NaN where one was left out."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times = {name: np.full(settings.rounds, math.nan) for name in calls}
    names, spent = list(calls), dict.fromkeys(calls, 0.0)
    for turn in range(settings.rounds):
        tell(f"round {turn + 1} of {settings.rounds}")
        first = turn % max(1, len(names))
        with _collector_off():
            for name in names[first:] + names[:first]:
                if turn and spent[name] > settings.seconds:
                    continue
                if repeats[name] > 1:
                    calls[name]()  # has the caches to itself from here on
                elapsed = _elapsed(calls[name], repeats[name])
                times[name][turn] = elapsed / repeats[name]
                spent[name] += elapsed
    return times


def _repeats(call: Callable[[], object]) -> int:
    """How many calls take `BLOCK_SECONDS`."""
    repeats = 1
    while (elapsed := _elapsed(call, repeats)) < BLOCK_SECONDS:
        repeats = max(2 * repeats, math.ceil(repeats * BLOCK_SECONDS / elapsed))
    return repeats


def _elapsed(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect(0)  # what was made since it was last off is all young
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def best_gemm_rate() -> float:
    """The most float32 flops a second that a matrix product reaches here and now.

    The better of torch's two libraries: MKL holds back on CPUs that are not Intel's.
    """
    best = 0.0
    for m, n, k in GEMM_SHAPES:
        a, b, out = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
        products = [partial(torch.mm, a, b.T, out=out)]
        if torch.backends.mkldnn.is_available():
            products.append(partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], ""))
        seconds = min(_elapsed(product, 1) for product in products for _ in range(5))
        best = max(best, 2.0 * m * n * k / seconds)
    return best
