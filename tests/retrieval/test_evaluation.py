import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import normalized_mutual_info_score

from dmlfast.errors import UserError
from dmlfast.retrieval import (
    Features,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
    nearest_neighbours,
)
from dmlfast.retrieval.evaluation import ranking as ranking_module
from dmlfast.retrieval.evaluation.clustering import (
    cluster,
    normalized_mutual_information,
    pairwise_f1,
)

from .helpers import blobs

RANKING = ["recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "r_precision"]


def by_definition(features, gallery=None, own=None, ks=(1, 2, 4, 8)):
    """The ranking metrics, query by query, straight from their definitions."""
    own = range(len(features)) if gallery is None else own
    gallery = gallery or features
    values = []
    for i in range(len(features)):
        x = features.embeddings[i].astype(np.float64)
        d = np.sqrt(np.square(gallery.embeddings - x).sum(axis=1)).astype(np.float32)
        order = [j for j in np.argsort(d, kind="stable") if own is None or j != own[i]]
        right = [gallery.labels[j] == features.labels[i] for j in order]
        R = sum(right)
        if R:
            recall = [any(right[:k]) for k in ks]
            precision = [sum(right[: j + 1]) / (j + 1) for j in range(R)]
            average = sum(p for p, hit in zip(precision, right, strict=False) if hit) / R
            values.append([*recall, average, sum(right[:R]) / R])
    return np.mean(values, axis=0), len(features) - len(values)


def ranking(report, names=RANKING):
    return [report[name] for name in names]


@pytest.mark.parametrize("classes", [2, 20, 150])
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_ranking_is_as_defined(classes, noise):
    features = blobs(200, classes, noise=noise)
    report = evaluate(features, clustering=False, bootstrap=0)
    expected, lone = by_definition(features)
    np.testing.assert_allclose(ranking(report), expected, rtol=1e-12)
    assert report["lone_queries"] == lone
    assert report["precision_at_1"] == report["recall_at_1"]
    assert (report["queries"], report["gallery"]) == (200, 200)
    assert report["classes"] == len(np.unique(features.labels))


def test_ties_and_duplicates_are_ordered_by_row():
    rng = np.random.default_rng(0)
    embeddings = rng.integers(0, 2, size=(120, 4)).astype(np.float32)
    features = Features(embeddings, rng.integers(0, 5, 120))
    expected, _ = by_definition(features)
    np.testing.assert_allclose(ranking(evaluate(features, clustering=False)), expected, rtol=1e-12)


@pytest.mark.parametrize("classes", [3, 30, 120])
def test_agrees_with_pytorch_metric_learning(classes):
    features = blobs(250, classes, noise=1.5)
    names = ["precision_at_1", "mean_average_precision_at_r", "r_precision"]
    theirs = AccuracyCalculator(include=tuple(names), k="max_bin_count").get_accuracy(
        features.embeddings, features.labels
    )
    report = evaluate(features, clustering=False)
    ours = ranking(report, ["precision_at_1", "map_at_r", "r_precision"])
    np.testing.assert_allclose(ours, [theirs[name] for name in names], rtol=1e-12)


def test_agrees_with_pytorch_metric_learning_on_query_and_gallery():
    features, gallery = blobs(100, 12, noise=1.5, seed=1), blobs(150, 9, noise=1.5, seed=2)
    names = ["precision_at_1", "mean_average_precision_at_r", "r_precision"]
    theirs = AccuracyCalculator(include=tuple(names), k="max_bin_count").get_accuracy(
        features.embeddings, features.labels, gallery.embeddings, gallery.labels
    )
    report = evaluate(features, gallery, clustering=False)
    assert report["lone_queries"] > 0
    ours = ranking(report, ["precision_at_1", "map_at_r", "r_precision"])
    np.testing.assert_allclose(ours, [theirs[name] for name in names], rtol=1e-12)


def test_labels_that_float32_cannot_tell_apart():
    labels = np.array([2**24, 2**24 + 1, -(2**62), -(2**62) + 1])
    features = Features(np.array([[0], [1], [10], [11]], dtype=np.float32), labels)
    assert evaluate(features)["lone_queries"] == 4


def test_a_query_does_not_find_itself_among_duplicates():
    # Rows 0 and 1 coincide but differ in class: dropping the first neighbour would score 1.
    embeddings = np.array([[0], [0], [5], [6]], dtype=np.float32)
    report = evaluate(Features(embeddings, np.array([0, 1, 1, 0])), clustering=False)
    assert report["recall_at_1"] == 0
    assert report["recall_at_2"] == 0.5


def test_no_rows():
    features = Features(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    report = evaluate(features)
    assert report["queries"] == report["lone_queries"] == report["classes"] == 0
    assert all(math.isnan(report[name]) for name in [*RANKING, "nmi", "f1"])
    assert np.isnan(report["intervals"]["map_at_r"]).all()


def test_one_row_and_only_lone_ones():
    for rows in (1, 5):
        report = evaluate(Features(np.eye(rows, dtype=np.float32), np.arange(rows)))
        assert report["lone_queries"] == report["queries"] == rows
        assert all(math.isnan(report[name]) for name in RANKING)
        assert report["nmi"] == 1
        assert math.isnan(report["f1"])  # no pair shares a class or a cluster


def test_one_class():
    features = Features(
        np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), np.full(30, 7)
    )
    report = evaluate(features)
    assert ranking(report) == [1.0] * len(RANKING)
    assert report["nmi"] == report["f1"] == 1
    assert report["intervals"]["recall_at_1"] == [1, 1]


def test_identical_embeddings():
    features = Features(np.full((40, 3), 0.1, np.float32), np.arange(40) % 4)
    report = evaluate(features)
    np.testing.assert_allclose(ranking(report), by_definition(features)[0], rtol=1e-12)
    assert report["recall_at_1"] == 9 / 40  # all find row 0, but for itself: right for its class
    assert report["nmi"] == 0


def test_roles_say_who_searches_among_whom():
    features = blobs(120, 10, noise=1.5)
    roles = np.random.default_rng(3).integers(0, 3, 120).astype(np.uint8)
    mixed = Features(features.embeddings, features.labels, roles=roles)
    queries, rows = np.flatnonzero(roles != 2), np.flatnonzero(roles != 1)
    places = {row: place for place, row in enumerate(rows)}
    expected, lone = by_definition(
        Features(features.embeddings[queries], features.labels[queries]),
        Features(features.embeddings[rows], features.labels[rows]),
        [places.get(row, -1) for row in queries],
    )
    report = evaluate(mixed, clustering=False)
    np.testing.assert_allclose(ranking(report), expected, rtol=1e-12)
    assert report["lone_queries"] == lone
    assert (report["queries"], report["gallery"]) == (len(queries), len(rows))


def test_a_gallery_that_holds_the_queries_does_not_give_them_away():
    features = blobs(80, 8, noise=1.5)
    paths = [f"{i}.jpg" for i in range(80)]
    same = {"attributes": {"dataset": "shop"}}
    queries = Features(features.embeddings[:50], features.labels[:50], paths[:50], **same)
    gallery = Features(features.embeddings[::-1], features.labels[::-1], paths[::-1], **same)
    expected, _ = by_definition(queries, gallery, [79 - i for i in range(50)])
    np.testing.assert_allclose(ranking(evaluate(queries, gallery)), expected, rtol=1e-12)
    unknown = Features(gallery.embeddings, gallery.labels, gallery.paths)
    assert evaluate(queries, unknown)["recall_at_1"] == 1


def test_a_path_that_several_images_have_does_not_say_which_the_query_is():
    queries = Features(np.zeros((2, 1)), [1, 2], ["a", "b"], source="q.h5")
    gallery = Features(np.zeros((4, 1)), [1, 2, 1, 2], ["a", "b", "b", "c"], source="g.h5")
    with pytest.raises(UserError, match=r"^2 images of g\.h5 have the path 'b': it is unclear"):
        evaluate(queries, gallery, clustering=False)
    unasked = Features(gallery.embeddings, gallery.labels, ["a", "b", "c", "c"])
    assert evaluate(queries, unasked, clustering=False)["recall_at_2"] == 0.5
    elsewhere = replace(gallery, attributes={"dataset": "shop"})
    assert evaluate(queries, elsewhere, clustering=False)["recall_at_1"] == 0.5


@pytest.mark.parametrize(
    "protocol",
    [evaluate, evaluate_zero_shot, evaluate_identity_draws, evaluate_classification],
)
def test_what_is_not_features_is_told_how_to_be_made(protocol):
    features = blobs()
    wrong = {"ndarray": features.embeddings, "Tensor": torch.zeros(3, 2), "str": "feats.h5"}
    for name, first in wrong.items():
        sides = [(first, features.labels), (first, features), (features, first)]
        for given in [(first,)] if protocol is evaluate_identity_draws else sides:
            with pytest.raises(TypeError) as caught:
                protocol(*given)
            assert str(caught.value) == (
                f"expected Features, not {name}: make them with Features(embeddings, labels) or"
                " load_features(path)"
            )


def test_an_image_with_another_label_in_the_gallery_is_no_image_to_find():
    queries = Features(np.zeros((1, 1)), np.array([1]), ["a"])
    gallery = Features(np.array([[0.0], [1.0], [2.0]]), np.array([2, 2, 1]), ["a", "b", "c"])
    report = evaluate(queries, gallery, clustering=False)
    assert report["recall_at_1"] == 0
    assert report["recall_at_2"] == 1


def test_angular_features_are_compared_by_cosine():
    features = blobs(150, 10, noise=1.5)
    lengths = np.random.default_rng(5).uniform(0.1, 10, size=(150, 1))
    stretched = (features.embeddings * lengths).astype(np.float32)
    unit = features.embeddings / np.linalg.norm(features.embeddings, axis=1, keepdims=True)
    expected = evaluate(Features(unit, features.labels))
    angular = Features(stretched, features.labels, attributes={"distance": "angular"})
    report = evaluate(angular)
    for name in [*RANKING, "nmi", "f1"]:
        assert report[name] == pytest.approx(expected[name], rel=1e-9), name
    assert evaluate(Features(stretched, features.labels))["map_at_r"] < report["map_at_r"] - 0.04


def test_float16_is_measured_as_it_is_stored():
    features = blobs(100, 10)
    half = Features(features.embeddings.astype(np.float16), features.labels)
    again = Features(half.embeddings.astype(np.float32), features.labels)
    expected = evaluate(again)
    assert expected.pop("bytes_per_image") == 8 * 4
    assert evaluate(half) == expected | {"bytes_per_image": 8 * 2}


def test_blocks_do_not_show(monkeypatch):
    features = blobs(300, 6, noise=2)
    expected = evaluate(features)
    monkeypatch.setattr(ranking_module, "BLOCK_NEIGHBOURS", 500)
    report = evaluate(features)
    np.testing.assert_allclose(ranking(report), ranking(expected), rtol=1e-12)
    np.testing.assert_allclose(
        list(report["intervals"].values()), list(expected["intervals"].values()), rtol=1e-12
    )


@pytest.mark.parametrize("shallow", [1, 12, 1000])
def test_only_queries_that_have_not_found_their_class_are_searched_deeper(monkeypatch, shallow):
    searched = {}

    def count(queries, gallery, k, **options):
        searched[k] = len(queries)
        return nearest_neighbours(queries, gallery, k, **options)

    monkeypatch.setattr(ranking_module, "nearest_neighbours", count)
    monkeypatch.setattr(ranking_module, "SHALLOW", shallow)
    features = blobs(200, 60, noise=4)
    report = evaluate(features, ks=[1, 10, 30, 150], clustering=False, bootstrap=0)
    expected, lone = by_definition(features, ks=[1, 10, 30, 150])
    recalls = ["recall_at_1", "recall_at_10", "recall_at_30", "recall_at_150"]
    assert recalls == sorted(recalls, key=report.get)
    assert len({report[name] for name in recalls}) == 4
    np.testing.assert_allclose(
        ranking(report, [*recalls, "map_at_r", "r_precision"]), expected, rtol=1e-12
    )
    assert (searched[150] == 200 - lone) == (shallow == 1000)


def test_more_neighbours_than_images():
    report = evaluate(blobs(20, 2, noise=9), ks=[1, 100, 10**30], clustering=False)
    assert report["recall_at_100"] == report[f"recall_at_{10**30}"] == 1


def test_numbers_of_neighbours_may_be_an_array():
    found = (evaluate(blobs(), ks=make([1, 3]), clustering=False) for make in (list, np.array))
    assert next(found) == next(found)


@pytest.mark.parametrize("ks", [[], [0], [1, -2]])
def test_wrong_numbers_of_neighbours(ks):
    with pytest.raises(ValueError, match="ks must be"):
        evaluate(blobs(), ks=ks)


def test_files_that_cannot_be_compared():
    with pytest.raises(UserError, match=r"8 dimensions, euclidean, and 4, euclidean"):
        evaluate(blobs(columns=8), blobs(columns=4))


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("dataset", "digits", "glyphs"),
        ("model", "convnet", "convnet, untrained"),
        ("checkpoint_sha256", "0a" * 32, "0b" * 32),
        ("normalized", True, False),
    ],
)
def test_embeddings_of_another_make_are_refused_where_that_is_known(name, ours, theirs):
    features = blobs(60)

    def made(**attributes):
        return Features(features.embeddings, features.labels, attributes=attributes, source="f.h5")

    message = f"f.h5 and f.h5 cannot be compared: their {name} is {ours!s:.32} and {theirs!s:.32}"
    with pytest.raises(UserError, match=f"^{message}$"):
        evaluate(made(**{name: ours}), made(**{name: theirs}))
    for other in (made(), made(**{name: ours})):
        assert evaluate(made(**{name: ours}), other, clustering=False)["queries"] == 60


