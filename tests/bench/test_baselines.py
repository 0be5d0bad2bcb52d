import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from dmlfast.bench import baselines, get_benchmark
from dmlfast.bench.benchmark import LOSS_SCALE, LeftOutError, Size, leaves, placed, step
from dmlfast.bench.harness import TOLERANCE, gradient_error, left_unchecked, relative_error, solve
from dmlfast.bench.lifted import BENCHMARK, ROWS_PER_CLASS

from dmlfast import ops

BASELINES = {
    "naive": lambda: baselines.lifted_naive,
    "indexed": lambda: baselines.lifted_indexed,
    "chunked": lambda: baselines.lifted_chunked,
    "pml": baselines.lifted_pml,
}
GENERATOR = torch.Generator().manual_seed(0)
LABELS = {
    "pairs": torch.arange(10) // 2,
    "uneven": torch.randint(0, 5, (30,), generator=GENERATOR),
    "several chunks": torch.randint(0, 90, (2 * baselines.CHUNK_ROWS + 7,), generator=GENERATOR),
    "large classes": torch.randint(-1, 2, (baselines.CHUNK_ROWS + 1,), generator=GENERATOR),
}


def reference(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ops.lifted_structured_loss(embeddings, labels, impl="reference")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", BASELINES)
def test_baseline_is_the_loss(name: str, labels: str) -> None:
    if name == "pml" and len(LABELS[labels]) > 30:
        pytest.skip("takes too much memory")
    rows = torch.randn(len(LABELS[labels]), 5, generator=GENERATOR, dtype=torch.float64)
    problem = {"embeddings": rows.requires_grad_(), "labels": LABELS[labels]}
    expected = step(reference, problem), rows.grad
    found = step(BASELINES[name](), problem), rows.grad
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["naive", "indexed", "chunked"])
def test_baseline_is_right_in_half_precision(name: str, dtype: torch.dtype) -> None:
    scale = LOSS_SCALE.get(dtype, 1.0)
    problem = placed(BENCHMARK.problem(Size(600, 32)), dtype)
    exact = placed(problem, torch.float64)
    found = solve(partial(step, BASELINES[name](), problem, scale), problem, scale)
    truth = solve(partial(step, reference, exact), exact)
    error = relative_error(found.gradients[0], truth.gradients[0])
    assert 1e-4 < error < TOLERANCE[dtype] / 4  # rounded, and not near to being rejected
    assert relative_error(found.value, truth.value) < 1e-4
    assert problem["embeddings"].grad is not None
    assert problem["embeddings"].grad.dtype == dtype


