import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from dmlfast.errors import UserError
from dmlfast.retrieval import Features, LinearClassifier, evaluate_classification
from dmlfast.retrieval.evaluation import class_ranks
from dmlfast.retrieval.evaluation.class_ranks import (
    UNRANKED,
    rank_by_means,
    rank_by_scores,
    rank_by_votes,
)
from dmlfast.retrieval.evaluation.sides import match_sides

from .helpers import blobs, halves


def distances(x, rows, angular):
    x, rows = x.astype(np.float64), rows.astype(np.float64)
    if not angular:
        return np.sqrt(np.square(rows - x).sum(axis=1)).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(x)
    return (1 - rows @ x / np.where(norms > 0, norms, 1)).astype(np.float32)


def ranks_by_means(queries, train, own=None):
    """The place of each query's class among the class means, from the definition."""
    angular = queries.distance == "angular"
    rows = train.embeddings.astype(np.float64)
    if angular:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
    places = []
    for i in range(len(queries)):
        kept = np.ones(len(train), bool)
        if own is not None:
            kept[own[i]] = False
        y = queries.labels[i]
        if not (train.labels[kept] == y).any():
            continue
        classes = np.unique(train.labels)
        means = [
            rows[(train.labels == c) & (kept if c == y else True)].mean(axis=0) for c in classes
        ]
        d = distances(queries.embeddings[i], np.array(means, dtype=np.float32), angular)
        places.append(list(classes[np.argsort(d, kind="stable")]).index(y))
    return np.array(places)


def ranks_by_votes(queries, train, k, weighted, own=None):
    """The place of each query's class in the vote of its k nearest, from the definition."""
    places = []
    for i in range(len(queries)):
        y = queries.labels[i]
        d = distances(queries.embeddings[i], train.embeddings, queries.distance == "angular")
        order = [j for j in np.argsort(d, kind="stable") if own is None or j != own[i]][:k]
        if not (
            train.labels[[j for j in range(len(train)) if own is None or j != own[i]]] == y
        ).any():
            continue
        votes = {}
        zero = any(d[j] == 0 for j in order)
        for j in order:
            weight = 1 if not weighted else float(d[j] == 0) if zero else 1 / float(d[j])
            votes[train.labels[j]] = votes.get(train.labels[j], 0) + weight
        elected = sorted((c for c in votes if votes[c]), key=lambda c: -votes[c])  # stable
        places.append(elected.index(y) if y in elected else UNRANKED)
    return np.array(places)


@pytest.fixture(params=["random", "ties", "lone classes", "angular", "float16"])
def pair(request):
    """Queries and training images, 80 and 160."""
    rng = np.random.default_rng(3)
    if request.param == "ties":  # class sums of two rows and of four are exact in float32
        labels = np.concatenate([rng.integers(0, 30, 80), np.repeat(np.arange(60), 4)[:160]])
        both = Features(rng.integers(0, 3, (240, 3)).astype(np.float32), labels)
    elif request.param == "lone classes":
        both = blobs(240, 150, noise=0.7)
    elif request.param == "angular":
        both = blobs(240, 12, noise=1.5, attributes={"distance": "angular"})
        both.embeddings[100::40] = 0
    else:
        both = blobs(240, 12, noise=1.5)
    if request.param == "float16":
        both = Features(both.embeddings.astype(np.float16), both.labels)
    return halves(both, 80)


def test_ranks_by_means_are_as_defined(pair):
    queries, train = pair
    expected = ranks_by_means(queries, train)
    assert len(np.unique(expected)) > 3
    sides = match_sides(queries, train)
    np.testing.assert_array_equal(rank_by_means(queries, sides, 1000), expected)
    shallow = rank_by_means(queries, sides, 3)
    np.testing.assert_array_equal(shallow < 3, expected < 3)
    np.testing.assert_array_equal(shallow[shallow < 3], expected[expected < 3])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 2, 7, 500])
def test_ranks_by_votes_are_as_defined(pair, k, weighted):
    queries, train = pair
    expected = ranks_by_votes(queries, train, k, weighted)
    found = rank_by_votes(queries, match_sides(queries, train), k, weighted=weighted)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [5, 500])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_query_takes_no_part_in_its_own_class_or_vote(pair, k, weighted):
    features, _ = pair
    own = np.arange(len(features))
    sides = match_sides(features)
    np.testing.assert_array_equal(
        rank_by_means(features, sides, 1000), ranks_by_means(features, features, own)
    )
    np.testing.assert_array_equal(
        rank_by_votes(features, sides, k, weighted=weighted),
        ranks_by_votes(features, features, k, weighted, own),
    )


def test_blocks_do_not_show(pair, monkeypatch):
    queries, train = pair
    reports = []
    for values in (2**21, 40):
        monkeypatch.setattr(class_ranks, "BLOCK_VALUES", values)
        reports.append(
            [evaluate_classification(queries, train, method=m) for m in ("knn", "nearest-centroid")]
        )
    assert repr(reports[0]) == repr(reports[1])


