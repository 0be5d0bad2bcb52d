"""The lifted structured loss: signature, registration, gradient. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.lifted import reference
from dmlfast.ops.loss_op import Found, register_loss


def lifted_structured_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 1.0,
    self_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Lifted structured loss, smooth form (Oh Song et al., CVPR 2016, equation 4), over all pairs
    of a batch.

    Distances are Euclidean, not squared; embeddings are not normalised. Memory is O((N + M) D).
    Differentiable once; gradients are computed with the loss.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only).
        labels: (N,) integers of any dtype and value.
        ref_emb: columns of their own, (M, D), such as a memory; pairs are then (row, column).
        ref_labels: (M,) integers.
        margin: in units of distance.
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_emb`` only.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        () float32, float64 for float64. 0 without positive pairs; a pair whose rows have no
        negatives adds 0, but counts. NaN where any embedding is NaN or infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    self_index = checks.columns(embeddings, ref_emb, ref_labels, self_index)
    margin = checks.finite("margin", margin)
    return dispatch.call(
        "lifted_structured_loss",
        impl,
        embeddings,
        plain=reference.lifted_structured_loss,
        fused=_fused,
        args=(embeddings, ref_emb, labels, ref_labels, self_index, margin),
    )


def _forward(rows: torch.Tensor, *rest: Any) -> Found:
    *arguments, impl = rest
    found: Found = dispatch.module(__package__, impl, "lifted", rows).forward(rows, *arguments)
    return found


_fused = register_loss("lifted_structured_loss", "float margin", _forward)