def test_half_precision_distances_have_a_safe_gradient() -> None:
    rows = torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True)
    baselines.pair_distances(rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_sampled_truth_knows_the_loss_and_the_gradient_of_some_rows() -> None:
    problem = placed(BENCHMARK.problem(Size(2000, 6)), torch.float64)
    whole = solve(partial(step, baselines.lifted_chunked, problem), problem)
    sampled = partial(baselines.lifted_chunked, sampled_chunks=2)
    found = solve(partial(step, sampled, problem), problem)
    known = ~found.gradients[0].isnan().any(1)
    assert known.sum() == 2 * baselines.CHUNK_ROWS
    assert found.value == whole.value
    assert torch.equal(found.gradients[0][known], whole.gradients[0][known])


def test_truth_is_sampled_above_a_size_only() -> None:
    assert BENCHMARK.truth(Size(2**18, 4)).keywords == {"sampled_chunks": None}
    assert BENCHMARK.truth(Size(2**18 + 1, 4)).keywords == {"sampled_chunks": 16}


def test_chunks_of_a_gpu_are_large_within_bounds() -> None:
    def rows(n: int) -> int:
        return baselines.chunk_rows(torch.empty(n, 1, device="meta"))

    assert [rows(2**15), rows(2**16), rows(2**18), rows(2**20)] == [2048, 2048, 512, 256]
    assert baselines.chunk_rows(torch.empty(2**15, 1)) == 256


@pytest.mark.long
def test_compiled_is_the_loss() -> None:
    problem = BENCHMARK.problem(Size(32, 8))
    expected = step(reference, problem), problem["embeddings"].grad
    found = step(baselines.compiled(baselines.lifted_naive), problem), problem["embeddings"].grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_problem_has_unit_rows_four_a_class() -> None:
    problem = BENCHMARK.problem(Size(64, 16))
    torch.testing.assert_close(problem["embeddings"].norm(dim=1), torch.ones(64))
    assert (problem["labels"].bincount() == ROWS_PER_CLASS).all()
    distance = torch.cdist(problem["embeddings"], problem["embeddings"])
    same = problem["labels"][:, None] == problem["labels"]
    assert distance[same].mean() < 0.8 * distance[~same].mean()


def test_memory_of_pml_is_that_of_its_pairs() -> None:
    needed = BENCHMARK.competitor("pml").memory
    assert needed is not None
    assert needed(Size(1024, 128)) == pytest.approx(66e9, rel=0.1)


@pytest.mark.parametrize("name", ["contrastive", "multi-similarity", "ntxent", "supcon", "triplet"])
def test_baselines_of_other_losses_agree_with_the_reference(name):
    """Over several chunks, and some singular classes."""
    benchmark = get_benchmark(name)
    size = Size(90 if name == "triplet" else 300, 5)
    batch = placed(benchmark.problem(size), torch.float64)
    batch["labels"][:7] = torch.arange(7) + 1000
    expected = step(benchmark.competitor("dmlfast-reference").make(), batch)
    gradient = batch["embeddings"].grad
    for competitor in benchmark.baselines:
        if not competitor.compiles:
            torch.testing.assert_close(step(competitor.make(), batch), expected)
            torch.testing.assert_close(batch["embeddings"].grad, gradient)


@pytest.mark.parametrize("name", ["boosted", "contrastive", "ntxent", "pddm", "triplet"])
def test_cuda_is_left_out_where_it_has_no_kernels(name):
    competitor = get_benchmark(name).competitor("dmlfast-cuda")
    assert "no kernels" in competitor.declines("cuda", torch.float32)
    assert get_benchmark(name).competitor("dmlfast-cpu").declines("cpu", torch.float32) is None


@pytest.mark.parametrize("n", [5, 300])
def test_ways_to_compute_the_normalised_softmax_agree(n: int) -> None:
    benchmark = get_benchmark("norm-softmax")
    problem = placed(benchmark.problem(Size(n, 6, 40)), torch.float64)
    expected = step(partial(ops.norm_softmax_loss, impl="reference"), problem)
    gradients = [leaf.grad for leaf in leaves(problem)]
    assert len(gradients) == 2
    for competitor in benchmark.baselines:
        missing = competitor.name == "linear-ce" and not hasattr(F, "linear_cross_entropy")
        if not (
            competitor.compiles
            or competitor.truth
            or missing
            or competitor.declines("cpu", torch.float64)
        ):
            torch.testing.assert_close(step(competitor.make(), problem), expected)
            torch.testing.assert_close([leaf.grad for leaf in leaves(problem)], gradients)


@pytest.mark.parametrize("name", ["cce", "liger"])
def test_peers_for_gpus_are_left_out_where_they_cannot_be(name, monkeypatch):
    competitor = get_benchmark("norm-softmax").competitor(name)
    assert competitor.declines("cpu", torch.float32) == "it runs on a GPU alone"
    assert competitor.declines("cuda", torch.bfloat16) is None
    for module in ("cut_cross_entropy", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LeftOutError, match="is not installed"):
        competitor.make()


@pytest.mark.parametrize(
    ("name", "module"), [("cce", "cut_cross_entropy"), ("liger", "liger_kernel.transformers")]
)
def test_peers_get_normalised_rows_and_weights(name, module, monkeypatch):
    def cross_entropy(x, weight, labels):
        return torch.nn.functional.cross_entropy(x @ weight.T, labels)

    stub = SimpleNamespace(
        linear_cross_entropy=cross_entropy,
        LigerFusedLinearCrossEntropyLoss=lambda: lambda w, x, y: cross_entropy(x, w, y),
    )
    monkeypatch.setitem(sys.modules, module, stub)
    benchmark = get_benchmark("norm-softmax")
    problem = placed(benchmark.problem(Size(9, 6, 40)), torch.float64)
    found = step(benchmark.competitor(name).make(), problem)
    torch.testing.assert_close(found, step(baselines.norm_softmax_naive, problem))


def test_a_sampled_softmax_is_held_to_the_classes_it_samples() -> None:
    benchmark = get_benchmark("norm-softmax")
    size = Size(5, 6, 400)
    problem = placed(benchmark.problem(size), torch.float64)
    competitor = benchmark.competitor("sampled")
    assert competitor.truth is not None
    expected = solve(partial(step, competitor.truth(size), problem), problem)
    found = solve(partial(step, competitor.make(), problem), problem)
    assert problem["weight"].grad.is_sparse
    assert int((found.gradients[1] != 0).any(1).sum()) == 40
    assert gradient_error(found, expected, 1e-9) < 1e-9
    assert not torch.isclose(found.value, step(baselines.norm_softmax_naive, problem))


@pytest.mark.parametrize("n", [9, 300])
def test_ways_to_compute_the_boosted_deviance_agree(n: int) -> None:
    benchmark = get_benchmark("boosted")
    problem = placed(benchmark.problem(Size(n, 12)), torch.float64)
    found = solve(partial(step, benchmark.dmlfast("reference").make(), problem), problem)
    for competitor in benchmark.baselines:
        if not competitor.compiles:
            other = solve(partial(step, competitor.make(), problem), problem)
            assert gradient_error(other, found, 1e-9) < 1e-9


@pytest.mark.parametrize("name", ["pddm", "pddm-anchors"])
@pytest.mark.parametrize("n", [8, 60])
def test_ways_to_compute_the_pddm_loss_agree(name: str, n: int) -> None:
    benchmark = get_benchmark(name)
    problem = placed(benchmark.problem(Size(n, 6)), torch.float64)
    found = solve(partial(step, benchmark.dmlfast("reference").make(), problem), problem)
    assert len(found.gradients) == 8
    assert found.value > 1
    for competitor in benchmark.baselines:
        other = solve(partial(step, competitor.make(), problem), problem)
        assert gradient_error(other, found, 1e-9) < 1e-9
    assert left_unchecked(found) == ""


def test_sizes_of_a_loss_over_classes_have_classes() -> None:
    benchmark = get_benchmark("norm-softmax")
    assert benchmark.parse_sizes("75x512x11318,8x4x2") == [Size(75, 512, 11318), Size(8, 4, 2)]
    assert str(Size(75, 512, 11318)) == "75x512x11318"
    with pytest.raises(ValueError, match="must be rows x width x classes, not 75x512"):
        benchmark.parse_sizes("75x512")
    with pytest.raises(ValueError, match="sizes of lifted must be rows x width, not 8x4x2"):
        get_benchmark("lifted").parse_sizes("8x4x2")
