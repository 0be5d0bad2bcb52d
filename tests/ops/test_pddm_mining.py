"""Quadruplets from scores by Triton kernels: ties, blocks, scores that are not finite."""

import pytest
import torch

from dmlfast import ops
from dmlfast.ops.pddm.reference import quadruplets

from .helpers import generator
from .test_pddm import labels_of

pytest.importorskip("triton")
from dmlfast.ops.pddm.triton import mining

PER = pytest.mark.parametrize("per", ["batch", "class", "anchor"])


class Given:
    """Scores (N, N) that are given; rows are their numbers, (N, 1)."""

    def __init__(self, scores):
        self.scores = scores

    def matrix(self, rows, columns):
        i = rows[:, 0].long()
        return self.scores[i][:, i if columns is None else columns[:, 0].long()]


def mined(scores, labels, per, entries=2**24):
    rows = torch.arange(len(scores)).float()[:, None]
    before, mining.BLOCK_ENTRIES = mining.BLOCK_ENTRIES, entries
    try:
        return mining.hard_quadruplets(rows, labels, per, Given(scores))
    finally:
        mining.BLOCK_ENTRIES = before


def some_scores(n, values=None):
    """Symmetric ones, of few values where there are to be ties."""
    scores = torch.randn(n, n, generator=generator(n))
    if values:
        scores = torch.randint(-values, values, (n, n), generator=generator(n)).float()
    return scores.triu() + scores.triu(1).T


@PER
@pytest.mark.parametrize("kind", ["random", "pairs", "one class", "alone", "two"])
@pytest.mark.parametrize("n", [1, 7, 31])
def test_they_are_those_of_the_reference(kind, per, n):
    labels = labels_of(kind, n)
    for values in (None, 2):
        scores = some_scores(n, values)
        expected = quadruplets(scores, labels, per)
        for entries in (2**24, 12 * n, 1 if n < 10 else 2**24):
            assert torch.equal(mined(scores, labels, per, entries), expected)


@PER
def test_more_rows_than_a_program_takes_at_once(per):
    labels = torch.arange(300)
    labels[260:] //= 2  # whose program is not the first
    scores = some_scores(300, 9)
    found = mined(scores, labels, per, 260 * 300)
    assert torch.equal(found, quadruplets(scores, labels, per))


def test_nothing_to_mine():
    labels = torch.zeros(0, dtype=torch.long)
    assert mined(torch.zeros(0, 0), labels, "batch").tolist() == [[-1] * 4]
    assert mined(torch.zeros(0, 0), labels, "anchor").shape == (0, 4)


@pytest.mark.parametrize("entries", [2**24, 20])
def test_a_row_with_a_score_that_is_nan_has_no_hardest(entries):
    """Of positives and of negatives alike, wherever the score stands."""
    labels = torch.arange(12) // 4
    clean = some_scores(12)
    for i, j in ((0, 2), (2, 3), (5, 9), (0, 11)):
        scores = clean.clone()
        scores[i, j] = scores[j, i] = torch.nan
        expected = quadruplets(clean, labels, "anchor")
        found = mined(scores, labels, "anchor", entries)
        hit = torch.zeros(12, dtype=torch.bool)
        hit[[i, j]] = True
        assert (found[hit] == -1).all()
        ends = expected[:, 1]  # whose negative is none, where the other end has one
        assert torch.equal(found[~hit, :3], expected[~hit, :3])
        assert torch.equal(found[~hit & ~hit[ends]], expected[~hit & ~hit[ends]])
    assert (mined(torch.full((12, 12), torch.nan), labels, "batch") == -1).all()


@PER
def test_extreme_scores(per):
    scores, labels = some_scores(20) * 1e38, labels_of("random", 20)
    assert torch.equal(mined(scores, labels, per), quadruplets(scores, labels, per))


@PER
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.uint16, torch.uint64])
def test_labels_of_any_kind_and_strides(kind, per):
    scores, labels = some_scores(23), labels_of("two", 23)
    spread = torch.stack([labels, labels.flip(0)], 1).to(kind)[:, 0]
    assert torch.equal(mined(scores, spread, per), quadruplets(scores, labels, per))


@PER
def test_by_distance(per):
    rows, labels = torch.randn(31, 5, generator=generator(1)), labels_of("random", 31)
    rows[4] = rows[20] = rows[9]
    found = ops.pddm_hard_quadruplets(rows, labels, per=per, impl="triton")
    assert torch.equal(found, ops.pddm_hard_quadruplets(rows, labels, per=per, impl="reference"))
