"""Losses over cosines that are a few lines on the pair primitive: SupCon, NT-Xent,
multi-similarity and proxy-anchor.
"""

import math
import pickle

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from torch.nn.functional import normalize

from dmlfast.losses import (
    CrossBatchMemory,
    MultiSimilarityLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    SupConLoss,
)

X = torch.randn(14, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([4, 0, 0, -7, 0, 4, 9, 9, 9, 9, 30, 4, 2, 2])  # -7 and 30 are alone
R = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
RY = torch.tensor([4, 4, 0, 9, 9, -7, 8, 8, 0])
SELVES = torch.tensor([0, 2, -1, 5, -1, 1, 3, 11, -1, 4, -1, -1, -1, -1])  # 11 is beyond the last
CLASSES = torch.tensor([30, 0, 2, 4, 9, -7, 11, 12])  # the last two have no row
SUPCON, SIMILARITY = {"temperature": 0.3}, {"alpha": 3.0, "beta": 20.0, "base": 0.2}
MINED = {**SIMILARITY, "epsilon": 0.3}
PROXY = {"margin": 0.2, "alpha": 11.0}
NTXENT = {"temperature": 0.2}
PAIR_LOSSES = [
    (SupConLoss, SUPCON),
    (NTXentLoss, NTXENT),
    (MultiSimilarityLoss, SIMILARITY),
    (MultiSimilarityLoss, MINED),
]
each_pair_loss = pytest.mark.parametrize(("module", "options"), PAIR_LOSSES)


def supcon(same, other, temperature):
    """The terms of a row, none where it does not count, from its cosines with its positives and its
    negatives.
    """
    everyone = [math.exp(s / temperature) for s in (*same, *other)]
    terms = [math.log(sum(everyone)) - s / temperature for s in same]
    return [sum(terms) / len(terms)] if terms else []


def ntxent(same, other, temperature):
    push = sum(math.exp(s / temperature) for s in other)
    return [math.log(math.exp(s / temperature) + push) - s / temperature for s in same]


def multi_similarity(same, other, alpha, beta, base, epsilon=None):
    if epsilon is not None:
        furthest, nearest = min(same, default=math.inf), max(other, default=-math.inf)
        same = [s for s in same if s < nearest + epsilon]
        other = [s for s in other if s > furthest - epsilon]
    pull = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in same)) / alpha
    push = math.log(1 + sum(math.exp(beta * (s - base)) for s in other)) / beta
    return [pull + push]


def by_rows(formula, columns=None, column_labels=None, selves=None, **options):
    """The mean of the terms that a formula makes of the cosines of each row."""
    itself = selves
    if columns is None:
        columns, column_labels, itself = X, Y, torch.arange(len(X))
    cosines = normalize(X.double()) @ normalize(columns.double()).T
    found = []
    for i, own in enumerate(Y.tolist()):
        at = [j for j in range(len(columns)) if itself is None or j != itself[i]]
        same = [cosines[i, j].item() for j in at if column_labels[j] == own]
        other = [cosines[i, j].item() for j in at if column_labels[j] != own]
        found += formula(same, other, **options)
    return sum(found) / len(found)


def proxy_anchor(weight, margin, alpha):
    """As the paper's equation reads."""
    cosines = normalize(weight.double()) @ normalize(X.double()).T
    pull, push = [], []
    for own, row in zip(CLASSES.sort().values.tolist(), cosines.tolist(), strict=True):
        same = [s for s, label in zip(row, Y.tolist(), strict=True) if label == own]
        other = [s for s, label in zip(row, Y.tolist(), strict=True) if label != own]
        push.append(math.log(1 + sum(math.exp(alpha * (s + margin)) for s in other)))
        if same:
            pull.append(math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in same)))
    assert len(pull) == 6
    return sum(pull) / len(pull) + sum(push) / len(push)


def proxies(dtype=torch.float32, impl="auto", **options):
    torch.manual_seed(2)
    return ProxyAnchorLoss(CLASSES, 5, impl=impl, **options).to(dtype)


def value_and_gradients(loss, rows, *others, **options):
    rows = rows.clone().requires_grad_()
    value = loss(rows, *others, **options)
    weights = [w for w in loss.parameters() if w.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, [rows, *weights])]


@pytest.mark.parametrize(
    ("module", "formula", "options"),
    [
        (SupConLoss, supcon, SUPCON),
        (NTXentLoss, ntxent, NTXENT),
        (MultiSimilarityLoss, multi_similarity, SIMILARITY),
        (MultiSimilarityLoss, multi_similarity, MINED),
        (MultiSimilarityLoss, multi_similarity, {**SIMILARITY, "epsilon": -0.2}),
    ],
)
@pytest.mark.parametrize("columns", [(), (R, RY), (R, RY, SELVES)])
def test_pair_losses_by_their_formulas(module, formula, options, columns):
    expected = by_rows(formula, *columns, **options)
    given = dict(zip(("ref_emb", "ref_labels", "self_index"), columns, strict=False))
    found = module(**options)(3 * X, Y, **given)
    assert found.item() == pytest.approx(expected, rel=2e-6)
    assert found.item() != pytest.approx(module()(X, Y, **given).item(), rel=1e-3)


