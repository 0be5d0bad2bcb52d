"""Boosted losses: every backend against the reference in float64, that against golden values."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.ops.boosted import triplets

from .helpers import assert_accurate, generator, instruction_sets, upstream_for

KERNELS = ["cpu", "triton"]
EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", *KERNELS])
LOSSES = {
    **{
        boosting: partial(ops.boosted_deviance_loss, boosting=boosting)
        for boosting in ("eta", "additive", "derivative", "none")
    },
    "contrastive": ops.boosted_contrastive_loss,
    "contrastive, not boosted": partial(ops.boosted_contrastive_loss, boosting="none"),
    "triplet": ops.boosted_triplet_loss,
    "triplet, not boosted": partial(ops.boosted_triplet_loss, boosting="none", margin=0.5),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES)
SHAPES = [(2, (1,)), (7, (2, 3)), (33, (5, 1, 9)), (130, (7, 40)), (70, (1, 2, 3, 4, 5))]


def problem(n, groups, per_class=4, seed=0):
    """Rows (n, D) around directions of their classes, each learner's at another length; labels."""
    random = generator(seed + n)
    labels = torch.randint(0, max(1, n // per_class), (n,), generator=random)
    d = sum(groups)
    rows = torch.randn(n, d, generator=random)[labels] + torch.randn(n, d, generator=random)
    lengths = [torch.full((size,), 10.0**-m) for m, size in enumerate(groups)]
    return rows * torch.cat(lengths), labels


def results(impl, loss, rows, labels, groups, dtype=None, upstream=upstream_for):
    """The loss of each learner, and the gradient of the rows."""
    x = (rows if dtype is None else rows.to(dtype)).detach().clone().requires_grad_()
    value = LOSSES[loss](x, labels, groups, reduction="none", impl=impl)
    return [value.detach(), *torch.autograd.grad(value, x, upstream(value))]


def assert_right(impl, loss, rows, labels, groups, ulps=40):
    """PyTorch rounds scores, which the deviance multiplies by up to 50, and so may the kernels."""
    exact = results("reference", loss, rows, labels, groups, torch.float64)
    plain = results("reference", loss, rows, labels, groups, torch.float32)
    assert_accurate(results(impl, loss, rows, labels, groups), exact, plain, ulps, impl)


GOLDEN = {
    "additive": (1.404672236342, 1.372086342510),
    "eta": (1.404672236342, 0.157536882549),
    "derivative": (1.404672236342, 4.485045330804),
}


@EVERY_IMPL
@pytest.mark.parametrize("boosting", GOLDEN)
def test_golden_values(boosting, impl):
    x = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 0, 1], [-1, 2, 2, 1, -1]])
    x, labels = x.to(torch.float64 if impl == "reference" else torch.float32), [0, 0, 1, 1]
    loss = partial(
        ops.boosted_deviance_loss, x, torch.tensor(labels), (2, 3), boosting=boosting, impl=impl
    )
    relative = 1e-11 if impl == "reference" else 1e-5
    assert loss(reduction="none").tolist() == pytest.approx(GOLDEN[boosting], rel=relative)
    assert loss().item() == pytest.approx(sum(GOLDEN[boosting]), rel=relative)


@EVERY_KERNEL
@EVERY_LOSS
@pytest.mark.parametrize(("n", "groups"), SHAPES)
def test_accuracy(n, groups, loss, impl):
    assert_right(impl, loss, *problem(n, groups), groups)


@pytest.mark.parametrize("groups", [(3, 2), (16, 32), (257, 130)])
@pytest.mark.parametrize("n", [31, 129, 300, 700])
def test_sizes_on_the_cpu(n, groups):
    for _ in instruction_sets():
        assert_right("cpu", "eta", *problem(n, groups), groups)


@EVERY_KERNEL
@EVERY_LOSS
@pytest.mark.parametrize("labels", [torch.zeros(40), torch.arange(40), torch.arange(40) > 38])
def test_one_class_and_classes_of_one(labels, loss, impl):
    rows, _ = problem(40, (3, 4))
    labels = labels.long()
    assert_right(impl, loss, rows, labels, (3, 4))
    if "triplet" in loss and len(labels.unique()) != 2:
        value, gradient = results(impl, loss, rows, labels, (3, 4))
        assert not value.any()
        assert not gradient.any()


