"""The torch.library namespace ``dmlfast``, and how every op is registered."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

LIBRARY = torch.library.Library("dmlfast", "DEF")

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def register(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    only_first: bool = False,
) -> Callable[..., Any]:
    """Defines an op with its kernel, fake and gradient, and returns the function to call it by.

    Traced calls (``torch.compile``, fake tensors) go through the registered op. Eager calls take
    the same forward and backward as an autograd function: the dispatcher's way to a Python kernel
    costs tens of microseconds, as much as a loss at the batch sizes of the papers.

    ``forward`` may give None for an output; the registered op gives an empty tensor there.
    ``only_first``: the caller sees the first output alone, the others are kept for the gradient.
    """
    name = schema.split("(")[0]

    def kernel(rows: torch.Tensor, *args: Any) -> Any:
        output = forward(rows, *args)
        if not isinstance(output, tuple):
            return output
        return tuple(rows.new_empty(0) if tensor is None else tensor for tensor in output)

    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"dmlfast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"dmlfast::{name}", backward, setup_context=setup, lib=LIBRARY)
    op = getattr(torch.ops.dmlfast, name)

    # forward() with a context: a separate setup_context makes torch inspect the signature at every
    # call
    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = forward(*args)
            setup(ctx, args, output)
            return output[0] if only_first else output

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign]

    def call(rows: torch.Tensor, *args: Any) -> Any:
        traced = torch.compiler.is_compiling() or type(rows) not in _PLAIN
        if not traced and torch.is_grad_enabled():
            return Eager.apply(rows, *args)
        output = op(rows, *args) if traced else forward(rows, *args)
        return output[0] if only_first else output

    return call


def scaled(
    gradient: torch.Tensor, grad: torch.Tensor, dtype: torch.dtype, own: bool = False
) -> torch.Tensor:
    """``gradient`` times ``grad``, () or of rows (D,), in a dtype: the product is taken in float32
    and rounded once, so that a scaled half-precision gradient does not underflow.

    ``own``: the memory of ``gradient`` may be taken for it.
    """
    traced = type(gradient) is not torch.Tensor or torch.compiler.is_compiling()
    # several gradients at once, as Jacobians have them, have no memory of their own
    if traced or torch.is_grad_enabled() or not torch._C._has_storage(grad):
        return (gradient * grad).to(dtype)
    if gradient.dtype == dtype:
        return gradient.mul_(grad) if own else gradient * grad
    # on a GPU in one pass, with nothing of this size in float32 beside the gradient
    return torch.mul(gradient, grad, out=torch.empty_like(gradient, dtype=dtype))


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError("dmlfast: the kernels have no second derivatives")


def once_differentiable(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``gradient``, as a function of ``inputs`` that autograd must not pass over in silence."""
    return _OnceDifferentiable.apply(gradient, inputs) if torch.is_grad_enabled() else gradient


def statistic_dtype(rows: torch.Tensor) -> torch.dtype:
    """Losses and statistics are float32, float64 for float64."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32
