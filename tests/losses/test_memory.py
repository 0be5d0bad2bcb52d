"""Losses of a batch with what was embedded before it."""

import pytest
import torch
from safetensors.torch import load, save
from torch.utils.checkpoint import checkpoint

from dmlfast.losses import (
    ContrastiveLoss,
    CrossBatchMemory,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
)

LOSSES = [
    LiftedStructuredLoss(),
    GeneralizedLiftedStructuredLoss(),
    ContrastiveLoss(),
    TripletLoss(),
    SupConLoss(),
    NTXentLoss(),
    MultiSimilarityLoss(),
    MultiSimilarityLoss(epsilon=0.1),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def batches(count, sizes=(6,), d=4):
    random = torch.Generator().manual_seed(0)
    made = []
    for k in range(count):
        n = sizes[k % len(sizes)]
        rows = torch.randn(n, d, generator=random)
        made.append((rows, torch.randint(0, 3, (n,), generator=random)))
    return made


def value_and_gradient(loss, rows, *others, **options):
    rows = rows.clone().requires_grad_()
    value = loss(rows, *others, **options)
    value.backward()
    return value.detach(), rows.grad


@each_loss
def test_a_batch_meets_the_last_rows_and_itself(loss):
    """In the order of their places: 6, 5, 6, 5 rows go round in a memory of 14."""
    memory = CrossBatchMemory(loss, 4, size=14)
    places = torch.full((14,), -1)
    all_rows, all_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    for rows, labels in batches(4, sizes=(6, 5)):
        new = torch.arange(len(all_rows), len(all_rows) + len(rows))
        places[new % 14] = new
        all_rows, all_labels = torch.cat([all_rows, rows]), torch.cat([all_labels, labels])
        kept = places[places >= 0]
        columns = {"ref_emb": all_rows[kept], "ref_labels": all_labels[kept]}
        expected = value_and_gradient(loss, rows, labels, **columns, self_index=new % 14)
        found = value_and_gradient(memory, rows, labels)
        assert expected[1].any()
        assert all(map(torch.equal, found, expected))
    assert sorted(kept.tolist()) == list(range(8, 22))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ContrastiveLoss(normalize_embeddings=True), "ContrastiveLoss"),
        (TripletLoss(0.05, normalize_embeddings=True), "TripletMarginLoss"),
    ],
)
def test_it_is_the_memory_of_pytorch_metric_learning(ours, theirs):
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    memory = CrossBatchMemory(ours, 4, size=20)
    other = pml.CrossBatchMemory(getattr(pml, theirs)(), 4, memory_size=20)
    for rows, labels in batches(6):
        found = value_and_gradient(memory, rows, labels)
        expected = value_and_gradient(other, rows, labels)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_gradients_may_be_taken_after_the_next_batch():
    memory, again = (CrossBatchMemory(LiftedStructuredLoss(), 4, size=9) for _ in range(2))
    given = [(rows.requires_grad_(), labels) for rows, labels in batches(3)]
    torch.stack([memory(*each) for each in given]).sum().backward()
    for rows, labels in given:
        assert torch.equal(value_and_gradient(again, rows.detach(), labels)[1], rows.grad)


def test_in_eval_mode_a_batch_is_alone():
    (old, new), loss = batches(2), LiftedStructuredLoss()
    memory = CrossBatchMemory(loss, 4)
    memory(*old)
    memory.eval()
    assert torch.equal(memory(*new), loss(*new))
    assert memory.seen == 6


def test_its_state_goes_on_where_it_was():
    first, second, third = batches(3)
    whole, part, resumed = (CrossBatchMemory(TripletLoss(), 4, size=8) for _ in range(3))
    for each in (first, second):
        whole(*each)
        part(*each)
    resumed.load_state_dict(load(save(part.state_dict())))
    assert torch.equal(resumed(*third), whole(*third))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("labels_dtype", [torch.uint8, torch.int64])
def test_rows_of_other_dtypes_are_kept(dtype, labels_dtype):
    """What is kept of float64 is float32, unless the memory is made float64 too."""
    loss = LiftedStructuredLoss()
    memory = CrossBatchMemory(loss, 4, size=9).to(dtype)
    (old, old_labels), (new, new_labels) = batches(2)
    old, new = old.to(dtype), new.to(dtype)
    memory(old, old_labels.to(labels_dtype))
    found = memory(new, new_labels.to(labels_dtype))
    places = torch.tensor([6, 7, 8, 0, 1, 2])
    columns, labels = torch.zeros(9, 4, dtype=dtype), torch.zeros(9, dtype=torch.long)
    columns[:6], labels[:6] = old, old_labels
    columns[places], labels[places] = new, new_labels
    expected = loss(new, new_labels, ref_emb=columns, ref_labels=labels, self_index=places)
    assert torch.equal(found, expected)


def test_it_takes_what_it_can_compare_with():
    with pytest.raises(TypeError, match="loss must be one that takes ref_emb, not NormSoftmaxLoss"):
        CrossBatchMemory(NormSoftmaxLoss(3, 4), 4)
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        CrossBatchMemory(TripletLoss(), 4, size=0)
    memory, labels = CrossBatchMemory(TripletLoss(), 4, size=5), torch.zeros(6).long()
    with pytest.raises(ValueError, match=r"\(N, 4\) with N <= 5, .* not \(6, 4\)"):
        memory(torch.zeros(6, 4), labels)
    with pytest.raises(ValueError, match=r"\(N, 4\) with N <= 5, .* not \(3, 2\)"):
        memory(torch.zeros(3, 2), labels[:3])
    with pytest.raises(ValueError, match="cannot honour indices_tuple"):
        memory(torch.zeros(3, 4), labels[:3], (labels, labels, labels))
    assert memory.seen == 0


def test_a_batch_that_the_loss_refuses_is_not_kept():
    class Refusing(TripletLoss):
        def forward(self, *args, **kwargs):
            raise ValueError("refused")

    (old, old_labels), (new, new_labels) = batches(2)
    memory = CrossBatchMemory(TripletLoss(), 4, size=20)
    memory(old, old_labels)
    memory.loss, before = Refusing(), {k: v.clone() for k, v in memory.state_dict().items()}
    with pytest.raises(ValueError, match="refused"):
        memory(new, new_labels)
    assert memory.seen == len(old)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_cannot_be_computed_again_for_a_gradient(reentrant):
    memory = CrossBatchMemory(LiftedStructuredLoss(), 4, size=6)
    (old, old_labels), (new, new_labels) = batches(2)
    memory(old, old_labels)
    loss = checkpoint(memory, new.requires_grad_(), new_labels, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"leave it out of torch\.utils\.checkpoint"):
        loss.backward()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_is_not_kept(value):
    """Also under a `GradScaler`, which passes over the step, later ones are as if it never came."""
    given = batches(5)
    bad = given[0][0].clone()
    bad[2, 1] = value
    for size, full in ((100, False), (12, True)):
        loss = LiftedStructuredLoss()
        with_bad, without = (CrossBatchMemory(loss, 4, size=size) for _ in range(2))
        for k, batch in enumerate(given):
            if k == 3:
                assert with_bad(bad, given[0][1]).isnan()
            if k < 3 or not full:
                assert torch.equal(with_bad(*batch), without(*batch))
        if full:  # what was kept stays in its place a while longer
            rows = torch.cat([given[1][0], given[2][0]])
            assert sorted(map(tuple, with_bad.rows.tolist())) == sorted(map(tuple, rows.tolist()))
            assert torch.isfinite(with_bad(*given[4]))
