"""The CUDA kernels of the normalised softmax, on an emulated sm_90 GPU.

tests/ops/test_gpu_wide.py runs these on a real one.
"""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops import dispatch
from dmlfast.ops.cuda import library
from dmlfast.ops.norm_softmax import norm_softmax_loss, op
from dmlfast.ops.norm_softmax.settings import Settings

from .helpers import CAPABILITY, ULPS, assert_accurate, generator

pytest.importorskip("triton")
from dmlfast.ops.norm_softmax import cuda as kernels
from dmlfast.ops.norm_softmax.triton import sides as common_sides

from . import test_norm_softmax_triton as common
from .test_cuda import DEVICE, EMULATED
from .test_norm_softmax_triton import BRAIN, CUTS, FULL, set_sizes

pytestmark = EMULATED
# classes laid out all at once, and one tile after another
ROOM = pytest.mark.parametrize("room", [kernels.LAID_OUT, 1])
DIGITS = torch.finfo(BRAIN).eps / torch.finfo(FULL).eps


def inputs(n, m, d, **options):
    return tuple(t.to(DEVICE) for t in common.inputs(n, m, d, BRAIN, **options))


def check(given, scale=20.0, low_memory=False):
    return common.check(given, scale, low_memory, forward=kernels.forward)


@pytest.mark.parametrize("d", [20, 64, 100, 130, 200, 320, 512])
@pytest.mark.parametrize(("scale", "low_memory"), [(20.0, False), (20.0, True), (100.0, False)])
def test_are_right(d, low_memory, scale):
    check(inputs(40, 70, d, scale=scale), scale, low_memory)


@pytest.mark.parametrize("scale", [20.0, 100.0])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(1, 1, 1), (1, 2, 3), (3, 200, 129), (129, 63, 33), (300, 65, 24), (128, 128, 64)],
)
def test_take_any_size(n, m, d, scale):
    check(inputs(n, m, d, scale=scale), scale)


@ROOM
@pytest.mark.parametrize("cut", CUTS)
def test_are_right_however_they_are_cut(monkeypatch, cut, room):
    monkeypatch.setattr(kernels, "LAID_OUT", room)
    set_sizes(monkeypatch, CUTS[cut])
    check(inputs(150, 300, 24))


@ROOM
def test_are_right_in_blocks_with_a_running_maximum(monkeypatch, room):
    monkeypatch.setattr(kernels, "LAID_OUT", room)
    set_sizes(monkeypatch, CUTS["blocks"])
    check(inputs(130, 150, 20, scale=100.0), 100.0)


@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_many_classes_take_a_ring_of_tiles_in_several_parts(scale):
    given = inputs(130, 12_000 if DEVICE == "cpu" else 60_000, 24, scale=scale)
    sides = kernels.Sides(*given[:3], scale, False)
    (_, _, x), *_ = sides.chunks()
    parts = sides.slots(x, sides.classes)
    assert parts > 1
    assert sides.classes.padded // 64 // parts > 4  # tiles, more than shared memory holds
    check(given, scale)


@pytest.mark.parametrize("scale", [20.0, 100.0])
@pytest.mark.parametrize("m", [128, 131])
def test_own_classes_are_left_out_wherever_they_are(scale, m):
    """Each row is its own class, whose exponential is by far the greatest."""
    weight = torch.randn(m, 24, generator=generator(1)).to(DEVICE, BRAIN)
    labels = torch.arange(m, device=DEVICE)
    rest = torch.zeros(m, device=DEVICE), torch.ones(m, device=DEVICE)
    found, *_ = check((weight.float(), weight, labels, *rest), scale)
    units = torch.nn.functional.normalize(weight.double())
    scores = scale * units @ units.T
    expected = scores.fill_diagonal_(-torch.inf).logsumexp(1)
    assert (found - expected).abs().max() < 1e-4
    assert expected.max() < scale - 1


def test_exponents_far_apart_keep_their_digits():
    rows, weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[-3.0, 0.0], [-0.5, 0.0]])
    rest = torch.tensor([1, -1]), torch.tensor([-60.0, 60.0]), torch.ones(2)
    for scale in (64.0, 400.0):
        check(tuple(t.to(DEVICE) for t in (rows, weight.to(BRAIN), *rest)), scale)


@pytest.mark.parametrize("scale", [20.0, 1000.0])
def test_a_class_alone_has_no_others(scale):
    rows, weight, _, target, row_weights = inputs(5, 1, 4)
    labels = torch.tensor([0, 0, -1, 0, 0], device=DEVICE)
    given = rows, weight, labels, target, torch.where(labels < 0, 0, row_weights)
    found, d_rows, d_weight = kernels.forward(*given, scale, False, True, True)
    assert found.isinf().tolist() == [True, True, False, True, True]
    assert not d_rows.any()
    assert not d_weight.any()


