"""Boosted losses: signatures, registration, gradients. README.md has the maths."""

from collections.abc import Sequence
from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.boosted import reference, triplets
from dmlfast.ops.boosted.settings import BOOSTINGS, REDUCTIONS, Settings
from dmlfast.ops.library import (
    once_differentiable,
    owned,
    register,
    scaled,
    statistic_dtype,
)
from dmlfast.ops.numerics import nan_unless_finite

Found = tuple[torch.Tensor, torch.Tensor | None]


def boosted_deviance_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[int],
    *,
    beta1: float = 2.0,
    beta2: float = 0.5,
    negative_cost: float = 25.0,
    boosting: str = "eta",
    reduction: str = "sum",
    impl: str = "auto",
) -> torch.Tensor:
    """Binomial deviance of learners on groups of components, in which each learner weights a pair
    by how the learners before it scored that pair (Opitz, Waltner, Possegger and Bischof, BIER,
    ICCV 2017; A-BIER, TPAMI 2018).

    A learner's score of a pair is the cosine of the rows within its group. The loss of a pair is
    log(1 + exp(-z)), where z = beta1 (score - beta2) for positive pairs and -negative_cost times
    that for negative ones. The means over positive and over negative pairs are added; as in the
    released program, the count of the former includes each row with itself. The weights of boosting
    are held constant in the gradient. No N x N matrix is made; loss and gradient come out of one
    pass. Differentiable once.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only).
        labels: (N,) integers of any dtype and value.
        groups: how many components each learner has, in their order; their sum is D.
        beta1: scale of scores.
        beta2: the score that separates positive from negative pairs.
        negative_cost: how much steeper the loss of negative pairs is.
        boosting: "eta", weights by the running average with shares 2 / (m + 1); "additive", the
            released program's default; "derivative", the magnitude of the loss's derivative at the
            averaged score; "none", weights of 1.
        reduction: over the learners: "sum", or "none".
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (), or with "none" (M,), the loss of each learner divided by M; float32, float64 for
        float64. 0 without pairs. NaN where any embedding is NaN or infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    settings = Settings(
        "deviance",
        boosting,
        checks.finite("beta1", beta1),
        checks.finite("beta2", beta2),
        checks.finite("negative_cost", negative_cost),
        0.0,
    )
    checks.choice("boosting", boosting, BOOSTINGS)
    return _pair_loss(
        "boosted_deviance_loss", embeddings, labels, groups, settings, reduction, impl
    )


def boosted_contrastive_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[int],
    *,
    margin: float = 0.5,
    boosting: str = "eta",
    reduction: str = "sum",
    impl: str = "auto",
) -> torch.Tensor:
    """Contrastive losses of boosted learners: :func:`boosted_deviance_loss` with (1 - score)^2 for
    positive pairs and max(0, score - margin)^2 for negative ones in place of the deviance.

    Args:
        margin: the cosine that negative pairs are to stay below.
        boosting: "eta", weights by the magnitude of the loss's derivative at the running average of
            scores with shares 2 / (m + 1); "none".

    The other arguments, the result and the errors are those of :func:`boosted_deviance_loss`.
    """
    settings = Settings("contrastive", boosting, 0.0, 0.0, 1.0, checks.finite("margin", margin))
    checks.choice("boosting", boosting, ("eta", "none"))
    name = "boosted_contrastive_loss"
    return _pair_loss(name, embeddings, labels, groups, settings, reduction, impl)


def boosted_triplet_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[int],
    *,
    margin: float = 0.2,
    boosting: str = "eta",
    reduction: str = "sum",
    impl: str = "auto",
) -> torch.Tensor:
    """Triplet losses of boosted learners: :func:`boosted_deviance_loss` with
    max(0, score(a, n) - score(a, p) + margin), the mean over all triplets, in place of the
    deviance.

    On every backend but the reference it is computed in PyTorch, a block of anchors at a time; on a
    GPU the host waits for the size of the largest class.

    Args:
        margin: in units of cosine.
        boosting: "eta", only triplets count whose hinge, computed from the running average of
            scores with shares 2 / (m + 1), is above 0; "none".

    The other arguments, the result and the errors are those of :func:`boosted_deviance_loss`.
    """
    sizes = _check(embeddings, labels, groups, reduction)
    margin = checks.finite("margin", margin)
    checks.choice("boosting", boosting, ("eta", "none"))
    found = dispatch.call(
        "boosted_triplet_loss",
        impl,
        embeddings,
        plain=reference.boosted_triplet_loss,
        fused=_fused_triplets,
        args=(embeddings, labels, sizes, margin, boosting),
        without=("cuda",),
    )
    return found if reduction == "none" else found.sum()


def _pair_loss(
    name: str,
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[int],
    settings: Settings,
    reduction: str,
    impl: str,
) -> torch.Tensor:
    sizes = _check(embeddings, labels, groups, reduction)
    found = dispatch.call(
        name,
        impl,
        embeddings,
        plain=reference.boosted_loss,
        fused=_fused,
        args=(embeddings, labels, sizes, settings),
        without=("cuda",),
    )
    return found if reduction == "none" else found.sum()


def _check(
    embeddings: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], reduction: str
) -> list[int]:
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    checks.choice("reduction", reduction, REDUCTIONS)
    sizes = checks.whole_numbers("groups", groups)
    if min(sizes, default=0) < 1 or sum(sizes) != embeddings.shape[1]:
        raise ValueError(
            f"groups must be positive and add up to the width of embeddings, "
            f"{embeddings.shape[1]}, not {sizes}"
        )
    return sizes


def _forward(rows: torch.Tensor, labels: torch.Tensor, *rest: Any) -> Found:
    groups, *fields, want, impl = rest
    kernels = dispatch.module(__package__, impl, "boosted_loss", rows)
    found: Found = kernels.forward(rows, labels, groups, Settings(*fields), want)
    return found


def _forward_triplets(rows: torch.Tensor, labels: torch.Tensor, *rest: Any) -> Found:
    groups, margin, boosting, want, _ = rest
    losses, d_rows = triplets.losses_and_gradient(rows, labels, groups, margin, boosting, want)
    return losses + nan_unless_finite(rows), d_rows


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Found) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]
    ctx.made = output[1]  # not saved, but handed on by the first backward pass
    if output[1] is not None:
        ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    return _scaled(ctx, torch.ops.dmlfast.boosted_loss, grad)


def _backward_triplets(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    return _scaled(ctx, torch.ops.dmlfast.boosted_triplet_loss, grad)


def _scaled(ctx: Any, op: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """A learner's components have the gradient of its own loss alone, times what arrives for it."""
    rows, labels = ctx.saved_tensors
    made, ctx.made = ctx.made, None
    if made is None:  # the graph was retained, and the gradient has gone to the first pass
        made = op(rows.detach(), labels, *ctx.rest)[1]
    learners = zip(grad.to(made.dtype), ctx.rest[0], strict=True)
    factors = torch.cat([factor.expand(width) for factor, width in learners])
    gradient = scaled(made, factors, rows.dtype, own=owned(ctx))
    return once_differentiable(gradient, rows), None, *[None] * len(ctx.rest)


