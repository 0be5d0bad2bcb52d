import pytest
import torch
from dmlfast.bench import baselines
from dmlfast.bench.benchmark import Size, step
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
