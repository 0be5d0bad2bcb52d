import math

import numpy as np
import pytest

from dmlfast.retrieval import Features, evaluate_identity_draws
from dmlfast.retrieval.evaluation.identity_draws import draw_gallery

from .helpers import blobs


def by_definition(features, gallery, ks):
    """The cumulative matching characteristic, query by query."""
    hits = []
    for i in sorted(set(range(len(features))) - set(gallery)):
        x = features.embeddings[i].astype(np.float64)
        d = np.sqrt(np.square(features.embeddings[gallery] - x).sum(axis=1)).astype(np.float32)
        order = [gallery[j] for j in np.argsort(d, kind="stable")]
        place = [features.labels[j] for j in order].index(features.labels[i])
        hits.append([place < k for k in ks])
    return np.mean(hits, axis=0)


def check(features, ks, draws=3, seed=5):
    report = evaluate_identity_draws(features, ks=ks, draws=draws, seed=seed)
    curves = np.array(
        [by_definition(features, draw_gallery(features, seed, draw), ks) for draw in range(draws)]
    )
    for position, k in enumerate(ks):
        assert report[f"cmc_at_{k}"] == pytest.approx(curves[:, position].mean(), rel=1e-12)
        deviation = np.sqrt(np.square(curves[:, position] - curves[:, position].mean()).sum() / 2)
        assert report[f"cmc_at_{k}_std"] == pytest.approx(deviation, rel=1e-9, abs=1e-15)
    return report


def test_as_defined():
    report = check(blobs(200, 30, noise=1.0), ks=(1, 5))
    assert 0.2 < report["cmc_at_1"] < report["cmc_at_5"] < 1
    assert report["cmc_at_1_std"] > 0
    assert (report["queries"], report["gallery"], report["draws"]) == (170, 30, 3)


def test_ties_and_duplicates_are_ordered_by_row():
    rng = np.random.default_rng(0)
    check(Features(rng.integers(0, 2, (80, 3)).astype(np.float32), rng.integers(0, 9, 80)), (1, 5))


def test_more_neighbours_than_identities():
    report = check(blobs(40, 4, noise=3), ks=(1, 5, 10**30))
    assert report["cmc_at_5"] == report[f"cmc_at_{10**30}"] == 1


def test_an_identity_of_one_image_is_no_query():
    features = Features(np.array([[0.0], [1.0], [0.4]]), np.array([1, 1, 2]))
    for seed in range(10):
        report = evaluate_identity_draws(features, draws=1, seed=seed)
        assert (report["queries"], report["gallery"]) == (1, 2)
        assert report["cmc_at_1"] == 0  # the image at 0.4 is nearer to either of the two
        assert math.isnan(report["cmc_at_1_std"])


def test_without_queries():
    for rows in (0, 3):
        report = evaluate_identity_draws(Features(np.zeros((rows, 2)), np.arange(rows)))
        assert report["queries"] == 0
        assert math.isnan(report["cmc_at_1"])


def test_one_class():
    report = evaluate_identity_draws(blobs(30, 1))
    assert (report["cmc_at_1"], report["cmc_at_1_std"], report["queries"]) == (1, 0, 29)


def test_angular():
    features = Features(
        np.array([[1, 0], [100, 1], [0, 1], [1, 100]], np.float32),
        np.array([0, 0, 1, 1]),
        attributes={"distance": "angular"},
    )
    assert evaluate_identity_draws(features)["cmc_at_1"] == 1
    features.attributes["distance"] = "euclidean"
    assert evaluate_identity_draws(features)["cmc_at_1"] < 1


def test_every_image_of_an_identity_is_drawn_as_often():
    labels = np.repeat([7, 3], [4, 2])
    features = Features(np.zeros((6, 1)), labels)
    draws = np.array([draw_gallery(features, 0, draw) for draw in range(4000)])
    assert (labels[draws] == [7, 3]).all()
    counts = np.bincount(draws.ravel(), minlength=6)
    np.testing.assert_allclose(counts, [1000] * 4 + [2000] * 2, atol=110)


def test_the_seed_decides():
    features = blobs(200, 30, noise=1.5)
    first = evaluate_identity_draws(features, seed=1)
    assert first == evaluate_identity_draws(features, seed=1)
    assert first["cmc_at_1"] != evaluate_identity_draws(features, seed=2)["cmc_at_1"]


@pytest.mark.parametrize("wrong", [{"ks": []}, {"ks": [0]}, {"draws": 0}])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="must be"):
        evaluate_identity_draws(blobs(), **wrong)
