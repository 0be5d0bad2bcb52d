import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.retrieval import Features, evaluate, nearest_neighbours, neighbours

BACKENDS = ["torch", "faiss"]


def brute_force(queries, gallery, k, exclude=None, distance="euclidean"):
    """All distances in float64, rounded to float32, sorted by (distance, index)."""
    q, g = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        g = g / np.linalg.norm(g, axis=1, keepdims=True)
        q, g = (x.astype(np.float32).astype(np.float64) for x in (q, g))
    d2 = np.square(q[:, None] - g[None]).sum(axis=2)
    d = (d2 / 2 if distance == "cosine" else np.sqrt(d2)).astype(np.float32)
    if exclude is not None:
        rows = np.flatnonzero(exclude >= 0)
        d[rows, exclude[rows]] = np.inf
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(d, order, axis=1)


def make(kind, rows, columns, rng):
    if kind == "normal":
        return rng.normal(size=(rows, columns)).astype(np.float32)
    if kind == "ties":  # small integers: many pairs at exactly the same distance
        return rng.integers(0, 3, size=(rows, columns)).astype(np.float32)
    if kind == "duplicates":
        return rng.normal(size=(rows, columns)).astype(np.float32)[rng.integers(0, rows // 4, rows)]
    assert kind == "far from the origin"
    return (1e4 + rng.normal(size=(rows, columns))).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "far from the origin"])
@pytest.mark.parametrize(("rows", "columns", "k"), [(7, 1, 3), (64, 3, 9), (310, 17, 20)])
def test_agrees_with_brute_force(backend, kind, rows, columns, k):
    x = make(kind, rows, columns, np.random.default_rng(rows))
    own = np.arange(rows)
    expected = brute_force(x, x, min(k, rows - 1), own)
    indices, distances = nearest_neighbours(x, x, min(k, rows - 1), exclude=own, backend=backend)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosine_agrees_with_brute_force(backend):
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(2, 200, 8)).astype(np.float32)
    expected = brute_force(queries, gallery, 7, distance="cosine")
    indices, distances = nearest_neighbours(queries, gallery, 7, distance="cosine", backend=backend)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-6)
    cosines = (queries @ gallery.T) / np.linalg.norm(queries, axis=1)[:, None]
    cosines /= np.linalg.norm(gallery, axis=1)
    np.testing.assert_allclose(distances[:, 0], 1 - cosines.max(axis=1), atol=1e-6)


def test_angular_is_the_files_name_of_cosine():
    queries, gallery = np.random.default_rng(1).normal(size=(2, 20, 3)).astype(np.float32)
    expected = nearest_neighbours(queries, gallery, 20, distance="cosine")
    found = nearest_neighbours(queries, gallery, 20, distance="angular")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert 1 < found[1].max() <= 2


def test_a_zero_vector_is_at_a_right_angle_to_all_others():
    gallery = np.array([[1, 0], [0, 0], [-1, 0]], dtype=np.float32)
    indices, distances = nearest_neighbours(gallery[:2], gallery, 3, distance="cosine")
    assert indices.tolist() == [[0, 1, 2], [1, 0, 2]]
    np.testing.assert_allclose(distances, [[0, 1, 2], [0, 1, 1]], atol=1e-7)


def test_distances_of_near_duplicates_are_accurate():
    # |x|^2 = 1e6 and D^2 = 1e-6: the Gram matrix in float32 would have an error of about 1.
    rng = np.random.default_rng(0)
    x = np.float32(1000 / 8) + rng.normal(size=(40, 64)).astype(np.float32) * np.float32(1e-4)
    expected = brute_force(x, x, 5, np.arange(40))
    assert expected[1].max() < 0.01
    indices, distances = nearest_neighbours(x, x, 5, exclude=np.arange(40), backend="torch")
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", [-120, -75, -50, 13, 62, 64, 120])
def test_the_scale_changes_no_neighbour(exponent, backend):
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    expected = nearest_neighbours(x, x, 5, exclude=np.arange(600), backend="torch")
    x *= np.float32(2.0**exponent)
    indices, distances = nearest_neighbours(x, x, 5, exclude=np.arange(600), backend=backend)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(distances, expected[1] * np.float32(2.0**exponent))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", [-76, -74, -73, -70])
