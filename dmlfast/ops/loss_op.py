"""Losses of pairs as registered ops: the gradients are computed with the loss."""

from collections.abc import Callable
from typing import Any

import torch

from dmlfast.ops.library import once_differentiable, register, scaled, statistic_dtype

REDUCTIONS = ("nonzero", "mean", "sum")  # of the terms of a loss
Found = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
TENSORS = (
    "Tensor rows, Tensor? columns, Tensor row_labels, Tensor? column_labels, Tensor? self_index"
)


def register_loss(name: str, options: str, forward: Callable[..., Found]) -> Callable[..., Any]:
    """Registers a loss, and returns the function of ``dispatch.call`` that has kernels.

    Args:
        options: what the op takes beside tensors, as a schema has it.
        forward: takes rows (N, D), columns (M, D) or None, their labels, ``self_index``, the
            options, whether gradients of rows and of columns are wanted, and the name of a backend;
            neither side is empty. Returns the loss () and these gradients, float32, None where not
            wanted.
    """

    def with_any_rows(rows: torch.Tensor, columns: torch.Tensor | None, *rest: Any) -> Found:
        if len(rows) and (columns is None or len(columns)):
            return forward(rows, columns, *rest)
        return _of_nothing(rows, columns, *rest[-3:-1])

    call = register(
        f"{name}({TENSORS}, {options}, bool want_rows, bool want_columns, str impl) "
        "-> (Tensor, Tensor, Tensor)",
        forward=with_any_rows,
        fake=_fake,
        setup=_setup,
        backward=_backward,
        only_first=True,
    )

    def fused(rows: torch.Tensor, columns: torch.Tensor | None, *rest: Any) -> Any:
        *arguments, impl = rest
        graph = torch.is_grad_enabled()
        want_rows = graph and rows.requires_grad
        want_columns = graph and columns is not None and columns.requires_grad
        return call(rows, columns, *arguments, want_rows, want_columns, impl)

    return fused


def _of_nothing(
    rows: torch.Tensor, columns: torch.Tensor | None, want_rows: bool, want_columns: bool
) -> Found:
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

    *_, want_rows, want_columns, _ = rest
    loss = rows.new_empty((), dtype=statistic_dtype(rows))
    return loss, like(rows, want_rows), like(columns, want_columns)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.wants, ctx.others = inputs[-3:-1], len(inputs) - 2
    ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
    ctx.save_for_backward(*inputs[:2], *output[1:])


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    rows, columns, d_rows, d_columns = ctx.saved_tensors
    want_rows, want_columns = ctx.wants

    def found(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return once_differentiable(scaled(gradient, grad, inputs.dtype), inputs)

    return (
        found(d_rows, rows) if want_rows else None,
        found(d_columns, columns) if want_columns else None,
        *[None] * ctx.others,
    )
