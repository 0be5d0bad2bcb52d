from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from dmlfast.bench import baselines, harness
from dmlfast.bench.benchmark import Case, Competitor, LeftOutError, Loss, Size, step
from dmlfast.bench.devices import Cpu, Gpu, get_device
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.lifted import BENCHMARK
from dmlfast.bench.memory import beyond_gradients, gpu_peak_growth
from dmlfast.bench.report import Row
from dmlfast.cli.main import main

from dmlfast.errors import UserError

CASE = Case(Size(8, 4), torch.float32)
SETTINGS = harness.Settings(3, 10, 1, 2**30, True, "dmlfast bench toy")


class FakeCuda:
    """What `Gpu` asks of torch.cuda, with a clock that work moves and an allocator's counters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.allocated = self.peak = 1000
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("record")
                self.at = fake.milliseconds

            def synchronize(self) -> None:
                fake.log.append("wait")

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        for name, value in {
            "Event": Event,
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "set_device": lambda index: self.log.append(f"device {index}"),
            "synchronize": lambda: self.log.append("wait"),
            "get_device_name": lambda index: "NVIDIA H200",
            "mem_get_info": lambda index: (100 * 2**30, 140 * 2**30),
            "empty_cache": lambda: self.log.append("empty cache"),
            "memory_allocated": lambda: self.allocated,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": lambda: setattr(self, "peak", self.allocated),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.version, "cuda", "13.0")

    def work(self, milliseconds: float) -> None:
        self.log.append("work")
        self.milliseconds += milliseconds

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def on_cpu(gpu: Gpu) -> Gpu:
    """The GPU's harness on tensors that are here."""
    gpu.torch_device = torch.device("cpu")
    return gpu


