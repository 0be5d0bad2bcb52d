"""The double-header hinges of quadruplets: signature. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import dispatch
from dmlfast.ops.library import is_plain, once_differentiable, register, statistic_dtype
from dmlfast.ops.pddm import reference
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.unit import PairUnit, Weights, weights_of


def quadruplet_loss(
    embeddings: torch.Tensor,
    quadruplets: torch.Tensor,
    unit: PairUnit,
    hinges: Hinges,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """The mean of the double-header hinges of quadruplets; gradients are computed with it.

    Args:
        embeddings: (N, D), N > 0, of the dtypes of :func:`dmlfast.ops.pddm_scores`.
        quadruplets: (Q, 4), Q > 0, as of :func:`dmlfast.ops.pddm_hard_quadruplets`.
        unit: see :func:`dmlfast.ops.pddm_scores`.
        impl: "auto" or the name of a backend.

    Returns:
        (), float32, float64 for float64; 0 without a quadruplet, NaN where any row or weight is not
        finite.
    """
    weights = weights_of(unit, embeddings)
    normalize_inputs = bool(getattr(unit, "normalize_inputs", False))
    return dispatch.call(
        "pddm_quadruplet_loss",
        impl,
        embeddings,
        plain=reference.quadruplet_loss,
        fused=_fused,
        args=(embeddings, quadruplets, weights, normalize_inputs, hinges),
        without=("cuda",),
    )


def _forward(
    rows: torch.Tensor, quadruplets: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor | None, ...]:
    *weights, normalize_inputs, a, b, weight, squared, ends, want, impl = rest
    module = dispatch.module(__package__, impl, "pddm", rows)
    found: tuple[torch.Tensor, ...] = module.quadruplet_loss(
        rows, quadruplets, Weights(*weights), normalize_inputs,
        Hinges(a, b, weight, squared, ends), want,
    )  # fmt: skip
    return found if want else (*found, *[None] * (_OUTPUTS - 1))


def _fake(rows: torch.Tensor, quadruplets: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    w, want = Weights(*rest[: len(Weights._fields)]), rest[-2]
    matrices = w.difference_weight, w.mean_weight, w.joint_weight
    others = sum(tensor.numel() for tensor in w) - sum(tensor.numel() for tensor in matrices)
    shapes = [tensor.shape for tensor in (rows, *matrices)] + [(others,)]
    dtype = statistic_dtype(rows)
    made = [rows.new_empty(shape if want else (0,), dtype=dtype) for shape in shapes]
    return rows.new_empty((), dtype=dtype), *made


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor | None, ...]) -> None:
    found = [tensor for tensor in output[1:] if tensor is not None]
    ctx.others = len(inputs) - 2 - len(Weights._fields)
    ctx.mark_non_differentiable(*found)
    ctx.save_for_backward(inputs[0], *inputs[2 : 2 + len(Weights._fields)], *found)


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: recomputed ones can be had no second time
    rows, *weights = saved[: 1 + len(Weights._fields)]
    found = saved[1 + len(Weights._fields) :]
    # in float32, and rounded once: a scaled half-precision gradient does not underflow
    made = torch._foreach_mul(found, grad) if is_plain(grad) else [each * grad for each in found]
    d_rows, difference, mean, joint, rest = made
    if len({tensor.dtype for tensor in (*weights[1::2], weights[6])}) == 1:
        rest = rest.to(weights[6].dtype)  # at once
    d_bias, m_bias, j_bias, score, s_bias = rest.split(_sizes(weights))
    d_weights = difference, d_bias, mean, m_bias, joint, j_bias, score[None], s_bias
    gradients = (
        once_differentiable(d.to(tensor.dtype), tensor)
        for d, tensor in zip((d_rows, *d_weights), (rows, *weights), strict=True)
    )
    return next(gradients), None, *gradients, *[None] * ctx.others


def _sizes(weights: list[torch.Tensor]) -> list[int]:
    """Of what is one tensor: all biases, and the weights of the score before its own."""
    biases = [bias.numel() for bias in weights[1::2]]
    return [*biases[:3], weights[6].numel(), *biases[3:]]


_OUTPUTS = 6  # the loss, the gradients of rows and of three weights, and of the rest in one
_TENSORS = ", ".join(f"Tensor {name}" for name in ("rows", "quadruplets", *Weights._fields))
_call = register(
    f"pddm_quadruplet_loss({_TENSORS}, bool normalize_inputs, float score_margin, "
    "float embedding_margin, float embedding_weight, bool squared, int ends, bool want, str impl) "
    f"-> ({', '.join(['Tensor'] * _OUTPUTS)})",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    only_first=True,
)


def _fused(
    rows: torch.Tensor,
    quadruplets: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
    hinges: Hinges,
    impl: str,
) -> torch.Tensor:
    want = torch.is_grad_enabled() and any(t.requires_grad for t in (rows, *weights))
    loss: torch.Tensor = _call(rows, quadruplets, *weights, normalize_inputs, *hinges, want, impl)
    return loss
