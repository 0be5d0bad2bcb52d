"""Checks competitors against the truth, then measures them in turns."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial

import numpy as np
import torch
from dmlfast.bench.benchmark import (
    USEFUL_PRODUCTS,
    Benchmark,
    Case,
    Competitor,
    LeftOutError,
    Loss,
    Problem,
    Size,
    leaves,
    placed,
    step,
)
from dmlfast.bench.devices import Device
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.machine import busy_elsewhere, cpu_clock
from dmlfast.bench.report import Row

import dmlfast

# Of value and gradient, relative to the truth of the same rounded rows. A gradient rounded to
# bfloat16 is off by 1.7e-3; the straightforward form, with products rounded to it as well, by 4e-3,
# and a form that is in it throughout by 7e-3. float16 has three bits more, and fewer exponents.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
BLOCK_SECONDS = 0.02  # a measurement is at least so long: short calls are repeated


Call = Callable[[], torch.Tensor]  # a loss and its gradients, once


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
    """A loss and its gradients. Rows of a gradient of the truth may be NaN: it leaves them out."""

    value: torch.Tensor
    gradients: list[torch.Tensor]


def plan(
    competitors: Sequence[Competitor],
    sizes: Iterable[Size],
    dtypes: Iterable[torch.dtype],
    device: Device,
) -> list[Case]:
    """Who is measured at which size, one dtype after the other."""
    sizes = list(sizes)
    return [
        Case(size, dtype, device.variants(competitors, size)) for dtype in dtypes for size in sizes
    ]


def resume(
    benchmark: Benchmark,
    cases: Sequence[Case],
    device: Device,
    settings: Settings,
    before: Iterable[Row],
) -> tuple[list[Case], list[Row]]:
    """What is left to measure, and the rows that are there, of this version of dmlfast.

    The yardstick is measured again where anything is left: ratios are those of the same rounds.
    """
    there = {row.key: row for row in before if row.dmlfast == dmlfast.__version__}
    left, kept = [], []
    for case in cases:
        missing = []
        for each in case.competitors:
            row = there.get(_blank(benchmark, each.name, case, device, settings).key)
            if row and (row.reason or row.extra_mib is not None or each.graph):
                kept.append(row)
            else:
                missing.append(each)
        if missing:
            again = [each for each in case.competitors if each in [*missing, case.yardstick]]
            left.append(replace(case, competitors=tuple(again)))
    return left, kept


def run(
    benchmark: Benchmark,
    cases: Sequence[Case],
    device: Device,
    settings: Settings,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Row]]:
    """Measures the competitors of every case, and their times against those of its yardstick.

    Yields the rows of a case when they are timed, and again with their memory. `tell` hears of
    each of the `count_steps` steps before it is taken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        gemm_rates: dict[torch.dtype, float] = {}
        for case in cases:
            if settings.compile:
                torch.compiler.reset()  # what is compiled is compiled for each case
            rate = max(gemm_rates.get(case.dtype, 0.0), device.gemm_rate(case.dtype))
            gemm_rates[case.dtype] = rate
            yield from _rows(benchmark, case, device, settings, rate, tell)
            device.release()
    finally:
        torch.set_num_threads(threads)


def count_steps(cases: Sequence[Case], rounds: int) -> int:
    """How often `run` tells of a step."""
    return sum(2 * len(case.competitors) + rounds for case in cases)


def _blank(
    benchmark: Benchmark, provider: str, case: Case, device: Device, settings: Settings
) -> Row:
    """A row without results."""
    return Row(
        op=benchmark.name,
        provider=provider,
        n=case.size.n,
        d=case.size.d,
        classes=case.size.classes,
        dtype=case.dtype_name,
        threads=settings.threads,
        machine=device.machine,
        flops=benchmark.product_flops(case.size),
        dmlfast=dmlfast.__version__,
        torch=torch.__version__,
        triton=device.triton,
        cuda=device.cuda,
        date=date.today().isoformat(),
        command=settings.command,
    )


