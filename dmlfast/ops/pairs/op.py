"""The pair primitive: signature, registration, gradient. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.library import once_differentiable, register, statistic_dtype
from dmlfast.ops.pairs import reference
from dmlfast.ops.pairs.term import MAX, REDUCTIONS, SCORES, SELECTIONS, PairTerm

_PAIRS = (
    "Tensor rows, Tensor? columns, Tensor? row_labels, Tensor? column_labels, Tensor? self_index, "
    "Tensor? column_bias, Tensor? row_floor, "
)
_TERM = "str score, str select, str reduce, float scale, float offset, str impl"


def pair_reduce(
    embeddings: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    score: str = "distance",
    select: str = "negative",
    scale: float = 1.0,
    offset: float = 0.0,
    column_bias: torch.Tensor | None = None,
    row_floor: torch.Tensor | None = None,
    reduce: str = "logsumexp",
    self_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Reduces ``t_ij = scale * score_ij + offset + column_bias_j`` over the selected columns of
    each row.

    Nothing of size N x M is kept; memory is O((N + M) D). Differentiable once in ``embeddings``,
    ``ref_emb`` and ``column_bias``.

    Args:
        embeddings: rows, (N, D), float32, float16, bfloat16 (computed in float32) or float64
            (reference only).
        labels: (N,) integers of any dtype and value. Not needed for ``select`` "other" and "all".
        ref_emb: columns, (M, D); the batch itself where None.
        ref_labels: (M,) integers.
        score: "distance", the Euclidean distance (not squared), or "dot", the inner product.
        select: "negative" (labels differ), "positive" (labels agree, not the row itself), "other"
            (all but the row itself) or "all".
        column_bias: (M,) added to the terms of each column.
        row_floor: (N,), held constant: in row i only the terms above row_floor[i] count, as where
            pairs are mined. :func:`pair_max` finds what floors are made of.
        reduce: "logsumexp" (-inf over nothing); or, each 0 over nothing: "sum"; "hinge", the sum of
            max(0, t); "squared_hinge", that of its square; "softplus", that of log(1 + exp(t)).
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_emb`` only. A
            batch that is compared with itself does not need it.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (N,) float32, float64 for float64. NaN where any input is NaN or infinite, except for
        floors: a floor of -inf leaves nothing out, one of inf leaves everything out, and one of NaN
        gives NaN for its row.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.choice("reduce", reduce, REDUCTIONS)
    term = _checked_term(score, select, reduce, scale, offset)
    sides = _checked_sides(embeddings, labels, ref_emb, ref_labels, self_index, term)
    if column_bias is not None:
        checks.bias("column_bias", column_bias, embeddings if ref_emb is None else ref_emb)
    if row_floor is not None:
        checks.bias("row_floor", row_floor, embeddings)
    found = dispatch.call(
        "pair_reduce",
        impl,
        embeddings,
        plain=reference.pair_reduce,
        fused=fused,
        args=(*sides, column_bias, row_floor, term),
        without=("cuda",) if term.is_hinge or row_floor is not None else (),
    )
    if row_floor is not None:
        found = torch.where(row_floor.isnan(), torch.nan, found)
    return found[0] if term.is_hinge else found


def pair_max(
    embeddings: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    score: str = "distance",
    select: str = "negative",
    scale: float = 1.0,
    offset: float = 0.0,
    self_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """The greatest ``scale * score_ij + offset`` over the selected columns of each row: what mining
    compares the other pairs of a row with. Without a gradient.

    This is, say, the furthest positive of a row, or with ``scale`` -1 and the sign of the result
    changed the nearest negative. Nothing of size N x M is kept.

    Args:
        As of :func:`pair_reduce`.

    Returns:
        (N,) float32, float64 for float64; -inf where nothing is selected, NaN where any embedding
        is NaN or infinite.

    Raises:
        As :func:`pair_reduce`.
    """
    checks.embeddings("embeddings", embeddings)
    term = _checked_term(score, select, MAX, scale, offset)
    sides = _checked_sides(embeddings, labels, ref_emb, ref_labels, self_index, term)
    constant = (None if side is None else side.detach() for side in sides)
    return dispatch.call(
        "pair_max",
        impl,
        embeddings,
        plain=reference.pair_reduce,
        fused=fused,
        args=(*constant, None, None, term),
        without=("cuda",),
    )


def _checked_term(score: str, select: str, reduce: str, scale: float, offset: float) -> PairTerm:
    checks.choice("score", score, SCORES)
    checks.choice("select", select, SELECTIONS)
    scale, offset = checks.finite("scale", scale), checks.finite("offset", offset)
    return PairTerm(score, select, reduce, scale, offset)


def _checked_sides(
    embeddings: torch.Tensor,
    labels: torch.Tensor | None,
    ref_emb: torch.Tensor | None,
    ref_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    term: PairTerm,
) -> tuple[torch.Tensor | None, ...]:
    """Rows, columns, their labels and ``self_index``, as kernels take them."""
    if labels is not None:
        checks.labels("labels", labels, embeddings)
    elif term.by_label:
        raise ValueError(f"labels are missing: select='{term.select}' compares them")
    self_index = checks.columns(embeddings, ref_emb, ref_labels, self_index, term.by_label)
    if not term.by_label:
        labels = ref_labels = None
    return embeddings, ref_emb, labels, ref_labels, self_index


def reduce_block(
    rows: torch.Tensor,
    columns: torch.Tensor,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    running: torch.Tensor | None,
    term: PairTerm,
    *,
    impl: str,
) -> torch.Tensor:
    """The statistic ``running`` of the rows, (N,) or for hinges (2, N), with that of a block of
    columns added; without a gradient.

    For columns that arrive in parts: a memory, shards of classes, a ring of processes.
    ``self_index`` (N,) counts within this block, and is -1 where the row itself is elsewhere.
    """
    backend = dispatch.module(__package__, impl, "pair_reduce", rows)
    pairs = (rows, columns, row_labels, column_labels, self_index, None, None)
    block = backend.reduce_block(*pairs, term)
    together = {"logsumexp": torch.logaddexp, MAX: torch.maximum}.get(term.reduce, torch.add)
    return block if running is None else together(running, block)


def grad_block(
    rows: torch.Tensor,
    columns: torch.Tensor,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    row_stat: torch.Tensor,
    row_grad: torch.Tensor,
    column_stat: torch.Tensor | None,
    column_grad: torch.Tensor | None,
    running: tuple[torch.Tensor, torch.Tensor] | None,
    term: PairTerm,
    *,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients ``running``, of rows (N, D) and columns (M, D), with those of one block added.

    ``row_stat`` and ``row_grad`` (N,) are the whole statistic of each row and dloss / dstatistic;
    ``column_stat`` and ``column_grad`` (M,) are the same for the columns over their rows, or None.
    """
    backend = dispatch.module(__package__, impl, "pair_reduce", rows)
    stats = (row_stat, row_grad, column_stat, column_grad)
    d_rows, d_columns, _ = backend.grad_block(
        rows,
        columns,
        row_labels,
        column_labels,
        self_index,
        None,
        None,
        *stats,
        term,
        (True, True, False),
    )
    return (d_rows, d_columns) if running is None else (running[0] + d_rows, running[1] + d_columns)


