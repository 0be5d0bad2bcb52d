"""The lifted structured loss against the ways to write it in PyTorch."""

from functools import partial

import torch
from dmlfast.bench import baselines
from dmlfast.bench.benchmark import Benchmark, Competitor, Loss, Problem, Size

from dmlfast import ops
from dmlfast.ops import dispatch

ROWS_PER_CLASS = 4
SPREAD = 0.75  # length of the noise around a class's centre, which has length 1
FULLY_CHECKED = 2**18  # above so many rows the gradient is checked on a sample of them:
SAMPLED_CHUNKS = 16  # at even distances in the order of labels, which is a random one of rows


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


def truth(size: Size) -> Loss:
    """The loss that others are held to, with its whole gradient or that of a sample of rows."""
    sampled = SAMPLED_CHUNKS if size.n > FULLY_CHECKED else None
    return partial(baselines.lifted_chunked, sampled_chunks=sampled)


def dmlfast(impl: str) -> Competitor:
    """The op on one backend."""
    reference = impl == "reference"
    return Competitor(
        f"dmlfast-{impl}",
        partial(partial, ops.lifted_structured_loss, impl=impl),
        memory=partial(matrices, 12) if reference else None,
        largest={"cpu": 4096} if reference else {},
        declines=lambda device, dtype: dispatch.BACKENDS[impl].declines(device, dtype),
    )


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
        Competitor("chunked", lambda: baselines.lifted_chunked, largest={"cpu": 16384}),
        Competitor("pml", baselines.lifted_pml, memory=pml_memory),
    ),
    dmlfast=dmlfast,
    truth=truth,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
