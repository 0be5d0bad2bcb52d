"""The losses of BIER and A-BIER, and what makes learners differ."""

from itertools import combinations

import pytest
import torch
from torch import nn

from dmlfast import ops
from dmlfast.errors import UserError
from dmlfast.losses import ABIERLoss, BIERLoss, create_loss
from dmlfast.losses.diversity import AdversarialLoss, activation_loss, norm_loss

GROUPS = (2, 3, 4)
LABELS = torch.arange(12) // 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


ROWS, FEATURES, WEIGHT = draw(12, 9), draw(12, 5, seed=1), draw(9, 5, seed=2)
OUTPUTS = (FEATURES @ WEIGHT.T).split(GROUPS, 1)


def test_the_metric_loss_is_that_of_the_op():
    found = BIERLoss(GROUPS, margin=0.3, beta1=1.5, negative_cost=9.0, boosting="additive")
    expected = ops.boosted_deviance_loss(
        ROWS, LABELS, GROUPS, beta1=1.5, beta2=0.3, negative_cost=9.0, boosting="additive"
    )
    torch.testing.assert_close(found(ROWS, LABELS), expected)
    for base, op in (
        ("contrastive", ops.boosted_contrastive_loss),
        ("triplet", ops.boosted_triplet_loss),
    ):
        default = BIERLoss(GROUPS, base=base)(ROWS, LABELS)
        torch.testing.assert_close(default, op(ROWS, LABELS, GROUPS))
        found = BIERLoss(GROUPS, base=base, margin=0.4, boosting="none")(ROWS, LABELS)
        torch.testing.assert_close(found, op(ROWS, LABELS, GROUPS, margin=0.4, boosting="none"))


def test_the_activation_loss_needs_no_outer_products():
    expected = sum(
        (a[:, :, None] * b[:, None, :]).square().mean() for a, b in combinations(OUTPUTS, 2)
    )
    torch.testing.assert_close(activation_loss(OUTPUTS), expected)
    assert activation_loss(OUTPUTS[:1]) == 0


def test_norms_by_either_axis():
    weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert norm_loss([weight], "output") == (9 + 0) / 2
    assert norm_loss([weight], "input") == (9 + 0 + 1) / 3
    assert norm_loss([weight, weight], "input") == 2 * 10 / 3


def test_regressors_of_another_dtype_are_refused():
    adversary = AdversarialLoss(GROUPS, norm_weight=0.0).bfloat16()
    with pytest.raises(TypeError, match=r"must be torch\.float64, .* not torch\.bfloat16"):
        adversary(OUTPUTS)


def test_the_adversarial_loss_as_it_reads():
    torch.manual_seed(0)
    adversary = AdversarialLoss(GROUPS, norm_weight=0.7).double()
    assert [tuple(r[0].weight.shape) for r in adversary.regressors] == [
        (512, 3),
        (512, 4),
        (512, 4),
    ]
    total = 0
    for regressor, (i, j) in zip(adversary.regressors, combinations(OUTPUTS, 2), strict=True):
        total = total - (i * regressor(j)).square().mean()
        for layer in (regressor[0], regressor[2]):
            total = total + 0.7 * (layer.weight.square().sum(0) - 1).square().mean()
            total = total + 0.7 * (layer.bias.square().sum() - 1).relu()
    torch.testing.assert_close(adversary(OUTPUTS), total)


def test_regressors_and_learners_pull_in_opposite_directions():
    """What is found in one learner of another grows by a step of the regressors along their
    gradient, and falls by one of the embedding layer.
    """
    torch.manual_seed(0)
    loss_fn = BIERLoss(GROUPS, diversity="adversarial", norm_weight=0.0).double()
    weight = WEIGHT.clone().requires_grad_()

    def found(weight):
        outputs = (FEATURES @ weight.T).split(GROUPS, 1)
        return -loss_fn.adversary(outputs).item()

    loss_fn.diversity_loss(FEATURES, weight).backward()
    before = found(weight)
    with torch.no_grad():
        assert found(weight - 1e-3 * weight.grad) < before
        for parameter in loss_fn.parameters():
            parameter -= 1e-3 * parameter.grad
    assert found(weight) > before