def test_small_rows_beside_large_ones_keep_their_neighbours(exponent, backend):
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    x[:200] *= np.float32(2.0**exponent)
    x = np.concatenate([x, -x])  # the centre is 0: squares vanish in float32
    expected = nearest_neighbours(x, x, 5, exclude=np.arange(600), backend="torch")
    found = nearest_neighbours(x, x, 5, exclude=np.arange(600), backend=backend)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_never_finds_itself_but_finds_its_duplicates(backend):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    x[[7, 30, 41]] = x[3]
    indices, distances = nearest_neighbours(x, x, 4, exclude=np.arange(50), backend=backend)
    assert not (indices == np.arange(50)[:, None]).any()
    assert indices[3, :3].tolist() == [7, 30, 41]
    assert indices[30, :3].tolist() == [3, 7, 41]
    assert distances[[3, 7, 30, 41], :3].tolist() == [[0, 0, 0]] * 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_rows_come_in_order(backend, value):
    x = np.full((300, 5), value, dtype=np.float32)
    indices, distances = nearest_neighbours(x, x, 3, exclude=np.arange(300), backend=backend)
    assert indices[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert indices[-1].tolist() == [0, 1, 2]
    assert not distances.any()


def test_many_rows_at_few_places_are_exact():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6)).astype(np.float32)[rng.integers(0, 3, 400)]
    expected = brute_force(x, x, 200, np.arange(400))
    indices, distances = nearest_neighbours(x, x, 200, exclude=np.arange(400))
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


def test_what_is_missing_is_minus_one_at_infinity():
    x = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    indices, distances = nearest_neighbours(x, x, 4, exclude=np.array([0, -1, 2]))
    assert indices.tolist() == [[1, 2, -1, -1], [1, 0, 2, -1], [1, 0, -1, -1]]
    inf = np.inf
    assert distances.tolist() == [[1, 3, inf, inf], [0, 1, 2, inf], [2, 3, inf, inf]]


@pytest.mark.parametrize(("q", "m"), [(0, 0), (0, 5), (5, 0)])
def test_empty_sides(q, m):
    indices, distances = nearest_neighbours(np.zeros((q, 3)), np.zeros((m, 3)), 2)
    assert indices.shape == distances.shape == (q, 2)
    assert (indices == -1).all()
    assert indices.dtype == np.int64
    assert distances.dtype == np.float32


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates"])
def test_tiles_do_not_show(kind, monkeypatch):
    rng = np.random.default_rng(0)
    x = make(kind, 150, 6, rng)
    expected = nearest_neighbours(x, x, 20, exclude=np.arange(150), backend="torch")
    monkeypatch.setattr(neighbours, "QUERY_TILE", 7)
    monkeypatch.setattr(neighbours, "GALLERY_TILE", 11)
    monkeypatch.setattr(neighbours, "PAIR_BYTES", 500)
    for backend in BACKENDS:
        found = nearest_neighbours(x, x, 20, exclude=np.arange(150), backend=backend)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_threads_do_not_show():
    x = np.random.default_rng(0).normal(size=(600, 33)).astype(np.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(nearest_neighbours(x, x, 5, backend="torch"))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_floating_type_and_stride(dtype):
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).to(dtype).T
    x.requires_grad_()
    expected = brute_force(x.detach().double().numpy(), x.detach().double().numpy(), 4)
    with torch.autocast("cpu", torch.bfloat16):
        indices, distances = nearest_neighbours(x, x, 4)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_sides_of_two_types_are_compared_in_the_wider(distance):
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 4))
    wide[:15] = narrow[:15].astype(np.float64) * (1 + 1e-9)  # the same in float32
    for queries, gallery in ((narrow, wide), (wide, narrow)):
        found = nearest_neighbours(queries, gallery, 5, distance=distance)
        both = queries.astype(np.float64), gallery.astype(np.float64)
        expected = nearest_neighbours(*both, 5, distance=distance)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        paired = neighbours.paired_distances(queries, gallery, distance=distance)
        if distance == "euclidean":
            assert (found[1][:15, 0] > 0).all()
            np.testing.assert_allclose(paired[:15], found[1][:15, 0], rtol=1e-6)