def _rows(
    benchmark: Benchmark,
    case: Case,
    device: Device,
    settings: Settings,
    gemm_rate: float,
    tell: Callable[[str], None],
) -> Iterator[list[Row]]:
    @cache
    def problem() -> Problem:
        """Made only where a competitor is admitted."""
        return placed(benchmark.problem(case.size), case.dtype, device.torch_device)

    rows = {
        each.name: _blank(benchmark, each.name, case, device, settings) for each in case.competitors
    }
    calls = _checked(benchmark, case, device, settings, problem, rows, tell)
    _time(case, device, settings, calls, rows, gemm_rate, tell)
    yield list(rows.values())
    for competitor in case.competitors:
        row = rows[competitor.name]
        tell(f"{case} memory {competitor.name}")
        if row.median_ms is not None and not competitor.graph:
            rows[row.provider] = _with_memory(row, case, device, calls[row.provider], problem())
    yield list(rows.values())


def _checked(
    benchmark: Benchmark,
    case: Case,
    device: Device,
    settings: Settings,
    problem: Callable[[], Problem],
    rows: Mapping[str, Row],
    tell: Callable[[str], None],
) -> dict[str, Call]:
    """A step of each competitor that is right; the rows are told its error, or why it is not."""

    @cache
    def solution(truth: Callable[[Size], Loss]) -> Solution:
        exact = placed(problem(), torch.float64)
        return solve(partial(step, truth(case.size), exact), exact)

    calls: dict[str, Call] = {}
    for competitor in case.competitors:
        name, row = competitor.name, rows[competitor.name]
        tell(f"{case} check {name}")
        if competitor.truth:
            row.flops = None  # those of the benchmark are not what it computes
        try:
            loss = admit(benchmark, competitor, case, device, settings)
            truth = solution(competitor.truth or benchmark.truth)
            make_step = CapturedStep if competitor.graph else partial(partial, step)
            call = make_step(loss, problem(), case.loss_scale)
            found = solve(call, problem(), case.loss_scale)
            row.gradient_error = gradient_error(found, truth, TOLERANCE[case.dtype])
            row.reason = left_unchecked(truth)
            calls[name] = call
        except Exception as error:
            row.reason = explain(error)
        if name not in calls:  # and the error, which holds tensors, is gone
            device.release()
    return calls


def _time(
    case: Case,
    device: Device,
    settings: Settings,
    calls: Mapping[str, Call],
    rows: Mapping[str, Row],
    gemm_rate: float,
    tell: Callable[[str], None],
) -> None:
    """Times the calls in turns, and tells their rows."""
    start = cpu_clock()
    times, failures = time_rounds(calls, device, settings, lambda text: tell(f"{case} {text}"))
    busy = busy_elsewhere(start)
    yardstick = times.get(case.yardstick.name) if case.yardstick else None
    for name, reason in failures.items():
        rows[name].reason = reason
    for name, measured in times.items():
        rows[name].busy_elsewhere = busy
        _fill_in(rows[name], measured, yardstick, gemm_rate)


def _fill_in(
    row: Row, measured: np.ndarray, yardstick: np.ndarray | None, gemm_rate: float
) -> None:
    """The statistics of the seconds measured in each round."""
    row.p20_ms, row.median_ms, row.p80_ms = 1e3 * np.nanpercentile(measured, (20, 50, 80))
    row.rounds = int(np.isfinite(measured).sum())
    if yardstick is not None:
        row.ratio_to_dmlfast = median_ratio(measured, yardstick)
    if row.flops:
        seconds = row.median_ms * 1e-3
        row.tflops = USEFUL_PRODUCTS * row.flops / seconds * 1e-12
        if row.provider.startswith("dmlfast-"):
            row.gemm_ratio = seconds * gemm_rate / row.flops


def _with_memory(row: Row, case: Case, device: Device, call: Call, problem: Problem) -> Row:
    try:
        extra = device.extra_bytes(row.op, row.provider, case, row.threads, call, problem)
        return replace(row, extra_mib=max(0, extra) / 2**20)
    except Exception as error:
        reasons = [row.reason, f"memory: {explain(error)}"]
        return replace(row, reason="; ".join(filter(None, reasons)))


