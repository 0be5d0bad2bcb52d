"""Rows at length 1: signature, registration, gradient. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.library import once_differentiable, register
from dmlfast.ops.normalize import reference


def normalize(embeddings: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """Divides rows by their L2 norms, in float32 at least, and rounds once. On a GPU this takes one
    launch, and another for the gradient.

    Lengths neither overflow nor vanish. Differentiable once.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only), of any strides.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (N, D) in the dtype of the rows, contiguous. A row of zeros, or one that is shorter than any
        normal number of the dtype of the computation, becomes zeros and has no gradient. A row that
        is not finite becomes NaN.

    Raises:
        TypeError, ValueError: embeddings have the wrong type or shape.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    return dispatch.call(
        "normalize", impl, embeddings, plain=reference.normalize, fused=_call, args=(embeddings,)
    )


def _forward(rows: torch.Tensor, impl: str) -> torch.Tensor:
    found: torch.Tensor = dispatch.module(__package__, impl, "normalize", rows).forward(rows)
    return found


def _gradient(grad: torch.Tensor, rows: torch.Tensor, impl: str) -> torch.Tensor:
    module = dispatch.module(__package__, impl, "normalize", rows)
    found: torch.Tensor = module.gradient(grad, rows)
    return found


def _like(first: torch.Tensor, *_: Any) -> torch.Tensor:
    return first.new_empty(first.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    rows, ctx.impl = inputs
    ctx.save_for_backward(rows)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    (rows,) = ctx.saved_tensors
    return once_differentiable(_call_gradient(grad, rows, ctx.impl), rows), None


_call = register(
    "normalize(Tensor rows, str impl) -> Tensor",
    forward=_forward,
    fake=_like,
    setup=_setup,
    backward=_backward,
)
_call_gradient = register(
    "normalize_grad(Tensor grad, Tensor rows, str impl) -> Tensor",
    forward=_gradient,
    fake=_like,
)
