"""What one would write without dmlfast, each as well as it can be written."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from dmlfast.bench.benchmark import LeftOutError, Loss
from torch.utils.checkpoint import checkpoint

CHUNK_ROWS = 256  # on the CPU the time is flat from 128 to 512
GPU_CHUNK_ROWS = 2048  # a GPU wants more work a launch,
GPU_CHUNK_ENTRIES = 2**27  # in buffers of at most so many entries
NO_PML = "pytorch-metric-learning is not installed"
TINY = 1e-12  # a squared distance whose root has a finite gradient


def compiled(loss: Loss) -> Loss:
    """`torch.compile` of a loss, for each size."""
    return torch.compile(loss, dynamic=False)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pair_distances(x: torch.Tensor) -> torch.Tensor:
    """(N, N) distances of all rows, by a matrix product, with a safe gradient.

    torch.cdist takes no half precision; there the product is taken in it, and the rest in float32.
    """
    if x.dtype in (torch.float32, torch.float64):
        return torch.cdist(x, x)
    norms = x.float().square().sum(1)
    squared = torch.sub(norms[:, None] + norms, x @ x.T, alpha=2)  # in float32
    return squared.clamp_min(TINY).sqrt()


def lifted_naive(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The lifted structured loss as its formula reads, on matrices of all pairs."""
    distance = pair_distances(embeddings)
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
    distance = pair_distances(embeddings)
    same = labels[:, None] == labels
    negative = (margin - distance).masked_fill(same, -torch.inf).logsumexp(1)
    i, j = same.triu(1).nonzero(as_tuple=True)
    joint = torch.logaddexp(negative[i], negative[j]) + distance[i, j]
    return joint.relu().square().sum() / (2 * max(len(i), 1))


