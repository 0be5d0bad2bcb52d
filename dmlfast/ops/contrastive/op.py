"""The contrastive loss: signature, registration, and its two hinges on the pair primitive.

README.md has the maths.
"""

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.contrastive import reference
from dmlfast.ops.loss_op import REDUCTIONS, Found, register_loss
from dmlfast.ops.pairs import op as pairs
from dmlfast.ops.pairs.counts import pair_counts
from dmlfast.ops.pairs.term import PairTerm


def contrastive_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    squared: bool = False,
    reduction: str = "nonzero",
    self_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006) over all pairs of a batch.

    A positive pair costs max(0, D - pos_margin), a negative one max(0, neg_margin - D), where D is
    the Euclidean distance, not squared; embeddings are not normalised. The loss is that of positive
    pairs plus that of negative ones. Memory is O((N + M) D). Differentiable once; gradients are
    computed with the loss.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only).
        labels: (N,) integers of any dtype and value.
        ref_emb: columns of their own, (M, D), such as a memory; pairs are then (row, column).
        ref_labels: (M,) integers.
        pos_margin: distance up to which positive pairs are near enough.
        neg_margin: distance from which negative pairs are far enough.
        squared: take half the square of each hinge, equation 4 of the paper.
        reduction: over positive and over negative pairs separately: "nonzero", the mean over those
            that are not 0; "mean", the mean over all; "sum", in which a batch has each pair twice,
            once for each of its rows.
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_emb`` only.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        () float32, float64 for float64. 0 without pairs. NaN where any embedding is NaN or
        infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    self_index = checks.columns(embeddings, ref_emb, ref_labels, self_index)
    settings = checked_settings(pos_margin, neg_margin, squared, reduction)
    return dispatch.call(
        "contrastive_loss",
        impl,
        embeddings,
        plain=reference.contrastive_loss,
        fused=_fused,
        args=(embeddings, ref_emb, labels, ref_labels, self_index, *settings),
        without=("cuda",),
    )


def checked_settings(
    pos_margin: float, neg_margin: float, squared: bool, reduction: str
) -> tuple[float, float, bool, str]:
    """The settings of a contrastive loss, as kernels take them.

    Raises:
        TypeError, ValueError: one of them is not what :func:`contrastive_loss` takes.
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    margins = checks.finite("pos_margin", pos_margin), checks.finite("neg_margin", neg_margin)
    return *margins, checks.flag("squared", squared), reduction


def _forward(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    pos_margin: float,
    neg_margin: float,
    squared: bool,
    reduction: str,
    want_rows: bool,
    want_columns: bool,
    impl: str,
) -> Found:
    backend = dispatch.module(pairs.__package__, impl, "pair_reduce", rows)
    given = (rows, columns, row_labels, column_labels, self_index, None, None)
    reduce = "squared_hinge" if squared else "hinge"
    terms = (
        PairTerm("distance", "positive", reduce, 1.0, -pos_margin),
        PairTerm("distance", "negative", reduce, -1.0, neg_margin),
    )
    sizes = None
    if reduction == "mean":
        sizes = pair_counts(row_labels, column_labels, self_index=self_index)
    wants = want_rows, want_columns, False
    losses = []
    gradients: list[tuple[torch.Tensor | None, ...]] = []
    for k, term in enumerate(terms):
        sums, counts = backend.reduce_block(*given, term)
        share = sums.new_full((), 0.5 if squared else 1.0)
        if reduction != "sum":
            share = share / (counts if sizes is None else sizes[k]).sum().clamp_min(1)
        losses.append(sums.sum() * share)
        if any(wants):
            stats = (sums, share.expand(len(rows)), None, None)
            gradients.append(backend.grad_block(*given, *stats, term, wants))
    loss = losses[0] + losses[1]
    if not gradients:
        return loss, None, None
    positive, negative = gradients
    made = [
        None if a is None or b is None else a + b for a, b in zip(positive, negative, strict=True)
    ]
    return loss, made[0], made[1]


_fused = register_loss(
    "contrastive_loss",
    "float pos_margin, float neg_margin, bool squared, str reduction",
    _forward,
)
