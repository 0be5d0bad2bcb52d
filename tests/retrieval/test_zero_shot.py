import math

import numpy as np
import pytest

from dmlfast.errors import UserError
from dmlfast.retrieval import Features, evaluate, evaluate_zero_shot

from .helpers import blobs

KS = (1, 2, 5, 10, 20)


def hits(report, ks=KS):
    return [report[f"hit_at_{k}"] for k in ks]


def test_against_prototypes_without_the_query_itself():
    features = blobs(200, 60, noise=1.0)
    places = []
    for i, y in enumerate(features.labels):
        others = np.arange(200) != i
        if not (features.labels[others] == y).any():
            continue
        classes = np.unique(features.labels)
        means = [
            features.embeddings[(features.labels == c) & (others | (c != y))].mean(axis=0)
            for c in classes
        ]
        d = np.linalg.norm(np.array(means) - features.embeddings[i], axis=1)
        places.append(list(classes[d.argsort()]).index(y))
    report = evaluate_zero_shot(features)
    np.testing.assert_allclose(hits(report), [np.mean(np.array(places) < k) for k in KS])
    assert report["lone_queries"] == 200 - len(places) > 0
    assert report["candidates"] == report["classes"] == len(np.unique(features.labels))
    assert 0 < report["hit_at_1"] < report["hit_at_5"] < 1


def test_against_prototypes_that_are_given():
    prototypes = Features(np.array([[0.0, 0], [4, 0], [0, 4], [9, 9]]), np.array([5, 3, 8, 1]))
    queries = Features(
        np.array([[1.0, 0], [3, 0], [2, 0], [0, 1], [0, 0]]), np.array([5, 5, 5, 8, 77])
    )
    report = evaluate_zero_shot(queries, prototypes, ks=(1, 2, 3, 100))
    # The query at (2, 0) is as far from class 5 as from class 3, whose number is lower.
    assert hits(report, (1, 2, 3, 100)) == [1 / 4, 1, 1, 1]
    assert (report["queries"], report["lone_queries"], report["candidates"]) == (5, 1, 4)


def test_against_images_is_recall():
    features = blobs(200, 40, noise=1.0)
    report = evaluate_zero_shot(features, against="images")
    expected = evaluate(features, ks=KS, clustering=False)
    assert hits(report) == [expected[f"recall_at_{k}"] for k in KS]
    assert report["candidates"] == 200
    assert report["lone_queries"] == expected["lone_queries"]
    assert report["intervals"]["hit_at_5"] == expected["intervals"]["recall_at_5"]


def test_duplicates_and_lone_classes():
    features = Features(np.zeros((5, 2), np.float16), np.array([0, 0, 1, 1, 2]))
    report = evaluate_zero_shot(features, ks=(1, 2, 3))
    assert hits(report, (1, 2, 3)) == [0.5, 1, 1]  # all at distance 0: by class number
    assert report["lone_queries"] == 1


def test_nothing_to_evaluate():
    empty = Features(np.zeros((0, 8), np.float32), np.zeros(0, np.int64))
    for against in ("prototypes", "images"):
        report = evaluate_zero_shot(empty, against=against)
        assert all(math.isnan(hit) for hit in hits(report))
        report = evaluate_zero_shot(blobs(30, 1), against=against)
        assert hits(report) == [1] * 5


def test_wrong_arguments():
    with pytest.raises(ValueError, match="against must be one of prototypes, images"):
        evaluate_zero_shot(blobs(), against="text")
    with pytest.raises(ValueError, match="ks must be"):
        evaluate_zero_shot(blobs(), ks=[])
    with pytest.raises(UserError, match="cannot be compared"):
        evaluate_zero_shot(blobs(columns=4), blobs(columns=8))
