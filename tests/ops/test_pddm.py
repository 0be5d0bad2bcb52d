"""Scores of the metric unit and quadruplets: every backend against the reference in float64."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.losses import PDDMUnit
from dmlfast.ops.pddm import gradient, mining
from dmlfast.ops.pddm.reference import quadruplets
from dmlfast.ops.pddm.unit import weights_of

from .helpers import assert_accurate, generator, instruction_sets, upstream_for

KERNELS = ["cpu", "triton"]
EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", *KERNELS])
NORMALIZE = pytest.mark.parametrize("normalize", [False, True])
LAYERS = ("difference", "mean", "joint", "score")


def unit_of(d, h=None, normalize=False, seed=0):
    """A unit with biases that matter."""
    random = generator(seed + d)
    unit = PDDMUnit(d, h, normalize_inputs=normalize)
    for layer in LAYERS:
        for parameter in getattr(unit, layer).parameters():
            width = parameter.shape[-1]
            parameter.data = torch.randn(parameter.shape, generator=random) / width**0.5
    return unit


def wide(unit):
    """The same in float64."""
    copy = PDDMUnit(
        unit.mean.in_features, unit.mean.out_features, normalize_inputs=unit.normalize_inputs
    )
    return copy.load_state_dict(unit.state_dict()) and copy.double()


def rows_of(n, d, seed=0):
    """Rows of which some are the same, opposite up to rounding, or zeros."""
    x = torch.randn(n, d, generator=generator(seed + n + d))
    if n > 8:
        x[1], x[3], x[5], x[7] = x[0], -x[2], 0, -x[6] * (1 + 1e-6)
    return x


def results(impl, x, unit, r=None, pairs=None, upstream=upstream_for):
    """Scores, and their gradients for rows, columns and weights."""
    x, r = (None if t is None else t.detach().clone().requires_grad_() for t in (x, r))
    scores = ops.pddm_scores(x, unit, r, pairs=pairs, impl=impl)
    leaves = [t for t in (x, r) if t is not None] + list(unit.parameters())
    return [scores.detach(), *torch.autograd.grad(scores, leaves, upstream(scores))]


def assert_right(impl, x, unit, r=None, pairs=None):
    def of(name, unit, dtype):
        return results(name, x.to(dtype), unit, None if r is None else r.to(dtype), pairs)

    exact = of("reference", wide(unit), torch.float64)
    plain = of("reference", unit, torch.float32)
    assert_accurate(of(impl, unit, torch.float32), exact, plain, name=impl)


def some_pairs(n, m, count, seed=0):
    random = generator(seed)
    return tuple(torch.randint(0, k, (count,), generator=random) for k in (n, m))


@EVERY_IMPL
def test_golden_value(impl):
    unit = PDDMUnit(2)
    eye = torch.eye(2)
    weights = {"difference": eye, "mean": eye, "joint": torch.cat([eye, eye], 1)}
    for name, weight in weights.items():
        getattr(unit, name).weight.data = weight
    unit.score.weight.data = torch.tensor([[1.0, 2.0]])
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    scores = ops.pddm_scores(x, unit, impl=impl)
    assert scores[0, 1].item() == pytest.approx(4.02492, abs=1e-5)
    assert scores[1, 0] == scores[0, 1]
    assert scores[0, 0].item() == pytest.approx(1.0)  # u = 0, and v the row itself


@EVERY_KERNEL
@NORMALIZE
@pytest.mark.parametrize(("n", "d", "h"), [(1, 3, 8), (10, 1, 1), (29, 5, 7), (37, 33, 19)])
def test_accuracy(n, d, h, normalize, impl):
    unit = unit_of(d, h, normalize)
    x, r = rows_of(n, d), torch.randn(n // 2 + 1, d, generator=generator(n))
    assert_right(impl, x, unit)
    assert_right(impl, x, unit, r)
    assert_right(impl, x, unit, None, some_pairs(n, n, 50))
    assert_right(impl, x, unit, r, some_pairs(n, len(r), 7))


@NORMALIZE
@pytest.mark.parametrize(("d", "h"), [(2, 3), (16, 16), (130, 257), (600, 40)])
def test_widths_on_the_cpu(d, h, normalize):
    for _ in instruction_sets():
        assert_right("cpu", rows_of(30, d), unit_of(d, h, normalize))


def test_layers_of_any_width():
    random = generator(0)

    def layer(out, width, bias=True):
        made = nn.Linear(width, out, bias)
        made.weight.data = torch.randn(out, width, generator=random)
        return made

    unit = SimpleNamespace(
        difference=layer(7, 4), mean=layer(3, 4), joint=layer(5, 10, False), score=layer(1, 5)
    )
    x = rows_of(20, 4)
    expected = ops.pddm_scores(x, unit, impl="reference")
    for impl in KERNELS:
        torch.testing.assert_close(ops.pddm_scores(x, unit, impl=impl), expected)


@NORMALIZE
def test_a_pair_has_the_same_bits_wherever_it_stands(normalize):
    impl = "cpu"
    n, d = 41, 9
    x, unit = rows_of(n, d), unit_of(d, 11, normalize)
    with torch.no_grad():
        scores = ops.pddm_scores(x, unit, impl=impl)
        assert torch.equal(scores, scores.T)
        assert torch.equal(ops.pddm_scores(x, unit, x.clone(), impl=impl), scores)
        i, j = some_pairs(n, n, 100)
        assert torch.equal(ops.pddm_scores(x, unit, pairs=(i, j), impl=impl), scores[i, j])
        found = ops.pddm_scores(x, unit, x.clone(), pairs=(j, i), impl=impl)
        assert torch.equal(found, scores[i, j])


@EVERY_KERNEL
def test_rows_that_all_but_cancel(impl):
    """Where the halves of W v, and so what a kernel may make of them, have no digits left."""
    unit = unit_of(6, 8)
    x = rows_of(20, 6)
    near = -x * (1 + 1e-5 * torch.randn(20, 6, generator=generator(1)))
    unit.mean.weight.data *= 1e5
    unit.mean.bias.data *= 0
    assert_right(impl, x, unit, near)


@EVERY_KERNEL
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_embeddings_of_every_size(size, impl):
    assert_right(impl, rows_of(20, 5) * size, unit_of(5, 6))


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, impl):
    """Computed in float32 on the CPU; a GPU rounds what enters a product."""
    unit = unit_of(24)
    x = rows_of(20, 24).to(dtype)
    found = results(impl, x, unit)
    expected = results("reference", x.float(), unit)
    assert [t.dtype for t in found[:3]] == [torch.float32, dtype, torch.float32]
    units = 1 if impl == "cpu" else 8
    for got, value in zip(found[1:], expected[1:], strict=True):  # in float32 wherever they are
        eps = torch.finfo(got.dtype).eps
        assert (got.float() - value).abs().max() <= (eps + 1e-5) * value.abs().max()
    eps = 1e-5 if impl == "cpu" else units * torch.finfo(dtype).eps
    assert (found[0] - expected[0]).abs().max() <= eps * expected[0].abs().max()


@pytest.mark.parametrize("block", [2**10, 2**14])
@pytest.mark.parametrize("pairs", [None, some_pairs(33, 33, 90), some_pairs(33, 21, 90)])
@NORMALIZE
def test_blocks_of_the_gradient(normalize, pairs, block, monkeypatch):
    monkeypatch.setattr(gradient, "BLOCK_FLOATS", block)
    x, r = (torch.randn(n, 5, generator=generator(n)).double() for n in (33, 21))
    unit = wide(unit_of(5, 4, normalize))
    for columns in (None, r):
        if columns is not None and pairs is not None and pairs[1].max() >= len(r):
            continue
        _, *expected = results("reference", x, unit, columns, pairs)
        scores = ops.pddm_scores(x, unit, columns, pairs=pairs)
        found = gradient.gradients(
            x, columns, pairs, weights_of(unit, x), normalize, upstream_for(scores)
        )
        flat = [found.rows, *([] if columns is None else [found.columns]), *found.weights]
        torch.testing.assert_close([t.detach() for t in flat], expected)


@NORMALIZE
def test_gradients_of_the_reference(normalize):
    x = torch.randn(4, 3, generator=generator(0)).double().requires_grad_()
    unit = wide(unit_of(3, 5, normalize))
    assert torch.autograd.gradcheck(lambda x, *_: ops.pddm_scores(x, unit), (x, *unit.parameters()))


@EVERY_IMPL
@NORMALIZE
def test_what_is_zero_has_no_gradient(normalize, impl):
    """The same row twice, opposite rows, zeros, and branches whose every ReLU is off."""
    unit = unit_of(4, 3, normalize)
    x = torch.tensor([[1.0, 2, 0, -1], [1.0, 2, 0, -1], [-1.0, -2, 0, 1], [0, 0, 0, 0]])
    for tensor in results(impl, x, unit):
        assert tensor.isfinite().all()
    unit.difference.bias.data.fill_(-100.0)
    unit.mean.bias.data.fill_(-100.0)
    scores, d_rows, *_ = results(impl, x, unit)
    expected = nn.functional.linear(unit.joint.bias.relu(), unit.score.weight, unit.score.bias)
    torch.testing.assert_close(scores, expected.detach().expand_as(scores))
    assert not d_rows.any()


@EVERY_IMPL
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_makes_its_pairs_nan(value, blind, impl):
    x, unit = torch.randn(12, 5, generator=generator(0)), unit_of(5, 4)
    if blind:  # the ReLUs turn minus infinity into 0
        for layer in (unit.difference, unit.mean):
            layer.weight.data = -layer.weight.data.abs()
    x[3, 2] = value
    scores = ops.pddm_scores(x, unit, impl=impl)
    broken = torch.zeros(12, dtype=torch.bool)
    broken[3] = True
    assert torch.equal(scores.isnan(), broken[:, None] | broken)
    i, j = torch.tensor([3, 1, 0]), torch.tensor([1, 3, 1])
    found = ops.pddm_scores(x, unit, pairs=(i, j), impl=impl)
    assert found.isnan().tolist() == [True, True, False]


@EVERY_IMPL
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_weight_that_is_not_finite_makes_all_nan(layer, part, impl):
    x, unit = rows_of(10, 4), unit_of(4, 3)
    getattr(getattr(unit, layer), part).data.flatten()[0] = -torch.inf
    assert ops.pddm_scores(x, unit, impl=impl).isnan().all()
    assert ops.pddm_scores(x, unit, pairs=some_pairs(10, 10, 5), impl=impl).isnan().all()


@EVERY_IMPL
@pytest.mark.parametrize(("n", "m"), [(0, None), (0, 3), (3, 0), (1, 1)])
def test_nothing_to_score(n, m, impl):
    x, unit = torch.randn(n, 4), unit_of(4, 3)
    r = None if m is None else torch.randn(m, 4)
    found = results(impl, x, unit, r)
    assert found[0].shape == (n, n if m is None else m)
    assert all(t.isfinite().all() for t in found)
    none = (torch.zeros(0, dtype=torch.long),) * 2
    assert results(impl, x, unit, r, none)[0].shape == (0,)


@EVERY_KERNEL
def test_strides_and_integers_of_any_kind(impl):
    x, unit = rows_of(15, 6), unit_of(6, 4)
    expected = ops.pddm_scores(x, unit, impl=impl)
    gaps = torch.full((30, 12), torch.nan)
    for view in (x.T.contiguous().T, gaps[1::2, 1::2].copy_(x)):
        assert torch.equal(ops.pddm_scores(view, unit, impl=impl), expected)
    i, j = some_pairs(15, 15, 20)
    for kind in (torch.int32, torch.uint8):
        found = ops.pddm_scores(x, unit, pairs=(i.to(kind), j.to(kind)), impl=impl)
        assert torch.equal(found, expected[i, j])


@EVERY_KERNEL
def test_gradients_only_where_wanted(impl):
    x, unit = rows_of(15, 6), unit_of(6, 4)
    _, d_rows, *d_weights = results(impl, x, unit, upstream=torch.ones_like)
    leaf = x.clone().requires_grad_()
    for parameter in unit.parameters():
        parameter.requires_grad_(False)
    ops.pddm_scores(leaf, unit, impl=impl).sum().backward()
    torch.testing.assert_close(leaf.grad, d_rows)
    assert not ops.pddm_scores(x, unit, impl=impl).requires_grad
    unit.joint.weight.requires_grad_()
    ops.pddm_scores(x, unit, impl=impl).sum().backward()
    torch.testing.assert_close(unit.joint.weight.grad, d_weights[4])


@EVERY_KERNEL
def test_second_derivatives_raise(impl):
    x, unit = rows_of(10, 4).requires_grad_(), unit_of(4)
    (found,) = torch.autograd.grad(ops.pddm_scores(x, unit, impl=impl).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        found.sum().backward()


def test_threads_do_not_change_a_bit(threads):
    x, unit, labels = rows_of(70, 9), unit_of(9), torch.arange(70) // 4
    found = []
    for count in (1, 2, 5):
        threads(count)
        mined = ops.pddm_hard_quadruplets(x, labels, unit, per="anchor")
        found.append([ops.pddm_scores(x, unit), mined])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def labels_of(kind, n):
    return {
        "random": torch.randint(-3, 4, (n,), generator=generator(n)),
        "pairs": torch.randperm(n, generator=generator(n)) // 2,
        "one class": torch.full((n,), 2**40),
        "alone": torch.arange(n).int(),
        "two": (torch.arange(n) > n // 3).long(),
    }[kind]


PER = pytest.mark.parametrize("per", ["batch", "class", "anchor"])


@PER
@pytest.mark.parametrize("kind", ["random", "pairs", "one class", "alone", "two"])
def test_quadruplets_are_those_of_the_reference(kind, per, monkeypatch):
    """However scores are cut in blocks, by score and by distance; also where all are equal."""
    impl = "cpu"
    for n, entries in ((0, 100), (1, 100), (2, 100), (23, 60), (23, 2**18)):
        monkeypatch.setattr(mining, "BLOCK_ENTRIES", entries)
        x, labels, unit = torch.randn(n, 5), labels_of(kind, n), unit_of(5, 4)
        by_distance = ops.pddm_hard_quadruplets(x, labels, per=per, impl=impl)
        expected = ops.pddm_hard_quadruplets(x, labels, per=per, impl="reference")
        assert torch.equal(by_distance, expected)
        for rows in (x, x[:1].expand(n, 5)):
            scores = ops.pddm_scores(rows, unit, impl=impl)
            found = ops.pddm_hard_quadruplets(rows, labels, unit, per=per, impl=impl)
            assert torch.equal(found, quadruplets(scores, labels, per))


@EVERY_IMPL
def test_a_quadruplet_by_hand(impl):
    """On a line, by distance: the furthest two of a class, and what is nearest to either."""
    x = torch.tensor([[0.0], [1.0], [5.0], [5.5], [20.0], [21.5]])
    labels = torch.tensor([7, 7, 7, 3, 3, 9])
    mined = partial(ops.pddm_hard_quadruplets, x, labels, impl=impl)
    assert mined().tolist() == [[3, 4, 2, 5]]
    none = [-1] * 4
    assert mined(per="class").tolist() == [[0, 2, 3, 3], none, none, [3, 4, 2, 5], none, none]
    anchors = [[0, 2, 3, 3], [1, 2, 3, 3], [2, 0, 3, 3], [3, 4, 2, 5], [4, 3, 5, 2], none]
    assert mined(per="anchor").tolist() == anchors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unit": SimpleNamespace()}, TypeError, "unit.difference must be a linear layer"),
        ({"unit": PDDMUnit(4)}, ValueError, r"unit.difference.weight must have shape \(4, 2\)"),
        ({"unit": PDDMUnit(2).double()}, TypeError, "unit.difference.weight must be float64"),
        ({"ref_emb": torch.ones(4, 3)}, ValueError, "ref_emb must have the width"),
        ({"pairs": torch.ones(2, 3)}, TypeError, "pairs must be two tensors"),
        ({"pairs": (torch.tensor([0, 3]),) * 2}, ValueError, "from 0 to 2: there is 3"),
        ({"pairs": (torch.tensor([0]), torch.tensor([-1]))}, ValueError, "there is -1"),
        ({"pairs": (torch.tensor([0]), torch.tensor([0, 1]))}, ValueError, r"shape \(1,\)"),
        ({"pairs": (torch.tensor([0.5]),) * 2}, TypeError, "must have an integer dtype"),
        ({"impl": "cuda"}, RuntimeError, "no kernels for it"),
    ],
)
def test_what_cannot_be_is_said(changes, error, message):
    arguments = {"embeddings": torch.ones(3, 2), "unit": PDDMUnit(2), "impl": "cpu"}
    with pytest.raises(error, match=message):
        ops.pddm_scores(**arguments | changes)


@pytest.mark.parametrize(
    ("impl", "where"), [("cpu", "compiled"), ("cpu", "mapped"), ("reference", "eager")]
)
@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_pairs_of_rows_that_are_not_there_are_refused(wrong, impl, where):
    x, unit = torch.ones(3, 2), PDDMUnit(2)

    def scores(j):
        return ops.pddm_scores(x, unit, pairs=(torch.zeros_like(j), j), impl=impl)

    j = torch.tensor([0, wrong])
    call = {
        "eager": lambda: scores(j),
        "compiled": lambda: torch.compile(scores, backend="eager", fullgraph=True)(j),
        "mapped": lambda: torch.func.vmap(scores)(j[None]),
    }
    with torch.no_grad(), pytest.raises(ValueError, match=f"from 0 to 2: there is {wrong}"):
        call[where]()


def test_quadruplets_of_an_unknown_kind():
    with pytest.raises(ValueError, match="per must be one of batch, class, anchor, not 'row'"):
        ops.pddm_hard_quadruplets(torch.ones(3, 2), torch.arange(3), per="row")


def arguments_of(x, unit, r=None, pairs=None):
    return x, r, *(pairs or (None, None)), *weights_of(unit, x), unit.normalize_inputs


@EVERY_KERNEL
@pytest.mark.parametrize("pairs", [None, some_pairs(7, 5, 4)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, pairs, impl):
    x, r, unit = rows_of(7, 4), torch.randn(5, 4, generator=generator(3)), unit_of(4, 3)
    x.requires_grad_(requires_grad)
    for parameter in unit.parameters():
        parameter.requires_grad_(requires_grad)
    given = arguments_of(x, unit, r, pairs)
    check = torch.library.opcheck
    check(torch.ops.dmlfast.pddm_scores.default, (*given, impl))
    given = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    grad = torch.rand(4) if pairs else torch.rand(7, 5)
    check(torch.ops.dmlfast.pddm_scores_grad.default, (grad, *given))
    mined = (given[0], torch.arange(7) // 2, *given[4:], "class", impl)
    check(torch.ops.dmlfast.pddm_hard_quadruplets.default, mined)


@EVERY_KERNEL
def test_fake_tensors_and_a_whole_graph(impl):
    x, labels, unit = rows_of(12, 4), torch.arange(12) // 3, unit_of(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x)
        assert ops.pddm_scores(fake, unit, impl=impl).shape == (12, 12)
        mined = ops.pddm_hard_quadruplets(fake, mode.from_tensor(labels), unit, impl=impl)
        assert (mined.shape, mined.dtype) == ((1, 4), torch.long)
    torch._dynamo.reset()

    def both(x):
        mined = ops.pddm_hard_quadruplets(x, labels, unit, per="anchor", impl=impl)
        scores = ops.pddm_scores(x, unit, impl=impl)
        return scores.gather(1, mined[:, 1:2]).sum() - scores.gather(1, mined[:, 2:3]).sum()

    found = []
    for f in (both, torch.compile(both, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        value = f(leaf)
        found.append([value.detach(), *torch.autograd.grad(value, [leaf, *unit.parameters()])])
    torch.testing.assert_close(found[1], found[0])


def test_autocast_does_not_reach_the_scores():
    x, unit = rows_of(20, 8), unit_of(8)
    expected = results("reference", x, unit)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.pddm_scores(x, unit, impl="reference"), expected[0])
        torch.testing.assert_close(results("cpu", x, unit), expected)


MEASURE = """
import resource, torch
from dmlfast import ops
from dmlfast.losses import PDDMLoss
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(n, d):
    loss_fn = PDDMLoss(d)
    x = torch.randn(n, d, requires_grad=True)
    before = peak()
    loss_fn(x, torch.arange(n) // 4).backward()
    return peak() - before
step(8, 128)
print(step({n}, 128))
"""


@pytest.mark.parametrize(("n", "most"), [(512, 15), (4096, 60)])
def test_memory_of_a_step(n, most):
    """The scores of 4,096 rows alone would be 64 MiB, their activations gigabytes."""
    command = [sys.executable, "-c", MEASURE.format(n=n)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < most