@EVERY_IMPL
@EVERY_LOSS
@pytest.mark.parametrize("n", [0, 1])
def test_without_pairs_the_loss_is_zero(n, loss, impl):
    value, gradient = results(impl, loss, torch.randn(n, 5), torch.zeros(n).long(), (2, 3))
    assert value.tolist() == [0, 0]
    assert not gradient.any()


@EVERY_KERNEL
@EVERY_LOSS
def test_the_same_row_opposite_rows_and_short_ones(loss, impl):
    """Down to 1e-5 rows are divided by their norm."""
    rows, labels = problem(50, (4, 3))
    rows[1], rows[3], rows[5], rows[7] = rows[0], -rows[2], 0, rows[6] * 1e-9
    assert_right(impl, loss, rows, labels, (4, 3))
    for k, length in enumerate((0.2, 0.7, 0.99, 1.01, 2.0)):
        rows[10 + k] = torch.cat([F.normalize(x, dim=0) for x in rows[10 + k].split((4, 3))])
        rows[10 + k] *= length * 1e-5
    assert_right(impl, loss, rows, labels, (4, 3))


@EVERY_KERNEL
@pytest.mark.parametrize("size", [1e-2, 1e4, 1e15])
def test_lengths_do_not_matter(size, impl):
    rows, labels = problem(60, (4, 3))
    value, gradient = results(impl, "eta", rows, labels, (4, 3))
    found = results(impl, "eta", rows * size, labels, (4, 3))
    torch.testing.assert_close(found[0], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1] * size, gradient, rtol=1e-3, atol=1e-5)


@EVERY_IMPL
@EVERY_LOSS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [1, 5])
def test_a_value_that_is_not_finite_gives_nan(column, value, loss, impl):
    rows, labels = problem(20, (4, 3))
    rows[3, column] = value
    found = results(impl, loss, rows, labels, (4, 3))
    assert found[0].isnan().all()
    if loss in GOLDEN and impl != "reference":
        assert found[1].isnan().all()


@EVERY_KERNEL
@EVERY_LOSS
def test_labels_are_opaque_and_any_layout_serves(loss, impl):
    rows, labels = problem(30, (4, 3))
    expected = results(impl, loss, rows, labels, (4, 3))
    for other in (labels * 2**40 - 2**62, labels.to(torch.int16), labels.to(torch.uint16)):
        torch.testing.assert_close(results(impl, loss, rows, other, (4, 3)), expected)
    gaps = torch.full((60, 14), torch.nan)[1::2, 1::2].copy_(rows)
    for view in (rows.T.contiguous().T, gaps):
        x = view.requires_grad_()
        value = LOSSES[loss](x, labels, (4, 3), reduction="none", impl=impl)
        found = [value.detach(), *torch.autograd.grad(value, x, upstream_for(value))]
        torch.testing.assert_close(found, expected)


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, impl):
    """Computed in float32 on the CPU; a GPU rounds the weights of pairs."""
    rows, labels = problem(60, (9, 7))
    rows = rows.to(dtype)
    value, gradient = results(impl, "eta", rows, labels, (9, 7))
    expected = results(impl, "eta", rows.float(), labels, (9, 7))
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, expected[0])
    if impl == "cpu":
        torch.testing.assert_close(gradient, expected[1].to(dtype))
    error = (gradient.float() - expected[1]).abs().max()
    assert error <= torch.finfo(dtype).eps * expected[1].abs().max()


@EVERY_IMPL
def test_one_learner_is_the_binomial_deviance(impl):
    rows, labels = problem(30, (6,))
    x = F.normalize(rows)
    same = labels[:, None] == labels
    z = 2 * (x @ x.T - 0.5) * torch.where(same, 1, -25)
    off = ~torch.eye(30, dtype=torch.bool)
    terms = F.softplus(-z)
    expected = terms[same & off].sum() / same.sum() + terms[~same].mean()
    for boosting in ("eta", "additive", "derivative", "none"):
        found = ops.boosted_deviance_loss(rows, labels, [6], boosting=boosting, impl=impl)
        torch.testing.assert_close(found, expected)