def lifted_chunked(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    margin: float = 1.0,
    sampled_chunks: int | None = None,
) -> torch.Tensor:
    """The same with no matrix larger than `chunk_rows` x N: distances are computed twice.

    Rows are ordered by label, so that the positives of a chunk stand in a narrow band. Values of L
    must span less than 80: a weight costs one exponential. With `sampled_chunks`, the gradient of
    so many chunks is computed, at even distances, and is NaN in all other rows.
    """
    labels, order = labels.sort()
    x = embeddings[order]
    chunks = _chunks(labels, chunk_rows(x))
    sample = chunks[:: max(1, len(chunks) // (sampled_chunks or len(chunks)))]
    positives = [
        torch.stack((i + rows.start, j + band.start))
        for rows, band, same in chunks
        for i, j in [same.triu(rows.start - band.start + 1).nonzero(as_tuple=True)]
    ]
    i, j = torch.cat(positives, 1)
    negative = _ChunkedLogSumExp.apply(x, chunks, sample, margin)
    distance = torch.linalg.vector_norm(wide(x[i]) - wide(x[j]), dim=1)
    joint = torch.logaddexp(negative[i], negative[j]) + distance
    return joint.relu().square().sum() / (2 * max(len(i), 1))


def chunk_rows(x: torch.Tensor) -> int:
    """How many rows are compared with all at a time."""
    if x.device.type == "cpu":
        return CHUNK_ROWS
    return max(CHUNK_ROWS, min(GPU_CHUNK_ROWS, GPU_CHUNK_ENTRIES // len(x)))


Chunk = tuple[slice, slice, torch.Tensor]


def _chunks(labels: torch.Tensor, count: int) -> list[Chunk]:
    """`count` rows, the columns that hold all of their classes, and which of these pairs are of one
    class.

    `labels` are sorted.
    """
    chunks = []
    for first in range(0, len(labels), count):
        last = min(first + count, len(labels)) - 1
        start = torch.searchsorted(labels, labels[first])
        end = torch.searchsorted(labels, labels[last], right=True)
        rows, band = slice(first, last + 1), slice(int(start), int(end))
        chunks.append((rows, band, labels[rows, None] == labels[band]))
    return chunks


class _ChunkedLogSumExp(torch.autograd.Function):
    """L_i = logsumexp over negatives j of (margin - D_ij)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, chunks: list[Chunk], sample: list[Chunk], margin: float
    ) -> torch.Tensor:
        norms = wide(x).square().sum(1)
        result = torch.empty_like(norms)
        buffer = norms.new_empty(chunk_rows(x), len(x))
        for rows, band, same in chunks:
            distance = _distances(x, norms, rows, buffer)
            distance[:, band].masked_fill_(same, torch.inf)
            nearest = distance.amin(1)
            terms = torch.sub(nearest[:, None], distance, out=distance).exp_()
            result[rows] = terms.sum(1).log_() - nearest
        result += margin
        ctx.save_for_backward(x, norms, result)
        ctx.chunks, ctx.margin = sample, margin
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Row i and column i have one L_i, so that a weight serves both: no sum over columns."""
        x, norms, result = ctx.saved_tensors
        least = result.min()
        share = grad * torch.exp(least - result)
        d_x = torch.full_like(x, torch.nan)
        distances, buffer = norms.new_empty(2, chunk_rows(x), len(x))
        for rows, band, same in ctx.chunks:
            distance = _distances(x, norms, rows, distances)
            weight = torch.sub(ctx.margin - least, distance, out=buffer[: len(distance)])
            weight.exp_().div_(distance)
            weight[:, band].masked_fill_(same, 0)
            weight.mul_(torch.add(share[rows, None], share, out=distance))
            torch.mm(weight.to(x.dtype), x, out=d_x[rows])
            d_x[rows] -= weight.sum(1, keepdim=True) * x[rows]
        return d_x, None, None, None


def _distances(
    x: torch.Tensor, norms: torch.Tensor, rows: slice, out: torch.Tensor
) -> torch.Tensor:
    """The distances of some rows from all, in the buffer `out`."""
    out = out[: rows.stop - rows.start]
    if x.dtype == out.dtype:
        distance = torch.addmm(norms, x[rows], x.T, alpha=-2, out=out)
    else:
        distance = torch.sub(norms, x[rows] @ x.T, alpha=2, out=out)
    return distance.add_(norms[rows, None]).clamp_min_(TINY).sqrt_()


Sums = tuple[torch.Tensor, torch.Tensor]  # of hinges, and how many are above 0


def mean_above(hinges: Sums) -> torch.Tensor:
    """The mean of hinges over those above 0."""
    return hinges[0] / hinges[1].clamp_min(1)


def total(hinge: torch.Tensor) -> Sums:
    return hinge.sum(), (hinge > 0).sum()


def contrastive_naive(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The contrastive loss as its formula reads, on matrices of all pairs."""
    distance = pair_distances(embeddings)
    same = labels[:, None] == labels
    positive = distance.masked_fill(~others(same), 0)
    negative = (margin - distance).relu().masked_fill(same, 0)
    return mean_above(total(positive)) + mean_above(total(negative))


def contrastive_chunked(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """The same some rows at a time, which are computed again for the gradient."""

    def part(rows: slice) -> tuple[Sums, Sums]:
        distance = _distances_from(embeddings, rows)
        same = labels[rows, None] == labels
        positive = distance.masked_fill(~others(same, rows.start), 0)
        return total(positive), total((margin - distance).relu().masked_fill(same, 0))

    positive, negative = zip(*by_chunks(embeddings, part), strict=True)
    return mean_above(_added(positive)) + mean_above(_added(negative))


def triplet_naive(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 0.2
) -> torch.Tensor:
    """The triplet loss as its formula reads, on a tensor of all triplets."""
    distance = pair_distances(embeddings)
    same = labels[:, None] == labels
    hinge = (distance[:, :, None] - distance[:, None, :] + margin).relu()
    triplets = others(same)[:, :, None] & ~same[:, None, :]
    return mean_above(total(hinge.masked_fill(~triplets, 0)))


def triplet_indexed(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 0.2
) -> torch.Tensor:
    """The same with the positive pairs picked by index, of which there are few."""
    return mean_above(_triplets(pair_distances(embeddings), labels, slice(None), margin))


def triplet_chunked(
    embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 0.2
) -> torch.Tensor:
    """The same some anchors at a time, which are computed again for the gradient."""

    def part(rows: slice) -> Sums:
        return _triplets(_distances_from(embeddings, rows), labels, rows, margin)

    return mean_above(_added(by_chunks(embeddings, part)))


def _triplets(distance: torch.Tensor, labels: torch.Tensor, rows: slice, margin: float) -> Sums:
    """Of the anchors ``rows``, whose distances from all rows are given."""
    same = labels[rows, None] == labels
    a, p = others(same, rows.start or 0).nonzero(as_tuple=True)
    hinge = (distance[a, p][:, None] - distance[a] + margin).relu()
    return total(hinge.masked_fill(same[a], 0))


def others(same: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Pairs of one class without those of a row and itself; ``same`` begins with row ``first``."""
    positive = same.clone()
    positive.diagonal(first).fill_(False)
    return positive


def _distances_from(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """(B, N) distances of some rows from all, 0 from themselves."""
    x = wide(x)
    return torch.cdist(x[rows], x)


def by_chunks(x: torch.Tensor, part: Any) -> list[Any]:
    """What a function of a slice gives for some rows after the other, computed again for the
    gradient.
    """
    step = chunk_rows(x)
    chunks = [slice(first, min(first + step, len(x))) for first in range(0, len(x), step)]
    return [checkpoint(part, rows, use_reentrant=False) for rows in chunks]


def _added(parts: Any) -> Sums:
    sums, counts = zip(*parts, strict=True)
    return torch.stack(sums).sum(), torch.stack(counts).sum()


def lifted_pml() -> Loss:
    """The lifted structured loss of pytorch-metric-learning."""
    return _of_distances("LiftedStructureLoss", neg_margin=1, pos_margin=0)


def contrastive_pml() -> Loss:
    """The contrastive loss of pytorch-metric-learning."""
    return _of_distances("ContrastiveLoss", neg_margin=1, pos_margin=0)


def triplet_pml() -> Loss:
    """The triplet loss of pytorch-metric-learning."""
    return _of_distances("TripletMarginLoss", margin=0.2)


def _of_distances(name: str, **options: float) -> Loss:
    try:
        from pytorch_metric_learning.distances import LpDistance
    except ImportError:
        raise LeftOutError(NO_PML) from None
    return pytorch_metric_learning(name, distance=LpDistance(normalize_embeddings=False), **options)


def pytorch_metric_learning(name: str, **options: Any) -> Loss:
    """A loss of pytorch-metric-learning by its name there."""
    try:
        from pytorch_metric_learning import losses
    except ImportError:
        raise LeftOutError(NO_PML) from None
    loss: Loss = getattr(losses, name)(**options)
    return loss


def norm_softmax_naive(
    embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float = 0.05
) -> torch.Tensor:
    """The normalised softmax on the matrix of all logits."""
    logits = F.normalize(wide(embeddings)) @ F.normalize(wide(weight)).T / temperature
    return F.cross_entropy(logits, labels)


def norm_softmax_linear() -> Loss:
    """torch's own fusion of the product with the cross-entropy, on normalised rows."""
    if not hasattr(F, "linear_cross_entropy"):
        raise LeftOutError("torch has it from 2.13 on")

    def loss(
        embeddings: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        temperature: float = 0.05,
    ) -> torch.Tensor:
        x = F.normalize(wide(embeddings)) / temperature
        value: torch.Tensor = F.linear_cross_entropy(x, F.normalize(wide(weight)), labels)
        return value

    return loss


def norm_softmax_cce() -> Loss:
    """Apple's cut cross-entropy, on normalised rows: fused, in Triton, without logits."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        raise LeftOutError("cut-cross-entropy is not installed") from None
    return _with_normalisation(linear_cross_entropy)


def norm_softmax_liger() -> Loss:
    """Liger's fused linear cross-entropy, on normalised rows: logits a chunk at a time."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise LeftOutError("liger-kernel is not installed") from None
    loss = LigerFusedLinearCrossEntropyLoss()
    return _with_normalisation(lambda x, weight, labels: loss(weight, x, labels))


def _with_normalisation(cross_entropy: Loss) -> Loss:
    """A cross-entropy of rows and weights in their dtype, which it knows tensor cores for."""

    def loss(
        embeddings: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        temperature: float = 0.05,
    ) -> torch.Tensor:
        x = (F.normalize(wide(embeddings)) / temperature).to(embeddings.dtype)
        return cross_entropy(x, F.normalize(wide(weight)).to(weight.dtype), labels)

    return loss


class _ChunkedSoftmax(torch.autograd.Function):
    """The sum of cross-entropies of rows with weights, gradients with it, 256 rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        d_x, d_w, total = torch.empty_like(x), torch.zeros_like(w), x.new_zeros(())
        for start in range(0, len(x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = x[rows] @ w.T
            own = labels[rows, None]
            top = logits.logsumexp(1, keepdim=True)
            total += (top - logits.gather(1, own)).sum()
            weights = logits.sub_(top).exp_()
            weights.scatter_add_(1, own, weights.new_full(own.shape, -1.0))
            d_x[rows] = weights @ w
            d_w.addmm_(weights.T, x[rows])
        ctx.save_for_backward(d_x, d_w)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        d_x, d_w = ctx.saved_tensors
        return d_x * grads[0], d_w * grads[0], None


def norm_softmax_chunked(
    embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float = 0.05
) -> torch.Tensor:
    """The best that plain PyTorch allows: never all logits, three products."""
    x = F.normalize(wide(embeddings)) / temperature
    total: torch.Tensor = _ChunkedSoftmax.apply(x, F.normalize(wide(weight)), labels)
    return total / len(labels)
