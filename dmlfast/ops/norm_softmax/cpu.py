"""The normalised softmax on the CPU kernels of csrc/cpu: log-sum-exps and gradients in one call."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.norm_softmax.units import add_to_all

SCRATCH_BYTES = 80 * 2**20  # for cosines that are kept until the gradient; none in low memory


def forward(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    scale: float,
    low_memory: bool,
    want_rows: bool,
    want_weight: bool,
    everyone: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """See :data:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    classes = native.Classes(rows, weight, labels)
    logsumexp = native.empty(len(rows))
    d_rows = native.empty(*rows.shape) if want_rows else None
    d_weight = native.empty(*weight.shape) if want_weight else None
    floats = [native.float_rows(tensor) for tensor in (target, row_weights)]
    status = native.cpu_library().dml_cpu_softmax(
        ctypes.byref(classes),
        scale,
        0 if low_memory else SCRATCH_BYTES,
        *map(native.address, (*floats, logsumexp, d_rows, d_weight)),
    )
    native.check(status, "norm_softmax_loss")
    if d_weight is not None and everyone is not None:
        add_to_all(d_weight, weight, everyone)
    return logsumexp, d_rows, d_weight