@EVERY_KERNEL
@EVERY_LOSS
def test_a_learner_has_the_gradient_of_its_own_loss(loss, impl):
    """None moves another's components: the weights of boosting are held."""
    rows, labels = problem(12, (2, 3))
    first, second = (
        results(impl, loss, rows, labels, (2, 3), upstream=lambda v, k=k: F.one_hot(k, 2).to(v))[1]
        for k in torch.arange(2)
    )
    assert not first[:, 2:].any()
    assert not second[:, :2].any()
    both = results(impl, loss, rows, labels, (2, 3), upstream=torch.ones_like)[1]
    torch.testing.assert_close(both, first + second)


@EVERY_LOSS
def test_gradients_of_the_reference(loss):
    """Of the last learner alone: earlier ones would move its weights, which are held constant."""
    rows, labels = problem(6, (3, 4), per_class=2)
    x = rows.double().requires_grad_()

    def last(last_rows):
        joined = torch.cat([x.detach()[:, :3], last_rows], 1)
        return LOSSES[loss](joined, labels, (3, 4), reduction="none", impl="reference")[1]

    assert torch.autograd.gradcheck(last, x.detach()[:, 3:].clone().requires_grad_())


@pytest.mark.parametrize("entries", [1, 50, 10**6])
@pytest.mark.parametrize("per_class", [1, 4, 100])
def test_blocks_of_anchors(per_class, entries, monkeypatch):
    monkeypatch.setattr(triplets, "BLOCK_ENTRIES", entries)
    for loss in ("triplet", "triplet, not boosted"):
        assert_right("cpu", loss, *problem(23, (3, 4), per_class), (3, 4))


@pytest.mark.parametrize("loss", ["eta", "contrastive"])
def test_threads_do_not_change_a_bit(loss, threads):
    rows, labels = problem(300, (9, 20))
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(results("cpu", loss, rows, labels, (9, 20)))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@EVERY_KERNEL
@EVERY_LOSS
def test_the_loss_is_the_same_without_its_gradient(loss, impl):
    rows, labels = problem(40, (4, 3))
    expected, _ = results(impl, loss, rows, labels, (4, 3))
    found = LOSSES[loss](rows, labels, (4, 3), reduction="none", impl=impl)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


@EVERY_KERNEL
@EVERY_LOSS
def test_a_graph_that_is_retained_gives_its_gradient_again(loss, impl):
    rows, labels = problem(30, (4, 3))
    x = rows.requires_grad_()
    value = LOSSES[loss](x, labels, (4, 3), impl=impl)
    (first,) = torch.autograd.grad(value, x, torch.tensor(3.0), retain_graph=True)
    (second,) = torch.autograd.grad(value, x, torch.tensor(0.5))
    torch.testing.assert_close(first / 6, second)


