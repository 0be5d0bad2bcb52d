"""The boosted deviance of three learners against the ways to write it in PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from dmlfast.bench import batches
from dmlfast.bench.baselines import CHUNK_ROWS, compiled, wide
from dmlfast.bench.benchmark import Benchmark, Competitor, Loss
from dmlfast.bench.sizes import Size, Sizes

from dmlfast import ops
from dmlfast.ops.boosted import group_sizes

LEARNERS = 3
SIZES = {
    "cpu": Sizes("256x512,4096x512", "256x512", "32768x512"),
    "cuda": Sizes("4096x512,32768x512", "4096x512", "131072x512"),
}


def ours(impl: str) -> Competitor:
    """The op on one backend."""

    def loss(embeddings: torch.Tensor, labels: torch.Tensor, impl: str) -> torch.Tensor:
        groups = group_sizes(embeddings.shape[1], LEARNERS)
        return ops.boosted_deviance_loss(embeddings, labels, groups, impl=impl)

    return batches.dmlfast(loss, impl, without=("cuda",), memory=30)


def naive(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As the formulas read, on matrices of all pairs."""
    same, one = labels[:, None] == labels, wide(embeddings).new_ones(())
    share = torch.where(same, one / same.sum(), one / (~same).sum()).fill_diagonal_(0)
    slope = torch.where(same, 2.0, -50.0).to(share.dtype)
    weight, carry = torch.ones_like(slope), torch.zeros_like(slope)
    total = slope.new_zeros(())
    for m, x in enumerate(learners(embeddings), start=1):
        z = slope * (x @ x.T - 0.5)
        total = total + (share * weight * F.softplus(-z)).sum() / LEARNERS
        carry = carry + 2 / (m + 1) * (z.detach() - carry)
        weight = torch.sigmoid(-carry)
    return total


def learners(embeddings: torch.Tensor) -> list[torch.Tensor]:
    """The rows of each learner at length 1."""
    groups = group_sizes(embeddings.shape[1], LEARNERS)
    parts = wide(embeddings).split(groups, dim=1)
    return [F.normalize(part, eps=1e-5) for part in parts]


class _Chunked(torch.autograd.Function):
    """The same, loss and gradient together, 256 rows with all at a time."""

    @staticmethod
    def forward(ctx: Any, labels: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        counts = torch.unique(labels, return_counts=True)[1]
        pairs = counts.square().sum()
        one = parts[0].new_ones(())
        same_share, different_share = one / pairs, one / (len(labels) ** 2 - pairs)
        gradients, total = [torch.zeros_like(x) for x in parts], parts[0].new_zeros(())
        for rows in torch.arange(len(labels), device=labels.device).split(CHUNK_ROWS):
            same = labels[rows, None] == labels
            weight = torch.where(same, same_share, different_share) / LEARNERS
            weight[torch.arange(len(rows)), rows] = 0
            slope = torch.where(same, 2.0, -50.0).to(weight.dtype)
            share, carry = weight, torch.zeros_like(weight)
            for m, x in enumerate(parts, start=1):
                z = (x[rows] @ x.T).sub_(0.5).mul_(slope)
                total += (weight * F.softplus(-z)).sum()
                slopes = torch.sigmoid(-z).mul_(slope).mul_(weight).neg_()
                gradients[m - 1].addmm_(slopes.T, x[rows], alpha=2)
                carry.lerp_(z, 2 / (m + 1))
                weight = torch.sigmoid(-carry).mul_(share)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *(gradient * grads[0] for gradient in ctx.gradients)


def chunked(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The best that plain PyTorch allows: one pass over 256 rows with all at a time."""
    total: torch.Tensor = _Chunked.apply(labels, *learners(embeddings))
    return total


def matrices(size: Size) -> float:
    """Bytes of what the naive form keeps for its gradient."""
    return batches.matrices(6 * LEARNERS, size)


NAIVE: Loss = naive
BENCHMARK = Benchmark(
    name="boosted",
    problem=batches.problem,
    baselines=(
        Competitor("naive", lambda: NAIVE, memory=matrices),
        Competitor("compiled", lambda: compiled(NAIVE), memory=matrices, compiles=True),
        Competitor("chunked", lambda: chunked),
    ),
    dmlfast=ours,
    truth=lambda size: chunked,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
    sizes=SIZES,
)