def test_parameters_of_the_published_size():
    loss_fn = ABIERLoss((96, 160, 256))
    assert sum(p.numel() for p in loss_fn.parameters()) == 526_176
    assert not list(BIERLoss((96, 160, 256)).parameters())


@pytest.mark.parametrize("diversity", ["activation", "adversarial"])
def test_weights_of_the_parts(diversity):
    torch.manual_seed(0)
    loss_fn = BIERLoss(GROUPS, diversity=diversity, diversity_weight=0.3, norm_weight=2.0).double()
    parts = WEIGHT.split(GROUPS)
    differ = activation_loss(OUTPUTS) if diversity == "activation" else loss_fn.adversary(OUTPUTS)
    axis = "output" if diversity == "activation" else "input"
    expected = loss_fn.metric_loss(ROWS, LABELS) + 0.3 * (differ + 2 * norm_loss(parts, axis))
    found = loss_fn(ROWS, LABELS, features=FEATURES, weight=WEIGHT)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="needs features and weight"):
        loss_fn(ROWS, LABELS)
    torch.testing.assert_close(loss_fn.eval()(ROWS, LABELS), loss_fn.metric_loss(ROWS, LABELS))
    torch.testing.assert_close(loss_fn(ROWS, LABELS, features=FEATURES, weight=WEIGHT), expected)


def test_learners_of_a_pair_both_defend_themselves():
    """The gradient of either's weights is that of the formula with its sign changed."""
    torch.manual_seed(0)
    adversary = AdversarialLoss((2, 3), norm_weight=0.0).double()
    outputs = [part.clone().requires_grad_() for part in OUTPUTS[:2]]
    found = torch.autograd.grad(adversary(outputs), outputs)
    plain = -(outputs[0] * adversary.regressors[0](outputs[1])).square().mean()
    for ours, theirs in zip(found, torch.autograd.grad(plain, outputs), strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, -theirs)


def test_defaults_of_the_released_program():
    loss_fn = ABIERLoss(GROUPS)
    given = loss_fn.diversity_weight, loss_fn.norm_weight, loss_fn.norm_axis, loss_fn.stage
    assert given == (5e-5, 1e5, "input", "training")
    assert loss_fn.adversary.norm_weight == 1e5
    assert BIERLoss(GROUPS, diversity="adversarial", norm_weight=3.0).adversary.norm_weight == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_nothing_from_what_makes_learners_differ(dtype):
    loss_fn = BIERLoss(GROUPS, diversity="activation")
    features, weight = 300 * FEATURES.to(dtype), WEIGHT.float().requires_grad_()
    expected = loss_fn.diversity_loss(features.float(), weight)
    assert expected > torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype):
        found = loss_fn.diversity_loss(features, weight)
    assert torch.equal(found, expected)
    torch.testing.assert_close(
        loss_fn.diversity_loss(features, weight.to(dtype)), expected, rtol=0.1, atol=0
    )


@pytest.mark.parametrize("diversity", ["activation", "adversarial"])
def test_an_empty_batch(diversity):
    loss_fn = BIERLoss(GROUPS, diversity=diversity, norm_weight=0.0)
    loss = loss_fn(ROWS[:0].float(), LABELS[:0], features=FEATURES[:0], weight=WEIGHT.float())
    assert loss == 0


def test_regressors_have_a_gradient_in_every_step():
    """As several processes expect, which wait for all gradients of a module."""
    loss_fn = BIERLoss(GROUPS, diversity="adversarial", stage="init")
    for initializing in (True, False):
        rows = ROWS.float().requires_grad_()
        others = {"features": FEATURES.float(), "weight": WEIGHT.float().requires_grad_()}
        loss_fn.zero_grad()
        loss_fn(rows, LABELS, **others, initializing=initializing).backward()
        assert all(
            (w.grad.any() > 0) == initializing for w in [loss_fn.adversary.regressors[0][0].weight]
        )
        assert all(w.grad is not None for w in loss_fn.parameters())


