"""The normalised softmax as a module: labels of any value, and sampled classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from dmlfast.losses import NormSoftmaxLoss, compares_with_classes, create_loss

CLASSES = torch.tensor([40, 7, -3, 11, 90, 5, 6, 13, 22, 31])


def batch(n=24, d=6):
    random = torch.Generator().manual_seed(0)
    labels = CLASSES[torch.randint(0, 10, (n,), generator=random)]
    return torch.randn(n, d, generator=random), labels


def expected(loss_fn, embeddings, labels, rows=None):
    """Cross-entropy over the weights of the given classes."""
    rows = torch.arange(len(loss_fn.classes)) if rows is None else rows
    own = (loss_fn.classes[rows] == labels[:, None]).long().argmax(1)
    logits = F.normalize(embeddings) @ F.normalize(loss_fn.weight[rows]).T
    return F.cross_entropy(logits / loss_fn.temperature, own)


def test_labels_are_classes_of_any_value():
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6), batch()
    assert loss_fn.classes.tolist() == sorted(CLASSES.tolist())
    found = loss_fn(embeddings, labels)
    torch.testing.assert_close(found, expected(loss_fn, embeddings, labels))
    with pytest.raises(ValueError, match="label 8 is not one of the classes of this loss"):
        loss_fn(embeddings[:2], torch.tensor([7, 8]))
    with pytest.raises(ValueError, match="cannot honour indices_tuple"):
        loss_fn(embeddings, labels, (1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_are_those_of_the_loss(dtype):
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6, temperature=0.1).to(dtype), batch()
    embeddings = embeddings.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        logits = loss_fn.get_logits(embeddings)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = F.cross_entropy(logits, torch.searchsorted(loss_fn.classes, labels))
    torch.testing.assert_close(found, loss_fn(embeddings, labels), check_dtype=False)
    assert loss_fn.get_logits(embeddings[:0]).shape == (0, 10)
    power = 700 if dtype == torch.float64 else 100  # whose square overflows, or vanishes
    for size in (2.0**-power, 2.0**power):
        torch.testing.assert_close(loss_fn.get_logits(embeddings * size), logits)
    assert not loss_fn.get_logits(embeddings * 0).any()
    classes = loss_fn.get_logits(3 * loss_fn.weight).argmax(1)
    assert loss_fn.classes[classes].equal(loss_fn.classes)
    with pytest.raises(ValueError, match="weight must have the width of embeddings, 5, not 6"):
        loss_fn.get_logits(embeddings[:, 1:])


def test_weights_begin_as_in_the_paper_and_get_gradients():
    torch.manual_seed(0)
    loss_fn = NormSoftmaxLoss(1000, 16)
    assert loss_fn.classes.tolist() == list(range(1000))
    assert 0.24 < loss_fn.weight.abs().max() <= 0.25
    loss_fn(torch.randn(5, 16), torch.arange(5)).backward()
    assert loss_fn.weight.grad.layout == torch.strided
    along = (loss_fn.weight.grad * loss_fn.weight).sum(1)
    assert along.abs().max() < 1e-5


def test_options_reach_the_loss():
    embeddings, labels = batch()
    plain = NormSoftmaxLoss(CLASSES, 6)
    for options in (
        {"temperature": 0.2},
        {"cosine_margin": 0.2},
        {"angular_margin": 0.2},
        {"label_smoothing": 0.2},
    ):
        other = NormSoftmaxLoss(CLASSES, 6, **options)
        other.load_state_dict(plain.state_dict())
        assert abs(other(embeddings, labels) - plain(embeddings, labels)) > 1e-2
    made = create_loss("norm-softmax", num_classes=CLASSES, embedding_dim=6, margin=0.35)
    assert (made.cosine_margin, made.weight.shape) == (0.35, (10, 6))
    assert compares_with_classes("norm-softmax")
    assert not compares_with_classes("lifted")


@pytest.mark.parametrize("options", [{"class_fraction": 0.55}, {"class_count": 6}])
def test_a_step_compares_with_the_classes_of_the_batch_and_others(options):
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6, **options), batch()
    labels = torch.where(labels > 10, 11, 7)
    seen = []
    for step in range(40):
        loss_fn.weight.grad = None
        loss = loss_fn(embeddings, labels)
        assert loss_fn.draws == step + 1
        loss.backward()
        rows = loss_fn.weight.grad.coalesce().indices()[0]
        assert len(rows) == loss_fn.sample_size == 6
        assert {7, 11} <= set(loss_fn.classes[rows].tolist())
        torch.testing.assert_close(loss, expected(loss_fn, embeddings, labels, rows))
        seen.append(rows)
    counts = torch.cat(seen).bincount(minlength=10)
    others = counts[(loss_fn.classes != 7) & (loss_fn.classes != 11)]
    assert others.sum() == 160
    assert others.min() > 10
    assert others.max() < 32  # each with probability 1 / 2
    loss_fn.eval()
    torch.testing.assert_close(loss_fn(embeddings, labels), expected(loss_fn, embeddings, labels))


def test_the_batch_may_have_more_classes_than_a_sample():
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6, class_count=2), batch()
    loss_fn(embeddings, labels).backward()
    rows = loss_fn.weight.grad.coalesce().indices()[0]
    assert set(loss_fn.classes[rows].tolist()) == set(labels.tolist())


def test_what_is_drawn_depends_on_the_seed_and_goes_on_where_it_was():
    embeddings, labels = batch(3)
    whole, part, other = (NormSoftmaxLoss(CLASSES, 6, class_count=5, seed=s) for s in (1, 1, 2))
    part.load_state_dict(whole.state_dict())
    other.load_state_dict(whole.state_dict())
    losses = [whole(embeddings, labels).item() for _ in range(6)]
    for _ in range(3):
        part(embeddings, labels)
    state = part.state_dict()
    resumed = NormSoftmaxLoss(CLASSES, 6, class_count=5, seed=1)
    resumed.load_state_dict(state)
    assert [resumed(embeddings, labels).item() for _ in range(3)] == losses[3:]
    assert [other(embeddings, labels).item() for _ in range(6)] != losses


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_sample_cannot_be_drawn_again_for_a_gradient(reentrant):
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6, class_count=5), batch()
    embeddings.requires_grad_()
    loss = checkpoint(loss_fn, embeddings, labels, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"leave it out of torch\.utils\.checkpoint"):
        loss.backward()


@pytest.mark.parametrize("classes", [[30, 7, 11], (30, 7, 11), np.array([30, 7, 11])], ids=type)
def test_classes_may_be_listed(classes):
    assert NormSoftmaxLoss(classes, 6).classes.tolist() == [7, 11, 30]
    assert NormSoftmaxLoss(np.int64(3), 6).classes.tolist() == [0, 1, 2]
    assert NormSoftmaxLoss(num_classes=classes, embedding_dim=6).classes.tolist() == [7, 11, 30]


def test_a_margin_in_degrees_is_refused():
    with pytest.raises(ValueError, match=r"angular_margin must be at most pi, in radians, not 28"):
        NormSoftmaxLoss(3, 6, angular_margin=28.6)


def test_the_temperature_may_be_the_third_argument():
    assert NormSoftmaxLoss(3, 6, 0.1).temperature == 0.1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint64])
def test_labels_have_any_dtype_and_stride(dtype):
    loss_fn, (embeddings, labels) = NormSoftmaxLoss(CLASSES, 6), batch()
    labels = labels.where(labels != -3, 7)
    strided = labels.to(dtype).repeat_interleave(2)[::2]
    assert torch.equal(loss_fn(embeddings, strided), loss_fn(embeddings, labels))


def test_the_size_of_a_sample_is_given_once():
    with pytest.raises(ValueError, match="class_fraction and class_count cannot both be given"):
        NormSoftmaxLoss(5, 6, class_fraction=0.5, class_count=2)


@pytest.mark.parametrize(
    "options", [{"class_fraction": 0.0}, {"class_fraction": 1.5}, {"class_count": 0}]
)
def test_a_sample_has_a_size(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        NormSoftmaxLoss(5, 6, **options)


@pytest.mark.parametrize(
    ("classes", "kind", "reason"),
    [
        ([0.5, 2], TypeError, "a tensor of integers, not torch.float32"),
        ({1, 2}, TypeError, "a tensor of integers, not set"),
        (2.5, TypeError, "a tensor of integers, not float"),
        (torch.tensor([0.0, 1.0]), TypeError, "a tensor of integers, not torch.float32"),
        (0, ValueError, "at least 1, not 0"),
        (True, TypeError, "an integer, not True"),
        (torch.tensor([]).long(), ValueError, r"shape \(C,\) with C >= 1, not \(0,\)"),
        (torch.tensor([5, 9, 5]), ValueError, "each label once, but 5 is there twice"),
    ],
)
def test_classes_are_a_number_or_labels_each_once(classes, kind, reason):
    with pytest.raises(kind, match=reason):
        NormSoftmaxLoss(classes, 6)


def test_an_embedding_has_components():
    with pytest.raises(ValueError, match="embedding_dim must be at least 1, not 0"):
        NormSoftmaxLoss(3, 0)


def test_labels_are_integers():
    loss, rows = NormSoftmaxLoss(3, 6), torch.zeros(2, 6)
    with pytest.raises(TypeError, match=r"an integer dtype, not torch.float32"):
        loss(rows, torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), not \(3,\)"):
        loss(rows, torch.zeros(3).long())


def test_it_prints_what_makes_it_another_loss():
    assert repr(NormSoftmaxLoss(3, 6)) == "NormSoftmaxLoss(3, 6, temperature=0.05, impl='auto')"
    other = NormSoftmaxLoss(3, 6, angular_margin=0.5, low_memory=True, class_count=2, seed=4)
    assert repr(other) == (
        "NormSoftmaxLoss(3, 6, temperature=0.05, angular_margin=0.5, low_memory=True, "
        "sample_size=2, seed=4, impl='auto')"
    )


@pytest.mark.parametrize("options", [{}, {"angular_margin": 0.5}, {"label_smoothing": 0.1}])
def test_a_whole_graph_compiles(options):
    loss = NormSoftmaxLoss(torch.tensor([7, 3, 9]), 6, **options)
    rows, labels = (
        torch.randn(5, 6, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 9, 9, 7, 3]),
    )
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rows, labels), loss(rows, labels))
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        compiled(rows, torch.tensor([3, 9, 9, 7, 4]))
