"""Shapes and labels as they come: whatever hypothesis thinks of."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .helpers import (
    ON_GPU,
    Problem,
    assert_kernels_accurate,
    careful_distances,
    generator,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
)

quickly = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# rounding is not the subject: small batches with close rows err by luck more than twice as much
LOOSE = {"distances": careful_distances, "ulps": 1000.0}


@st.composite
def problems(draw, largest: int = 140, widest: int = 40) -> Problem:
    """Rows and columns drawn with repetition from few vectors, labels from few classes."""
    n, m = draw(st.integers(0, largest)), draw(st.none() | st.integers(0, largest))
    d, classes = draw(st.integers(1, widest)), draw(st.integers(1, largest + 10))
    random = generator(draw(st.integers(0, 2**16)))
    vectors = torch.randn(draw(st.integers(1, 2 * largest)), d, generator=random)

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = vectors[torch.randint(0, len(vectors), (count,), generator=random)]
        return rows, torch.randint(0, classes, (count,), generator=random) - classes // 2

    rows, labels = some(n)
    if m is None:
        return Problem(rows, labels)
    columns, column_labels = some(m)
    index = torch.randint(-1, max(m, 1), (n,), generator=random)
    return Problem(rows, labels, columns, column_labels, draw(st.sampled_from([None, index])))


@quickly
@given(problems(), st.sampled_from([1.0, -3.0]))
def test_lifted(p, margin):
    assert_kernels_accurate(lifted, plain_lifted, p, margin=margin, kernels=("cpu",), **LOOSE)


@pytest.mark.long
@settings(quickly, max_examples=20)
@given(problems(24, 10), st.sampled_from([1.0, -3.0]))
def test_lifted_interpreted(p, margin):
    assert_kernels_accurate(lifted, plain_lifted, p, margin=margin, kernels=ON_GPU, **LOOSE)


TERMS = (
    st.sampled_from(["dot", "distance"]),
    st.sampled_from(["negative", "positive", "other", "all"]),
    st.sampled_from(["logsumexp", "sum"]),
    st.sampled_from([-30.0, -1.0, 0.0, 0.5, 4.0]),
)


@quickly
@given(problems(), *TERMS)
def test_pair_reduce(p, score, select, reduce, scale):
    options = {"score": score, "select": select, "reduce": reduce, "scale": scale, **LOOSE}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=("cpu",), **options)


@pytest.mark.long
@settings(quickly, max_examples=20)
@given(problems(24, 10), *TERMS)
def test_pair_reduce_interpreted(p, score, select, reduce, scale):
    options = {"score": score, "select": select, "reduce": reduce, "scale": scale, **LOOSE}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=ON_GPU, **options)
