"""Rows at length 1 in plain PyTorch."""

import torch

from dmlfast.ops.numerics import computed


def normalize(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, D) divided by their lengths, in their dtype."""
    wide = computed(rows)
    least = torch.finfo(wide.dtype).tiny
    # a unit does not depend on what the row is divided by first, so that has no gradient
    scaled = wide / wide.detach().abs().amax(1, keepdim=True).clamp_min(least)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)  # below 1 only of no length
    units = torch.where(length < 1, 0, scaled / length.clamp_min(1))
    return units.to(rows.dtype).contiguous()
