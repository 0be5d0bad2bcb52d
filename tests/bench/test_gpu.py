"""What only a GPU can tell: that it is timed, captured and weighed as it should be."""

from functools import partial
from pathlib import Path

import pytest
import torch
from dmlfast.bench import baselines
from dmlfast.bench.benchmark import LOSS_SCALE, LeftOutError, Loss, Problem, Size, placed, step
from dmlfast.bench.devices import Gpu
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.harness import TOLERANCE, gradient_error, solve
from dmlfast.bench.lifted import BENCHMARK
from dmlfast.bench.memory import beyond_gradients, gpu_peak_growth
from dmlfast.bench.report import read_csv
from dmlfast.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def problem(n: int, d: int, dtype: torch.dtype = torch.float32) -> Problem:
    return placed(BENCHMARK.problem(Size(n, d)), dtype, torch.device("cuda"))


def test_clock_is_that_of_the_gpu() -> None:
    gpu = Gpu(0)
    cycles = 10_000_000
    gpu.elapsed(lambda: torch.cuda._sleep(cycles), 100)  # until the clock has risen
    once, twice = (gpu.elapsed(lambda: torch.cuda._sleep(cycles), k) for k in (5, 10))
    assert once > 1e-3
    assert twice == pytest.approx(2 * once, rel=0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_reaches_a_rate_of_a_gpu(dtype: torch.dtype) -> None:
    assert 5e12 < Gpu(0).gemm_rate(dtype) < 1e16


def test_memory_is_that_of_the_allocator() -> None:
    square = 4 * 2048**2
    batch = problem(2048, 16)
    step(baselines.lifted_naive, batch)
    call = partial(step, baselines.lifted_naive, batch)
    assert 3 * square < beyond_gradients(call, batch, gpu_peak_growth) < 11 * square
    assert gpu_peak_growth(lambda: torch.empty(64 * 2**20, device="cuda")) == 256 * 2**20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["naive", "indexed", "chunked", "dmlfast-triton"])
def test_competitor_is_right_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    batch = problem(5000, 48, dtype)
    exact = placed(batch, torch.float64)
    scale = LOSS_SCALE.get(dtype, 1.0)
    loss = BENCHMARK.competitor(name).make()
    truth = solve(partial(step, BENCHMARK.truth(Size(5000, 48)), exact), exact)
    found = solve(partial(step, loss, batch, scale), batch, scale)
    assert gradient_error(found, truth, TOLERANCE[dtype]) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("name", ["naive", "dmlfast-triton"])
def test_replayed_step_is_the_step(name: str) -> None:
    loss: Loss = BENCHMARK.competitor(name).make()
    batch = problem(256, 32)
    expected = solve(partial(step, loss, batch), batch)
    captured = CapturedStep(loss, batch)
    for _ in range(3):
        found = solve(captured, batch)
        torch.testing.assert_close(found.value, expected.value)
        torch.testing.assert_close(found.gradients, expected.gradients)
    with torch.no_grad():
        batch["embeddings"].mul_(0.5)  # is read by every replay
    torch.testing.assert_close(
        solve(captured, batch).value, solve(partial(step, loss, batch), batch).value
    )


def test_step_that_waits_is_told_and_leaves_torch_whole() -> None:
    batch = problem(64, 16)
    with pytest.raises(LeftOutError, match="the host waits for the GPU"):
        CapturedStep(baselines.lifted_indexed, batch)
    torch.cuda.empty_cache()
    assert step(baselines.lifted_indexed, batch).isfinite()


def test_command_measures_the_gpu(tmp_path: Path) -> None:
    words = ["bench", "lifted", "--device", "cuda", "--sizes", "128x128,2048x64", "--rounds", "2"]
    words += ["--dtype", "float32,bfloat16", "--csv", str(tmp_path), "--baselines", "naive,indexed"]
    assert main(words) == 0
    (path,) = tmp_path.iterdir()
    rows = read_csv(path)
    assert {row.machine for row in rows} == {torch.cuda.get_device_name()}
    measured = {(row.provider, row.n, row.dtype) for row in rows if row.median_ms}
    for dtype in ("float32", "bfloat16"):
        assert ("dmlfast-triton-graph", 128, dtype) in measured
        assert ("naive-graph", 128, dtype) in measured
        assert ("dmlfast-triton", 2048, dtype) in measured
        assert ("indexed-graph", 128, dtype) not in measured


def test_memory_that_runs_out_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "gemm_shapes", ((1024, 1024, 1024),))
    words = ["bench", "lifted", "--device", "cuda", "--sizes", "8192x16", "--rounds", "1"]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
    try:
        assert main([*words, "--baselines", "naive", "--csv", str(tmp_path)]) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    rows = {row.provider: row for row in read_csv(next(tmp_path.iterdir()))}
    assert rows["naive"].reason.startswith("out of memory: ")
    assert rows["dmlfast-triton"].median_ms is not None
