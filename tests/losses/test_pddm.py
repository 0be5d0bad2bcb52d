"""The double-header hinge and its unit."""

import pytest
import torch
from torch import nn

from dmlfast import ops
from dmlfast.errors import UserError
from dmlfast.losses import PDDMLoss, PDDMUnit, create_loss

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])


def rows(d=4, dtype=torch.float64, n=9):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n + d)).to(dtype)


def loss_of(d=4, dtype=torch.float64, **options):
    torch.manual_seed(d)
    return PDDMLoss(d, **options).to(dtype)


def by_hand(loss_fn, x, quadruplets):
    """As the formulas read, one quadruplet after the other."""
    x = nn.functional.normalize(x) if loss_fn.normalize_embeddings else x
    S = ops.pddm_scores(x, loss_fn.unit, impl="reference")
    D = torch.cdist(x, x)
    D = D.square() if loss_fn.squared else D
    a, b = loss_fn.score_margin, loss_fn.embedding_margin
    losses = []
    for i, j, k, l in quadruplets.tolist():  # noqa: E741
        if i < 0:
            continue
        on_scores = [(a + S[i, k] - S[i, j]).relu(), (a + S[j, l] - S[i, j]).relu()]
        on_distances = [(b + D[i, j] - D[i, k]).relu(), (b + D[i, j] - D[j, l]).relu()]
        ends = 1 if loss_fn.form == "triplet" else 2
        losses.append(sum(on_scores[:ends]) + loss_fn.embedding_weight * sum(on_distances[:ends]))
    return sum(losses) / len(losses)


OPTIONS = [
    {},
    {"per": "class", "squared": True},
    {"per": "anchor", "embedding_weight": 2.0, "score_margin": 0.3, "embedding_margin": 0.1},
    {"per": "anchor", "form": "triplet", "normalize_embeddings": False},
    {"per": "class", "mining": "distance", "hidden_dim": 7, "normalize_inputs": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_it_is_the_mean_of_the_hinges_of_what_was_mined(options, impl):
    dtype = torch.float64 if impl == "reference" else torch.float32
    loss_fn = loss_of(dtype=dtype, impl=impl, **options)
    x = rows(dtype=dtype).requires_grad_()
    given = nn.functional.normalize(x) if loss_fn.normalize_embeddings else x
    unit = None if loss_fn.mining == "distance" else loss_fn.unit
    quadruplets = ops.pddm_hard_quadruplets(given, LABELS, unit, per=loss_fn.per)
    assert (quadruplets >= 0).any()
    leaves = [x, *loss_fn.parameters()]
    found, expected = loss_fn(x, LABELS), by_hand(loss_fn, x, quadruplets)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    )


def test_what_it_costs_by_hand():
    """A unit that scores every pair alike: hinges on scores are the margin."""
    loss_fn = PDDMLoss(1, normalize_embeddings=False, mining="distance")
    nn.init.zeros_(loss_fn.unit.score.weight)
    x = torch.tensor([[0.0], [1.0], [1.5], [4.0]])
    labels = torch.tensor([0, 0, 1, 2])
    # i, j = 0, 1; both have 2 for the nearest negative, at 1.5 and 0.5
    assert loss_fn(x, labels).item() == pytest.approx(2 * 3 + 0.5 * (0.5 + 1.5))


@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
def test_gradcheck(per):
    loss_fn = loss_of(3, per=per)
    x = rows(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: loss_fn(x, LABELS), (x, *loss_fn.parameters()))


@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
@pytest.mark.parametrize(
    "labels", [torch.zeros(6), torch.arange(6), torch.zeros(0), torch.zeros(1)], ids=len
)
def test_without_a_quadruplet_the_loss_is_zero_and_so_is_its_gradient(labels, per):
    loss_fn = loss_of(dtype=torch.float32, per=per)
    x = rows(dtype=torch.float32, n=len(labels)).requires_grad_()
    loss = loss_fn(x, labels.long())
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    if len(labels):
        assert all(p.grad is not None and not p.grad.any() for p in loss_fn.parameters())


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("labels", [LABELS, torch.arange(9)], ids=["positives", "none"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_makes_the_loss_nan(value, labels, impl):
    x = rows(dtype=torch.float32)
    x[8, 1] = value
    assert loss_of(dtype=torch.float32, impl=impl)(x, labels).isnan()
    loss_fn = loss_of(dtype=torch.float32, impl=impl)
    loss_fn.unit.joint.bias.data[0] = value
    assert loss_fn(rows(dtype=torch.float32), labels).isnan()


def test_half_precision_gives_a_float32_loss():
    loss_fn = loss_of(dtype=torch.float32)
    x = rows(dtype=torch.bfloat16).requires_grad_()
    loss = loss_fn(x, LABELS)
    loss.backward()
    assert (loss.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss, loss_fn(x.detach().float(), LABELS), rtol=1e-2, atol=1e-2)


def test_a_whole_graph():
    loss_fn = loss_of(dtype=torch.float32, per="anchor")
    x = rows(dtype=torch.float32)
    torch._dynamo.reset()
    found = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)(x, LABELS)
    torch.testing.assert_close(found, loss_fn(x, LABELS))


def test_a_unit_scores_all_pairs():
    torch.manual_seed(0)
    unit, x = PDDMUnit(4, 6, normalize_inputs=True), rows(dtype=torch.float32)
    assert torch.equal(unit(x), ops.pddm_scores(x, unit))
    assert unit(x, x[:2]).shape == (9, 2)
    assert sum(p.numel() for p in PDDMUnit(128).parameters()) == 66_049
    assert not any(layer.bias.any() for layer in unit.children())


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="cannot honour indices_tuple"):
        loss_of()(rows(), LABELS, (1, 2, 3))
    with pytest.raises(ValueError, match="form must be one of quadruplet, triplet, not 'pair'"):
        PDDMLoss(4, form="pair")
    with pytest.raises(ValueError, match="mining must be one of score, distance"):
        PDDMLoss(4, mining="hard")
    with pytest.raises(ValueError, match="per must be one of"):
        loss_of(per="row")(rows(), LABELS)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, not 0"):
        PDDMUnit(4, 0)
    with pytest.raises(UserError, match="score_margin of the pddm loss must be a number"):
        create_loss("pddm", embedding_dim=4, score_margin="far")
    assert create_loss("pddm", embedding_dim=4, margin=2.0).score_margin == 2.0