def _fake(
    rows: torch.Tensor, labels: torch.Tensor, groups: list[int], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = statistic_dtype(rows)
    d_rows = rows.new_empty(rows.shape, dtype=dtype) if rest[-2] else rows.new_empty(0)
    return rows.new_empty(len(groups), dtype=dtype), d_rows


_call = register(
    "boosted_loss(Tensor rows, Tensor labels, int[] groups, str base, str boosting, float beta1, "
    "float beta2, float negative_cost, float margin, bool want, str impl) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    only_first=True,
)
_call_triplets = register(
    "boosted_triplet_loss(Tensor rows, Tensor labels, int[] groups, float margin, str boosting, "
    "bool want, str impl) -> (Tensor, Tensor)",
    forward=_forward_triplets,
    fake=_fake,
    setup=_setup,
    backward=_backward_triplets,
    only_first=True,
)


def _fused(
    rows: torch.Tensor, labels: torch.Tensor, groups: list[int], settings: Settings, impl: str
) -> torch.Tensor:
    want = torch.is_grad_enabled() and rows.requires_grad
    losses: torch.Tensor = _call(rows, labels, groups, *settings, want, impl)
    return losses


def _fused_triplets(
    rows: torch.Tensor,
    labels: torch.Tensor,
    groups: list[int],
    margin: float,
    boosting: str,
    impl: str,
) -> torch.Tensor:
    want = torch.is_grad_enabled() and rows.requires_grad
    losses: torch.Tensor = _call_triplets(rows, labels, groups, margin, boosting, want, impl)
    return losses
