"""The Triton kernels of the boosted pair losses, however the pairs are cut into blocks."""

import pytest
import torch

from dmlfast import ops
from dmlfast.ops import boosted

from .helpers import ULPS, assert_accurate, generator

pytest.importorskip("triton")
import triton
import triton.language as tl

from dmlfast.ops.boosted import triton as kernels
from dmlfast.ops.boosted.settings import Settings
from dmlfast.ops.boosted.triton import classes, rows, terms, tiles

FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF])
DEVIANCE, CONTRASTIVE = ops.boosted_deviance_loss, ops.boosted_contrastive_loss
LOSSES = [(DEVIANCE, name) for name in ("eta", "additive", "derivative", "none")]
LOSSES += [(CONTRASTIVE, "eta"), (CONTRASTIVE, "none")]
PLAIN = Settings("deviance", "eta", 2.0, 0.5, 25.0, 0.5)
SMALL = tiles.Tiles(tiles.WeightsTile(32, 16, 4, 1), tiles.ProductTile(16, 32, 32, 4, 1))


def inputs(n, groups, dtype=FULL, per_class=4, seed=0, spread=1.5):
    """Rows about the middle of their classes, so that positive pairs are nearer, and labels."""
    random = generator(seed)
    labels = torch.randint(0, max(1, n // per_class), (n,), generator=random)
    middles = torch.randn(n, sum(groups), generator=random)
    x = middles[labels] + spread * torch.randn(n, sum(groups), generator=random)
    return x.to(dtype), labels


def results(loss, x, labels, groups, impl, dtype=None, **options):
    x = x.detach().to(dtype or x.dtype).requires_grad_()
    found = loss(x, labels, groups, impl=impl, reduction="none", **options)
    upstream = torch.linspace(-1, 2, len(groups), dtype=found.dtype, device=found.device)
    return [found.detach(), *torch.autograd.grad(found, x, upstream)]


def largest_exponent(loss, options):
    if loss is CONTRASTIVE:
        return 0.0
    scale = options.get("beta1", 2.0) * max(1.0, options.get("negative_cost", 25.0))
    return scale * (1 + abs(options.get("beta2", 0.5)))


def check(x, labels, groups, loss=DEVIANCE, **options):
    """Against float64; a float32 score's last digits count as often as they are multiplied."""
    found = results(loss, x, labels, groups, "triton", **options)
    exact = results(loss, x, labels, groups, "reference", torch.float64, **options)
    yard = results(loss, x, labels, groups, "reference", FULL, **options)
    assert found[0].dtype == FULL
    assert found[1].dtype == x.dtype
    floor = ULPS + largest_exponent(loss, options)
    assert_accurate(found[:1], exact[:1], yard[:1], floor, "loss")
    # weights are rounded to the precision of half-precision rows
    rounded = 0.0 if x.dtype == FULL else torch.finfo(x.dtype).eps
    floor += rounded / torch.finfo(FULL).eps
    assert_accurate(found[1:], exact[1:], yard[1:], floor, "gradient")
    return found


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles so small, and blocks so few of them, that several blocks meet."""
    monkeypatch.setattr(tiles, "INTERPRETED", SMALL)
    monkeypatch.setattr(kernels, "SCRATCH", 3 * 4 * 32 * 32)


@DTYPES
@pytest.mark.parametrize(("loss", "boosting"), LOSSES)
def test_are_right(dtype, loss, boosting):
    groups = [5, 24, 35]
    check(*inputs(70, groups, dtype), groups, loss, boosting=boosting)


@DTYPES
@pytest.mark.parametrize(("loss", "boosting"), [LOSSES[0], LOSSES[1], LOSSES[4]])
def test_are_right_in_blocks(small_blocks, dtype, loss, boosting):
    groups = [5, 33, 7]
    assert len(list(kernels.blocks_of(96, kernels.block_of(96, 3, 4, 32)))) == 6  # padded to 96
    check(*inputs(70, groups, dtype), groups, loss, boosting=boosting)


@pytest.mark.parametrize(
    ("pair", "product"),
    [((32, 16), (32, 16, 16)), ((16, 32), (16, 64, 64)), ((64, 64), (64, 128, 32))],
)
def test_are_right_with_any_tiles(monkeypatch, pair, product):
    cut = tiles.Tiles(tiles.WeightsTile(*pair, 4, 1), tiles.ProductTile(*product, 4, 1))
    monkeypatch.setattr(tiles, "INTERPRETED", cut)
    monkeypatch.setattr(kernels, "SCRATCH", 2 * 4 * 64 * 64)
    groups = [40, 3]
    check(*inputs(67, groups), groups)


@pytest.mark.parametrize("n", [1, 31, 97])
@pytest.mark.parametrize("groups", [[1], [1, 1], [7, 300]])
def test_take_any_size(n, groups):
    check(*inputs(n, groups), groups)


@DTYPES
def test_take_many_learners(dtype):
    groups = [3 + m % 5 for m in range(16)]
    boosting = "derivative" if dtype == HALF else "eta"
    check(*inputs(40, groups, dtype), groups, boosting=boosting)


def test_wide_learners_are_padded_by_little():
    for dtype, most in ((FULL, 1.1), (BRAIN, 1.1)):
        for groups in ([96, 160, 256], [1024], [257, 255], [33] * 8):
            chunk = kernels.chunk_of(dtype, groups)
            padded = sum(-(-size // chunk) * chunk for size in groups)
            least = sum(-(-size // 16) * 16 for size in groups)
            assert padded <= most * least
    assert kernels.chunk_of(BRAIN, [1024]) == 64
    assert kernels.chunk_of(BRAIN, [96, 160, 256]) == 32
    assert kernels.chunk_of(FULL, [1]) == 16


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DEVIANCE, {"beta1": 8.0, "beta2": 0.1, "negative_cost": 4.0}),
        (DEVIANCE, {"beta1": 0.5, "beta2": -0.3, "boosting": "derivative"}),
        (DEVIANCE, {"negative_cost": 0.0, "boosting": "additive"}),
        (CONTRASTIVE, {"margin": -0.2}),
        (CONTRASTIVE, {"margin": 0.9, "boosting": "none"}),
    ],
)
def test_take_any_settings(loss, options):
    check(*inputs(40, [9, 20]), [9, 20], loss, **options)


@pytest.mark.parametrize("kind", ["one class", "all distinct", "huge", "bytes", "strided"])
@pytest.mark.parametrize("counted", [True, False])
def test_take_any_labels(monkeypatch, kind, counted):
    monkeypatch.setattr(classes, "COUNTED", 4096 if counted else 0)
    x, labels = inputs(45, [9, 20])
    labels = {
        "one class": torch.full_like(labels, -3),
        "all distinct": torch.randperm(45, generator=generator(1)) - 20,
        "huge": labels * 2**58 - 2**60,
        "bytes": labels.to(torch.uint8) + 250,
        "strided": torch.stack([labels, labels + 1], 1)[:, 0],
    }[kind]
    check(x, labels, [9, 20], DEVIANCE if counted else CONTRASTIVE)


def test_labels_that_differ_above_32_bits_differ():
    x, _ = inputs(20, [6])
    labels = torch.arange(20) % 4
    found, expected = (
        results(DEVIANCE, x, kind, [6], "triton") for kind in (labels * 2**32, labels)
    )
    assert all(map(torch.equal, found, expected))


@triton.jit
def log1p_kernel(e, out, N: tl.constexpr):
    k = tl.arange(0, N)
    tl.store(out + k, terms.log1p(tl.load(e + k)))


def test_logarithms_keep_the_digits_of_small_numbers():
    e = torch.cat([torch.linspace(0, 1, 2048), 2.0 ** -torch.linspace(0, 125, 2048)])
    found = torch.empty_like(e)
    log1p_kernel[(1,)](e, found, N=4096)
    assert torch.allclose(found.double(), e.double().log1p(), rtol=2e-7, atol=0)


def test_losses_of_far_pairs_keep_their_digits():
    """Where there are none but negative pairs, and these are far apart, their losses are small."""
    x = torch.eye(12) + 0.01 * torch.rand(12, 12, generator=generator(0))
    found = check(x, torch.arange(12), [12])
    exact = results(DEVIANCE, x, torch.arange(12), [12], "reference", torch.float64)
    assert exact[0] < 1e-9
    assert torch.allclose(found[0].double(), exact[0], rtol=1e-4)


@DTYPES
def test_rows_may_be_strided(dtype):
    groups = [9, 20]
    x, labels = inputs(33, groups, dtype)
    expected = results(DEVIANCE, x, labels, groups, "triton")
    for other in (x.T.contiguous().T, torch.stack([x, x], 2)[:, :, 1], torch.cat([x, x])[:33]):
        assert all(map(torch.equal, results(DEVIANCE, other, labels, groups, "triton"), expected))


def test_offsets_take_64_bits():
    x, labels = inputs(4, [3, 5], BRAIN)
    far = torch.empty(3 * 2**30 + 8, dtype=BRAIN).as_strided((4, 8), (2**30, 1))
    far.copy_(x)
    found, expected = (kernels.forward(t, labels, [3, 5], PLAIN, True) for t in (far, x))
    assert all(map(torch.equal, found, expected))


def test_no_rows_have_no_gradient():
    found, d_rows = kernels.forward(*inputs(0, [2, 3]), [2, 3], PLAIN, True)
    assert torch.equal(found, torch.zeros(2))
    assert d_rows.shape == (0, 5)


def test_a_row_alone_has_no_pairs():
    found, d_rows = kernels.forward(*inputs(1, [2, 3]), [2, 3], PLAIN, True)
    assert torch.equal(found, torch.zeros(2))
    assert torch.equal(d_rows, torch.zeros(1, 5))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@DTYPES
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_makes_all_nan(small_blocks, dtype, value):
    x, labels = inputs(40, [5, 6], dtype)
    x[37, 7] = value
    found, d_rows = kernels.forward(x, labels, [5, 6], PLAIN, True)
    assert found.isnan().all()
    assert d_rows.isnan().all()
    assert kernels.forward(x, labels, [5, 6], PLAIN, False)[0].isnan().all()


@DTYPES
def test_rows_of_zeros_and_very_short_ones(dtype):
    """A row shorter than 1e-5 is divided by that; its gradient is not bent by the norm."""
    groups = [6, 8]
    x, labels = inputs(30, groups, dtype)
    x[3], x[7, :6], x[9, 6:] = 0, x[7, :6] * 5e-7, x[9, 6:] * 1e-7
    short = torch.stack([part.double().norm(dim=1) < 1e-5 for part in x.split(groups, 1)], 1)
    assert short.sum(0).tolist() == [2, 2]
    short = short.repeat_interleave(torch.tensor(groups), 1)
    found, exact, yard = (
        kernels.forward(x, labels, groups, PLAIN, True),
        results(DEVIANCE, x.double(), labels, groups, "reference"),
        results(DEVIANCE, x.float(), labels, groups, "reference"),
    )
    upstream = torch.linspace(-1, 2, 2).repeat_interleave(torch.tensor(groups))
    rounded = 0.0 if dtype == FULL else torch.finfo(dtype).eps / torch.finfo(FULL).eps
    assert_accurate(found[:1], exact[:1], yard[:1], ULPS + 75)
    for where in (short, ~short):  # gradients of short rows are larger by five orders
        got, truth, plain = ([d[where]] for d in (found[1] * upstream, exact[1], yard[1]))
        assert_accurate(got, truth, plain, ULPS + 75 + rounded)


@pytest.mark.parametrize(("dtype", "size"), [(FULL, 2.0**100), (BRAIN, 2.0**100), (HALF, 2.0**8)])
def test_lengths_do_not_matter(dtype, size):
    x, labels = inputs(30, [6, 8], dtype)
    found, d_rows = kernels.forward(x, labels, [6, 8], PLAIN, True)
    long, d_long = kernels.forward(x * size, labels, [6, 8], PLAIN, True)
    assert torch.allclose(found, long, rtol=1e-6)
    assert torch.allclose(d_rows, d_long * size, rtol=1e-4, atol=1e-6 * float(d_rows.abs().max()))


@DTYPES
def test_repeat_to_the_bit(small_blocks, dtype):
    x, labels = inputs(70, [5, 6], dtype)
    found, again = (kernels.forward(x, labels, [5, 6], PLAIN, True) for _ in range(2))
    assert all(map(torch.equal, found, again))


@DTYPES
def test_losses_are_the_same_without_a_gradient(small_blocks, dtype):
    x, labels = inputs(70, [5, 6], dtype)
    found, d_rows = kernels.forward(x, labels, [5, 6], PLAIN, False)
    assert d_rows is None
    assert torch.equal(found, kernels.forward(x, labels, [5, 6], PLAIN, True)[0])


@DTYPES
def test_read_no_memory_that_was_not_written(monkeypatch, small_blocks, dtype):
    x, labels = inputs(70, [5, 33], dtype)
    expected = kernels.forward(x, labels, [5, 33], PLAIN, True)
    empty = torch.Tensor.new_empty

    def poisoned(*args, **options):
        made = empty(*args, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 2**30 + 7)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    found = kernels.forward(x, labels, [5, 33], PLAIN, True)
    assert all(map(torch.equal, found, expected))


def test_inputs_are_left_alone():
    x, labels = inputs(20, [5, 6])
    before = x.clone(), labels.clone()
    kernels.forward(x, labels, [5, 6], PLAIN, True)
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


def test_plain_tf32_is_taken_where_torch_was_told_to(monkeypatch):
    given = *inputs(40, [20, 9]), [20, 9], PLAIN, True
    expected = kernels.forward(*given)
    monkeypatch.setattr("dmlfast.ops.triton.configs.exact_products", lambda: False)
    for got, truth in zip(kernels.forward(*given), expected, strict=True):
        error = (got - truth).abs().max() / truth.abs().max()
        assert 1e-6 < error < 2e-2


def test_products_of_half_precision_rows_are_exact():
    """Rows are multiplied by powers of two alone, so that a packed row has the row's digits."""
    for dtype in (BRAIN, HALF):
        x, _ = inputs(20, [5, 33], dtype)
        packed = rows.pack(x, [5, 33], 32, 16, False)
        own = packed.rows[:20, :5].float() / packed.power[0, :20, None]
        assert torch.equal(own, x[:, :5].float())
        length = (packed.power * packed.rest)[:, :20].double().reciprocal()
        exact = torch.stack([part.double().norm(dim=1) for part in x.split([5, 33], 1)])
        assert torch.allclose(length, exact, rtol=3e-7)
        assert not packed.rows[20:].any()


def test_half_precision_losses_are_as_accurate_as_float32s():
    """Exponents are 50 times a score: a score rounded to half precision would be seen."""
    groups = [40, 60]
    for dtype in (BRAIN, HALF):
        x, labels = inputs(60, groups, dtype, spread=0.5)
        found = kernels.forward(x, labels, groups, PLAIN, False)[0]
        exact = boosted.reference.boosted_loss(x.double(), labels, groups, PLAIN)
        assert torch.allclose(found.double(), exact, rtol=2e-6)


@pytest.mark.parametrize("padded", [128, 4096, 32768, 10**6 // 128 * 128])
@pytest.mark.parametrize("learners", [1, 3, 16])
@pytest.mark.parametrize("size", [2, 4])
def test_scratch_is_bounded(padded, learners, size):
    block = kernels.block_of(padded, learners, size, 128)
    assert block % 128 == 0
    assert learners * block**2 * size <= kernels.SCRATCH
    blocks = list(kernels.blocks_of(padded, block)) if padded < 10**5 else []
    pairs = sum(b.sides * b.height * b.width for b in blocks)
    assert not blocks or pairs == padded**2
    assert all(b.height % 128 == b.width % 128 == 0 for b in blocks)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_the_shipped_block_sizes(monkeypatch, dtype):
    """Those of a GPU, in the interpreter."""
    kept = torch.bfloat16 if dtype == BRAIN else FULL
    kind = tiles.kind_of(dtype)
    for table in tiles.TILES.values():
        monkeypatch.setattr(tiles, "INTERPRETED", table[kind])
        monkeypatch.setattr(kernels, "SCRATCH", 3 * kept.itemsize * 128**2)
        groups = [48, 80, 140]
        check(*inputs(200, groups, dtype), groups)


def test_pairs_of_one_class_are_counted_in_64_bits():
    n = 70_000
    found, pairs = classes.classes_of(torch.zeros(n, dtype=torch.long), n, 16)
    assert pairs == n**2
    assert not found.any()
