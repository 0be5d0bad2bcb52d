"""The normalised softmax on the CPU kernels of csrc/cpu: log-sum-exps and gradients in one call."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.norm_softmax.settings import Settings
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
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
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


def own_pairs(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`.

    Raises:
        ValueError: a label is neither a class nor ``ignore_index``.
    """
    own = native.Own(rows, weight, labels, settings.ignore_index, settings.logit)
    known = torch.empty(len(rows), dtype=torch.int64, device="cpu")
    pairs = native.empty(5, len(rows))
    unknown = ctypes.c_int64()
    status = native.cpu_library().dml_cpu_own_pairs(
        ctypes.byref(own), *map(native.address, (known, pairs)), ctypes.byref(unknown)
    )
    native.check(status, "norm_softmax_loss")
    if unknown.value >= 0:
        label = labels[unknown.value].item()
        raise ValueError(
            f"labels must be from 0 to {len(weight) - 1}, or ignore_index: there is {label}"
        )
    return known, pairs


def own_losses(
    rows: torch.Tensor,
    weight: torch.Tensor,
    known: torch.Tensor,
    pairs: torch.Tensor,
    logsumexp: torch.Tensor,
    row_weights: torch.Tensor,
    others: torch.Tensor | None,
    settings: Settings,
    d_rows: torch.Tensor | None,
    want_classes: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    own = native.Own(rows, weight, known, settings.ignore_index, settings.logit)
    losses = native.empty(len(rows))
    d_own = native.empty(*rows.shape) if want_classes else None
    floats = pairs, logsumexp, native.float_rows(row_weights), native.float_rows(others)
    status = native.cpu_library().dml_cpu_own_losses(
        ctypes.byref(own), *map(native.address, (*floats, losses, d_rows, d_own))
    )
    native.check(status, "norm_softmax_loss")
    return losses, d_own
