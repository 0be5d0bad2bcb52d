"""The gradient of wide bfloat16 rows, which comes of blocks of weights, on an emulated sm_90 GPU.

tests/ops/test_gpu_wide.py runs these on a real one.
"""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dmlfast.ops.cuda import blocks, library
from dmlfast.ops.matmul import add_product

from . import sanitize
from .covering import shortly
from .emulated import ROOT
from .helpers import (
    CAPABILITY,
    PairCase,
    Problem,
    assert_kernels_accurate,
    careful_distances,
    direct_distances,
    generator,
    gram_distances,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
    problem,
    results,
    with_duplicates,
)
from .test_cuda import EMULATED, REVERSE

pytestmark = EMULATED
DEVICE = "cpu" if library.emulated() else "cuda"
CUDA = {"kernels": ("cuda",)}
WIDTHS = 130, 192, 200, 320, 384, 448, 511, 512  # three to eight chunks


@pytest.fixture(autouse=True)
def launched(monkeypatch) -> set[str]:
    """Wide rows come in several blocks. The functions that launch kernels, as they are called."""
    monkeypatch.setenv(CAPABILITY, "9")
    monkeypatch.setattr(blocks, "ROWS", 128)
    monkeypatch.setattr(blocks, "WEIGHTS", 128 * 128)
    found = library.library()
    monkeypatch.setattr(found, "dml_cuda_one_pass_fits", lambda n, d: 0)
    names: set[str] = set()
    for name in library.KERNELS:
        monkeypatch.setattr(found, name, sanitize.named(getattr(found, name), names, name))
    return names


def brain(p: Problem) -> Problem:
    return p.to(torch.bfloat16).on(DEVICE)


@pytest.mark.parametrize("d", WIDTHS)
def test_lifted(d, launched):
    p = brain(problem(270, d=d, per_class=40, scale=3 * d**-0.5))
    assert_kernels_accurate(lifted, plain_lifted, p, **CUDA)
    assert {f"dml_cuda_{name}" for name in ("columns", "weights", "finish", "near")} < launched


@pytest.mark.parametrize("d", [200, 512])
def test_lifted_over_columns_of_their_own(d):
    p = brain(problem(140, 270, d, selves=True, per_class=20, scale=3 * d**-0.5))
    assert_kernels_accurate(lifted, plain_lifted, p, **CUDA)


@pytest.mark.parametrize(
    ("select", "columns", "score", "reduce"),
    shortly(
        ["negative", "other", "all", "positive"],
        ["themselves", "themselves, biased", "others", "gathered"],
        ["dot", "distance"],
        ["logsumexp", "sum"],
    ),
)
def test_pairs(select, columns, score, reduce, launched):
    case = PairCase(select, columns, score, reduce, torch.bfloat16, 200)
    coincide = careful_distances if case.coincide else gram_distances
    options = {**CUDA, "distances": coincide, **case.options}
    p = case.problem(135, 150).on(DEVICE)
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, **options)
    # of few pairs that are selected, the general kernels take less of the others
    assert ("dml_cuda_weights" in launched) == (select != "positive")


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("d", [140, 512])
def test_near_rows(d, noise):
    p = brain(with_duplicates(problem(270, d=d, per_class=4, seed=3), noise=noise))
    options = {**CUDA, "distances": direct_distances}
    assert_kernels_accurate(lifted, plain_lifted, p, **options)
    p = brain(with_duplicates(problem(150, 140, d, selves=True, per_class=4), noise=noise))
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, scale=-1.0, select="all", **options)


@pytest.mark.parametrize("scale", [0.02, 8.0, 30.0])
def test_statistics_of_any_span(scale):
    """One exponential a pair where statistics are alike, two where they are not."""
    p = problem(200, d=160, scale=scale / 3)
    p.rows[:20] *= 8
    p = brain(p)
    options = {**CUDA, "distances": careful_distances}
    assert_kernels_accurate(lifted, plain_lifted, p, **options)
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, scale=-1.0, **options)


def test_blocks_in_several_parts(monkeypatch):
    """Near rows in one of them, sums of many weights, and rings of tiles that go round."""
    monkeypatch.setattr(blocks, "WEIGHTS", 128 * 64 * 21)
    p = problem(24, 4000, 140, per_class=200)
    p.columns[1500] = p.rows[5]
    options = {**CUDA, "scale": -1.0, "distances": careful_distances}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, brain(p), **options)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_what_is_not_finite_poisons_everything(strange):
    p = brain(problem(140, 150, 200))
    p.columns[77, 3] = strange
    for found in results(pair_reduce, p, impl="cuda"):
        assert found.isnan().all()


def test_strides_of_any_kind():
    p = brain(problem(140, d=320))
    turned = replace(p, rows=p.rows.T.contiguous().T)
    for found, expected in zip(
        results(lifted, turned, impl="cuda"), results(lifted, p, impl="cuda"), strict=True
    ):
        assert torch.equal(found, expected)


def digest(**environment: str) -> str:
    """Of a loss and its gradient in a process of its own. Rings of tiles go round."""
    given = ["--device", "cpu", "--rows", "700", "--cases", "cuda lifted 700x700x200 bfloat16"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.sanitize", *given],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "dml_cuda_weights" in done.stdout
    return re.search("digest .*", done.stdout).group()


@EMULATED
def test_bands_that_share_columns_come_to_the_same_bits_in_both_orders_of_threads():
    assert digest() == digest(**REVERSE)


@pytest.mark.parametrize("again", [False, True])
def test_a_product_is_added_or_takes_the_place(again):
    shapes = (24, 40), (40, 16)
    a, b = (torch.randn(*shape, generator=generator(1)).to(DEVICE) for shape in shapes)
    a, b = a.bfloat16()[:, 8:], b.bfloat16()[8:]
    out = torch.full((24, 16), 1.0 if again else torch.nan, device=DEVICE)
    add_product(out, a, b, again=again)
    torch.testing.assert_close(out, a.float() @ b.float() + float(again))