def test_faiss_is_chosen_for_large_galleries_and_changes_nothing(monkeypatch):
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    expected = nearest_neighbours(x, x, 5, backend="torch")
    monkeypatch.setattr(neighbours, "FAISS_MIN_GALLERY", 500)
    monkeypatch.setattr(neighbours.sys, "platform", "linux")
    calls, search = [], neighbours._search_faiss
    monkeypatch.setattr(neighbours, "_search_faiss", lambda *args: calls.append(1) or search(*args))
    found = nearest_neighbours(x, x, 5)
    assert calls
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_what_faiss_cannot_tell_apart_is_searched_again():
    # Permutations of one vector: all are at one distance, far more of them than FAISS proposes.
    rng = np.random.default_rng(0)
    vector = rng.normal(size=64).astype(np.float32)
    gallery = np.stack([rng.permutation(vector) for _ in range(400)])
    queries = np.full((30, 64), 3, np.float32)
    indices, distances = nearest_neighbours(queries, gallery, 5, backend="faiss")
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 30
    assert (distances == np.float32(np.linalg.norm(vector.astype(np.float64) - 3))).all()


def test_without_faiss_torch_searches(monkeypatch):
    x = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert nearest_neighbours(x, x, 1)[0][:, 0].tolist() == list(range(100))
    with pytest.raises(UserError, match="FAISS is not installed: pip install"):
        nearest_neighbours(x, x, 1, backend="faiss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"distance": "manhattan"}, r"cosine \(or angular\), .* not 'manhattan'"),
        ({"backend": "magic"}, "backend must be"),
        ({"gallery": np.zeros((5, 4))}, r"queries \(5, 3\) and gallery \(5, 4\)"),
        ({"exclude": np.zeros(4)}, r"exclude must have shape \(5,\)"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"queries": np.zeros((5, 3)), "gallery": np.zeros((5, 3)), "k": 1} | change
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(**arguments)


MEMORY = """
import resource, numpy as np, torch
from dmlfast.retrieval import nearest_neighbours
x = np.random.default_rng(0).normal(size=(16_000, 8)).astype(np.float32)
nearest_neighbours(x[:100], x[:100], 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_neighbours(x, x, 5, backend="torch")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_memory_does_not_grow_with_the_square():
    # One 16,000 x 16,000 matrix of float32 would be 980 MiB.
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert float(done.stdout) < 120, done.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_rows_that_are_not_finite_are_refused(value, side, distance):
    sides = [np.random.default_rng(0).normal(size=(rows, 4)) for rows in (3, 5000)]
    sides[side][-1, 2] = value
    with pytest.raises(ValueError, match=f"^{('queries', 'gallery')[side]} hold NaN or infinity"):
        nearest_neighbours(*sides, 2, distance=distance)


def test_arrays_of_any_layout():
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(rows, 4)).astype(np.float32) for rows in (5, 30))
    expected = nearest_neighbours(queries, gallery, 3)
    frozen = gallery.copy()
    frozen.flags.writeable = False
    for changed in (
        gallery.astype(">f4"),
        gallery.astype(np.longdouble),
        gallery[::-1].copy()[::-1],
        np.asfortranarray(gallery),
        frozen,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = nearest_neighbours(queries, changed, 3)
            report = evaluate(Features(changed, np.arange(30) // 3), clustering=False)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert report["queries"] == 30