def test_proxy_anchor_by_its_formula():
    loss = proxies(**PROXY)
    expected = proxy_anchor(loss.weight.detach(), **PROXY)
    assert loss(3 * X, Y).item() == pytest.approx(expected, rel=2e-6)
    assert proxies()(X, Y).item() != pytest.approx(expected, rel=1e-3)


@each_pair_loss
@pytest.mark.parametrize("columns", [False, True])
def test_gradients_of_pair_losses(module, options, columns):
    loss, r = module(**options, impl="reference"), R.double().requires_grad_()

    def found(x, r):
        return loss(x, Y, ref_emb=r, ref_labels=RY) if columns else loss(x, Y)

    assert torch.autograd.gradcheck(found, (X.double().requires_grad_(), r))


def test_gradients_of_proxy_anchor():
    loss = proxies(torch.float64, impl="reference", **PROXY)

    def found(x, weight):
        return torch.func.functional_call(loss, {"weight": weight}, (x, Y))

    weight = loss.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(found, (X.double().requires_grad_(), weight))


TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SupConLoss, pml.SupConLoss),
        (NTXentLoss, pml.NTXentLoss),
        (MultiSimilarityLoss, pml.MultiSimilarityLoss),
    ],
)
def test_pair_losses_are_those_of_pytorch_metric_learning(ours, theirs, columns, dtype):
    given = {"ref_emb": R.to(dtype), "ref_labels": RY} if columns else {}
    impl = "reference" if dtype == torch.float64 else "auto"
    found = value_and_gradients(ours(impl=impl), X.to(dtype), Y, **given)
    expected = value_and_gradients(theirs(), X.to(dtype), Y, **given)
    close = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=close, atol=close * 0.01)