@EVERY_KERNEL
@EVERY_LOSS
@pytest.mark.parametrize("learned", [False, True])
def test_second_derivatives_raise(learned, loss, impl):
    """Also where what the learners weigh has a gradient, too."""
    rows, labels = problem(10, (4, 3))
    x, weights = rows.requires_grad_(), torch.tensor([1.0, 2.0], requires_grad=learned)
    value = (weights * LOSSES[loss](x, labels, (4, 3), reduction="none", impl=impl)).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    expected = results(impl, loss, x, labels, (4, 3), upstream=lambda _: weights.detach())[1]
    torch.testing.assert_close(gradient.detach(), expected)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": (2, 2)}, r"groups must be positive and add up to the width .* 5, not \[2, 2\]"),
        ({"groups": (5, 0)}, "groups must be positive"),
        ({"groups": ()}, "groups must be positive"),
        ({"boosting": "often"}, "boosting must be one of eta, additive, derivative, none"),
        ({"reduction": "mean"}, "reduction must be one of sum, none, not 'mean'"),
        ({"beta1": torch.inf}, "beta1 must be a finite number"),
        ({"beta2": torch.nan}, "beta2 must be a finite number"),
        ({"negative_cost": torch.inf}, "negative_cost must be a finite number"),
        ({"labels": torch.zeros(3).long()}, r"labels must have shape \(4,\)"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    given = {"labels": torch.zeros(4).long(), "groups": (2, 3), "impl": "cpu"}
    with pytest.raises(ValueError, match=message):
        ops.boosted_deviance_loss(torch.ones(4, 5), **given | options)
    for op in (ops.boosted_triplet_loss, ops.boosted_contrastive_loss):
        with pytest.raises(ValueError, match="boosting must be one of eta, none, not 'additive'"):
            op(torch.ones(4, 5), **given, boosting="additive")
        with pytest.raises(ValueError, match="margin must be a finite number"):
            op(torch.ones(4, 5), **given, margin=torch.nan)
        with pytest.raises(TypeError, match="groups must be a list or tuple of integers"):
            op(torch.ones(4, 5), **given | {"groups": (2.5, 2.5)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_computes_in_the_dtype_of_the_rows_whatever_the_default_is(dtype):
    rows, labels = problem(30, (4, 3))
    loss = partial(ops.boosted_deviance_loss, labels=labels, groups=(4, 3), negative_cost=25.1)
    same = labels[:, None] == labels
    off = ~torch.eye(30, dtype=torch.bool)
    total, weight, carry = 0, 1, 0
    for m, x in enumerate(rows.double().split((4, 3), 1), start=1):
        x = F.normalize(x)
        z = 2 * (x @ x.T - 0.5) * torch.where(same, 1, torch.tensor(-25.1).double())
        terms = weight * F.softplus(-z)
        total += (terms[same & off].sum() / same.sum().double() + terms[~same].mean()) / 2
        carry = (1 - 2 / (m + 1)) * carry + 2 / (m + 1) * z
        weight = torch.sigmoid(-carry)
    torch.set_default_dtype(dtype)
    try:
        found = [loss(rows.to(kind), impl="reference") for kind in (torch.float64, torch.float32)]
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found[0], total, rtol=2e-8, atol=0)
    torch.testing.assert_close(found[1], total.float())


def test_triplets_of_a_large_class_are_added_up_exactly():
    rows, _ = problem(240, (8, 8))
    labels = torch.arange(240) % 2
    exact, plain = (
        results("reference", "triplet", rows, labels, (8, 8), dtype)[0]
        for dtype in (torch.float64, torch.float32)
    )
    found = results("cpu", "triplet", rows, labels, (8, 8))[0]
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-7 * exact.max()


def test_pairs_of_many_rows_are_counted_in_64_bits():
    """Of equal rows that are all of different classes the loss of each pair is the same."""
    n = 50_000
    found = ops.boosted_deviance_loss(torch.ones(n, 1), torch.arange(n), [1], impl="cpu")
    torch.testing.assert_close(found, F.softplus(torch.tensor(25.0)))


@EVERY_KERNEL
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, impl):
    rows, labels = problem(12, (2, 3))
    x = rows.requires_grad_(requires_grad)
    check = torch.library.opcheck
    settings = ("deviance", "eta", 2.0, 0.5, 25.0, 0.0, requires_grad, impl)
    check(torch.ops.dmlfast.boosted_loss.default, (x, labels, [2, 3], *settings))
    settings = (0.2, "eta", requires_grad, impl)
    check(torch.ops.dmlfast.boosted_triplet_loss.default, (x, labels, [2, 3], *settings))


@EVERY_KERNEL
@pytest.mark.parametrize("loss", ["additive", "contrastive", "triplet"])
def test_fake_tensors_and_a_whole_graph(loss, impl):
    rows, labels = problem(14, (2, 3))
    expected = results(impl, loss, rows, labels, (2, 3))
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fakes = [mode.from_tensor(t) for t in (rows, labels)]
        found = results(impl, loss, *fakes, (2, 3), upstream=torch.ones_like)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: LOSSES[loss](x, labels, (2, 3), reduction="none", impl=impl),
        backend="aot_eager",
        fullgraph=True,
    )
    x = rows.clone().requires_grad_()
    value = compiled(x)
    found = [value.detach(), *torch.autograd.grad(value, x, upstream_for(value))]
    torch.testing.assert_close(found, expected)


MEASURE = """
import resource, torch
from dmlfast import ops
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(n):
    x = torch.randn(n, 512, requires_grad=True)
    before = peak()
    ops.boosted_deviance_loss(x, torch.arange(n) // 4, (96, 160, 256)).backward()
    return peak() - before
step(8)
print(step(4096))
"""


def test_memory_is_linear_in_the_rows():
    """Three copies of the rows, 8 MiB each, and the gradient twice; all pairs alone are 64 MiB."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 50
