"""Hard quadruplets from blocks of scores: the extremes of each row, and what they are put
together to.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.pddm.mining import Scorer
from dmlfast.ops.triton.configs import FUSED

BLOCK_ENTRIES = 2**24  # scores of a block, 64 MiB
NOBODY = tl.constexpr(2147483647)


@triton.jit
def _shown(best, who, s, mask, j):
    """The largest scores so far and their columns, with scores s of columns j, which ascend. A NaN
    stays.
    """
    better = mask & ((s > best) | (s != s))
    return tl.where(better, s, best), tl.where(better, j, who)


@triton.jit
def _first_of_largest(best, who):
    """The largest of each row (BM, BN) and the lowest of its columns, NOBODY where all are -inf."""
    largest = tl.max(best, 1)
    at = (best == largest[:, None]) & (best > -float("inf"))
    return largest, tl.min(tl.where(at, who, NOBODY), 1)


@triton.jit
def _keep(best, who, score, column, row, there, fresh):
    """Keeps the largest of what was kept of the rows, of lower columns, and of ``best`` (BM, BN).

    A row of which any score is NaN has none.
    """
    fresh = row * 0 + fresh > 0
    kept = tl.load(score + row, mask=there & ~fresh, other=-float("inf"))
    nan = (tl.max((best != best).to(tl.int32), 1) > 0) | (kept != kept)
    largest, first = _first_of_largest(best, who)
    better = (largest > kept) | nan
    first = tl.where(nan | (first == NOBODY), -1, first)
    tl.store(score + row, tl.where(nan, float("nan"), largest), mask=there & (better | fresh))
    tl.store(column + row, first, mask=there & (better | fresh))


@triton.jit(
    do_not_specialize=["n", "row", "rows", "column", "columns", "fresh"],
    do_not_specialize_on_alignment=["labels"],
)
def extremes_kernel(
    scores, labels, score, found, n, row, rows, column, columns, fresh, TURNED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Shows BM rows, from ``row`` on, their scores with the columns from ``column`` on.

    scores: (rows, columns), TURNED: (columns, rows). score, found: (2, n), the largest of minus the
    scores of positives and of the scores of negatives, and their columns; what they hold already
    counts unless they are ``fresh``.
    """
    own = tl.program_id(0) * BM + tl.arange(0, BM)
    there, i = own < rows, row + own
    label = tl.load(labels + i, mask=there, other=0)
    positive = tl.full((BM, BN), -float("inf"), tl.float32)
    negative = tl.full((BM, BN), -float("inf"), tl.float32)
    hardest = tl.full((BM, BN), NOBODY, tl.int32)
    nearest = tl.full((BM, BN), NOBODY, tl.int32)
    for first in range(0, columns, BN):
        other = first + tl.arange(0, BN)
        j = column + other
        if TURNED:
            at = other.to(tl.int64)[:, None] * rows + own[None, :]
            known = (other < columns)[:, None] & there[None, :]
            s = tl.trans(tl.load(scores + at, mask=known, other=0.0))
        else:
            at = own.to(tl.int64)[:, None] * columns + other[None, :]
            known = there[:, None] & (other < columns)[None, :]
            s = tl.load(scores + at, mask=known, other=0.0)
        same = label[:, None] == tl.load(labels + j, mask=other < columns, other=0)[None, :]
        asked = there[:, None] & (other < columns)[None, :]
        apart = asked & same & (i[:, None] != j[None, :])
        positive, hardest = _shown(positive, hardest, -s, apart, j[None, :])
        negative, nearest = _shown(negative, nearest, s, asked & ~same, j[None, :])
    _keep(positive, hardest, score, found, i, there, fresh)
    _keep(negative, nearest, score + n, found + n, i, there, fresh)


