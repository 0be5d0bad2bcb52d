"""Losses over the cosines of all pairs, and what one would write without dmlfast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from dmlfast.bench.baselines import by_chunks, compiled, others, pytorch_metric_learning, wide
from dmlfast.bench.batches import dmlfast, matrices, problem
from dmlfast.bench.benchmark import Benchmark, Competitor, Loss, Size

from dmlfast.losses import PairLoss

# Of cosines (B, N) of some rows, and which pairs are positive and which negative: the losses of
# these rows, (B,), and for how many each counts in the mean.
Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def supcon(
    cosines: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The supervised contrastive loss at a temperature of 0.1."""
    scores = cosines / 0.1
    everyone = scores.masked_fill(~(positive | negative), -torch.inf).logsumexp(1)
    count = positive.sum(1)
    alike = scores.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    return (everyone - alike).masked_fill(count == 0, 0), count > 0


def ntxent(
    cosines: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of NT-Xent over the positive pairs of a row, at a temperature of 0.07."""
    scores = cosines / 0.07
    push = scores.masked_fill(~negative, -torch.inf).logsumexp(1)
    terms = F.softplus(push[:, None] - scores).masked_fill(~positive, 0)
    return terms.sum(1), positive.sum(1)


def multi_similarity(
    cosines: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The multi-similarity loss with an alpha of 2, a beta of 50 and a base of 0.5."""
    pull = (-2 * (cosines - 0.5)).masked_fill(~positive, -torch.inf).logsumexp(1)
    push = (50 * (cosines - 0.5)).masked_fill(~negative, -torch.inf).logsumexp(1)
    return F.softplus(pull) / 2 + F.softplus(push) / 50, torch.ones_like(pull, dtype=torch.bool)


def naive(embeddings: torch.Tensor, labels: torch.Tensor, formula: Formula) -> torch.Tensor:
    """A loss as its formula reads, on matrices of all pairs."""
    losses, counts = _of_rows(F.normalize(embeddings), labels, slice(0, len(labels)), formula)
    return losses.sum() / counts.sum().clamp_min(1)


def chunked(embeddings: torch.Tensor, labels: torch.Tensor, formula: Formula) -> torch.Tensor:
    """The same some rows at a time, which are computed again for the gradient."""
    unit = F.normalize(embeddings)

    def part(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        losses, counts = _of_rows(unit, labels, rows, formula)
        return losses.sum(), counts.sum()

    losses, counts = zip(*by_chunks(unit, part), strict=True)
    return torch.stack(losses).sum() / torch.stack(counts).sum().clamp_min(1)


def _of_rows(
    unit: torch.Tensor, labels: torch.Tensor, rows: slice, formula: Formula
) -> tuple[torch.Tensor, torch.Tensor]:
    same = labels[rows, None] == labels
    return formula(wide(unit[rows] @ unit.T), others(same, rows.start), ~same)


def a_dozen_matrices(size: Size) -> float:
    """Bytes of what pytorch-metric-learning makes of a loss over pairs."""
    return matrices(13, size)


def benchmark(
    name: str,
    formula: Formula,
    module: Callable[..., PairLoss],
    pml: str,
    pml_memory: Callable[[Size], float] = a_dozen_matrices,
    without: tuple[str, ...] = (),
) -> Benchmark:
    """Of a loss that its formula gives the rows, and the modules that compute it here and in
    pytorch-metric-learning.

    ``pml_memory``: the bytes that the latter takes. ``without``: the backends of dmlfast that have
    no kernels for it.
    """

    def own(embeddings: torch.Tensor, labels: torch.Tensor, impl: str) -> torch.Tensor:
        loss: torch.Tensor = module(impl=impl)(embeddings, labels)
        return loss

    def written(way: Callable[..., torch.Tensor]) -> Any:
        return partial(way, formula=formula)

    def truth(size: object) -> Loss:
        loss: Loss = written(chunked)
        return loss

    return Benchmark(
        name=name,
        problem=problem,
        baselines=(
            Competitor("naive", lambda: written(naive), memory=partial(matrices, 6.5)),
            Competitor(
                "compiled",
                lambda: compiled(written(naive)),
                memory=partial(matrices, 1.5),
                compiles=True,
            ),
            Competitor("chunked", lambda: written(chunked), largest={"cpu": 16384}),
            Competitor("pml", lambda: pytorch_metric_learning(pml), memory=pml_memory),
        ),
        dmlfast=partial(dmlfast, own, without=without),
        truth=truth,
        product_flops=lambda size: 2.0 * size.n**2 * size.d,
    )
