"""Scores of the position-dependent metric unit: signatures. README.md has the maths."""

from typing import Any

import torch

from dmlfast.ops import checks, dispatch
from dmlfast.ops.library import is_plain, once_differentiable, register, statistic_dtype
from dmlfast.ops.pddm import reference
from dmlfast.ops.pddm.gradient import gradients
from dmlfast.ops.pddm.mining import Nearness, Scorer
from dmlfast.ops.pddm.unit import PairUnit, Weights, weights_of

PER = ("batch", "class", "anchor")
_UNIT = ", ".join(f"Tensor {name}" for name in Weights._fields) + ", bool normalize_inputs"
_OUTPUTS = ", ".join(["Tensor"] * (2 + len(Weights._fields)))

Pairs = tuple[torch.Tensor, torch.Tensor]


def pddm_scores(
    embeddings: torch.Tensor,
    unit: PairUnit,
    ref_emb: torch.Tensor | None = None,
    *,
    pairs: Pairs | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Similarity of pairs by a position-dependent metric unit (Huang, Loy and Tang, NIPS 2016).

    The unit is a small network on |x_i - x_j| and (x_i + x_j) / 2, so that a score depends on where
    a pair lies and not on its distance alone; larger is more similar, and scores have no bounds.
    score(x, y) = score(y, x), and only one of them is computed. Nothing of the size of pairs x D is
    made. Differentiable once in embeddings and weights.

    Args:
        embeddings: (N, D), float32, float16, bfloat16 (computed in float32; Triton rounds what
            enters a product) or float64 (reference only).
        unit: anything with the four layers of a :class:`dmlfast.losses.PDDMUnit`, ``difference``,
            ``mean``, ``joint`` and ``score``; and, where inputs are to be normalised, a true
            ``normalize_inputs``.
        ref_emb: columns of their own, (M, D); the embeddings themselves where None.
        pairs: two tensors (P,) of integers, rows i of ``embeddings`` and j of ``ref_emb``; all
            pairs where None.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (N, M), or (P,) of pairs; float32, float64 for float64. NaN where a row of the pair, or any
        weight, is NaN or infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    weights = weights_of(unit, embeddings)
    if ref_emb is not None:
        checks.embeddings("ref_emb", ref_emb, like=embeddings)
    checked = None if pairs is None else _check_pairs(pairs, embeddings)
    normalize_inputs = bool(getattr(unit, "normalize_inputs", False))
    return dispatch.call(
        "pddm_scores",
        impl,
        embeddings,
        plain=_plain,
        fused=_fused,
        args=(embeddings, ref_emb, checked, weights, normalize_inputs),
        without=("cuda",),
    )


def pddm_hard_quadruplets(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    unit: PairUnit | None = None,
    *,
    per: str = "batch",
    impl: str = "auto",
) -> torch.Tensor:
    """The least similar positive pair, and the most similar negative of either end, by score
    (Huang, Loy and Tang, NIPS 2016). Memory is linear in the rows; there is no gradient.

    On the CPU, "batch" and "class" score only the positive pairs and the rows of their ends.

    Args:
        embeddings: (N, D), of the dtypes of :func:`pddm_scores`.
        labels: (N,) integers of any dtype and value.
        unit: see :func:`pddm_scores`; with None, the score is minus the Euclidean distance.
        per: "batch", one quadruplet, as in the paper; "class", one for each class, in the place of
            its row i; "anchor", one for each row, as its row i.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Returns:
        (1, 4), or (N, 4) for classes and anchors, int64: rows i and j of the positive pair, the
        negative k of i and the negative l of j; -1 where there is none. Among equal scores the
        lowest rows count.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: the backend asked for by name cannot serve the call.
    """
    checks.embeddings("embeddings", embeddings)
    checks.labels("labels", labels, embeddings)
    checks.choice("per", per, PER)
    weights = None if unit is None else weights_of(unit, embeddings)
    normalize_inputs = bool(getattr(unit, "normalize_inputs", False))
    with torch.no_grad():
        return dispatch.call(
            "pddm_hard_quadruplets",
            impl,
            embeddings,
            plain=reference.pddm_hard_quadruplets,
            fused=_fused_quadruplets,
            args=(embeddings, labels, weights, normalize_inputs, per),
            without=("cuda",),
        )


def _check_pairs(pairs: Pairs, rows: torch.Tensor) -> Pairs:
    """As int64."""
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise TypeError("pairs must be two tensors (P,) of row numbers")
    i, j = pairs
    checks.is_tensor("pairs[0]", i)
    checks.labels("pairs[0]", i, i if i.dim() == 1 else i[..., None])
    checks.device("pairs[0]", i, rows)
    checks.labels("pairs[1]", j, i)
    return i.long(), j.long()


def _refuse_outside(pairs: Pairs, rows: torch.Tensor, columns: torch.Tensor | None) -> None:
    """Rows that are not there are refused on the CPU; on a GPU their scores are NaN."""
    for k, (index, table) in enumerate(zip(pairs, (rows, columns), strict=True)):
        known = len(rows if table is None else table)
        outside = (index < 0) | (index >= known)
        if outside.any():
            found = index[outside][0].item()
            raise ValueError(f"pairs[{k}] must be from 0 to {known - 1}: there is {found}")


def _plain(
    rows: torch.Tensor, columns: torch.Tensor | None, pairs: Pairs | None, *rest: Any
) -> torch.Tensor:
    if pairs is not None and not rows.is_cuda and is_plain(pairs[0]):
        _refuse_outside(pairs, rows, columns)
    return reference.pddm_scores(rows, columns, pairs, *rest)


class _Kernels:
    """The scores of a unit by the kernels of a backend."""

    def __init__(self, impl: str, rows: torch.Tensor, weights: Weights, normalize_inputs: bool):
        self.module = dispatch.module(__package__, impl, "pddm", rows)
        self.unit = weights, normalize_inputs

    def matrix(self, rows: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        """(N, M) float32."""
        found: torch.Tensor = self.module.matrix(rows, columns, *self.unit)
        return found

    def pairs(
        self,
        rows: torch.Tensor,
        i: torch.Tensor,
        j: torch.Tensor,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(P,) float32, of rows i with columns j, or with rows j where there are no columns."""
        if not rows.is_cuda:
            found: torch.Tensor = self.module.pairs(rows, columns, i, j, *self.unit)
            return found
        M = len(rows if columns is None else columns)
        outside = (i < 0) | (i >= len(rows)) | (j < 0) | (j >= M)
        i, j = (torch.where(outside, 0, index) for index in (i, j))
        found = self.module.pairs(rows, columns, i, j, *self.unit)
        return found.masked_fill_(outside, torch.nan)


def _forward(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    i: torch.Tensor | None,
    j: torch.Tensor | None,
    *rest: Any,
) -> torch.Tensor:
    *weights, normalize_inputs, impl = rest
    kernels = _Kernels(impl, rows, Weights(*weights), normalize_inputs)
    if i is None or j is None:
        return kernels.matrix(rows, columns)
    if not rows.is_cuda:
        _refuse_outside((i, j), rows, columns)
    return kernels.pairs(rows, i, j, columns)


def _fake(
    rows: torch.Tensor, columns: torch.Tensor | None, i: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    shape = (len(rows), len(rows if columns is None else columns)) if i is None else i.shape
    return rows.new_empty(shape, dtype=statistic_dtype(rows))


def _gradients(grad: torch.Tensor, rows: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Gradients of rows, columns (empty where there are none) and weights, in their dtypes."""
    columns, i, j, *weights, normalize_inputs = rest
    pairs = None if i is None else (i, j)
    found = gradients(rows, columns, pairs, Weights(*weights), normalize_inputs, grad)
    d_columns = rows.new_empty(0) if columns is None else found.columns.to(columns.dtype)  # type: ignore[union-attr]
    return (
        found.rows.to(rows.dtype),
        d_columns,
        *(d.to(w.dtype) for d, w in zip(found.weights, weights, strict=True)),
    )


def _fake_gradients(grad: torch.Tensor, rows: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    columns, _, _, *weights, _ = rest
    like = (rows, columns, *weights)
    return tuple(rows.new_empty(0) if t is None else t.new_empty(t.shape) for t in like)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.normalize_inputs, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    found = iter(_call_gradients(grad, *tensors, ctx.normalize_inputs))
    made: list[torch.Tensor | None] = []
    for k, tensor in enumerate(tensors):
        gradient = None if k in (2, 3) else next(found)
        if gradient is None or tensor is None or not ctx.needs_input_grad[k]:
            made.append(None)
        else:
            made.append(once_differentiable(gradient, tensor))
    return *made, None, None


def _quadruplets(rows: torch.Tensor, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
    *weights, normalize_inputs, per, impl = rest
    scorer: Scorer = Nearness()
    if weights[0] is not None:
        scorer = _Kernels(impl, rows, Weights(*weights), normalize_inputs)
    module = dispatch.module(__package__, impl, "pddm", rows)
    found: torch.Tensor = module.hard_quadruplets(rows, labels, per, scorer)
    return found


def _fake_quadruplets(rows: torch.Tensor, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
    return labels.new_empty((1 if rest[-2] == "batch" else len(rows), 4), dtype=torch.long)


_call = register(
    f"pddm_scores(Tensor rows, Tensor? columns, Tensor? i, Tensor? j, {_UNIT}, str impl) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
_call_gradients = register(
    "pddm_scores_grad(Tensor grad, Tensor rows, Tensor? columns, Tensor? i, Tensor? j, "
    f"{_UNIT}) -> ({_OUTPUTS})",
    forward=_gradients,
    fake=_fake_gradients,
)
_call_quadruplets = register(
    f"pddm_hard_quadruplets(Tensor rows, Tensor labels, {_UNIT.replace('Tensor', 'Tensor?')}, "
    "str per, str impl) -> Tensor",
    forward=_quadruplets,
    fake=_fake_quadruplets,
)


def _fused(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    pairs: Pairs | None,
    weights: Weights,
    normalize_inputs: bool,
    impl: str,
) -> torch.Tensor:
    scores: torch.Tensor = _call(
        rows, columns, *(pairs or (None, None)), *weights, normalize_inputs, impl
    )
    return scores


def _fused_quadruplets(
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: Weights | None,
    normalize_inputs: bool,
    per: str,
    impl: str,
) -> torch.Tensor:
    tensors = weights or (None,) * len(Weights._fields)
    found: torch.Tensor = _call_quadruplets(rows, labels, *tensors, normalize_inputs, per, impl)
    return found
