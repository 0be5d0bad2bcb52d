"""Search on a GPU finds what it finds on the CPU."""

import numpy as np
import pytest
import torch

from dmlfast.losses import PDDMUnit
from dmlfast.ops import gpu
from dmlfast.retrieval import PairScorer, binarize, nearest_neighbours, neighbours

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if gpu.interpreted() else "cuda"


def rows(count: int, seed: int) -> torch.Tensor:
    """Whole numbers, of which many pairs are equally far, and some rows twice."""
    found = torch.randint(0, 4, (count, 16), generator=torch.Generator().manual_seed(seed)).float()
    found[: count // 8] = found[-(count // 8) :]
    return found


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "GPU_TILES", (130, 300))


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "hamming"])
def test_neighbours_and_distances(distance):
    queries, gallery = rows(500, 0), rows(1000, 1)
    gallery[:200] = queries[:200]
    itself = torch.where(torch.arange(500) < 200, torch.arange(500), -1)
    if distance == "hamming":
        queries, gallery = (torch.from_numpy(binarize(each - 1.5)) for each in (queries, gallery))
    options = {"k": 20, "exclude": itself, "distance": distance}
    expected = nearest_neighbours(queries, gallery, backend="torch", **options)
    found = nearest_neighbours(queries.to(DEVICE), gallery.to(DEVICE), **options)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_scores_of_a_unit():
    torch.manual_seed(0)
    scorer = PairScorer(PDDMUnit(16))
    queries, gallery = torch.randn(150, 16), torch.randn(400, 16)
    expected = nearest_neighbours(queries, gallery, 10, distance=scorer)
    found = nearest_neighbours(queries.to(DEVICE), gallery.to(DEVICE), 10, distance=scorer)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert (found[0] == expected[0]).mean() > 0.98
