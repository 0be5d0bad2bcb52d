"""How many positives and negatives a row has."""

import pytest
import torch

from dmlfast import ops

from .helpers import generator


def counted(labels, columns, selves):
    """The same by the matrix of all pairs."""
    same = labels[:, None] == columns
    itself = selves[:, None] == torch.arange(len(columns))
    return (same & ~itself).sum(1), (~same).sum(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8])
@pytest.mark.parametrize("n", [0, 1, 2, 37])
def test_a_batch_against_itself(n, dtype):
    labels = torch.randint(0, 5, (n,), generator=generator(n)).to(dtype)
    found = ops.pair_counts(labels)
    assert all(map(torch.equal, found, counted(labels, labels, torch.arange(n))))
    assert all(each.dtype == torch.int64 for each in found)


@pytest.mark.parametrize("m", [0, 1, 23])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_columns_of_their_own(m, dtype):
    """Which are a row itself where they are of its class; a place beyond the last is nobody."""
    random = generator(m)
    labels = torch.randint(-3, 3, (17,), generator=random)
    columns = torch.randint(-3, 3, (m,), generator=random)
    nobody = torch.full((17,), -1)
    found = ops.pair_counts(labels, columns)
    assert all(map(torch.equal, found, counted(labels, columns, nobody)))
    selves = torch.randint(-1, m + 2, (17,), generator=random).to(dtype)
    found = ops.pair_counts(labels, columns, self_index=selves)
    assert all(map(torch.equal, found, counted(labels, columns, selves)))


def test_labels_of_any_value_and_strides():
    labels = torch.tensor([2**62, 0, -(2**63), 0, 2**62, 0])[::2]
    positives, negatives = ops.pair_counts(labels)
    assert positives.tolist() == [1, 0, 1]
    assert negatives.tolist() == [1, 2, 1]


def test_they_are_what_the_primitive_selects():
    random = generator(0)
    rows, labels = torch.randn(9, 3, generator=random), torch.arange(9) // 2
    columns, others = torch.randn(7, 3, generator=random), torch.arange(7) // 3
    selves = torch.tensor([0, 1, 2, 5, 4, -1, -1, 6, 3])
    options = {"scale": 0.0, "offset": 1.0, "reduce": "sum"}
    for given in ({}, {"ref_emb": columns, "ref_labels": others, "self_index": selves}):
        counts = ops.pair_counts(labels, **{k: v for k, v in given.items() if k != "ref_emb"})
        for select, count in zip(("positive", "negative"), counts, strict=True):
            found = ops.pair_reduce(rows, labels, **given, select=select, **options)
            assert torch.equal(found, count.float())


def test_what_cannot_be_is_said():
    labels = torch.arange(3)
    with pytest.raises(TypeError, match=r"^labels must be a torch.Tensor, not list$"):
        ops.pair_counts([1, 2])
    with pytest.raises(TypeError, match=r"^ref_labels must have an integer dtype, not torch.fl"):
        ops.pair_counts(labels, labels.float())
    with pytest.raises(ValueError, match=r"^labels must have shape \(3,\), not \(3, 1\)$"):
        ops.pair_counts(labels[:, None])
    with pytest.raises(ValueError, match=r"^self_index was given without ref_labels$"):
        ops.pair_counts(labels, self_index=labels)
    with pytest.raises(ValueError, match=r"^self_index must have shape \(3,\), not \(2,\)$"):
        ops.pair_counts(labels, labels, self_index=labels[:2])