def test_top_1_of_centroids_is_scikit_learn_s():
    queries, train = halves(blobs(900, 12, noise=2), 300)
    model = NearestCentroid().fit(train.embeddings.astype(np.float64), train.labels)
    predicted = model.predict(queries.embeddings.astype(np.float64))
    report = evaluate_classification(queries, train)
    assert report["top_1"] == np.mean(predicted == queries.labels)
    assert report["class_average_top_1"] == pytest.approx(
        balanced_accuracy_score(queries.labels, predicted)
    )
    d = np.linalg.norm(queries.embeddings[:, None] - model.centroids_, axis=2)
    assert report["top_5"] == top_k_accuracy_score(queries.labels, -d, k=5, labels=range(12))
    assert report["top_1"] < report["top_5"] < 1


@pytest.mark.parametrize(("vote", "weights"), [("majority", "uniform"), ("distance", "distance")])
def test_top_1_of_neighbours_is_scikit_learn_s(vote, weights):
    queries, train = halves(blobs(900, 2, noise=3, columns=4), 300)  # 2 classes, odd k: no ties
    model = KNeighborsClassifier(9, weights=weights, algorithm="brute")
    model.fit(train.embeddings.astype(np.float64), train.labels)
    predicted = model.predict(queries.embeddings.astype(np.float64))
    report = evaluate_classification(queries, train, method="knn", neighbours=9, vote=vote)
    assert report["top_1"] == np.mean(predicted == queries.labels)
    assert 0.5 < report["top_1"] < 0.95


def test_equal_votes_go_to_the_nearest_voter():
    train = Features(np.array([[0.0], [1.0], [1.5], [2.0], [9.0]]), np.array([2, 0, 0, 2, 1]))
    queries = Features(np.array([[0.0], [0.0]]), np.array([2, 0]))
    sides = match_sides(queries, train)
    assert rank_by_votes(queries, sides, 4).tolist() == [0, 1]
    assert rank_by_votes(queries, sides, 3).tolist() == [1, 0]
    assert rank_by_votes(queries, sides, 3, weighted=True).tolist() == [0, UNRANKED]
    other = Features(np.array([[0.1]]), np.array([1]))
    report = evaluate_classification(other, train, method="knn", neighbours=4)
    assert report["top_5"] == 0  # there are three classes, but no neighbour is of this one


def test_shots_are_counted_in_training_images():
    sizes = {0: 101, 1: 100, 2: 20, 3: 19, 4: 1}
    centres = 10.0 * np.eye(6, dtype=np.float32)
    train = Features(
        np.concatenate([np.tile(centres[c], (n, 1)) for c, n in sizes.items()]),
        np.repeat(list(sizes), list(sizes.values())),
    )
    # the class of each query, and where it lies
    seen = [(0, 0), (1, 1), (1, 1), (1, 0), (2, 2), (3, 4), (3, 3), (4, 4), (9, 4)]
    queries = Features(centres[[at for _, at in seen]], np.array([label for label, _ in seen]))
    for method in ("nearest-centroid", "knn"):
        report = evaluate_classification(queries, train, method=method, neighbours=1)
        assert report["lone_queries"] == 1
        assert report["top_1"] == 6 / 8
        assert report["class_average_top_1"] == pytest.approx((1 + 2 / 3 + 1 + 1 / 2 + 1) / 5)
        assert report["many_shot_top_1"] == 1
        assert report["medium_shot_top_1"] == pytest.approx((2 / 3 + 1) / 2)
        assert report["few_shot_top_1"] == (1 / 2 + 1) / 2
        assert [report[f"{name}_shot_classes"] for name in ("many", "medium", "few")] == [1, 2, 2]
    report = evaluate_classification(queries, train, shots=(1, 200))
    assert [report[f"{name}_shot_classes"] for name in ("many", "medium", "few")] == [0, 5, 0]
    assert math.isnan(report["many_shot_top_1"])
    assert (report["train_images"], report["train_classes"], report["classes"]) == (241, 5, 6)


def test_an_image_that_was_trained_on_does_not_give_itself_away():
    features = blobs(80, 8, noise=1.5)
    paths = [f"{i}.jpg" for i in range(80)]
    same = {"attributes": {"dataset": "birds"}}
    queries = Features(features.embeddings[:50], features.labels[:50], paths[:50], **same)
    train = Features(features.embeddings[::-1], features.labels[::-1], paths[::-1], **same)
    own = [79 - i for i in range(50)]
    report = evaluate_classification(queries, train)
    assert report["top_1"] == np.mean(ranks_by_means(queries, train, own) < 1)
    report = evaluate_classification(queries, train, method="knn", neighbours=1)
    assert report["top_1"] == np.mean(ranks_by_votes(queries, train, 1, False, own) < 1) < 1


def test_one_class_and_no_rows():
    report = evaluate_classification(blobs(10, 1), blobs(20, 1))
    assert report["top_1"] == report["top_5"] == report["medium_shot_top_1"] == 1
    empty = Features(np.zeros((0, 8), np.float32), np.zeros(0, np.int64))
    for queries, train in ((empty, blobs()), (blobs(), empty), (empty, empty)):
        for method in ("knn", "nearest-centroid"):
            report = evaluate_classification(queries, train, method=method)
            assert math.isnan(report["top_1"])
            assert math.isnan(report["class_average_top_1"])
            assert report["lone_queries"] == len(queries)


