"""Rows at length 1, and gradients through that, in float32."""

import torch

from dmlfast.ops.numerics import TINY, through_norm

CHUNK_BYTES = 8 << 20  # of float32 rows that are brought to length 1 at a time
GPU_CHUNK_BYTES = 64 << 20  # where a launch takes longer than so many rows


def units(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows at length 1 (N, D), and 1 / length (N, 1); both 0 for a row of zeros."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_min_(TINY)
    scaled = rows / largest
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    inverse = norm.reciprocal().masked_fill_(norm == 0, 0)
    return scaled.mul_(inverse), inverse.div_(largest)


def sum_of_units(weight: torch.Tensor, low_memory: bool) -> torch.Tensor:
    """(D,) the sum of all classes (C, D) at length 1."""
    large = weight.is_cuda and not low_memory
    count = _at_a_time(weight, GPU_CHUNK_BYTES if large else CHUNK_BYTES)
    return torch.stack([units(part.float())[0].sum(0) for part in weight.split(count)]).sum(0)


def add_to_all(d_weight: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
    """Adds to the gradient of classes (C, D) that of a gradient (D,) of each at length 1."""
    count = _at_a_time(weight, CHUNK_BYTES)
    for out, part in zip(d_weight.split(count), weight.split(count), strict=True):
        out += through_norm(gradient.expand(part.shape), *units(part.float()))


def _at_a_time(rows: torch.Tensor, size: int) -> int:
    return max(1, size // (4 * rows.shape[1]))
