"""Which rows are of one class, and how many pairs are: nothing waits for the host."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.triton.configs import FUSED

COUNTED = 4096  # rows up to which labels are compared with each other; above, torch sorts


@triton.jit(do_not_specialize=["n"])
def classes_kernel(labels, n, classes, counts, BM: tl.constexpr, BN: tl.constexpr):
    """For BM rows the first row of their label, and how many have it; nothing in the padding."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    label = tl.load(labels + i, mask=i < n, other=0)
    first = tl.full((BM,), 2147483647, tl.int32)
    count = tl.zeros((BM,), tl.int32)
    for start in range(0, n, BN):
        j = start + tl.arange(0, BN)
        other = tl.load(labels + j, mask=j < n, other=0)
        same = (label[:, None] == other[None, :]) & (j < n)[None, :]
        first = tl.minimum(first, tl.min(tl.where(same, j[None, :], 2147483647), 1))
        count += tl.sum(same.to(tl.int32), 1)
    tl.store(classes + i, tl.where(i < n, first, 0))
    tl.store(counts + i, tl.where(i < n, count, 0))


def classes_of(labels: torch.Tensor, padded: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(padded,) int32, a number for each class, and () int64, the pairs of one class, each row with
    itself included. ``rows`` divides ``padded``.
    """
    labels = labels.to(torch.int64).contiguous()
    n = len(labels)
    if n > COUNTED:
        ordered = labels.sort().values
        low, high = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
        classes = torch.zeros(padded, dtype=torch.int32, device=labels.device)
        classes[:n] = low
        return classes, (high - low).sum()
    classes, counts = labels.new_empty(2, padded, dtype=torch.int32)
    block = min(rows, 32)
    classes_kernel[(padded // block,)](labels, n, classes, counts, BM=block, BN=128, **FUSED)
    return classes, counts.sum()
