import importlib.util

import numpy as np
import pytest
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dmlfast.errors import UserError
from dmlfast.retrieval import Features, evaluate
from dmlfast.retrieval.evaluation import clustering
from dmlfast.retrieval.evaluation.clustering import choose_kmeans, cluster, pairwise_f1

from .helpers import blobs

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs FAISS")


def test_mean_and_deviation_of_runs():
    features = blobs(300, 25, noise=1.2)
    report = evaluate(features, seed=3, clustering_runs=4, bootstrap=0)
    found = [cluster(features.embeddings, 25, seed) for seed in (3, 4, 5, 6)]
    scores = {
        "nmi": [normalized_mutual_info_score(features.labels, c) for c in found],
        "nmi_geometric": [
            normalized_mutual_info_score(features.labels, c, average_method="geometric")
            for c in found
        ],
        "ami": [adjusted_mutual_info_score(features.labels, c) for c in found],
        "f1": [pairwise_f1(features.labels, c) for c in found],
    }
    for name, values in scores.items():
        assert len(set(values)) > 1
        assert report[name] == pytest.approx(sum(values) / 4, rel=1e-12)
        mean = sum(values) / 4
        deviation = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
        assert report[f"{name}_std"] == pytest.approx(deviation, rel=1e-9)
    assert "nmi_std" not in evaluate(features, bootstrap=0)
    with pytest.raises(ValueError, match="clustering_runs must be at least 1"):
        evaluate(features, clustering_runs=0)


def test_scores_agree_with_pytorch_metric_learning():
    features = blobs(200, 12, noise=2)
    report = evaluate(features, bootstrap=0)
    clusters = cluster(features.embeddings, 12)
    theirs = AccuracyCalculator(include=("NMI", "AMI"))
    assert report["nmi"] == pytest.approx(theirs.calculate_NMI(features.labels, clusters))
    assert report["ami"] == pytest.approx(theirs.calculate_AMI(features.labels, clusters))


def test_independent_clusters_have_mutual_information_by_chance_alone():
    rng = np.random.default_rng(0)
    features = Features(rng.normal(size=(200, 4)), rng.integers(0, 40, 200))
    report = evaluate(features, bootstrap=0)
    assert report["nmi"] > 0.5
    assert abs(report["ami"]) < 0.1


@needs_faiss
def test_faiss_clusters_as_the_seed_says():
    features = blobs(2000, 3, noise=0.01)
    found = cluster(features.embeddings, 3, method="faiss")
    assert found.shape == (2000,)
    assert len(np.unique(found)) == 3
    features = blobs(3000, 40, noise=0.6)
    seeds = [cluster(features.embeddings, 40, seed, "faiss") for seed in (0, 0, 1)]
    assert (seeds[0] == seeds[1]).all()
    assert pairwise_f1(seeds[0], seeds[2]) < 1
    report = evaluate(features, kmeans="faiss", bootstrap=0)
    assert report["kmeans"] == "faiss"
    expected = evaluate(features, kmeans="sklearn", bootstrap=0)
    assert report["nmi"] == pytest.approx(expected["nmi"], abs=0.03)


@needs_faiss
def test_faiss_takes_all_rows_as_its_sample():
    # 3,000 rows at 0 and 3 at 100: FAISS's own limit of 256 rows a cluster would lose the 3.
    embeddings = np.zeros((3003, 1), np.float32)
    embeddings[-3:] = 100
    for seed in range(8):
        clusters = cluster(embeddings, 2, seed, "faiss")
        assert (clusters[-3:] != clusters[0]).all()


@needs_faiss
def test_as_many_clusters_as_rows():
    features = Features(np.eye(6, dtype=np.float16), np.arange(6))
    for method in ("faiss", "sklearn"):
        assert len(np.unique(cluster(features.embeddings, 6, method=method))) == 6


def test_what_auto_takes(monkeypatch):
    small = clustering.FAISS_MIN_WORK - 1
    monkeypatch.setattr(clustering.sys, "platform", "linux")
    monkeypatch.setattr(clustering.importlib.util, "find_spec", lambda name: object())
    assert choose_kmeans("auto", small) == "sklearn"
    assert choose_kmeans("auto", small + 1) == "faiss"
    assert choose_kmeans("sklearn", small + 1) == "sklearn"
    assert choose_kmeans("faiss", 1) == "faiss"
    monkeypatch.setattr(clustering.sys, "platform", "darwin")
    assert choose_kmeans("auto", small + 1) == "sklearn"
    monkeypatch.setattr(clustering.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(clustering.sys, "platform", "linux")
    assert choose_kmeans("auto", small + 1) == "sklearn"
    with pytest.raises(UserError, match="FAISS is not installed: pip install"):
        choose_kmeans("faiss", 1)
    with pytest.raises(ValueError, match="k-means must be one of auto, faiss, sklearn"):
        choose_kmeans("kmeans", 1)


@pytest.mark.parametrize("method", ["sklearn", pytest.param("faiss", marks=needs_faiss)])
@pytest.mark.parametrize("seed", [2**31, 2**32 - 1, 2**80])
def test_any_seed_is_taken(seed, method):
    features = blobs(60, 3, noise=0.01)
    report = evaluate(features, kmeans=method, clustering_runs=2, seed=seed, bootstrap=0)
    assert report["nmi"] > 0.5