def test_intervals_are_those_of_the_mean():
    features = blobs(600, 30, noise=2.2)
    report = evaluate(features, bootstrap=2000, clustering=False)
    again = evaluate(features, bootstrap=2000, clustering=False)
    other = evaluate(features, bootstrap=2000, clustering=False, seed=1)
    assert report["intervals"] == again["intervals"] != other["intervals"]
    for name in RANKING:
        low, high = report["intervals"][name]
        assert low < report[name] < high
    p = report["recall_at_1"]
    low, high = report["intervals"]["recall_at_1"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 600), rel=0.06)
    assert "intervals" not in evaluate(features, bootstrap=0, clustering=False)


def test_clustering_of_separated_classes_is_right():
    report = evaluate(blobs(200, 10, noise=0.01))
    assert report["nmi"] == pytest.approx(1)
    assert report["f1"] == 1


def test_clustering_is_as_defined():
    features = blobs(300, 25, noise=1.2)
    report = evaluate(features, seed=3)
    clusters = cluster(features.embeddings, 25, seed=3)
    assert report["nmi"] == normalized_mutual_info_score(features.labels, clusters)
    geometric = report["nmi_geometric"]
    assert geometric == normalized_mutual_info_score(
        features.labels, clusters, average_method="geometric"
    )
    assert geometric != report["nmi"]
    class_pairs = features.labels[:, None] == features.labels
    cluster_pairs = clusters[:, None] == clusters
    upper = np.triu(np.ones((300, 300), bool), 1)
    right = (class_pairs & cluster_pairs & upper).sum()
    precision = right / (cluster_pairs & upper).sum()
    recall = right / (class_pairs & upper).sum()
    assert report["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert evaluate(features, seed=3)["nmi"] == report["nmi"]


def test_clustering_scores_at_their_ends():
    assert normalized_mutual_information(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == 0
    assert pairwise_f1(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3])) == 1
    assert pairwise_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])) == 0


MEMORY = """
import resource, numpy as np
from dmlfast.retrieval import Features, evaluate, nearest_neighbours
rng = np.random.default_rng(0)
x = rng.normal(size=(9_000, 4)).astype(np.float32)
evaluate(Features(x[:100], np.zeros(100, np.int64)), clustering=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = np.where(np.arange(9_000) < 8_000, 0, np.arange(9_000))
report = evaluate(Features(x, labels), clustering=False, bootstrap=0)
print(report["lone_queries"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_a_class_of_8000_needs_no_square_of_memory():
    # The ranks of all 8,000 neighbours of 8,000 queries would be 490 MiB at 8 bytes each.
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    lone, mebibytes = done.stdout.split()
    assert int(lone) == 1000
    assert float(mebibytes) < 250


@pytest.mark.long
def test_clustering_of_a_large_test_set_takes_seconds():
    features = blobs(15_000, 1700, 64)
    start = time.process_time()
    assert evaluate(features, bootstrap=0)["nmi"] > 0.9
    assert time.process_time() - start < 60