@pytest.mark.parametrize(
    ("stage", "metric", "differ"),
    [("training", "TT", "FT"), ("init", "FT", "TF"), ("both", "FT", "TT")],
)
def test_stages(stage, metric, differ):
    """In the steps of the head alone, and after them."""
    loss_fn = BIERLoss(GROUPS, diversity="activation", stage=stage)
    both = loss_fn.metric_loss(ROWS, LABELS), loss_fn.diversity_loss(FEATURES, WEIGHT)
    for k, initializing in enumerate((True, False)):
        found = loss_fn(ROWS, LABELS, features=FEATURES, weight=WEIGHT, initializing=initializing)
        parts = zip(both, (metric[k] == "T", differ[k] == "T"), strict=True)
        torch.testing.assert_close(found.double(), sum(part for part, there in parts if there))


def test_features_get_no_gradient():
    loss_fn = BIERLoss(GROUPS, diversity="activation")
    features, weight = FEATURES.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss_fn(ROWS, LABELS, features=features, weight=weight).backward()
    assert features.grad is None
    assert weight.grad.any()


@pytest.mark.parametrize("groups", [(96, 160, 256), (512,)])
def test_the_initialisation_makes_learners_differ(groups):
    """As a stage: it falls to a fraction while the norms of the weights stay near 1."""
    features = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).relu()
    layer = nn.Linear(128, 512, bias=False)
    with torch.no_grad():
        layer.weight.copy_(nn.functional.normalize(layer.weight))
    loss_fn = BIERLoss(groups, diversity="activation", stage="init")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)

    def found():
        return activation_loss(layer(features).split(groups, 1)).item()

    before = found()
    for _ in range(60):
        loss = loss_fn.diversity_loss(features, layer.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(groups) == 1 or found() < 0.5 * before
    assert ((layer.weight.norm(dim=1) - 1).abs() < 0.05).all()


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="cannot honour indices_tuple"):
        BIERLoss(GROUPS)(ROWS, LABELS, (1, 2, 3))
    with pytest.raises(ValueError, match="takes no ref_emb"):
        BIERLoss(GROUPS)(ROWS, LABELS, ref_emb=ROWS, ref_labels=LABELS)
    with pytest.raises(ValueError, match="diversity must be one of none, activation"):
        BIERLoss(GROUPS, diversity="much")
    with pytest.raises(ValueError, match="stage must be one of training, init, both"):
        BIERLoss(GROUPS, stage="late")
    with pytest.raises(ValueError, match="stage 'init' needs a diversity, and there is none"):
        BIERLoss(GROUPS, stage="init")
    with pytest.raises(ValueError, match="boosting must be one of eta, additive, derivative, none"):
        BIERLoss(GROUPS, boosting="often")
    with pytest.raises(ValueError, match="boosting must be one of eta, none, not 'additive'"):
        BIERLoss(GROUPS, base="contrastive", boosting="additive")
    with pytest.raises(ValueError, match="groups must be positive and add up"):
        BIERLoss((1, 2))(ROWS, LABELS)
    for groups in ((0, 2), (3, -1), ()):
        with pytest.raises(ValueError, match="groups must be positive, not"):
            ABIERLoss(groups)
    for groups in ((1.5, 2), "12", 3):
        with pytest.raises(TypeError, match="groups must be a list or tuple of integers"):
            BIERLoss(groups)
    loss_fn = BIERLoss(GROUPS, diversity="activation")
    for features, weight in (
        (FEATURES[0], WEIGHT),
        (FEATURES, WEIGHT[1:]),
        (FEATURES[:, 1:], WEIGHT),
    ):
        with pytest.raises(
            ValueError, match=r"features must have shape \(B, F\) and weight \(9, F\)"
        ):
            loss_fn(ROWS, LABELS, features=features, weight=weight)
    with pytest.raises(UserError, match="beta1 of the bier loss must be a number"):
        create_loss("bier", groups=GROUPS, beta1="big")
    made = create_loss("a-bier", groups=GROUPS, margin=0.2, diversity_weight=1e-3)
    assert (made.margin, made.diversity, made.diversity_weight) == (0.2, "adversarial", 1e-3)
