"""What the benchmarks of pair losses share: a batch, and dmlfast's ops as competitors."""

from collections.abc import Callable
from functools import partial

import torch
from dmlfast.bench.benchmark import Competitor, Problem, Size

from dmlfast.ops import dispatch

ROWS_PER_CLASS = 4
SPREAD = 0.75  # length of the noise around a class's centre, which has length 1


def problem(size: Size) -> Problem:
    """Unit-norm rows scattered around the centres of their classes, in random order."""
    n, d, _ = size
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(n) // ROWS_PER_CLASS)[torch.randperm(n, generator=generator)]
    normalize = torch.nn.functional.normalize
    centres = normalize(torch.randn(n // ROWS_PER_CLASS + 1, d, generator=generator))
    noise = torch.randn(n, d, generator=generator) * (SPREAD / d**0.5)
    return {"embeddings": normalize(centres[labels] + noise).requires_grad_(), "labels": labels}


def matrices(count: float, size: Size) -> float:
    """Bytes of so many float32 matrices N x N."""
    return count * 4 * size.n**2


def positives_by_all(count: float, size: Size) -> float:
    """Bytes of so many float32 matrices of positive pairs x N."""
    return (min(ROWS_PER_CLASS, size.n) - 1) * matrices(count, size)


def dmlfast(
    op: Callable[..., torch.Tensor], impl: str, without: tuple[str, ...] = (), memory: float = 12
) -> Competitor:
    """An op on one backend; ``without``: those that have no kernels for it. ``memory``: matrices
    N x N that the reference takes.
    """
    reference = impl == "reference"

    def declines(device: str, dtype: torch.dtype) -> str | None:
        if impl in without:
            return "it has no kernels for it"
        return dispatch.BACKENDS[impl].declines(device, dtype)

    return Competitor(
        f"dmlfast-{impl}",
        partial(partial, op, impl=impl),
        memory=partial(matrices, memory) if reference else None,
        largest={"cpu": 4096} if reference else {},
        declines=declines,
    )