def test_zeros_have_no_direction():
    given = inputs(12, 9, 8)
    given[0][3], given[1][2] = 0, 0
    _, d_rows, d_weight = check(given)
    assert not d_rows[3].any()
    assert not d_weight[2].any()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_lengths_do_not_matter(low_memory, mixed, size):
    given = inputs(12, 130, 20)
    common.check_lengths(given, size, mixed, low_memory, forward=kernels.forward)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_what_is_not_finite_makes_all_nan(value, which, scale):
    given = inputs(5, 7, 4)
    given[which][2, 1] = value
    for low_memory in (False, True):
        found = kernels.forward(*given, scale, low_memory, True, True)
        assert all(t.isnan().all() for t in found)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("d", [20, 64])
def test_columns_and_rows_may_be_strided(d, low_memory):
    rows, weight, *rest = inputs(40, 70, d)
    turned = rows.T.contiguous().T, weight.T.contiguous().T
    # of the first 16 bytes can be loaded at a time, of the others they cannot
    parts = [
        [F.pad(t, (before, after)).narrow(1, before, d) for t in (rows, weight)]
        for before, after in ((8, 16), (3, 5), (0, 5))
    ]
    for given in (turned, *parts):
        assert not given[1].is_contiguous()
        check((*given, *rest), low_memory=low_memory)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.005}, {"label_smoothing": 0.3}], ids=str)
def test_serve_the_loss(low_memory, options):
    rows, weight, labels, *_ = inputs(70, 90, 24)
    labels = labels.masked_fill(labels == -1, -100)

    def results(impl, dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in (rows, weight)]
        loss = norm_softmax_loss(
            given[0], labels, given[1], impl=impl, low_memory=low_memory, **options
        )
        return [loss.detach(), *torch.autograd.grad(loss, given, torch.full_like(loss, 2.0))]

    exact, yard = results("reference", torch.float64), results("reference", FULL)
    found = results("cuda", BRAIN)
    assert [t.dtype for t in found] == [FULL, BRAIN, BRAIN]
    scale = 1 / options.get("temperature", 0.05)
    assert_accurate(found[:1], exact[:1], yard[:1], ULPS + scale)
    assert_accurate(found[1:], exact[1:], yard[1:], ULPS + scale + 3 * DIGITS)


@pytest.mark.parametrize(
    ("dtype", "d", "capability"), [(FULL, 8, "9"), (BRAIN, 513, "9"), (BRAIN, 8, "8")]
)
def test_others_have_no_kernels(monkeypatch, dtype, d, capability):
    monkeypatch.setenv(CAPABILITY, capability)
    library.exponentials_fit.cache_clear()
    rows = torch.ones(2, d, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"norm_softmax_loss: impl='cuda' .* has no kernels"):
        norm_softmax_loss(rows, torch.tensor([0, 1]), rows, impl="cuda")
    library.exponentials_fit.cache_clear()


def test_the_widest_rows_have_kernels():
    rows = torch.ones(2, op.WIDEST, device=DEVICE, dtype=BRAIN)
    labels = torch.tensor([0, 1], device=DEVICE)
    loss = norm_softmax_loss(rows, labels, rows, impl="cuda")
    assert abs(loss.item() - math.log(2)) < 20 * torch.finfo(FULL).eps  # two logits of 20


def test_rows_of_the_same_dtype_have_kernels():
    assert op.without(torch.device(DEVICE), BRAIN, BRAIN) == ()
    assert op.without(torch.device(DEVICE), BRAIN, FULL) == ("cuda",)


@pytest.mark.parametrize("name", ["triton", "cuda", dispatch.FASTEST])
def test_low_memory_goes_by_blocks_whoever_serves(name):
    settings = Settings(0.05, 0.0, 0.0, 0.0, -100, low_memory=True)
    assert op._by_blocks(settings, name)
    assert not op._ahead("mean", settings, name)
    assert op._ahead("mean", settings._replace(low_memory=False), name)


@pytest.mark.parametrize(
    ("d", "expected"), [(1, 128), (64, 128), (65, 256), (200, 512), (512, 1024)]
)
def test_rows_are_laid_out_in_powers_of_two(d, expected):
    sides = kernels.Sides(*inputs(2, 3, d)[:3], 20.0, False)
    assert sides.row_bytes == expected


def test_scratch_is_bounded():
    plan = common_sides.plan_of(4096, 10**6, 512, 2, 20.0, True, 1024)
    copies = 4096 * 512 * 2 * 4
    assert plan.classes * (plan.rows * 2 + 4 * 512 + 1024) + copies <= common_sides.LOW
    assert kernels.LAID_OUT + copies <= common_sides.LOW
