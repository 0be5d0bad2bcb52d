"""What one would write without dmlfast, each as well as it can be written."""

from typing import Any

import torch
from dmlfast.bench.benchmark import LeftOutError, Loss

CHUNK_ROWS = 256  # the time is flat from 128 to 512


def compiled(loss: Loss) -> Loss:
    """`torch.compile` of a loss, for one size."""
    torch.compiler.reset()
    return torch.compile(loss, dynamic=False)


def lifted_naive(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The lifted structured loss as its formula reads, on matrices of all pairs."""
    distance = torch.cdist(embeddings, embeddings)  # by a matrix product, with a safe gradient
    same = labels[:, None] == labels
    negative = (margin - distance).masked_fill(same, -torch.inf).logsumexp(1)  # L
    joint = torch.logaddexp(negative[:, None], negative) + distance  # J
    positive = same.triu(1)
    hinge = joint.relu().masked_fill(~positive, 0)
    return hinge.square().sum() / (2 * positive.sum().clamp_min(1))


def lifted_indexed(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The same with the positive pairs picked by index, of which there are few."""
    distance = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    negative = (margin - distance).masked_fill(same, -torch.inf).logsumexp(1)
    i, j = same.triu(1).nonzero(as_tuple=True)
    joint = torch.logaddexp(negative[i], negative[j]) + distance[i, j]
    return joint.relu().square().sum() / (2 * max(len(i), 1))


def lifted_chunked(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The same with no matrix larger than `CHUNK_ROWS` x N: distances are computed twice.

    Rows are ordered by label, so that the positives of a chunk stand in a narrow band. Values of L
    must span less than 80: a weight costs one exponential.
    """
    labels, order = labels.sort()
    x = embeddings[order]
    chunks = _chunks(labels)
    positives = [
        torch.stack((i + rows.start, j + band.start))
        for rows, band, same in chunks
        for i, j in [same.triu(rows.start - band.start + 1).nonzero(as_tuple=True)]
    ]
    i, j = torch.cat(positives, 1)
    negative = _ChunkedLogSumExp.apply(x, chunks, margin)
    distance = torch.linalg.vector_norm(x[i] - x[j], dim=1)
    joint = torch.logaddexp(negative[i], negative[j]) + distance
    return joint.relu().square().sum() / (2 * max(len(i), 1))


Chunk = tuple[slice, slice, torch.Tensor]


def _chunks(labels: torch.Tensor) -> list[Chunk]:
    """Rows, the columns that hold all of their classes, and which of these pairs are of one class.

    `labels` are sorted.
    """
    chunks = []
    for first in range(0, len(labels), CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, len(labels)) - 1
        start = torch.searchsorted(labels, labels[first])
        end = torch.searchsorted(labels, labels[last], right=True)
        rows, band = slice(first, last + 1), slice(int(start), int(end))
        chunks.append((rows, band, labels[rows, None] == labels[band]))
    return chunks


class _ChunkedLogSumExp(torch.autograd.Function):
    """L_i = logsumexp over negatives j of (margin - D_ij)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, chunks: list[Chunk], margin: float) -> torch.Tensor:
        norms = x.square().sum(1)
        result = torch.empty_like(norms)
        buffer = x.new_empty(CHUNK_ROWS, len(x))
        for rows, band, same in chunks:
            distance = _distances(x, norms, rows, buffer)
            distance[:, band].masked_fill_(same, torch.inf)
            nearest = distance.amin(1)
            terms = torch.sub(nearest[:, None], distance, out=distance).exp_()
            result[rows] = terms.sum(1).log_() - nearest
        result += margin
        ctx.save_for_backward(x, norms, result)
        ctx.chunks, ctx.margin = chunks, margin
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Row i and column i have one L_i, so that a weight serves both: no sum over columns."""
        x, norms, result = ctx.saved_tensors
        least = result.min()
        share = grad * torch.exp(least - result)
        d_x = torch.empty_like(x)
        distances, buffer = x.new_empty(2, CHUNK_ROWS, len(x))
        for rows, band, same in ctx.chunks:
            distance = _distances(x, norms, rows, distances)
            weight = torch.sub(ctx.margin - least, distance, out=buffer[: len(distance)])
            weight.exp_().div_(distance)
            weight[:, band].masked_fill_(same, 0)
            weight.mul_(torch.add(share[rows, None], share, out=distance))
            torch.mm(weight, x, out=d_x[rows])
            d_x[rows] -= weight.sum(1, keepdim=True) * x[rows]
        return d_x, None, None


def _distances(
    x: torch.Tensor, norms: torch.Tensor, rows: slice, out: torch.Tensor
) -> torch.Tensor:
    """The distances of some rows from all, in the buffer `out`."""
    distance = torch.addmm(norms, x[rows], x.T, alpha=-2, out=out[: rows.stop - rows.start])
    return distance.add_(norms[rows, None]).clamp_min_(1e-12).sqrt_()


def lifted_pml() -> Loss:
    """The lifted structured loss of pytorch-metric-learning."""
    try:
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import LiftedStructureLoss
    except ImportError:
        raise LeftOutError("pytorch-metric-learning is not installed") from None
    loss: Loss = LiftedStructureLoss(
        neg_margin=1, pos_margin=0, distance=LpDistance(normalize_embeddings=False)
    )
    return loss