def fused(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: torch.Tensor | None,
    term: PairTerm,
    impl: str,
) -> torch.Tensor:
    """The statistics on a backend with kernels, (N,); for hinges (2, N): their sums, and the
    numbers of those above 0, which have no gradient.
    """
    pairs = (columns, row_labels, column_labels, self_index, column_bias, row_floor)
    return _call_reduce(rows, *pairs, *term, impl)


def _forward(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
    *pairs, score, select, reduce, scale, offset, impl = rest
    term = PairTerm(score, select, reduce, scale, offset)
    return dispatch.module(__package__, impl, "pair_reduce", rows).reduce_block(rows, *pairs, term)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:7], output)
    ctx.term = inputs[7:]
    if PairTerm(*ctx.term[:-1]).reduce == MAX:
        ctx.mark_non_differentiable(output)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    *pairs, stat = ctx.saved_tensors
    if stat.dim() == 2:  # hinges and their numbers
        stat, grad = stat[0], grad[0]
    wants = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[5]]
    found = _call_grad(grad, *pairs, stat, *wants, *ctx.term)
    rows, columns, bias = (
        once_differentiable(gradient, tensor) if want else None
        for gradient, tensor, want in zip(found, (*pairs[:2], pairs[5]), wants, strict=True)
    )
    return (rows, columns, None, None, None, bias, None, *[None] * 6)


def _grad_forward(row_grad: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
    rows, *pairs, row_stat, want_rows, want_columns, want_bias = rest[:11]
    score, select, reduce, scale, offset, impl = rest[11:]
    term = PairTerm(score, select, reduce, scale, offset)
    stats = (row_stat, row_grad, None, None)
    wants = (want_rows, want_columns, want_bias)
    found = dispatch.module(__package__, impl, "pair_reduce", rows).grad_block(
        rows, *pairs, *stats, term, wants
    )
    inputs = (rows, pairs[0], pairs[4])
    return tuple(
        None if grad is None else grad.to(like.dtype)
        for grad, like in zip(found, inputs, strict=True)
    )


def _fake(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
    term = PairTerm(*rest[6:-1])
    shape = (2, rows.shape[0]) if term.is_hinge else (rows.shape[0],)
    return rows.new_empty(shape, dtype=statistic_dtype(rows))


_call_reduce = register(
    f"pair_reduce({_PAIRS}{_TERM}) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
_call_grad = register(
    f"pair_grad(Tensor row_grad, {_PAIRS}Tensor row_stat, bool want_rows, bool want_columns, "
    f"bool want_bias, {_TERM}) -> (Tensor, Tensor, Tensor)",
    forward=_grad_forward,
    fake=lambda grad, rows, columns, a, b, c, bias, floor, stat, *wants: tuple(
        like.new_empty(like.shape) if want and like is not None else grad.new_empty(0)
        for like, want in zip((rows, columns, bias), wants, strict=False)
    ),
)