def test_intervals_hold_the_mean():
    queries, train = halves(blobs(900, 12, noise=2), 400)
    report = evaluate_classification(queries, train, bootstrap=1000)
    assert set(report["intervals"]) == {name for name in report if "top_" in name}
    low, high = report["intervals"]["top_1"]
    p = report["top_1"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 400), rel=0.1)
    assert low < p < high
    assert "intervals" not in evaluate_classification(queries, train, bootstrap=0)


def test_intervals_of_class_averages_resample_within_classes():
    queries, train = halves(blobs(2000, 12, noise=2), 1000)
    chosen = (queries.labels < 3) | (np.arange(1000) < 300)  # a few classes have most queries
    queries = Features(queries.embeddings[chosen], queries.labels[chosen])
    report = evaluate_classification(queries, train, shots=(85, 90), bootstrap=2000)
    right = rank_by_means(queries, match_sides(queries, train), 5) < 1
    images = np.bincount(train.labels)
    groups = {
        "class_average_top_1": images > 0,
        "many_shot_top_1": images > 90,
        "medium_shot_top_1": (images >= 85) & (images <= 90),
        "few_shot_top_1": images < 85,
    }
    for name, members in groups.items():
        drawn = [right[queries.labels == label] for label in np.flatnonzero(members)]
        deviation = math.sqrt(sum(part.var() / len(part) for part in drawn)) / len(drawn)
        low, high = report["intervals"][name]
        assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
        assert low < report[name] < high
    report = evaluate_classification(queries, train, shots=(1, 1))
    assert np.isnan(report["intervals"]["few_shot_top_1"]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "svm"},
        {"vote": "rank"},
        {"neighbours": 0},
        {"shots": (100, 20)},
        {"shots": (0, 5)},
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="must be"):
        evaluate_classification(blobs(), blobs(), **wrong)


def test_files_that_cannot_be_compared():
    with pytest.raises(UserError, match="cannot be compared"):
        evaluate_classification(blobs(columns=4), blobs(columns=8))


def test_not_a_number_is_refused():
    embeddings = np.zeros((4, 2), np.float16)
    embeddings[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 4 embeddings holds NaN or infinity \(rows 2\)"):
        Features(embeddings, np.zeros(4, np.int64))


MEMORY = """
import resource, numpy as np
from dmlfast.retrieval import Features, evaluate_classification
rng = np.random.default_rng(0)
x = rng.normal(size=(40_000, 8)).astype(np.float32)
labels = np.arange(40_000) % 10_000
small = Features(x[:100], labels[:100])
evaluate_classification(small, small, bootstrap=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
queries, train = Features(x[:20_000], labels[:20_000]), Features(x[20_000:], labels[20_000:])
report = evaluate_classification(queries, train, bootstrap=0)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(report["train_classes"], grown / 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_very_many_classes_need_no_matrix_of_queries_and_classes():
    # 20,000 queries by 10,000 classes would be 760 MiB in float32.
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    classes, mebibytes = done.stdout.split()
    assert int(classes) == 10_000
    assert float(mebibytes) < 350


@pytest.mark.parametrize("block_values", [1, 40, 2**21])
def test_ranks_by_the_scores_of_a_classifier(monkeypatch, block_values):
    monkeypatch.setattr(class_ranks, "BLOCK_VALUES", block_values)
    generator = np.random.default_rng(0)
    train = Features(np.zeros((6, 3), np.float32), np.array([2, 3, 5, 5, 8, 9]))
    labels = generator.choice([2, 3, 5, 7, 8, 9], 50)
    queries = Features(generator.normal(size=(50, 3)).astype(np.float32), labels)
    weight = generator.normal(size=(4, 3)).astype(np.float32)
    bias = generator.normal(size=4).astype(np.float32)
    weight[3], bias[3] = weight[1], bias[1]  # equal scores
    classifier = LinearClassifier(weight, bias, np.array([2, 3, 5, 8]))
    expected = []
    for embedding, label in zip(queries.embeddings, labels, strict=True):
        if label == 7:  # not among the training images
            continue
        scores = [float(row.astype(np.float64) @ embedding) + float(b)
                  for row, b in zip(weight, bias, strict=True)]  # fmt: skip
        order = sorted(range(4), key=lambda c: (-round(scores[c], 9), c))
        place = order.index([2, 3, 5, 8].index(label)) if label != 9 else UNRANKED
        expected.append(place)
    found = rank_by_scores(queries, match_sides(queries, train), classifier)
    assert found.tolist() == expected
    report = evaluate_classification(
        queries, train, method="classifier", classifier=classifier, shots=(1, 1), bootstrap=0
    )
    assert report["top_1"] == np.mean(np.array(expected) < 1)
    assert report["many_shot_classes"] == 1
    with pytest.raises(ValueError, match="method classifier takes a classifier"):
        evaluate_classification(queries, train, method="classifier")
    with pytest.raises(ValueError, match="method classifier takes a classifier"):
        evaluate_classification(queries, train, classifier=classifier)
