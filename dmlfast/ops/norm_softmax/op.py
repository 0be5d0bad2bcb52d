"""The normalised softmax loss: signature, registration, gradient. README.md has the maths."""

import math
from typing import Any

import torch

from dmlfast.ops import checks, dispatch, gpu
from dmlfast.ops.cuda.library import exponentials_fit
from dmlfast.ops.library import (
    once_differentiable,
    owned,
    register,
    scaled,
    statistic_dtype,
)
from dmlfast.ops.norm_softmax import reference
from dmlfast.ops.norm_softmax.assembly import counting, gradients, losses_and_gradients
from dmlfast.ops.norm_softmax.settings import REDUCTIONS, Settings

_INPUTS = "Tensor rows, Tensor weight, Tensor labels"
_SETTINGS = (
    "float temperature, float cosine_margin, float angular_margin, float label_smoothing, "
    "int ignore_index, bool low_memory"
)
_WANTS = "bool want_rows, bool want_weight, str impl"
WIDEST = 512  # components of a row that CUDA's kernels have registers for
# backends that make the gradient of a block of classes at once where memory is low
BY_BLOCKS = ("triton", "cuda", dispatch.FASTEST)


def norm_softmax_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    *,
    temperature: float = 0.05,
    cosine_margin: float = 0.0,
    angular_margin: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    low_memory: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """Cross-entropy over the cosines of embeddings with the weights of classes (Zhai and Wu, BMVC
    2019), with the margins of CosFace (Wang et al., CVPR 2018) and ArcFace (Deng et al., 2019).

    Both sides are normalised internally. The N x C logits never exist, nor does a normalised copy
    of the weights: memory beyond inputs and gradients is O(N D + C) and a scratch of bounded size;
    for weights in half precision also their gradient in float32, except with ``low_memory`` on a
    GPU. Differentiable once in ``embeddings`` and ``weight``; gradients of a "mean" or a "sum" are
    computed with the loss, and those of the weights are scaled in place.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32) or float64 (reference
            only). A row of zeros has a cosine of 0 with all classes, and no gradient.
        labels: (N,) integers, each from 0 to C - 1, or ``ignore_index``. On a GPU, where a check
            would make the host wait, any other label gives a loss of NaN.
        weight: (C, D), one row a class, C >= 1.
        temperature: what cosines are divided by, above 0.
        cosine_margin: subtracted from the cosine of a row with its own class.
        angular_margin: added to the angle of a row with its own class, in radians. Angles beyond pi
            are not treated specially: the cosine rises again.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        ignore_index: the label of rows that do not count.
        reduction: "mean" over the rows that count, "sum", or "none".
        low_memory: compute cosines again for the gradient rather than keeping some of them: a third
            more work, and less scratch. On a GPU gradients are then computed by the backward pass,
            those of the weights directly in their dtype.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (), or with "none" (N,); float32, float64 for float64. 0 where no row counts. NaN where any
        embedding that counts, or any weight, is NaN or infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.embeddings("weight", weight, like=embeddings)
    checks.labels("labels", labels, embeddings)
    if not len(weight):
        raise ValueError("weight must have a row for each class, and has none")
    checks.choice("reduction", reduction, REDUCTIONS)
    numbers = checked_settings(temperature, cosine_margin, angular_margin, label_smoothing)
    ignore_index = checks.whole_number("ignore_index", ignore_index)
    settings = Settings(*numbers, ignore_index, checks.flag("low_memory", low_memory))
    lacking = without(embeddings.device, embeddings.dtype, weight.dtype)
    if weight.shape[1] > WIDEST:
        lacking = ("cuda",)
    return dispatch.call(
        "norm_softmax_loss",
        impl,
        embeddings,
        plain=reference.norm_softmax_loss,
        fused=_fused,
        args=(embeddings, weight, labels, settings, reduction),
        without=lacking,
    )


@dispatch.constant_when_traced
def without(device: torch.device, rows: torch.dtype, weight: torch.dtype) -> tuple[str, ...]:
    """The backends that have no kernels for rows and weights of these dtypes, of any width."""
    on_gpu = device.type == "cuda" or gpu.emulated()
    has_some = on_gpu and rows == weight == torch.bfloat16 and exponentials_fit(device)
    return () if has_some else ("cuda",)


def checked_settings(
    temperature: float, cosine_margin: float, angular_margin: float, label_smoothing: float
) -> tuple[float, float, float, float]:
    """The numbers among the settings of a normalised softmax, as kernels take them.

    Raises:
        TypeError, ValueError: one of them is not what :func:`norm_softmax_loss` takes.
    """
    numbers = (
        checks.above_zero("temperature", temperature),
        checks.finite("cosine_margin", cosine_margin),
        checks.finite("angular_margin", angular_margin),
        checks.finite("label_smoothing", label_smoothing),
    )
    if abs(angular_margin) > math.pi:
        raise ValueError(f"angular_margin must be at most pi, in radians, not {angular_margin}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, not {label_smoothing}")
    return numbers


def _kernels(impl: str, rows: torch.Tensor) -> Any:
    return dispatch.module(__package__, impl, "norm-softmax", rows)


def _by_blocks(settings: Settings, impl: str) -> bool:
    """Whether a block of classes has its gradient at once, in the dtype of the weights."""
    return settings.low_memory and impl in BY_BLOCKS


def _ahead(reduction: str, settings: Settings, impl: str) -> bool:
    """Whether gradients are computed with the loss: not where what they are multiplied by is not
    known yet, and has to be.
    """
    return reduction != "none" and not _by_blocks(settings, impl)


def _shares(labels: torch.Tensor, reduction: str, settings: Settings) -> torch.Tensor:
    """(N,) what the loss of each row is multiplied by in a "mean" or a "sum"."""
    counts = counting(labels, settings)
    return counts / counts.sum().clamp_min(1) if reduction == "mean" else counts


def _forward(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, reduction: str, *rest: Any
) -> tuple[torch.Tensor | None, ...]:
    *fields, want_rows, want_weight, impl = rest
    settings = Settings(*fields)
    ahead = _ahead(reduction, settings, impl)
    shares = _shares(labels, reduction, settings)
    with torch.autocast(rows.device.type, enabled=False):
        losses, logsumexp, d_rows, d_weight = losses_and_gradients(
            _kernels(impl, rows),
            rows,
            weight,
            labels,
            shares,
            settings,
            want_rows and ahead,
            want_weight and ahead,
        )
        loss = losses if reduction == "none" else losses @ shares
    return loss, d_rows, d_weight, logsumexp if _by_blocks(settings, impl) else None


def _gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    grad: torch.Tensor,
    logsumexp: torch.Tensor | None,
    *rest: Any,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the losses of rows by ``grad`` (N,), in the dtypes of rows and weight."""
    *fields, want_rows, want_weight, impl = rest
    settings, kernels = Settings(*fields), _kernels(impl, rows)
    given = rows, weight, labels, grad.masked_fill(labels == settings.ignore_index, 0)
    wants = settings, want_rows, want_weight
    with torch.autocast(rows.device.type, enabled=False):
        if logsumexp is not None:
            return gradients(kernels, *given, logsumexp, *wants)
        *_, d_rows, d_weight = losses_and_gradients(kernels, *given, *wants)
    return tuple(
        None if gradient is None else gradient.to(like.dtype)
        for gradient, like in zip((d_rows, d_weight), (rows, weight), strict=True)
    )


