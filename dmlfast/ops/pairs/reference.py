"""The pair primitive in plain PyTorch, with the whole matrix of pairs: the definition of right."""

import torch

from dmlfast.ops.numerics import computed, nan_unless_finite, pair_products
from dmlfast.ops.pairs.term import MAX, PairTerm


def pair_distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, M) Euclidean distances from differences; the gradient at distance 0 is 0."""
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def masked_logsumexp(terms: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    """log sum exp where ``mask`` holds; -inf, with a zero gradient, where it holds nowhere."""
    some = mask.any(dim)
    terms = torch.where(mask | ~some.unsqueeze(dim), terms, -torch.inf)
    return torch.where(some, terms.logsumexp(dim), -torch.inf)


def select_pairs(
    select: str,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> torch.Tensor:
    """(N, M) mask of the selected pairs. ``self_index`` (N,): the column that is the row, or -1."""
    if select == "negative" or select == "positive":
        assert row_labels is not None
        assert column_labels is not None
        same = row_labels.long()[:, None] == column_labels.long()[None, :]
        mask = same if select == "positive" else ~same
    else:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    if self_index is not None and select in ("positive", "other"):
        mask = mask & (self_index[:, None] != torch.arange(shape[1], device=device)[None, :])
    return mask


def _hinge(terms: torch.Tensor, reduce: str) -> torch.Tensor:
    if reduce == "softplus":
        return torch.logaddexp(terms, terms.new_zeros(()))
    return terms.relu().square() if reduce == "squared_hinge" else terms.relu()


def pair_reduce(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: torch.Tensor | None,
    term: PairTerm,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.pair_reduce` and :func:`dmlfast.ops.pair_max`."""
    x = computed(rows)
    r = x if columns is None else computed(columns)
    if columns is None:
        column_labels, self_index = row_labels, torch.arange(len(x), device=x.device)
    mask = select_pairs(
        term.select, row_labels, column_labels, self_index, (len(x), len(r)), x.device
    )
    scores = pair_products(x, r) if term.score == "dot" else pair_distances(x, r)
    terms = term.scale * scores + term.offset
    if column_bias is not None:
        terms = terms + computed(column_bias)
    if row_floor is not None:
        mask = mask & (terms > computed(row_floor)[:, None])
    if term.is_hinge:
        hinges = torch.where(mask, _hinge(terms, term.reduce), 0)
        result = torch.stack([hinges.sum(1), (hinges > 0).sum(1).to(x.dtype)])
    elif term.reduce == "sum":
        result = torch.where(mask, terms, 0).sum(1)
    elif term.reduce == MAX:
        nothing = terms.new_full((len(x), 1), term.over_nothing)  # without which no column has none
        result = torch.cat([torch.where(mask, terms, term.over_nothing), nothing], 1).amax(1)
    else:
        result = masked_logsumexp(terms, mask, 1)
    return result + nan_unless_finite(x, r, column_bias)