@pytest.mark.parametrize("epsilon", [-0.2, 0.1, 0.4])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mined_multi_similarity_is_that_of_pytorch_metric_learning(dtype, columns, epsilon):
    given = {"ref_emb": R.to(dtype), "ref_labels": RY} if columns else {}
    impl = "reference" if dtype == torch.float64 else "auto"
    ours = MultiSimilarityLoss(epsilon=epsilon, impl=impl)
    miner = miners.MultiSimilarityMiner(epsilon=epsilon)
    theirs = pml.MultiSimilarityLoss()
    found = value_and_gradients(ours, X.to(dtype), Y, **given)

    def mined(rows, labels, ref_emb=None, ref_labels=None):
        pairs = miner(rows, labels, ref_emb, ref_labels)
        return theirs(rows, labels, pairs, ref_emb, ref_labels)

    mined.parameters = list
    expected = value_and_gradients(mined, X.to(dtype), Y, **given)
    close = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=close, atol=close * 0.01)
    assert not torch.equal(found[0], MultiSimilarityLoss(impl=impl)(X.to(dtype), Y, **given))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_proxy_anchor_is_that_of_pytorch_metric_learning(dtype):
    impl = "reference" if dtype == torch.float64 else "auto"
    torch.manual_seed(2)
    ours, theirs = ProxyAnchorLoss(31, 5, impl=impl).to(dtype), pml.ProxyAnchorLoss(31, 5)
    with torch.no_grad():
        theirs.proxies.copy_(ours.weight)
    theirs.to(dtype)
    labels = Y + 7 - 7 * (Y > 20)  # from 0
    found = value_and_gradients(ours, X.to(dtype), labels)
    expected = value_and_gradients(theirs, X.to(dtype), labels)
    close = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SupConLoss(), pml.SupConLoss()),
        (NTXentLoss(), pml.NTXentLoss()),
        (MultiSimilarityLoss(), pml.MultiSimilarityLoss()),
    ],
)
def test_with_a_memory_they_are_those_of_pytorch_metric_learning(ours, theirs):
    memory = CrossBatchMemory(ours, 5, size=20)
    other = pml.CrossBatchMemory(theirs, 5, memory_size=20)
    for k in range(5):
        rows, labels = X.roll(k, 0)[: 6 + 2 * (k % 2)] + k, Y.roll(k)[: 6 + 2 * (k % 2)]
        found = value_and_gradients(memory, rows, labels)
        expected = value_and_gradients(other, rows, labels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_supcon_with_two_views_of_each_image_is_nt_xent():
    labels = torch.arange(14) // 2
    torch.testing.assert_close(SupConLoss(0.2)(X, labels), NTXentLoss(0.2)(X, labels))


@each_pair_loss
def test_pair_losses_of_no_row_and_of_one(module, options):
    for count in (0, 1):
        value, gradient = value_and_gradients(module(**options), X[:count], Y[:count])
        assert value == 0
        assert gradient.shape == (count, 5)
        assert not gradient.any()


@each_pair_loss
def test_pair_losses_without_positives(module, options):
    value, gradient = value_and_gradients(module(**options), X, torch.arange(14))
    if module is not MultiSimilarityLoss or "epsilon" in options:
        assert value == 0
        assert not gradient.any()
    else:
        cosines = normalize(X) @ normalize(X).T
        terms = (20 * (cosines - 0.2)).exp().fill_diagonal_(0).sum(1).log1p() / 20
        torch.testing.assert_close(value, terms.mean())
        assert gradient.any()


@each_pair_loss
def test_pair_losses_without_negatives(module, options):
    """Where that of pytorch-metric-learning may be 0."""
    value, gradient = value_and_gradients(module(**options), X, torch.zeros(14).long())
    cosines = (normalize(X) @ normalize(X).T).double()
    if module is NTXentLoss or "epsilon" in options:
        assert value == 0
        assert not gradient.any()
        return
    if module is SupConLoss:
        everyone = (cosines / 0.3).exp().fill_diagonal_(0).sum(1).log()
        terms = everyone - cosines.fill_diagonal_(0).sum(1) / 13 / 0.3
    else:
        terms = (-3 * (cosines - 0.2)).exp().fill_diagonal_(0).sum(1).log1p() / 3
    torch.testing.assert_close(value.double(), terms.mean(), rtol=1e-6, atol=0)
    assert gradient.any()


LOSSES = [
    SupConLoss(),
    NTXentLoss(),
    MultiSimilarityLoss(),
    MultiSimilarityLoss(epsilon=0.1),
    proxies(),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def test_proxy_anchor_of_no_rows_and_of_one_class():
    loss = proxies()
    value, gradient, moved = value_and_gradients(loss, X[:0], Y[:0])
    assert value == 0
    assert not moved.any()
    assert gradient.shape == (0, 5)
    one = ProxyAnchorLoss(1, 5)
    value, gradient, moved = value_and_gradients(one, X, torch.zeros(14).long())
    cosines = normalize(one.weight.detach()) @ normalize(X).T
    expected = torch.log1p((-32 * (cosines - 0.1)).exp().sum())
    torch.testing.assert_close(value, expected)
    assert gradient.any()
    assert moved.any()


@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_in_the_loss(loss, bad):
    rows = X.clone()
    rows[10, 2] = bad  # alone in its class
    assert loss(rows, Y).isnan()
    if not isinstance(loss, ProxyAnchorLoss):
        assert loss(rows, torch.arange(14)).isnan()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(loss, dtype):
    """What rounding rows and proxies of length 1 makes, in a loss that is float32."""
    exact = value_and_gradients(loss, X, Y)
    found = value_and_gradients(loss, X.to(dtype), Y)
    assert [each.dtype for each in found[:2]] == [torch.float32, dtype]
    close = 16 * torch.finfo(dtype).eps
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=close, atol=close * other.abs().max())


@each_loss
def test_a_row_of_zeros_has_no_gradient(loss):
    rows = X.clone()
    rows[3] = 0
    value, gradient, *_ = value_and_gradients(loss, rows, Y)
    assert value.isfinite()
    assert not gradient[3].any()
    assert gradient.isfinite().all()
    assert gradient[2].any()


@each_loss
def test_the_length_of_rows_does_not_matter(loss):
    sizes = torch.linspace(1e-3, 1e3, 14)[:, None]
    (value, gradient, *_), (other, scaled, *_) = (
        value_and_gradients(loss, rows, Y) for rows in (X, X * sizes)
    )
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(scaled * sizes, gradient, rtol=1e-4, atol=1e-5)


@each_loss
def test_they_compile_whole(loss):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = value_and_gradients(loss, X, Y)
    rows = X.clone().requires_grad_()
    value = compiled(rows, Y)
    value.backward()
    torch.testing.assert_close([value.detach(), rows.grad], expected[:2])
    loss.zero_grad()


@each_loss
def test_they_survive_pickling_and_print_what_they_were_made_of(loss):
    copy = pickle.loads(pickle.dumps(loss))
    assert torch.equal(copy(X, Y), loss(X, Y))
    expected = {
        SupConLoss: "SupConLoss(temperature=0.1, normalize_embeddings=True, impl='auto')",
        NTXentLoss: "NTXentLoss(temperature=0.07, normalize_embeddings=True, impl='auto')",
        MultiSimilarityLoss: "MultiSimilarityLoss(alpha=2.0, beta=50.0, base=0.5,"
        f" epsilon={getattr(loss, 'epsilon', None)}, normalize_embeddings=True, impl='auto')",
        ProxyAnchorLoss: "ProxyAnchorLoss(8, 5, margin=0.1, alpha=32.0, impl='auto')",
    }
    assert repr(copy) == expected[type(loss)]


def test_a_label_without_a_proxy_is_refused():
    with pytest.raises(ValueError, match="label 5 is not one of the classes of this loss"):
        proxies()(X, torch.full((14,), 5))


def test_proxies_begin_as_in_the_papers_code():
    torch.manual_seed(0)
    loss = ProxyAnchorLoss(50, 400)
    assert loss.weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.02)
    assert loss.classes.equal(torch.arange(50))
    assert proxies().classes.equal(CLASSES.sort().values)