@triton.jit
def _beaten(score, labels, i, there, n, BM: tl.constexpr, BN: tl.constexpr):
    """Whether another row of its class has a larger score, or comes first with the same."""
    own = tl.load(score + i, mask=there, other=0.0)
    label = tl.load(labels + i, mask=there, other=0)
    found = i * 0
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        known = j < n
        same = label[:, None] == tl.load(labels + j, mask=known, other=0)[None, :]
        other = tl.load(score + j, mask=known, other=0.0)[None, :]
        before = (other == own[:, None]) & (j[None, :] < i[:, None])
        beats = same & known[None, :] & ((other > own[:, None]) | before)
        found = tl.maximum(found, tl.max(beats.to(tl.int32), 1))
    return found > 0


@triton.jit
def _hardest(score, n, BM: tl.constexpr):
    """The first row with the largest score, NOBODY where there is none."""
    best = tl.full((1, BM), -float("inf"), tl.float32)
    who = tl.full((1, BM), NOBODY, tl.int32)
    for first in range(0, n, BM):
        i = (first + tl.arange(0, BM))[None, :]
        s = tl.load(score + i, mask=i < n, other=-float("inf"))
        best, who = _shown(best, who, s, (i < n) & (s == s), i)
    return tl.max(_first_of_largest(best, who)[1], 0)


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["labels"])
def assemble_kernel(
    score, found, labels, out, n, PER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Quadruplets of BM anchors or classes, or a batch's one, from the extremes of all rows."""
    q = tl.program_id(0) * BM + tl.arange(0, BM)
    i = q
    some = q < n
    asked = some
    if PER == "batch":
        asked = q < 1
        i = i * 0 + _hardest(score, n, BM)
        some = asked & (i != NOBODY)
    elif PER == "class":
        some &= ~_beaten(score, labels, i, some, n, BM, BN)
    j = tl.load(found + i, mask=some, other=-1)
    some &= j >= 0
    k = tl.load(found + n + i, mask=some, other=-1)
    some &= k >= 0
    l = tl.load(found + n + j, mask=some, other=-1)  # noqa: E741
    out += q.to(tl.int64) * 4
    tl.store(out, tl.where(some, i, -1), mask=asked)
    tl.store(out + 1, tl.where(some, j, -1), mask=asked)
    tl.store(out + 2, k, mask=asked)
    tl.store(out + 3, l, mask=asked)


@on_its_device
def hard_quadruplets(
    rows: torch.Tensor, labels: torch.Tensor, per: str, scorer: Scorer
) -> torch.Tensor:
    """(Q, 4) rows i, j, k, l, see :func:`dmlfast.ops.pddm_hard_quadruplets`; all pairs are scored,
    each once.
    """
    n = len(rows)
    out = rows.new_empty(1 if per == "batch" else n, 4, dtype=torch.int64)
    if not n:
        return out.fill_(-1)
    labels = labels.to(torch.int64).contiguous()
    score = rows.new_empty(2, n, dtype=torch.float32)
    found = rows.new_empty(2, n, dtype=torch.int32)

    def show(scores: torch.Tensor, row: int, column: int, fresh: bool, turned: bool) -> None:
        height, width = scores.T.shape if turned else scores.shape
        blocks = {"BM": 32, "BN": 16} if turned else {"BM": 4, "BN": 128}
        extremes_kernel[(-(-height // blocks["BM"]),)](
            scores, labels, score, found, n, row, height, column, width, int(fresh), TURNED=turned,
            **blocks, **FUSED,
        )  # fmt: skip

    block = max(1, BLOCK_ENTRIES // n)
    for first in range(0, n, block):
        end = min(first + block, n)
        show(scorer.matrix(rows[first:end], None), first, first, not first, False)
        if end < n:
            scores = scorer.matrix(rows[first:end], rows[end:])
            show(scores, first, end, False, False)
            show(scores, end, first, not first, True)
    blocks = {"BM": 32 if per == "class" else 256, "BN": 64}
    programs = -(-len(out) // blocks["BM"])
    assemble_kernel[(programs,)](score, found, labels, out, n, PER=per, **blocks, **FUSED)
    return out
