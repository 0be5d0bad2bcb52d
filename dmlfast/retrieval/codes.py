"""Binary embeddings: the signs of the components, eight to a byte."""

import numpy as np
import torch

from dmlfast.retrieval.arrays import Array


def binarize(embeddings: Array) -> np.ndarray:
    """Packs the signs of embeddings into bits.

    embeddings: (N, D) finite floats. A bit is 1 where the component is > 0, so 0 for an exact zero.
    Returns (N, ceil(D / 8)) uint8 as `numpy.packbits` lays bits out: component 0 is the most
    significant bit of byte 0, and the bits of the last byte beyond D are 0.

    Raises ValueError where the embeddings are something else, or hold NaN or infinity.
    """
    x = torch.as_tensor(embeddings).detach()
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"embeddings must be (N, D) floats, not {tuple(x.shape)} {x.dtype}")
    if not x.isfinite().all():
        raise ValueError("embeddings hold NaN or infinity, whose signs mean nothing")
    return np.packbits((x > 0).cpu().numpy(), axis=1)


def unpack(codes: torch.Tensor) -> torch.Tensor:
    """The bits of codes (n, W) uint8 as 0 and 1, (n, 8 W) float32, on their device."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)
    return codes[:, :, None].bitwise_right_shift(shifts).bitwise_and_(1).flatten(1).float()


def hamming_distances(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The number of bits in which rows differ, (q, m) float32, of bits (q, D) and (m, D).

    |x|^2 + |r|^2 - 2 <x, r> is exact for 0 and 1: every sum is a whole number below 2^24.
    """
    with torch.autocast(x.device.type, enabled=False):
        return torch.addmm(x.sum(1, keepdim=True) + r.sum(1), x, r.T, alpha=-2)
