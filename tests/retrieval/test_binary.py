"""Sign bits: packing, their file, search by Hamming distance and every protocol on them."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.retrieval import (
    Features,
    FeatureWriter,
    LinearClassifier,
    binarize,
    draw_map,
    embedding_map,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
    export_ann_benchmarks,
    load_features,
    nearest_neighbours,
    neighbours,
)

from .helpers import blobs, halves

BACKENDS = ["torch", "faiss"]


def as_floats(features):
    """The bits as vectors of 0 and 1 under euclidean distance, which ranks as Hamming's does."""
    bits = (features.embeddings > 0).astype(np.float32)
    return Features(bits, features.labels, features.paths, features.roles)


def brute_force(queries, gallery, k, exclude=None):
    """Neighbours of bits (Q, D) among bits (M, D), counted one pair at a time."""
    found = []
    for i, query in enumerate(queries):
        own = -1 if exclude is None else exclude[i]
        pairs = [
            (int((query != row).sum()), j) for j, row in enumerate(gallery.tolist()) if j != own
        ]
        found.append(sorted(pairs)[:k])
    distances, indices = np.moveaxis(np.array(found), 2, 0)
    return indices, distances


def test_bits_are_the_signs_most_significant_first():
    x = np.array([[1.0, -1, 0, -0.0, 1e-30, -1e-30, 5, 2, 3, -3], [0.0] * 10])
    assert binarize(x).tolist() == [[0b10001011, 0b10000000], [0, 0]]
    np.testing.assert_array_equal(np.unpackbits(binarize(x), axis=1, count=10), x > 0)
    assert binarize(np.array([[2.0], [-2.0]])).tolist() == [[128], [0]]
    assert binarize(np.zeros((0, 9))).shape == (0, 2)
    assert binarize(x).dtype == np.uint8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_and_arrays_have_the_same_bits(dtype):
    x = torch.randn(9, 21, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    np.testing.assert_array_equal(binarize(x), binarize(x.detach().float().numpy()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN or infinity"),
        (np.array([[1.0, np.inf]]), "NaN or infinity"),
        (np.zeros(3), r"must be \(N, D\) floats"),
        (np.zeros((3, 2), np.uint8), "floats, not .*uint8"),
    ],
)
def test_what_has_no_signs_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        binarize(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("columns", "k"), [(1, 3), (5, 40), (8, 7), (13, 99), (64, 10), (83, 99)])
def test_search_agrees_with_a_count_of_bits(backend, columns, k):
    x = np.random.default_rng(columns).normal(size=(100, columns))
    own = np.arange(100)
    expected = brute_force(x > 0, x > 0, k, own)
    found, distances = nearest_neighbours(
        binarize(x), binarize(x), k, exclude=own, distance="hamming", backend=backend
    )
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    assert (found.dtype, distances.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_distances_are_in_the_order_of_rows(backend):
    zeros = np.zeros((300, 2), np.uint8)
    own = np.arange(300)
    found, distances = nearest_neighbours(
        zeros, zeros, 3, exclude=own, distance="hamming", backend=backend
    )
    assert found[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert found[-1].tolist() == [0, 1, 2]
    assert not distances.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_is_left_out_by_its_row_not_as_the_first(backend):
    codes = np.array([[7], [7], [7], [6]], np.uint8)
    own = np.array([2, -1])
    found, distances = nearest_neighbours(
        codes[[2, 2]], codes, 4, exclude=own, distance="hamming", backend=backend
    )
    assert found.tolist() == [[0, 1, 3, -1], [0, 1, 2, 3]]
    assert distances.tolist() == [[0, 0, 1, np.inf], [0, 0, 0, 1]]


@pytest.mark.parametrize("width", [1, 2, 4, 8, 20, 64, 65])
def test_faiss_and_torch_find_the_same_however_deep(width, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERY_TILE", 31)
    rng = np.random.default_rng(width)
    codes = rng.integers(0, 256, (3000, width), dtype=np.uint8)
    codes[rng.integers(0, 3000, 500)] = codes[0]
    for k in (1, 130, 1000):
        searched = [
            nearest_neighbours(
                codes[:50], codes, k, exclude=np.arange(50), distance="hamming", backend=backend
            )
            for backend in BACKENDS
        ]
        np.testing.assert_array_equal(searched[0][0], searched[1][0])
        np.testing.assert_array_equal(searched[0][1], searched[1][1])


def test_faiss_searches_where_it_is_installed_and_torch_elsewhere(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 256, (40, 2), dtype=np.uint8)
    monkeypatch.setattr(neighbours.sys, "platform", "linux")
    expected = nearest_neighbours(codes, codes, 5, distance="hamming", backend="torch")
    calls, search = [], neighbours._search_binary_index
    monkeypatch.setattr(
        neighbours, "_search_binary_index", lambda *args: calls.append(1) or search(*args)
    )
    found = nearest_neighbours(codes, codes, 5, distance="hamming")
    np.testing.assert_array_equal(found[0], expected[0])
    assert calls == [1]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="FAISS is not installed: pip install"):
        nearest_neighbours(codes, codes, 1, distance="hamming", backend="faiss")
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: None)
    found = nearest_neighbours(codes, codes, 5, distance="hamming")
    np.testing.assert_array_equal(found[0], expected[0])
    assert calls == [1]


def test_tensors_under_autocast_are_counted_exactly():
    codes = torch.randint(0, 256, (60, 64), generator=torch.Generator().manual_seed(0)).byte()
    bits = np.unpackbits(codes.numpy(), axis=1)
    with torch.autocast("cpu", torch.bfloat16):
        found, distances = nearest_neighbours(codes, codes, 9, distance="hamming", backend="torch")
    expected = brute_force(bits, bits, 9)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize(("q", "m"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sides(q, m, backend):
    sides = np.zeros((q, 3), np.uint8), np.zeros((m, 3), np.uint8)
    found, distances = nearest_neighbours(*sides, 2, distance="hamming", backend=backend)
    assert found.shape == distances.shape == (q, 2)
    assert (found == -1).all()


def test_codes_and_floats_are_not_mixed():
    codes = np.zeros((5, 3), np.uint8)
    for sides in ((codes, codes.astype(float)), (codes.astype(float), codes)):
        with pytest.raises(ValueError, match=r"uint8, and (queries|gallery) are torch\.float64"):
            nearest_neighbours(*sides, 1, distance="hamming")
    with pytest.raises(ValueError, match=r"queries \(5, 3\) and gallery \(5, 2\)"):
        nearest_neighbours(codes, codes[:, :2], 1, distance="hamming")


def test_the_bits_of_features():
    features = blobs(20, columns=11, attributes={"normalized": True, "model": "convnet"})
    bits = features.binarized()
    assert (features.binary, bits.binary) == (False, True)
    assert bits.embeddings.shape == (20, 2)
    assert (bits.dimension, bits.distance) == (11, "hamming")
    assert (features.bytes_per_image, bits.bytes_per_image) == (44, 2)
    assert bits.attributes == {
        "model": "convnet",
        "distance": "hamming",
        "point_type": "bit",
        "n_bits": 11,
    }
    np.testing.assert_array_equal(bits.floats(slice(5)), features.embeddings[:5] > 0)
    np.testing.assert_array_equal(bits.vectors(np.array([3])), features.embeddings[[3]] > 0)
    with pytest.raises(ValueError, match="must be"):
        bits.binarized()


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.zeros((2, 2)), 16, r"codes must be \(N, ceil\(D / 8\)\) uint8, not \(2, 2\) float64"),
        (np.zeros((2, 2), np.uint8), 8, "codes have 2 bytes, but n_bits is 8"),
        (np.zeros((2, 2), np.uint8), 17, "codes have 2 bytes, but n_bits is 17"),
        (np.zeros((2, 2), np.uint8), "16", "codes have 2 bytes, but n_bits is 16"),
        (np.zeros((2, 0), np.uint8), -3, "have no columns"),
        (np.full((2, 2), 1, np.uint8), 15, "bits set beyond the first 15"),
    ],
)
def test_codes_that_cannot_be(codes, bits, message):
    attributes = {"distance": "hamming", "n_bits": bits}
    with pytest.raises(ValueError, match=message):
        Features(codes, np.zeros(2, int), attributes=attributes)


def write(path, embeddings, **more):
    D = embeddings.shape[1]
    with FeatureWriter(path, dimension=D, distance="hamming", **more) as writer:
        for start in range(0, len(embeddings), 4):
            part = embeddings[start : start + 4]
            rows = range(start, start + len(part))
            writer.append(part, np.array(rows), [f"{i}.png" for i in rows])
    return path


@pytest.mark.parametrize("columns", [1, 8, 13])
def test_the_file(tmp_path, columns):
    x = np.random.default_rng(0).normal(size=(10, columns)).astype(np.float32)
    x[3] = 0
    path = write(tmp_path / "b.h5", x, normalized=True, attributes={"model": "convnet"})
    with h5py.File(path) as file:
        assert set(file) == {"codes", "labels", "paths"}
        assert (file["codes"].dtype, file["codes"].shape) == (np.uint8, (10, -(-columns // 8)))
        np.testing.assert_array_equal(file["codes"], np.packbits(x > 0, axis=1))
        attributes = {name: value for name, value in file.attrs.items() if name != "created"}
    del attributes["dmlfast_version"]
    assert attributes == {
        "type": "dense",
        "distance": "hamming",
        "dimension": columns,
        "point_type": "bit",
        "n_bits": columns,
        "model": "convnet",
    }
    features = load_features(path)
    np.testing.assert_array_equal(features.embeddings, binarize(x))
    np.testing.assert_array_equal(features.floats(slice(None)), x > 0)
    assert features.dimension == columns
    assert features.labels.tolist() == list(range(10))


def test_files_of_no_sign_are_refused(tmp_path):
    x = np.zeros((2, 3))
    x[1, 1] = np.nan
    with pytest.raises(UserError, match=r"'1\.png' holds NaN or infinity"):
        write(tmp_path / "b.h5", x)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "b.h5", np.zeros((2, 3)))
    with pytest.raises(UserError, match="already exists: --overwrite replaces it"):
        write(tmp_path / "b.h5", np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda file: file.attrs.__setitem__("n_bits", 5), "4 bytes, but n_bits is 5"),
        (lambda file: file.attrs.__setitem__("dimension", 30), "31 bits, but dimension is 30"),
        (lambda file: file.__delitem__("codes"), r"no dataset /codes, expected \(N, ceil\(D / 8\)"),
        (lambda file: file["codes"].__setitem__((0, 3), 1), "bits set beyond the first 31"),
        (
            lambda file: file.attrs.__setitem__("distance", "euclidean"),
            "no dataset /embeddings, expected",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, alter, message):
    path = write(tmp_path / "b.h5", np.zeros((3, 31)))
    with h5py.File(path, "r+") as file:
        alter(file)
    with pytest.raises(UserError, match=message) as caught:
        load_features(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def same(report, expected):
    """Whether two reports agree in all that does not say what was compared how."""
    assert report["distance"] == "hamming"
    told = {name: expected[name] for name in ("distance", "dimension", "bytes_per_image")}
    np.testing.assert_equal(report | told, expected)  # nan is nan here


@pytest.mark.parametrize("columns", [1, 12, 64])
def test_retrieval_and_clustering_are_those_of_vectors_of_0_and_1(columns):
    features = blobs(400, 30, columns=columns)
    report = evaluate(features.binarized(), ks=(1, 10, 100, 1000), clustering_runs=2)
    assert (report["distance"], report["dimension"]) == ("hamming", columns)
    assert report["bytes_per_image"] == -(-columns // 8)
    same(report, evaluate(as_floats(features), ks=(1, 10, 100, 1000), clustering_runs=2))
    assert report["recall_at_1000"] == 1


def test_numbers_by_hand():
    # Rows 0 and 2 are of class 0 with bits 1100 and 1110; row 1 of class 1 is as row 0.
    x = np.array([[1, 1, -1, -1], [1, 1, -1, -1], [1, 1, 1, -1], [-1, -1, -1, 1]], float)
    report = evaluate(Features(x, np.array([0, 1, 0, 1])).binarized(), ks=(1, 2))
    assert report["recall_at_1"] == 0.25  # of row 2, to which row 0 and row 1 are equally near
    assert report["recall_at_2"] == 0.75  # and rows 0 and 3, not row 1
    assert report["bytes_per_image"] == 1


def test_roles():
    features = blobs(300, 20, columns=16)
    roles = np.random.default_rng(1).integers(0, 3, 300).astype(np.uint8)
    with_roles = Features(features.embeddings, features.labels, roles=roles)
    report = evaluate(with_roles.binarized(), clustering=False)
    assert 0 < report["queries"] < 300 > report["gallery"]
    same(report, evaluate(as_floats(with_roles), clustering=False))


def test_a_gallery_of_its_own():
    queries, gallery = halves(blobs(300, 20, columns=16), 100)
    report = evaluate(queries.binarized(), gallery.binarized(), bootstrap=0, clustering=False)
    expected = evaluate(as_floats(queries), as_floats(gallery), bootstrap=0, clustering=False)
    same(report, expected)


def test_identity_draws():
    features = blobs(200, 20, columns=16)
    same(
        evaluate_identity_draws(features.binarized()), evaluate_identity_draws(as_floats(features))
    )


@pytest.mark.parametrize("method", ["nearest-centroid", "knn"])
def test_classification(method):
    queries, train = halves(blobs(400, 20, columns=16, noise=2.0), 150)
    report = evaluate_classification(queries.binarized(), train.binarized(), method=method)
    expected = evaluate_classification(as_floats(queries), as_floats(train), method=method)
    assert 0.2 < report["top_1"] < 0.9
    same(report, expected)


def test_votes_of_one_over_the_distance_count_bits():
    # One vote of 1 against two of 1/3, which would win if they were of one over the square root.
    x = np.array([[1, 1, 1, -1], [1, -1, -1, -1], [-1, 1, -1, -1]], float)
    train, query = Features(x, np.array([5, 6, 6])), Features(np.ones((1, 4)), np.array([5]))
    report = evaluate_classification(
        query.binarized(), train.binarized(), method="knn", neighbours=3, vote="distance"
    )
    assert report["top_1"] == 1


def test_the_classifier_is_refused():
    features = blobs(20)
    classifier = LinearClassifier(np.zeros((20, 8)), np.zeros(20), np.arange(20))
    bits = features.binarized()
    with pytest.raises(UserError, match="features holds sign bits, which the classifier"):
        evaluate_classification(bits, bits, method="classifier", classifier=classifier)


@pytest.mark.parametrize("against", ["prototypes", "images"])
def test_zero_shot(against):
    features = blobs(200, 20, columns=16)
    report = evaluate_zero_shot(features.binarized(), against=against)
    same(report, evaluate_zero_shot(as_floats(features), against=against))


def test_bits_and_floats_cannot_be_compared():
    features = blobs(20)
    for sides in ((features, features.binarized()), (features.binarized(), features)):
        with pytest.raises(UserError, match="one holds sign bits, the other floats"):
            evaluate(*sides)
    with pytest.raises(UserError, match="8 dimensions, hamming, and 7, hamming"):
        evaluate(
            features.binarized(), Features(features.embeddings[:, :7], features.labels).binarized()
        )


def test_a_map_is_of_the_bits_not_of_their_bytes(monkeypatch):
    features, laid_out, plane = blobs(40, 4), [], embedding_map._plane
    monkeypatch.setattr(
        embedding_map, "_plane", lambda *args: laid_out.append(args) or plane(*args)
    )
    draw_map(features.binarized())
    (embeddings, metric, _) = laid_out[0]
    assert metric == "hamming"
    assert embeddings.shape[1] == 8
    assert set(embeddings.ravel()) == {0, 1}


def test_the_layout_of_ann_benchmarks_is_of_floats(tmp_path):
    with pytest.raises(ValueError, match="takes floats, not sign bits"):
        export_ann_benchmarks(blobs(20).binarized(), tmp_path / "a.h5")


MEMORY = """
import resource, sys, numpy as np
from dmlfast.retrieval import Features, evaluate
rng = np.random.default_rng(0)
attributes = {"distance": "hamming"}
def bits(rows):
    codes = rng.integers(0, 256, (rows, 8), dtype=np.uint8)
    return Features(codes, np.arange(rows) // 5, attributes=attributes)
if sys.argv[1] == "torch":
    sys.modules["faiss"] = None
    import importlib.util
    importlib.util.find_spec = lambda name: None
evaluate(bits(3000), clustering=False, bootstrap=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(bits(12_000), clustering=False, bootstrap=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_does_not_grow_with_the_square(backend):
    # One 12,000 x 12,000 matrix would be 137 MiB even in bytes.
    done = subprocess.run([sys.executable, "-c", MEMORY, backend], capture_output=True, text=True)
    assert float(done.stdout) < 60, done.stderr
