from dataclasses import replace

import numpy as np
import pytest
import torch
from dmlfast.bench import baselines, harness, memory
from dmlfast.bench.benchmark import Benchmark, Competitor, LeftOutError, Problem, Size
from dmlfast.bench.harness import Settings

SETTINGS = Settings(
    rounds=3, seconds=10, threads=1, memory_limit=2**20, compile=True, command="dmlfast bench toy"
)
SIZE = Size(8, 4)


def problem(size: Size) -> Problem:
    return {"x": torch.linspace(-1, 1, size.n * size.d).view(size).requires_grad_()}


def right(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum()


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
    truth=right,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
OURS = TOY.competitor("dmlfast-cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(harness, "GEMM_SHAPES", ((8, 8, 8),))
    monkeypatch.setattr(memory, "extra_bytes", lambda *args: 3 * 2**20)


def measure(*competitors: Competitor, settings: Settings = SETTINGS) -> dict[str, harness.Row]:
    _, rows = harness.run(TOY, competitors, [SIZE], settings)
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
    slow = Competitor("slow", lambda: right, largest=4)
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
    (row,), _ = harness.run(benchmark, [OURS], [Size(99_999_999, 128)], SETTINGS)
    assert row.reason == "would need 1,239.8 GiB, the limit is 0.0 GiB"
    assert (row.n, row.dtype, row.median_ms) == (99_999_999, "float32", None)


def test_rows_hold_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": [0.006, 0.002, np.nan], "dmlfast-cpu": [0.001, 0.002, 0.003]}
    times = {name: np.array(values) for name, values in seconds.items()}
    monkeypatch.setattr(harness, "time_rounds", lambda *args: times)
    monkeypatch.setattr(harness, "best_gemm_rate", lambda: 1e6)
    rows = measure(competitor("slow", right), OURS)
    slow, ours = rows["slow"], rows["dmlfast-cpu"]
    assert (slow.median_ms, slow.rounds) == (pytest.approx(4), 2)
    assert slow.ratio_to_dmlfast == pytest.approx((6 + 1) / 2)  # the median over the rounds
    assert slow.gemm_ratio is None
    assert (ours.p20_ms, ours.median_ms, ours.p80_ms) == pytest.approx((1.4, 2, 2.6))
    assert ours.ratio_to_dmlfast == 1
    assert ours.flops == 2 * 8 * 8 * 4
    assert ours.gemm_ratio == pytest.approx(0.002 / (512 / 1e6))
    assert ours.extra_mib == 3


def test_competitors_take_turns() -> None:
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    harness.time_rounds(calls, SETTINGS, lambda text: None)
    turns = [name for k, name in enumerate(called) if k == 0 or called[k - 1] != name]
    assert "".join(turns).endswith("abcbcacab")


def test_slow_competitor_leaves_out_rounds() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    times = harness.time_rounds(calls, replace(SETTINGS, seconds=0), lambda text: None)
    for measured in times.values():
        assert np.isfinite(measured).tolist() == [True, False, False]


def test_steps_are_counted() -> None:
    told: list[str] = []
    competitors = [competitor("failing", failing), OURS]
    list(harness.run(TOY, competitors, [SIZE, SIZE], SETTINGS, told.append))
    assert len(told) == harness.count_steps(competitors=2, sizes=2, rounds=SETTINGS.rounds)


def test_timed_rows_come_before_memory() -> None:
    timed, whole = harness.run(TOY, [OURS], [SIZE], SETTINGS)
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
    list(harness.run(TOY, [OURS], [SIZE], replace(SETTINGS, threads=before + 1)))
    assert torch.get_num_threads() == before


def test_gemm_rate_is_a_rate() -> None:
    assert harness.best_gemm_rate() > 0
