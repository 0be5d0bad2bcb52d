"""The lifted structured loss against the ways to write it in PyTorch."""

from functools import partial

import torch
from dmlfast.bench import baselines
from dmlfast.bench.benchmark import Benchmark, Competitor, Problem, Size

from dmlfast import ops

ROWS_PER_CLASS = 4
SPREAD = 0.75  # length of the noise around a class's centre, which has length 1


def problem(size: Size) -> Problem:
    """Unit-norm rows scattered around the centres of their classes, in random order."""
    n, d = size
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(n) // ROWS_PER_CLASS)[torch.randperm(n, generator=generator)]
    normalize = torch.nn.functional.normalize
    centres = normalize(torch.randn(n // ROWS_PER_CLASS + 1, d, generator=generator))
    noise = torch.randn(n, d, generator=generator) * (SPREAD / d**0.5)
    return {"embeddings": normalize(centres[labels] + noise).requires_grad_(), "labels": labels}


def matrices(count: float, size: Size) -> float:
    """Bytes of so many float32 matrices N x N."""
    return count * 4 * size.n**2


def pml_memory(size: Size) -> float:
    """Bytes of its tensors of positive pairs x negative pairs: 22 for an entry, measured."""
    n, m = size.n, min(ROWS_PER_CLASS, size.n)
    return 22.0 * (n * (m - 1)) * (n * (n - m))


def dmlfast(impl: str) -> Competitor:
    """The op on one backend."""
    make = partial(partial, ops.lifted_structured_loss, impl=impl)
    if impl == "reference":
        return Competitor("dmlfast-reference", make, memory=partial(matrices, 12), largest=4096)
    return Competitor(f"dmlfast-{impl}", make)


BENCHMARK = Benchmark(
    name="lifted",
    problem=problem,
    baselines=(
        Competitor("naive", lambda: baselines.lifted_naive, memory=partial(matrices, 8.5)),
        Competitor(
            "compiled",
            lambda: baselines.compiled(baselines.lifted_naive),
            memory=partial(matrices, 4),
            compiles=True,
        ),
        Competitor("indexed", lambda: baselines.lifted_indexed, memory=partial(matrices, 6.5)),
        Competitor("chunked", lambda: baselines.lifted_chunked, largest=16384),
        Competitor("pml", baselines.lifted_pml, memory=pml_memory),
    ),
    dmlfast=dmlfast,
    truth=baselines.lifted_chunked,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
