"""What references and kernels alike do to rows in PyTorch."""

import torch

TINY = 2.0**-126  # the least that is not subnormal in float32


def computed(tensor: torch.Tensor) -> torch.Tensor:
    """The dtype that the maths is done in: float64 for float64, else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def pair_products(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, M) inner products in the dtype of the rows, under autocast too."""
    device = rows.device.type
    if not torch.amp.is_autocast_available(device):
        return rows @ columns.T
    with torch.autocast(device, enabled=False):
        return rows @ columns.T


def nan_unless_finite(*tensors: torch.Tensor | None) -> torch.Tensor | float:
    """0, or NaN where any value is NaN or infinite."""
    return sum((tensor.detach() * 0).sum() for tensor in tensors if tensor is not None)


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Divided by the norm of the last dimension; zeros stay, with a zero gradient."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    some = norm != 0
    return torch.where(some, rows / torch.where(some, norm, 1), 0)


def through_norm(gradient: torch.Tensor, unit: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of rows (N, D) from that of the rows at length 1, ``unit``, ``inverse`` (N, 1)
    being 1 / length.
    """
    return (gradient - (gradient * unit).sum(1, keepdim=True) * unit) * inverse


def add_rows(out: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds rows (N, D) to those of ``out`` at some places (N,), always in one order."""
    if out.is_cuda:  # sorts
        out.index_put_((places,), rows, accumulate=True)
    else:
        out.index_add_(0, places, rows)
