"""The boosted triplet loss and its gradient, a block of anchors at a time in PyTorch.

Whether a triplet weighs depends on two scores, so that no pass over tiles of pairs serves it.
"""

from collections.abc import Sequence

import torch

from dmlfast.ops.boosted.settings import SHORTEST, learners_of, shrinkage
from dmlfast.ops.numerics import computed, pair_products

BLOCK_ENTRIES = 2**18  # anchors x columns at a time, 1 MiB;
GPU_BLOCK_ENTRIES = 2**24  # a GPU wants more work a launch


def losses_and_gradient(
    rows: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[int],
    margin: float,
    boosting: str,
    want: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(M,) the loss of each learner, and the gradient of their sum for rows, (N, D), where wanted.

    On a GPU the host waits for the size of the largest class.
    """
    N = len(rows)
    ordered, order = labels.long().sort(stable=True)  # torch seeks in no unsigned integers
    first = torch.searchsorted(ordered, ordered)
    size = torch.searchsorted(ordered, ordered, right=True) - first
    place = torch.arange(N, device=rows.device) - first
    largest = int(size.max()) if N else 0
    learners = learners_of(rows[order], groups)
    share = 1 / ((size - 1) * (N - size)).sum().clamp_min(1).to(learners[0].dtype) / len(groups)
    losses = share.new_zeros(len(groups), dtype=torch.float64)
    gradients = [torch.zeros_like(x) for x in learners]
    entries = GPU_BLOCK_ENTRIES if rows.is_cuda else BLOCK_ENTRIES
    for anchors in torch.arange(N, device=rows.device).split(max(1, entries // max(N, 1))):
        negative = ordered[anchors, None] != ordered
        carry = None
        for m, x in enumerate(learners):
            s = pair_products(x[anchors], x)
            weights = torch.zeros_like(s)
            for step in range(1, largest):
                other = step < size[anchors]
                positive = first[anchors] + (place[anchors] + step) % size[anchors]
                counts = negative & other[:, None]
                if carry is not None:
                    counts &= _hinge(carry, positive, margin) > 0
                hinge = _hinge(s, positive, margin)
                counts &= hinge > 0
                losses[m] += torch.where(counts, hinge, 0).sum(dtype=torch.float64)
                weights += counts
                weights.scatter_add_(1, positive[:, None], -counts.sum(1, keepdim=True).to(s.dtype))
            if want:
                gradients[m][anchors] += pair_products(weights, x.T)
                gradients[m] += pair_products(weights.T, x[anchors].T)
            if boosting != "none":
                eta = shrinkage(m + 1)
                carry = eta * s if carry is None else (1 - eta) * carry + eta * s
    d_rows = None
    if want:
        d_rows = torch.empty_like(rows, dtype=share.dtype, memory_format=torch.contiguous_format)
        d_rows[order] = through_norms(rows[order], torch.cat(gradients, 1) * share, groups)
    return (losses * share).to(share.dtype), d_rows


def _hinge(s: torch.Tensor, positive: torch.Tensor, margin: float) -> torch.Tensor:
    """(A, N) of the scores of anchors with all columns, one positive column each."""
    return s - s.gather(1, positive[:, None]) + margin


def through_norms(
    rows: torch.Tensor, gradient: torch.Tensor, groups: Sequence[int]
) -> torch.Tensor:
    """The gradient of rows (N, D) from that of the rows of each learner at length 1."""
    parts = []
    sizes = list(groups)
    for x, g in zip(computed(rows).split(sizes, 1), gradient.split(sizes, 1), strict=True):
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        inverse = 1 / norm.clamp_min(SHORTEST)
        unit = x * inverse
        turned = g - (g * unit).sum(1, keepdim=True) * unit
        parts.append(torch.where(norm > SHORTEST, turned, g) * inverse)
    return torch.cat(parts, 1)
