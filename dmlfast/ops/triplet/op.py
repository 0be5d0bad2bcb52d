"""The triplet loss: signature and registration. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.loss_op import REDUCTIONS, Found, register_loss
from dmlfast.ops.triplet import reference

MININGS = ("all", "semihard", "hardest")


def triplet_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.2,
    mining: str = "all",
    reduction: str = "nonzero",
    self_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Triplet loss over anchors, which are the rows, with positives and negatives among the columns
    (Schroff, Kalenichenko and Philbin, CVPR 2015; Hermans, Beyer and Leibe, 2017).

    A triplet costs max(0, D_ap - D_an + margin), where D is the Euclidean distance, not squared;
    embeddings are not normalised. No list of triplets and no N x M matrix is made; memory is
    O((N + M) D). Differentiable once; gradients are computed with the loss.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only).
        labels: (N,) integers of any dtype and value.
        ref_emb: columns of their own, (M, D), such as a memory.
        ref_labels: (M,) integers.
        margin: in units of distance.
        mining: which triplets there are: "all", each positive with each negative; "semihard", each
            positive with the nearest negative that is further away than it, or with the furthest
            negative where there is none; "hardest", the furthest positive of an anchor with its
            nearest negative. Among equal distances the lowest index counts.
        reduction: over the triplets: "nonzero", the mean over those that are not 0; "mean", the
            mean over all; "sum".
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_emb`` only.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        () float32, float64 for float64. 0 without triplets. NaN where any embedding is NaN or
        infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    self_index = checks.columns(embeddings, ref_emb, ref_labels, self_index)
    settings = checked_settings(margin, mining, reduction)
    return dispatch.call(
        "triplet_loss",
        impl,
        embeddings,
        plain=reference.triplet_loss,
        fused=_fused,
        args=(embeddings, ref_emb, labels, ref_labels, self_index, *settings),
        without=("cuda",),
    )


def checked_settings(margin: float, mining: str, reduction: str) -> tuple[float, str, str]:
    """The settings of a triplet loss, as kernels take them.

    Raises:
        TypeError, ValueError: one of them is not what :func:`triplet_loss` takes.
    """
    checks.choice("mining", mining, MININGS)
    checks.choice("reduction", reduction, REDUCTIONS)
    return checks.finite("margin", margin), mining, reduction


def _forward(rows: torch.Tensor, *rest: Any) -> Found:
    *arguments, impl = rest
    found: Found = dispatch.module(__package__, impl, "triplet", rows).forward(rows, *arguments)
    return found


_fused = register_loss("triplet_loss", "float margin, str mining, str reduction", _forward)
