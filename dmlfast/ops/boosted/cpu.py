"""Boosted losses on the CPU kernels of csrc/cpu: losses and gradient in one call."""

import ctypes
from collections.abc import Sequence

import torch

from dmlfast.ops import native
from dmlfast.ops.boosted.settings import Settings


def forward(
    rows: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], settings: Settings, want: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(M,) the loss of each learner, and the gradient of their sum for rows, (N, D), where wanted;
    float32.
    """
    pairs = native.Pairs(rows, None, labels, None, None)
    boosting = native.Boosting(
        native.BASES[settings.base],
        native.BOOSTINGS[settings.boosting],
        settings.beta1,
        settings.beta2,
        settings.negative_cost,
        settings.margin,
        (ctypes.c_int64 * len(groups))(*groups),
        len(groups),
    )
    losses = native.empty(len(groups))
    d_rows = native.empty(*rows.shape) if want else None
    status = native.cpu_library().dml_cpu_boosted(
        ctypes.byref(pairs), ctypes.byref(boosting), *map(native.address, (losses, d_rows))
    )
    native.check(status, "boosted_loss")
    return losses, d_rows