def _fused(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    reduction: str,
    impl: str,
) -> torch.Tensor:
    graph = torch.is_grad_enabled()
    wants = graph and rows.requires_grad, graph and weight.requires_grad
    loss: torch.Tensor = _call(rows, weight, labels, reduction, *settings, *wants, impl)
    return loss


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.reduction, ctx.rest = inputs[3], inputs[4:]
    *fields, _, _, impl = ctx.rest
    settings = Settings(*fields)
    logsumexp = output[3] if _by_blocks(settings, impl) else None
    ctx.save_for_backward(*inputs[:3], logsumexp)
    ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
    # not saved, but handed on by the first backward pass
    ctx.made = output[1:3] if _ahead(ctx.reduction, settings, impl) else None


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    rows, weight, labels, logsumexp = ctx.saved_tensors
    *fields, want_rows, want_weight, _ = ctx.rest
    made, ctx.made = ctx.made, None
    found: Any
    if made is not None:
        found = (
            None if d is None else scaled(d, grad, like.dtype, own=owned(ctx))
            for d, like in zip(made, (rows, weight), strict=True)
        )
    else:  # also where the graph was retained, and the gradients have gone to the first pass
        if ctx.reduction != "none":
            grad = grad * _shares(labels, ctx.reduction, Settings(*fields))
        found = _call_gradients(rows, weight, labels, grad, logsumexp, *ctx.rest)
    d_rows, d_weight = found
    return (
        once_differentiable(d_rows, rows) if want_rows else None,
        once_differentiable(d_weight, weight) if want_weight else None,
        *[None] * (2 + len(ctx.rest)),
    )


def _fake(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, reduction: str, *rest: Any
) -> tuple[torch.Tensor, ...]:
    *fields, want_rows, want_weight, impl = rest
    settings, dtype = Settings(*fields), statistic_dtype(rows)
    ahead = _ahead(reduction, settings, impl)
    loss = rows.new_empty(rows.shape[:1] if reduction == "none" else (), dtype=dtype)
    made = [
        like.new_empty(like.shape, dtype=dtype) if want and ahead else rows.new_empty(0)
        for like, want in ((rows, want_rows), (weight, want_weight))
    ]
    known = _by_blocks(settings, impl)
    return loss, *made, rows.new_empty(rows.shape[:1], dtype=dtype) if known else rows.new_empty(0)


def _fake_gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    grad: torch.Tensor,
    logsumexp: torch.Tensor | None,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    d_rows, d_weight = (
        like.new_empty(like.shape) if want else rows.new_empty(0)
        for like, want in zip((rows, weight), rest[-3:-1], strict=True)
    )
    return d_rows, d_weight


_call = register(
    f"norm_softmax({_INPUTS}, str reduction, {_SETTINGS}, {_WANTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    only_first=True,
)
_call_gradients = register(
    f"norm_softmax_grad({_INPUTS}, Tensor grad, Tensor? logsumexp, {_SETTINGS}, {_WANTS}) "
    "-> (Tensor, Tensor)",
    forward=_gradients,
    fake=_fake_gradients,
)
