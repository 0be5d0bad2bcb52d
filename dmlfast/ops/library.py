"""The torch.library namespace ``dmlfast``, and how every op is registered."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

LIBRARY = torch.library.Library("dmlfast", "DEF")

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def register(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    only_first: bool = False,
) -> Callable[..., Any]:
    """Defines an op with its kernel, fake and gradient, and returns the function to call it by.

    Traced calls (``torch.compile``, fake tensors) go through the registered op. Eager calls take
    the same forward and backward as an autograd function: the dispatcher's way to a Python kernel
    costs tens of microseconds, as much as a loss at the batch sizes of the papers. So do calls
    within ``torch.func``, which knows no gradients of registered ops. The first argument is a
    tensor that tells them apart; of a gradient that is the upstream one. Without ``setup`` and
    ``backward`` the outputs have no gradient.

    ``forward`` may give None for an output; the registered op gives an empty tensor there.
    ``only_first``: the caller sees the first output alone, the others are kept for the gradient,
    which may take their memory where `owned` says so.
    """
    name = schema.split("(")[0]
    keep, differentiate = setup or _mark_constant, backward or _never

    def kernel(first: torch.Tensor, *args: Any) -> Any:
        output = forward(first, *args)
        if not isinstance(output, tuple):
            return output
        return tuple(first.new_empty(0) if tensor is None else tensor for tensor in output)

    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"dmlfast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"dmlfast::{name}", differentiate, setup_context=keep, lib=LIBRARY
    )
    op = getattr(torch.ops.dmlfast, name)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return kernel(*args)

        @staticmethod
        def vmap(info: Any, dims: Sequence[Any], *args: Any) -> Any:
            return _one_by_one(Transformed.apply, info.batch_size, dims, args)

    Transformed.setup_context = staticmethod(keep)  # type: ignore[method-assign]
    Transformed.backward = staticmethod(differentiate)  # type: ignore[method-assign]

    # forward() with a context: a separate setup_context makes torch inspect the signature at every
    # call
    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = forward(*args)
            keep(ctx, args, output)
            ctx.own = only_first
            return output[0] if only_first else output

    Eager.backward = staticmethod(differentiate)  # type: ignore[method-assign]

    def call(first: torch.Tensor, *args: Any) -> Any:
        if is_plain(first):
            if torch.is_grad_enabled():
                return Eager.apply(first, *args)
            output = forward(first, *args)
        else:
            output = (Transformed.apply if _transformed() else op)(first, *args)
        return output[0] if only_first else output

    return call


def _mark_constant(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.mark_non_differentiable(*(tensor for tensor in outputs if tensor is not None))


def _never(ctx: Any, *grads: Any) -> NoReturn:
    raise AssertionError("what has no gradient is marked as not differentiable")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is neither traced nor stands for others, which have no memory: within
    ``torch.func``, or where it is several upstream gradients at once, as Jacobians have them.
    """
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN:
        return False
    return torch._C._has_storage(tensor) and not _transformed()


def _transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    stack = None if torch.compiler.is_compiling() else torch._C._functorch.peek_interpreter_stack()
    return stack is not None


def _one_by_one(op: Callable[..., Any], count: int, dims: Sequence[Any], args: Any) -> Any:
    """What ``op`` makes of each of ``count`` members, stacked, and the dimensions they are
    stacked in. dims: that of the members in each argument, None where all share it.
    """
    made = []
    for k in range(count):
        # a list of numbers has a list of dimensions
        own = [
            arg.select(dim, k) if isinstance(dim, int) else arg
            for arg, dim in zip(args, dims, strict=True)
        ]
        made.append(op(*own))
    if isinstance(made[0], torch.Tensor):
        return torch.stack(made), 0
    outputs = tuple(torch.stack(each) for each in zip(*made, strict=True))
    return outputs, (0,) * len(outputs)


def owned(ctx: Any) -> bool:
    """Whether nobody but the backward pass has the outputs beyond the first: whoever calls the
    registered op has them too.
    """
    return getattr(ctx, "own", False)


def scaled(
    gradient: torch.Tensor, grad: torch.Tensor, dtype: torch.dtype, own: bool = False
) -> torch.Tensor:
    """``gradient`` times ``grad``, () or of rows (D,), in a dtype: the product is taken in float32
    and rounded once, so that a scaled half-precision gradient does not underflow.

    ``own``: the memory of ``gradient`` may hold the result.
    """
    if torch.is_grad_enabled() or not is_plain(grad):
        return (gradient * grad).to(dtype)
    if gradient.dtype == dtype:
        return gradient.mul_(grad) if own else gradient * grad
    # on a GPU in one pass, with nothing of this size in float32 beside the gradient
    return torch.mul(gradient, grad, out=torch.empty_like(gradient, dtype=dtype))


class _OnceDifferentiable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError("dmlfast: the kernels have no second derivatives")


def once_differentiable(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``gradient``, as a function of ``inputs`` that autograd must not pass over in silence."""
    return _OnceDifferentiable.apply(gradient, inputs) if torch.is_grad_enabled() else gradient


def statistic_dtype(rows: torch.Tensor) -> torch.dtype:
    """Losses and statistics are float32, float64 for float64."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32