def admit(
    benchmark: Benchmark, competitor: Competitor, case: Case, device: Device, settings: Settings
) -> Loss:
    """The competitor's loss; raises `LeftOutError` where it is not to be measured in this case."""
    size, kind = case.size, device.torch_device.type
    if reason := competitor.declines(kind, case.dtype):
        raise LeftOutError(reason)
    if competitor.compiles and not settings.compile:
        raise LeftOutError("left out: compiling takes its time")
    largest = competitor.largest.get(kind, size.n)
    if size.n > largest:
        raise LeftOutError(f"left out above {largest} rows: it takes too long")
    needed = max(memory(size) for memory in (benchmark.memory, competitor.memory) if memory)
    if needed > settings.memory_limit:
        limit = settings.memory_limit / 2**30
        raise LeftOutError(f"would need {needed / 2**30:,.1f} GiB, the limit is {limit:.1f} GiB")
    return competitor.make()


def explain(error: Exception) -> str:
    """Why there is no result, in one line."""
    if isinstance(error, LeftOutError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory: " + ". ".join(str(error).split(". ")[:2])
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def solve(call: Call, problem: Problem, scale: float = 1.0) -> Solution:
    """The loss and its gradients by the problem's tensors, in float64 and without the scale."""
    value = call()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves(problem)]
    return Solution(value.double(), [each.to_dense().double() / scale for each in gradients])


def gradient_error(found: Solution, truth: Solution, tolerance: float) -> float:
    """The relative error of the gradients; raises `LeftOutError` where a result is wrong."""
    value = relative_error(found.value, truth.value)
    gradient = max(map(relative_error, found.gradients, truth.gradients))
    if not max(value, gradient) <= tolerance:
        raise LeftOutError(
            f"wrong: relative error {value:.1e} of the loss, {gradient:.1e} of the gradient"
        )
    return gradient


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The norm of the difference over that of the truth, where that is not NaN; NaN if nowhere."""
    known = ~truth.isnan()
    if not known.any():
        return math.nan
    norm = torch.linalg.vector_norm
    difference = (found - truth).where(known, 0)
    return float(norm(difference) / norm(truth.where(known, 0)).clamp_min(1e-30))


def left_unchecked(truth: Solution) -> str:
    """On how many rows a gradient was checked; nothing where on all."""
    for gradient in truth.gradients:
        known = int((~gradient.isnan()).reshape(len(gradient), -1).all(1).sum())
        if known < len(gradient):
            return f"gradient checked on {known:,} of {len(gradient):,} rows"
    return ""


def median_ratio(measured: np.ndarray, yardstick: np.ndarray) -> float:
    """The median of the ratios in each round; NaN stands for what was not measured."""
    return float(np.nanmedian(measured / yardstick))


def time_rounds(
    calls: Mapping[str, Callable[[], object]],
    device: Device,
    settings: Settings,
    tell: Callable[[str], None],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Seconds of a call of each by rounds, in an order that rotates; NaN where one was left out.

    And the reasons of those that ran out of memory, which have no times.
    """
    times = {name: np.full(settings.rounds, math.nan) for name in calls}
    names, spent = list(calls), dict.fromkeys(calls, 0.0)
    repeats: dict[str, int] = {}
    failures: dict[str, str] = {}
    for turn in range(settings.rounds):
        tell(f"round {turn + 1} of {settings.rounds}")
        first = turn % max(1, len(names))
        with _collector_off():
            for name in names[first:] + names[:first]:
                if name in failures or (turn and spent[name] > settings.seconds):
                    continue
                try:
                    if not turn:
                        repeats[name] = _repeats(calls[name], device)
                    if repeats[name] > 1:
                        calls[name]()  # has the caches to itself from here on
                    elapsed = device.elapsed(calls[name], repeats[name])
                    times[name][turn] = elapsed / repeats[name]
                    spent[name] += elapsed
                except torch.OutOfMemoryError as error:
                    failures[name] = explain(error)
                if name in failures:  # and the error, which holds tensors, is gone
                    device.release()
    return {name: times[name] for name in calls if name not in failures}, failures


def _repeats(call: Callable[[], object], device: Device) -> int:
    """How many calls take `BLOCK_SECONDS`."""
    repeats = 1
    while (elapsed := device.elapsed(call, repeats)) < BLOCK_SECONDS:
        repeats = max(2 * repeats, math.ceil(repeats * BLOCK_SECONDS / elapsed))
    return repeats


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect(0)  # what was made since it was last off is all young
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
