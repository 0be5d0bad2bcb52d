"""The torch.library namespace ``dmlfast``, and how every op is registered."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

LIBRARY = torch.library.Library("dmlfast", "DEF")


def register(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Defines an op with its kernel, fake and gradient, and returns the function to call it by.

    Traced calls (``torch.compile``, fake tensors) go through the registered op. Eager calls take
    the same forward and backward as an autograd function: the dispatcher's way to a Python kernel
    costs tens of microseconds, as much as a loss at the batch sizes of the papers.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, forward, device)
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
            return output

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign]

    def call(rows: torch.Tensor, *args: Any) -> Any:
        if torch.compiler.is_compiling() or type(rows) not in (torch.Tensor, torch.nn.Parameter):
            return op(rows, *args)
        return Eager.apply(rows, *args) if torch.is_grad_enabled() else forward(rows, *args)

    return call


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
