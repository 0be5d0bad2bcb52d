"""Hard quadruplets from blocks of scores, in memory linear in the rows.

A score costs thousands of operations, so that what is mined from blocks of them is as good as
mined by the kernel that makes them.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from dmlfast.ops.numerics import computed

BLOCK_ENTRIES = 2**18  # scores of a block, 1 MiB


class Scorer(Protocol):
    """The scores of some pairs of rows (N, D); symmetric to the last bit."""

    def matrix(self, rows: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        """(N, M), of all pairs, with the rows themselves where there are no columns."""

    def pairs(self, rows: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """(P,), of rows i with rows j."""


class Nearness:
    """Minus the Euclidean distance, as a score."""

    def matrix(self, rows: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        x = computed(rows)
        y = x if columns is None else computed(columns)
        return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def pairs(self, rows: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        x = computed(rows)
        return -torch.linalg.vector_norm(x[i] - x[j], dim=1)


class Extremes:
    """Of each row the largest of the scores shown so far, and its column; -1 where none was shown.

    Columns are shown in ascending order, so that of equal scores the lowest column counts.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        self.score = torch.full((len(rows),), -torch.inf, dtype=dtype, device=rows.device)
        self.column = torch.full((len(rows),), -1, device=rows.device)

    def show(self, rows: slice | torch.Tensor, scores: torch.Tensor, columns: torch.Tensor) -> None:
        """Scores (R,) of rows with a column each, (R,)."""
        better = scores > self.score[rows]
        self.score[rows] = torch.where(better, scores, self.score[rows])
        self.column[rows] = torch.where(better, columns, self.column[rows])

    def show_block(
        self, rows: slice | torch.Tensor, first: int, scores: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Scores (R, C) of rows with the columns from `first` on, where a mask holds."""
        if scores.numel():
            found = scores.masked_fill(~mask, -torch.inf).max(1)
            self.show(rows, found.values, first + found.indices)


def hard_quadruplets(
    rows: torch.Tensor, labels: torch.Tensor, per: str, scorer: Scorer
) -> torch.Tensor:
    """(Q, 4) rows i, j, k, l, see :func:`dmlfast.ops.pddm_hard_quadruplets`."""
    if not len(rows):
        return torch.full((1 if per == "batch" else 0, 4), -1, device=rows.device)
    labels = labels.long()  # torch takes differences of no unsigned integers
    if per == "anchor":
        positives, negatives = _sweep(scorer, rows, labels)
        return _assemble(positives, labels, per, lambda ends: negatives.column[ends])
    return _assemble(
        _hardest_positives(scorer, rows, labels),
        labels,
        per,
        lambda ends: _hardest_negatives(scorer, rows, labels, ends),
    )


def _assemble(
    positives: Extremes,
    labels: torch.Tensor,
    per: str,
    negatives_of: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Quadruplets from each row's hardest positive, its score with the sign changed."""
    if per == "batch":
        i = positives.score.argmax(0, keepdim=True)
    else:
        i = torch.arange(len(labels), device=labels.device)
    j = positives.column[i]
    some = j >= 0
    if per == "class":
        some &= _first_of_class(positives.score, labels)
    pair = torch.stack([i, j.clamp_min(0)], dim=1)
    negatives = torch.full_like(pair, -1)
    negatives[some] = negatives_of(pair[some].flatten()).view(-1, 2)
    some &= negatives[:, 0] >= 0
    return torch.cat([pair, negatives], dim=1).masked_fill(~some[:, None], -1)


def _first_of_class(score: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N,) whether a row is the first of those with the largest score of its class."""
    N = len(labels)
    order = labels.sort(stable=True).indices
    changes = labels[order].diff() != 0
    rank = torch.zeros(N, dtype=torch.long, device=labels.device)
    rank[order[1:]] = changes.cumsum(0)
    largest = score.new_full((N,), -torch.inf).scatter_reduce(0, rank, score, "amax")[rank]
    row = torch.arange(N, device=labels.device)
    candidate = torch.where(score == largest, row, N)
    return row == torch.full_like(row, N).scatter_reduce(0, rank, candidate, "amin")[rank]


def _sweep(scorer: Scorer, rows: torch.Tensor, labels: torch.Tensor) -> tuple[Extremes, Extremes]:
    """Of each row the positive with the least score, as the largest of minus the scores, and the
    negative with the largest; each unordered pair is scored once.
    """
    N = len(rows)
    block = max(1, BLOCK_ENTRIES // N)
    positives, negatives = Extremes(rows), Extremes(rows)

    def show(a: slice, b: slice, scores: torch.Tensor, same: torch.Tensor) -> None:
        others = same
        if a == b:
            others = same.clone()
            others.fill_diagonal_(False)
        positives.show_block(a, b.start, -scores, others)
        negatives.show_block(a, b.start, scores, ~same)

    for first in range(0, N, block):
        a, rest = slice(first, min(first + block, N)), slice(min(first + block, N), N)
        show(a, a, scorer.matrix(rows[a], None), labels[a, None] == labels[a])
        if rest.start < N:
            scores = scorer.matrix(rows[a], rows[rest])
            same = labels[a, None] == labels[rest]
            show(a, rest, scores, same)
            show(rest, a, scores.T, same.T)
    return positives, negatives


def _hardest_positives(scorer: Scorer, rows: torch.Tensor, labels: torch.Tensor) -> Extremes:
    """Of each row the positive after it with the least score, as the largest of minus the scores.

    Pairs stand side by side, at a distance of one place, two, ... of the rows in order of label.
    """
    found = Extremes(rows)
    ordered, order = labels.sort(stable=True)
    for step in range(1, len(rows)):
        at = (ordered[step:] == ordered[:-step]).nonzero()[:, 0]
        if not len(at):
            break
        i, j = order[at], order[at + step]
        found.show(i, -scorer.pairs(rows, i, j), j)
    return found


def _hardest_negatives(
    scorer: Scorer, rows: torch.Tensor, labels: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """(E,) of some rows, (E,), the negative with the largest score."""
    found = Extremes(rows[ends])
    block = max(1, BLOCK_ENTRIES // len(rows))
    for first in range(0, len(ends), block):
        part = ends[first : first + block]
        negative = labels[part, None] != labels
        at = slice(first, first + len(part))
        found.show_block(at, 0, scorer.matrix(rows[part], rows), negative)
    return found.column