def test_rate_of_a_product_is_its_flops_by_its_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.004, 0.001, 0.002, 0.003, 0.005])

    def elapsed(self: Cpu, call: object, repeats: int) -> float:
        assert repeats == 1
        return next(seconds)

    monkeypatch.setattr(Cpu, "elapsed", elapsed)
    monkeypatch.setattr(Cpu, "gemm_shapes", ((8, 4, 2),))
    assert Cpu().gemm_rate(torch.bfloat16) == pytest.approx(2 * 8 * 4 * 2 / 0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cpu, "gemm_shapes", ((8, 4, 2),))
    a, b = torch.randn(8, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    for product in Cpu().products(a, b, a.new_empty(8, 4)):
        torch.testing.assert_close(product(), a @ b.T)
    assert Cpu().gemm_rate(dtype) > 0


def test_device_by_name(cuda: FakeCuda) -> None:
    assert isinstance(get_device("cpu"), Cpu)
    assert get_device("auto").torch_device == torch.device("cuda:0")
    assert get_device("cuda:1").torch_device == torch.device("cuda:1")
    assert cuda.log == ["device 0", "device 1"]
    with pytest.raises(UserError, match=r"'cuda:2' cannot be .* torch sees cuda:0 to cuda:1 only"):
        get_device("cuda:2")


def test_device_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(get_device("auto"), Cpu)
    with pytest.raises(UserError, match="device 'cuda' cannot be measured: torch sees no NVIDIA"):
        get_device("cuda")


def test_gpu_is_what_torch_says(cuda: FakeCuda) -> None:
    gpu = get_device("cuda")
    assert (gpu.machine, gpu.cuda, gpu.threads) == ("NVIDIA H200", "13.0", 1)
    assert gpu.memory_limit == pytest.approx(90 * 2**30)


def test_gpu_waits_around_a_block_and_not_in_it(cuda: FakeCuda) -> None:
    gpu = Gpu(0)
    cuda.log.clear()
    cuda.milliseconds = 7.0
    assert gpu.elapsed(lambda: cuda.work(2.5), repeats=3) == pytest.approx(0.0075)
    assert cuda.log == ["wait", "record", "work", "work", "work", "record", "wait"]


def test_rounds_on_a_gpu_are_in_device_time(cuda: FakeCuda) -> None:
    calls = {"slow": lambda: cuda.work(40.0), "fast": lambda: cuda.work(0.5)}
    times, failures = harness.time_rounds(calls, Gpu(0), SETTINGS, lambda text: None)
    assert times["slow"] == pytest.approx([0.04] * 3)
    assert times["fast"] == pytest.approx([0.0005] * 3)
    assert failures == {}


def test_memory_is_the_growth_of_the_peak_less_gradients(cuda: FakeCuda) -> None:
    problem = {"x": torch.ones(8, 4, requires_grad=True)}
    problem["x"].grad = torch.ones(8, 4)

    def call() -> None:
        assert problem["x"].grad is None
        cuda.allocate(8 * 4 * 4 + 5000)
        cuda.allocate(-5000)

    cuda.peak = 10**6  # of what ran before
    extra = Gpu(0).extra_bytes("lifted", "naive", CASE, 1, call, problem)
    assert extra == 5000
    assert beyond_gradients(lambda: None, problem, gpu_peak_growth) == -8 * 4 * 4


def test_memory_that_is_not_used_is_given_back(cuda: FakeCuda) -> None:
    gpu = Gpu(0)
    gpu.release()
    assert cuda.log[-1] == "empty cache"


def test_small_batches_are_measured_as_graphs_too(cuda: FakeCuda) -> None:
    competitors = [Competitor("naive", lambda: torch.sum, largest={"cuda": 5})]
    small, large = harness.plan(
        competitors, [Size(1024, 8), Size(1025, 8)], [torch.float32], Gpu(0)
    )
    naive, graph = small.competitors
    assert (naive.graph, graph.graph, graph.name) == (False, True, "naive-graph")
    assert graph.largest == {"cuda": 5}
    assert large.competitors == (naive,)


class FakeGraphs:
    """CUDA graphs whose results are there when they are captured."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, replay: Callable[[], None] = lambda: None
    ) -> None:
        self.mode = "default"
        self.modes: list[str] = []
        self.replays = 0
        fake = self

        class Here:
            def __init__(self, *args: object, stream: object = None) -> None:
                pass

            def __enter__(self) -> None:
                pass

            def __exit__(self, *error: object) -> None:
                pass

            def wait_stream(self, other: object) -> None:
                pass

            def replay(self) -> None:
                fake.replays += 1
                replay()

        for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, Here)
        monkeypatch.setattr(
            torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode)
        )

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.mode)
        return x.square().sum()


def test_captured_step_leaves_its_gradients_where_a_step_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = FakeGraphs(monkeypatch)
    problem = {"x": torch.arange(4.0).requires_grad_(), "labels": torch.arange(4)}
    captured = CapturedStep(lambda x, labels: graphs.loss(x), problem, scale=8.0)
    assert graphs.modes == ["default", "error", "default"]  # compiled, tried, captured
    assert problem["x"].grad is None
    step(lambda x, labels: x.sum(), problem)  # a competitor's
    assert captured() == 14
    assert graphs.replays == 1
    assert torch.equal(problem["x"].grad, 8 * 2 * problem["x"].detach())


def test_step_that_waits_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(monkeypatch)

    def waits(x: torch.Tensor) -> torch.Tensor:
        if graphs.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return x.sum()

    with pytest.raises(LeftOutError, match="cannot be a CUDA graph: the host waits for the GPU"):
        CapturedStep(waits, {"x": torch.ones(2, requires_grad=True)})
    assert graphs.mode == "default"

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        CapturedStep(fails, {"x": torch.ones(2, requires_grad=True)})


def test_rows_of_a_gpu(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGraphs(monkeypatch, replay=lambda: cuda.work(1.0))

    def taking(milliseconds: float) -> Loss:
        def loss(**problem: torch.Tensor) -> torch.Tensor:
            cuda.work(milliseconds)
            return baselines.lifted_naive(**problem)

        return loss

    naive = Competitor("naive", lambda: taking(12.0))
    ours = Competitor("dmlfast-triton", lambda: taking(3.0))
    gpu = on_cpu(Gpu(0))
    product = 2 * 64 * 64 * 16
    monkeypatch.setattr(Gpu, "gemm_rate", lambda self, dtype: product / 1e-3)
    cases = harness.plan([naive, ours], [Size(64, 16)], [torch.bfloat16], gpu)
    *_, found = harness.run(BENCHMARK, cases, gpu, SETTINGS)
    rows = {row.provider: row for row in found}
    assert {name: row.median_ms for name, row in rows.items()} == pytest.approx(
        {"naive": 12, "dmlfast-triton": 3, "naive-graph": 1, "dmlfast-triton-graph": 1}
    )
    row, graph = rows["dmlfast-triton"], rows["dmlfast-triton-graph"]
    assert rows["naive"].ratio_to_dmlfast == pytest.approx(4)
    assert graph.ratio_to_dmlfast == pytest.approx(1 / 3)
    assert (row.gemm_ratio, graph.gemm_ratio) == pytest.approx((3, 1))
    assert row.tflops == pytest.approx(4 * 64 * 64 * 16 / 0.003 / 1e12)
    assert (row.machine, row.cuda, row.dtype) == ("NVIDIA H200", "13.0", "bfloat16")
    assert (row.extra_mib, graph.extra_mib) == (0, None)
    assert [row.reason for row in found] == [""] * 4
    assert harness.resume(BENCHMARK, cases, gpu, SETTINGS, found) == ([], found)


def test_table_of_a_gpu_is_named_after_it(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[Size] = []

    def run(benchmark: object, cases: list[Case], *rest: object) -> Iterator[list[Row]]:
        sizes.extend(case.size for case in cases)
        row = Row("lifted", "naive", 128, 128, "bfloat16", 1, "NVIDIA H200", cuda="13.0")
        yield [row]

    monkeypatch.setattr(harness, "run", run)
    words = ["bench", "lifted", "--csv", str(tmp_path), "--impl", "reference", "--large"]
    assert main([*words, "--dtype", "bfloat16", "--device", "cuda"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.csv"]
    assert [str(size) for size in sizes[-2:]] == ["32768x512", "1048576x128"]
