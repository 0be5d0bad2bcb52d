"""Every kernel compiles for every architecture, and keeps within what a multiprocessor has."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")
import triton

from dmlfast import ops
from dmlfast.ops.triton.tuned import CANDIDATES, FULL, HALF

FLOAT32, HALVES = "float32", ["float16", "bfloat16"]
OPS = Path(ops.__file__).parent
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# bytes of stack that a thread may take, for what registers do not hold; older compilers need more
STACK = 0 if VERSION >= (3, 9) else 352
# bytes of shared memory that a program may take; where the tables of 80 serve, the least of all
SHARED = {80: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
MATRIX = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
MATRIX[120] = MATRIX[80]
NO_PRODUCTS = {"_prepare", "combine_kernel", "stats_kernel", "mean_kernel"}
NO_PRODUCTS |= {"anchors_kernel", "weigh_kernel", "apart_kernel"}
NO_PRODUCTS |= {"lengths_kernel", "scaled_kernel", "through_norm_kernel", "add_up_kernel"}
NO_PRODUCTS |= {"own_pairs_kernel", "own_losses_kernel"}
NO_PRODUCTS |= {"normalize_kernel", "normalize_grad_kernel"}
NO_PRODUCTS |= {"pack_kernel", "classes_kernel", "add_kernel"}
NO_PRODUCTS |= {"extremes_kernel", "assemble_kernel", "rows_kernel"}
FULL_PRODUCTS = {"quadruplets_kernel"}  # float32 whatever the rows are, of 16 rows at a time


def compiled(capability, dtype, widths, form):
    """What each kernel takes, as `tests.ops.ahead` reports it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.ahead", str(capability), dtype, widths, form]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


NARROW = {"reduce_kernel", "gradient_kernel"}  # of rows that fit on the chip
WIDE = {"reduce_kernel", "weights_kernel", "product_kernel"}
PAIRS = NARROW | WIDE
SOFTMAX = {"scores_kernel", "add_up_kernel", "product_kernel"}
SOFTMAX |= {"own_pairs_kernel", "own_losses_kernel"}
UNIT = {"projections_kernel", "pair_scores_kernel"}
QUADRUPLETS = UNIT | {"extremes_kernel", "assemble_kernel", "quadruplets_kernel", "rows_kernel"}
BOOSTED = {"classes_kernel", "pack_kernel", "weights_kernel"}
BOOSTED |= {"product_kernel", "through_norm_kernel"}
TRIPLETS = {"distances_kernel", "anchors_kernel", "weigh_kernel", "product_kernel", "apart_kernel"}


def check(capability, dtype, widths, form, record_property, stack=STACK, expected=PAIRS):
    kernels = compiled(capability, dtype, widths, form)
    record_property("compiled", kernels)
    assert expected <= {kernel["kernel"] for kernel in kernels}
    for kernel in kernels:
        assert kernel["stack"] <= stack, f"spills: {kernel}"
        assert kernel["shared"] <= SHARED[capability], f"too much shared memory: {kernel}"
        if kernel["kernel"] in FULL_PRODUCTS:
            assert MATRIX[80] in kernel["instructions"], f"no matrix unit: {kernel}"
        elif dtype != FLOAT32 and kernel["kernel"] not in NO_PRODUCTS:
            assert MATRIX[capability] in kernel["instructions"], f"no matrix unit: {kernel}"
    return kernels


def shortly(*quick):
    """Every architecture and dtype; all but the quick ones are long, as compilers are."""
    cases = itertools.product((80, 90, 100), (FLOAT32, *HALVES))
    marked = [pytest.param(*c, marks=() if c in quick else pytest.mark.long) for c in cases]
    return pytest.mark.parametrize(("capability", "dtype"), marked)


@shortly(*((90, each) for each in (FLOAT32, *HALVES)))
def test_the_lifted_loss(capability, dtype, record_property):
    width = "64" if dtype == FLOAT32 else "128"
    check(capability, dtype, width, "lifted", record_property, expected=NARROW)


@shortly((80, FLOAT32), (90, "bfloat16"), (100, "bfloat16"))
def test_the_lifted_loss_of_wide_rows(capability, dtype, record_property):
    check(capability, dtype, "200", "lifted", record_property, expected=WIDE)


@pytest.mark.parametrize(
    ("capability", "form"),
    [
        (90, "lifted"),
        *[pytest.param(each, "lifted", marks=pytest.mark.long) for each in (80, 100)],
        *[
            pytest.param(90, form, marks=pytest.mark.long)
            for form in ("hinges", "reductions", "mined")
        ],
    ],
)
def test_scores_of_narrow_rows_in_float32(capability, form, record_property):
    """They are taken without the matrix unit."""
    for kernel in check(capability, FLOAT32, "16", form, record_property, expected=set()):
        if kernel["kernel"] in {"reduce_kernel", "weights_kernel"}:
            assert not kernel["instructions"]


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FLOAT32, "bfloat16"])
def test_other_reductions(dtype, record_property):
    width = "64" if dtype == FLOAT32 else "128"
    check(90, dtype, width, "reductions", record_property, expected=NARROW)


