from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from dmlfast.bench import baselines, harness, memory
from dmlfast.bench.benchmark import Benchmark, Case, Competitor, LeftOutError, Problem, Size
from dmlfast.bench.devices import Cpu, Device
from dmlfast.bench.harness import Settings

SETTINGS = Settings(
    rounds=3, seconds=10, threads=1, memory_limit=2**20, compile=True, command="dmlfast bench toy"
)
SIZE = Size(8, 4)


def problem(size: Size) -> Problem:
    return {"x": torch.linspace(-1, 1, size.n * size.d).view(size.n, size.d).requires_grad_()}


def right(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean()


def wrong_value(x: torch.Tensor) -> torch.Tensor:
    return right(x) + 0.002 * right(x).detach()


def wrong_gradient(x: torch.Tensor) -> torch.Tensor:
    return right(x) - 0.002 * (right(x) - right(x).detach())


def not_a_number(x: torch.Tensor) -> torch.Tensor:
    return right(x) * torch.nan


def failing(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("this went\nwrong")


def competitor(name: str, loss: object) -> Competitor:
    return Competitor(name, lambda: loss)  # type: ignore[arg-type, return-value]


TOY = Benchmark(
    name="toy",
    problem=problem,
    baselines=(),
    dmlfast=lambda impl: competitor(f"dmlfast-{impl}", right),
    truth=lambda size: right,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
OURS = TOY.competitor("dmlfast-cpu")
CPU = Cpu()


def case(*competitors: Competitor, dtype: torch.dtype = torch.float32) -> Case:
    return Case(SIZE, dtype, competitors)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(Cpu, "gemm_shapes", ((8, 8, 8),))
    monkeypatch.setattr(memory, "extra_bytes", lambda *args: 3 * 2**20)


def measure(
    *competitors: Competitor,
    settings: Settings = SETTINGS,
    dtype: torch.dtype = torch.float32,
    device: Device = CPU,
) -> dict[str, harness.Row]:
    _, rows = harness.run(TOY, [case(*competitors, dtype=dtype)], device, settings)
    return {row.provider: row for row in rows}


@pytest.mark.parametrize("loss", [wrong_value, wrong_gradient, not_a_number])
def test_no_speed_for_a_wrong_competitor(loss: object) -> None:
    rows = measure(competitor("wrong", loss), OURS)
    assert rows["wrong"].reason.startswith("wrong: relative error")
    assert rows["wrong"].median_ms is None
    assert rows["wrong"].extra_mib is None
    assert rows["dmlfast-cpu"].median_ms is not None


def test_no_ratio_where_dmlfast_is_wrong() -> None:
    rows = measure(competitor("right", right), competitor("dmlfast-cpu", wrong_gradient))
    assert rows["right"].median_ms is not None
    assert rows["right"].ratio_to_dmlfast is None
    assert rows["dmlfast-cpu"].median_ms is None


def test_row_tells_why_a_competitor_fails() -> None:
    rows = measure(competitor("failing", failing), OURS)
    assert rows["failing"].reason == "RuntimeError: this went"


def test_compiler_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(loss: object, **options: object) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compiled = Competitor("compiled", lambda: baselines.compiled(right), compiles=True)
    assert measure(compiled, OURS)["compiled"].reason == "RuntimeError: no C++ compiler"


def test_left_out_with_a_reason() -> None:
    large = Competitor("large", lambda: right, memory=lambda size: 3 * 2**30)
    slow = Competitor("slow", lambda: right, largest={"cpu": 4, "cuda": 2})
    compiles = Competitor("compiles", lambda: right, compiles=True)
    rows = measure(large, slow, compiles, OURS, settings=replace(SETTINGS, compile=False))
    assert rows["large"].reason == "would need 3.0 GiB, the limit is 0.0 GiB"
    assert rows["slow"].reason == "left out above 4 rows: it takes too long"
    assert rows["compiles"].reason == "left out: compiling takes its time"
    assert all(row.median_ms is None for name, row in rows.items() if name != "dmlfast-cpu")


def test_size_that_does_not_fit_is_left_out_with_a_reason() -> None:
    def fail(size: Size) -> Problem:
        assert size.n < 100, "this much must not be asked for"
        return problem(size)

    benchmark = replace(TOY, problem=fail)
    huge = Case(Size(99_999_999, 128), torch.float32, (OURS,))
    (row,), _ = harness.run(benchmark, [huge], CPU, SETTINGS)
    assert row.reason == "would need 1,239.8 GiB, the limit is 0.0 GiB"
    assert (row.n, row.dtype, row.median_ms) == (99_999_999, "float32", None)


def test_rows_hold_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": [0.006, 0.002, np.nan], "dmlfast-cpu": [0.001, 0.002, 0.003]}
    times = {name: np.array(values) for name, values in seconds.items()}
    monkeypatch.setattr(harness, "time_rounds", lambda *args: (times, {}))
    monkeypatch.setattr(Cpu, "gemm_rate", lambda self, dtype: 1e6)
    rows = measure(competitor("slow", right), OURS)
    slow, ours = rows["slow"], rows["dmlfast-cpu"]
    assert (slow.median_ms, slow.rounds) == (pytest.approx(4), 2)
    assert slow.ratio_to_dmlfast == pytest.approx((6 + 1) / 2)  # the median over the rounds
    assert slow.gemm_ratio is None
    assert (ours.p20_ms, ours.median_ms, ours.p80_ms) == pytest.approx((1.4, 2, 2.6))
    assert ours.ratio_to_dmlfast == 1
    assert ours.flops == 2 * 8 * 8 * 4
    assert ours.gemm_ratio == pytest.approx(0.002 / (512 / 1e6))
    assert ours.tflops == pytest.approx(4 * 8 * 8 * 4 / 0.002 / 1e12)
    assert slow.tflops == pytest.approx(ours.tflops / 2)
    assert ours.extra_mib == 3


def off_by(error: float) -> Competitor:
    return competitor("off", lambda x: right(x) - error * (right(x) - right(x).detach()))


@pytest.mark.parametrize(
    ("error", "dtype", "accepted"),
    [
        (5e-4, torch.float32, True),
        (3e-3, torch.float32, False),
        (2e-3, torch.float16, True),
        (1e-2, torch.float16, False),
        (1e-2, torch.bfloat16, True),
        (5e-2, torch.bfloat16, False),
    ],
)
def test_tolerance_goes_with_the_dtype(error: float, dtype: torch.dtype, accepted: bool) -> None:
    row = measure(off_by(error), OURS, dtype=dtype)["off"]
    assert (row.median_ms is not None) == accepted
    assert row.dtype == str(dtype).removeprefix("torch.")
    if accepted:
        assert row.gradient_error == pytest.approx(error, rel=0.5)


def test_competitors_get_the_dtype_and_the_truth_the_same_numbers() -> None:
    seen: dict[torch.dtype, torch.Tensor] = {}

    def look(x: torch.Tensor) -> torch.Tensor:
        seen[x.dtype] = x.detach()
        return right(x)

    toy = replace(TOY, truth=lambda size: look)
    list(harness.run(toy, [case(competitor("a", look), dtype=torch.bfloat16)], CPU, SETTINGS))
    assert set(seen) == {torch.float64, torch.bfloat16}
    assert torch.equal(seen[torch.float64], seen[torch.bfloat16].double())


def test_scaled_gradient_does_not_underflow() -> None:
    small = replace(TOY, truth=lambda size: faint)
    row = list(
        harness.run(small, [case(competitor("a", faint), dtype=torch.float16)], CPU, SETTINGS)
    )
    assert row[0][0].gradient_error == pytest.approx(0, abs=1e-3)


def faint(x: torch.Tensor) -> torch.Tensor:
    return x.float().square().sum() * 2.0**-22  # the gradient is subnormal in float16


def sampled(x: torch.Tensor) -> torch.Tensor:
    x.register_hook(lambda gradient: gradient.index_fill(0, torch.arange(2, 8), torch.nan))
    return right(x)


def test_gradient_that_is_checked_in_part_is_told() -> None:
    toy = replace(TOY, truth=lambda size: sampled)
    wrong = competitor("wrong", wrong_gradient)
    *_, rows = harness.run(toy, [case(wrong, OURS)], CPU, SETTINGS)
    assert rows[0].reason.startswith("wrong: relative error")
    assert rows[1].reason == "gradient checked on 2 of 8 rows"
    assert rows[1].median_ms is not None


def test_truth_that_knows_nothing_finds_nobody_right() -> None:
    toy = replace(TOY, truth=lambda size: not_a_number)
    *_, (row,) = harness.run(toy, [case(OURS)], CPU, SETTINGS)
    assert row.reason == "wrong: relative error nan of the loss, nan of the gradient"


def test_backend_that_does_not_serve_the_dtype_is_left_out() -> None:
    picky = replace(
        OURS, declines=lambda device, dtype: None if dtype == torch.float32 else f"not on {device}"
    )
    assert measure(picky)["dmlfast-cpu"].median_ms is not None
    assert measure(picky, dtype=torch.float16)["dmlfast-cpu"].reason == "not on cpu"


def exhausted(x: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a")


def test_run_goes_on_where_a_baseline_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr(Cpu, "release", lambda self: released.append("release"))
    rows = measure(competitor("large", exhausted), OURS)
    assert rows["large"].reason == (
        "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB"
    )
    assert rows["dmlfast-cpu"].median_ms is not None
    assert len(released) == 2  # after the failure and after the case


def test_memory_may_also_run_out_while_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr(Cpu, "release", lambda self: released.append("release"))
    calls = {"a": lambda: None, "b": _after(5, exhausted), "c": lambda: None}
    times, failures = harness.time_rounds(calls, CPU, SETTINGS, lambda text: None)
    assert list(times) == ["a", "c"]
    assert all(np.isfinite(measured).all() for measured in times.values())
    assert list(failures) == ["b"]
    assert failures["b"].startswith("out of memory: ")
    assert released == ["release"]


def _after(calls: int, function: Callable[[torch.Tensor], object]) -> Callable[[], object]:
    left = iter(range(calls))
    return lambda: function(torch.ones(1)) if next(left, None) is None else None


def test_resume_leaves_out_what_is_there() -> None:
    a, b = competitor("a", right), competitor("b", right)
    cases = [case(a, b, OURS), case(a, b, OURS, dtype=torch.bfloat16)]
    *_, rows = harness.run(TOY, cases[:1], CPU, SETTINGS)
    left, kept = harness.resume(TOY, cases, CPU, SETTINGS, rows)
    assert (left, kept) == (cases[1:], rows)

    def providers(before: list[harness.Row]) -> list[str]:
        left, _ = harness.resume(TOY, cases[:1], CPU, SETTINGS, before)
        return [each.name for each in left[0].competitors]

    assert providers(rows[1:]) == ["a", "dmlfast-cpu"]  # with the yardstick of its ratio
    assert providers([replace(rows[0], dmlfast="0.0.1"), *rows[1:]]) == ["a", "dmlfast-cpu"]
    assert providers([replace(row, machine="NVIDIA H200") for row in rows]) == [
        "a", "b", "dmlfast-cpu"
    ]  # fmt: skip
    assert providers([replace(rows[0], extra_mib=None), *rows[1:]]) == ["a", "dmlfast-cpu"]
    failed = replace(rows[0], median_ms=None, extra_mib=None, reason="out of memory")
    assert harness.resume(TOY, cases[:1], CPU, SETTINGS, [failed, *rows[1:]])[0] == []


def test_dtypes_are_measured_one_after_the_other() -> None:
    sizes, dtypes = [SIZE, Size(16, 4)], [torch.float32, torch.bfloat16]
    cases = harness.plan([OURS], sizes, dtypes, CPU)
    assert [(each.dtype, each.size) for each in cases] == [
        (dtype, size) for dtype in dtypes for size in sizes
    ]
    assert all(each.competitors == (OURS,) for each in cases)


def test_competitors_take_turns() -> None:
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    harness.time_rounds(calls, CPU, SETTINGS, lambda text: None)
    turns = [name for k, name in enumerate(called) if k == 0 or called[k - 1] != name]
    assert "".join(turns).endswith("abcbcacab")


def test_slow_competitor_leaves_out_rounds() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    settings = replace(SETTINGS, seconds=0)
    times, _ = harness.time_rounds(calls, CPU, settings, lambda text: None)
    for measured in times.values():
        assert np.isfinite(measured).tolist() == [True, False, False]


def test_steps_are_counted() -> None:
    told: list[str] = []
    cases = [case(competitor("failing", failing), OURS), case(OURS)]
    list(harness.run(TOY, cases, CPU, SETTINGS, told.append))
    assert len(told) == harness.count_steps(cases, SETTINGS.rounds) == 6 + 2 * SETTINGS.rounds


def test_timed_rows_come_before_memory() -> None:
    timed, whole = harness.run(TOY, [case(OURS)], CPU, SETTINGS)
    assert timed[0].median_ms == whole[0].median_ms
    assert (timed[0].extra_mib, whole[0].extra_mib) == (None, 3)


def test_memory_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise LeftOutError("its process ended with exit code -9")

    monkeypatch.setattr(memory, "extra_bytes", fail)
    row = measure(OURS)["dmlfast-cpu"]
    assert row.median_ms is not None
    assert row.reason == "memory: its process ended with exit code -9"


def test_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    list(harness.run(TOY, [case(OURS)], CPU, replace(SETTINGS, threads=before + 1)))
    assert torch.get_num_threads() == before


def test_what_computes_something_else_is_held_to_its_own_truth() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * right(x)

    on_purpose = Competitor("on purpose", lambda: double, truth=lambda size: double)
    rows = measure(OURS, on_purpose, competitor("by mistake", double))
    assert rows["on purpose"].median_ms is not None
    assert rows["by mistake"].median_ms is None
    assert "wrong: relative error" in rows["by mistake"].reason
