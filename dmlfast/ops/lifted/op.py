"""The lifted structured loss: signature, registration, gradient. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.library import once_differentiable, register, statistic_dtype
from dmlfast.ops.lifted import reference


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
        ref_emb: columns of their own, (M, D), for instance a memory: pairs are (row, column).
        ref_labels: (M,) integers.
        margin: in units of distance.
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_emb`` only.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        () float32, float64 for float64. 0 without positive pairs; a pair whose rows have no
        negatives adds 0 and counts. NaN where any embedding is NaN or infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    checks.columns(embeddings, ref_emb, ref_labels, self_index)
    margin = checks.finite("margin", margin)
    return dispatch.call(
        "lifted_structured_loss",
        impl,
        embeddings,
        plain=reference.lifted_structured_loss,
        fused=_fused,
        args=(embeddings, ref_emb, labels, ref_labels, self_index, margin),
    )


def _fused(rows: torch.Tensor, columns: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    *arguments, impl = rest
    graph = torch.is_grad_enabled()
    want_rows = graph and rows.requires_grad
    want_columns = graph and columns is not None and columns.requires_grad
    loss: torch.Tensor = _call(rows, columns, *arguments, want_rows, want_columns, impl)
    return loss


def _forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    rows, columns, *_, want_rows, want_columns, impl = arguments
    if not len(rows) or (columns is not None and not len(columns)):
        return _of_nothing(rows, columns, want_rows, want_columns)
    found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = dispatch.module(
        __package__, impl, "lifted", rows
    ).forward(*arguments[:-1])
    return found


def _of_nothing(
    rows: torch.Tensor, columns: torch.Tensor | None, want_rows: bool, want_columns: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Loss and gradients where one side is empty: NaN where the other is not finite."""
    given = [t for t in (rows, columns) if t is not None]
    loss = torch.stack([(t.float() * 0).sum() for t in given]).sum()
    made = [
        torch.zeros_like(t, dtype=torch.float32) + loss if want and t is not None else None
        for t, want in ((rows, want_rows), (columns, want_columns))
    ]
    return loss, made[0], made[1]


def _fake(
    rows: torch.Tensor, columns: torch.Tensor | None, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def like(tensor: torch.Tensor | None, want: bool) -> torch.Tensor:
        if tensor is None or not want:
            return rows.new_empty(0)
        return tensor.new_empty(tensor.shape, dtype=statistic_dtype(rows))

    want_rows, want_columns = rest[4:6]
    loss = rows.new_empty((), dtype=statistic_dtype(rows))
    return loss, like(rows, want_rows), like(columns, want_columns)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.wants = inputs[6:8]
    ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
    ctx.save_for_backward(*inputs[:2], *output[1:])


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    rows, columns, d_rows, d_columns = ctx.saved_tensors
    want_rows, want_columns = ctx.wants
    return (
        _scaled(d_rows, grad, rows) if want_rows else None,
        _scaled(d_columns, grad, columns) if want_columns else None,
        *[None] * 7,
    )


def _scaled(gradient: torch.Tensor, grad: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    # the product is taken in float32 and rounded once: a scaled half-precision gradient does not
    # underflow
    return once_differentiable((gradient * grad).to(inputs.dtype), inputs)


_call = register(
    "lifted_structured_loss(Tensor rows, Tensor? columns, Tensor row_labels, "
    "Tensor? column_labels, Tensor? self_index, float margin, bool want_rows, bool want_columns, "
    "str impl) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    only_first=True,
)