@pytest.mark.parametrize("dtype", [pytest.param(FLOAT32, marks=pytest.mark.long), "bfloat16"])
def test_other_reductions_of_wide_rows(dtype, record_property):
    check(90, dtype, "200", "reductions", record_property, expected=WIDE)


@shortly((90, FLOAT32))
def test_the_triplet_loss(capability, dtype, record_property):
    widths = "64,200" if dtype == FLOAT32 else "128,200"
    check(capability, dtype, widths, "triplets", record_property, expected=TRIPLETS)


@shortly((90, FLOAT32), (90, "bfloat16"))
def test_rows_at_length_1(capability, dtype, record_property):
    """The same few binaries serve any number of rows."""
    names = {"normalize_kernel", "normalize_grad_kernel"}
    kernels = check(capability, dtype, "128,1500", "units", record_property, expected=names)
    assert len(kernels) == 8  # of either width, and of rows that lie across


@shortly((90, "bfloat16"))
def test_the_normalised_softmax(capability, dtype, record_property):
    widths = "32,200" if dtype == FLOAT32 else "32,128,200"
    check(capability, dtype, widths, "softmax", record_property, expected=SOFTMAX)


@shortly((90, "bfloat16"))
def test_a_metric_unit_on_pairs(capability, dtype, record_property):
    kernels = check(capability, dtype, "128,200", "unit", record_property, expected=UNIT)
    # with inputs normalised and without: lists, two sets and matrices are one binary
    times = Counter((kernel["kernel"], kernel["width"]) for kernel in kernels)
    assert {name: count for (name, _), count in times.items()} == {
        "projections_kernel": 1,
        "pair_scores_kernel": 2,
    }


@shortly((90, "bfloat16"))
def test_quadruplets_of_a_metric_unit(capability, dtype, record_property):
    kernels = check(capability, dtype, "128", "quadruplets", record_property, expected=QUADRUPLETS)
    times = Counter(kernel["kernel"] for kernel in kernels)  # whatever the number of rows
    assert times["extremes_kernel"] == 2  # of a block, and of one that is turned
    assert times["assemble_kernel"] == 3  # of a batch, classes and anchors
    assert times["quadruplets_kernel"] == 4  # normalised inputs or not, gradients or not
    assert times["rows_kernel"] == 1


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_other_widths_of_a_unit(capability, dtype, record_property):
    check(capability, dtype, "3,64,512", "unit", record_property, expected=UNIT)
    check(capability, dtype, "16,512", "uneven unit", record_property, expected=UNIT)
    check(capability, dtype, "3,64,512", "quadruplets", record_property, expected=QUADRUPLETS)
    check(capability, dtype, "16,512", "other quadruplets", record_property, expected=set())


@shortly((90, "bfloat16"))
def test_the_boosted_losses(capability, dtype, record_property):
    check(capability, dtype, "12,200,512", "boosted", record_property, expected=BOOSTED)


@shortly()
def test_hinges_and_mined_pairs(capability, dtype, record_property):
    """A band of float32 rows leaves no registers for them: their gradients are by blocks."""
    widths, kernels = ("64,200", WIDE) if dtype == FLOAT32 else ("128,200", PAIRS)
    for form in ("hinges", "mined"):
        check(capability, dtype, widths, form, record_property, expected=kernels)


# two where one side alone has a bias, or knows which column is a row itself
@pytest.mark.parametrize(
    ("form", "most"),
    [
        ("batches", 1),
        pytest.param("columns", 2, marks=pytest.mark.long),
        pytest.param("biased", 2, marks=pytest.mark.long),
        ("boosted batches", 1),
    ],
)
def test_another_number_of_rows_takes_no_other_kernel(form, most):
    kernels = compiled(90, "bfloat16", "16,140", form)
    times = Counter((kernel["kernel"], kernel["width"]) for kernel in kernels)
    assert max(times.values()) <= most, times


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_other_widths(capability, dtype, record_property):
    check(capability, dtype, "3,32,512", "lifted", record_property)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FLOAT32, "bfloat16"])
@pytest.mark.parametrize("capability", [89, 120])
def test_architectures_without_a_table(capability, dtype, record_property):
    """They are served, if a few registers are spilled."""
    widths = "64,200" if dtype == FLOAT32 else "128,200"
    check(capability, dtype, widths, "lifted", record_property, stack=max(STACK, 32))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [FLOAT32, "bfloat16"])
def test_a_candidate_of_tuning_compiles_or_is_refused(dtype):
    """It never ends the process: most of them compile."""
    tried = [line for line in compiled(90, dtype, "0", "candidates") if "candidate" in line]
    kernels = CANDIDATES[FULL if dtype == FLOAT32 else HALF]
    assert len(tried) == sum(map(len, kernels.values()))
    assert {line["candidate"] for line in tried if not line["reason"]} == set(kernels)


def test_no_extreme_is_written_as_one_of_another():
    """At which Triton before 3.8 fails for compute capability 10, see docs/triton_kernels.md."""
    kernels = [path for path in OPS.rglob("*.py") if "tl." in path.read_text()]
    assert len(kernels) > 20
    for path in kernels:
        found = re.findall(
            r"tl\.(?:min|max|sum)\(\s*tl\.(?:min|max|sum)\((?!.*keep_dims)", path.read_text()
        )
        assert not found, f"{path}: {found}"
