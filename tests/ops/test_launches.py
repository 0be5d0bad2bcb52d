"""How many kernels a call launches, which decides the time of a small batch."""

import pytest
import torch

from dmlfast.losses import PDDMLoss, PDDMUnit
from dmlfast.ops import boosted_deviance_loss, lifted_structured_loss, pair_reduce, pddm_scores

pytest.importorskip("triton")
from triton import runtime

from dmlfast.ops.pairs.triton import blocks


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched."""
    names = []
    interpreted = pytest.importorskip("triton.runtime.interpreter").InterpretedFunction
    for kind in (runtime.JITFunction, interpreted):
        run = kind.run

        def counted(kernel, *args, run=run, **options):
            names.append(kernel.__name__)
            return run(kernel, *args, **options)

        monkeypatch.setattr(kind, "run", counted)
    return names


def step(n, d, dtype, loss):
    rows = torch.randn(n, d, dtype=dtype, requires_grad=True)
    loss(rows, torch.arange(n) // 4, impl="triton").sum().backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (128, 8), (20, 512)])
def test_a_small_batch_takes_one(launches, n, d, dtype):
    step(n, d, dtype, lifted_structured_loss)
    assert launches == ["one_launch_kernel"]


@pytest.mark.parametrize(
    ("n", "d", "dtype", "most"),
    [(129, 16, torch.bfloat16, 5), (129, 16, torch.float32, 5), (129, 200, torch.bfloat16, 6)],
)
def test_a_larger_one_takes_at_most_six(launches, monkeypatch, n, d, dtype, most):
    from dmlfast.ops.triton import configs

    tiles = configs.INTERPRETED  # whose blocks of weights are small, for tests
    monkeypatch.setattr(
        configs, "INTERPRETED", tiles._replace(weights=tiles.weights._replace(block=256))
    )
    step(n, d, dtype, lifted_structured_loss)
    assert len(launches) == most


def test_a_loss_without_a_gradient_takes_five(launches):
    lifted_structured_loss(torch.randn(129, 4), torch.arange(129) // 4, impl="triton")
    assert len(launches) == 5


def test_a_reduction_and_its_gradient_take_three_each(launches):
    step(40, 8, torch.float32, pair_reduce)
    assert len(launches) == 6


def test_a_metric_unit_takes_projections_of_each_side_and_one_more(launches):
    rows, unit = torch.randn(9, 4), PDDMUnit(4)
    pddm_scores(rows, unit, impl="triton")
    assert launches == ["projections_kernel", "pair_scores_kernel"]
    pddm_scores(rows, unit, rows[:3], impl="triton")
    assert len(launches) == 5
    pddm_scores(rows, unit, pairs=(torch.arange(9), torch.arange(9)), impl="triton")
    assert len(launches) == 7


@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
def test_a_step_of_the_pddm_loss_takes_eight(launches, per):
    loss, rows, labels = (
        PDDMLoss(4, per=per, impl="triton"),
        torch.randn(9, 4),
        torch.arange(9) // 3,
    )
    mined = ["normalize_kernel", "projections_kernel", "pair_scores_kernel"]
    mined += ["extremes_kernel", "assemble_kernel"]
    loss(rows.requires_grad_(), labels).backward()
    assert launches == [*mined, "quadruplets_kernel", "rows_kernel", "normalize_grad_kernel"]
    launches.clear()
    with torch.no_grad():
        loss(rows, labels)
    assert launches == [*mined, "quadruplets_kernel"]


def test_a_boosted_loss_takes_two_for_a_block_and_three_around_them(launches):
    rows = torch.randn(129, 8, requires_grad=True)
    boosted_deviance_loss(rows, torch.arange(129) // 4, [3, 5], impl="triton").backward()
    assert launches == [
        "pack_kernel",
        "classes_kernel",
        "weights_kernel",
        "product_kernel",
        "through_norm_kernel",
    ]


@pytest.mark.parametrize(
    ("down", "across", "programs", "expected"),
    [(32, 32, 132, 8), (2, 2, 132, 1), (32, 31, 132, 1), (1, 6, 1, 6), (3, 12, 4, 6), (1, 1, 1, 1)],
)
def test_tiles_that_a_program_takes(down, across, programs, expected):
    """As many as leave about a program for each multiprocessor, and all as many."""
    assert blocks.tiles_at_once(down, across, programs) == expected
