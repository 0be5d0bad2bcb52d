"""Ranking by a metric unit: its search, its place in a file, and every protocol by it."""

import subprocess
import sys
from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest
import torch

from dmlfast import ops
from dmlfast.errors import UserError
from dmlfast.losses import PDDMLoss, PDDMUnit
from dmlfast.retrieval import (
    FeatureWriter,
    LinearClassifier,
    PairScorer,
    draw_montage,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
    export_ann_benchmarks,
    load_features,
    montage,
    nearest_neighbours,
    neighbours,
)

from .helpers import blobs, halves, pair_scorer

LAYERS = ("difference", "mean", "joint", "score")


def exact_scores(queries, gallery, scorer):
    """All scores (Q, M), in float64."""
    weights = {name: tensor.double().numpy() for name, tensor in scorer.tensors().items()}

    def unit_rows(rows):
        norms = np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1)

    def layer(name, rows):
        return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x, y = queries.astype(np.float64)[:, None], gallery.astype(np.float64)[None]
    if scorer.normalize_embeddings:
        x, y = unit_rows(x), unit_rows(y)
    difference, mean = np.abs(x - y), (x + y) / 2
    if scorer.unit.normalize_inputs:
        difference, mean = unit_rows(difference), unit_rows(mean)
    u, v = (layer(*side).clip(min=0) for side in (("difference", difference), ("mean", mean)))
    joint = layer("joint", np.concatenate([unit_rows(u), unit_rows(v)], axis=-1)).clip(min=0)
    return layer("score", joint)[..., 0]


@dataclass(frozen=True, eq=False)
class Table(PairScorer):
    """Scores pairs of rows (n, 1), which hold their own numbers, by a table."""

    unit: PDDMUnit
    normalize_embeddings: bool = False
    scores: np.ndarray = None

    def scores_on(self, device):
        table = torch.from_numpy(self.scores).to(device)
        return lambda rows, columns: table[rows[:, 0].long()][:, columns[:, 0].long()]


def search_table(scores, k, exclude=None):
    Q, M = scores.shape
    scorer = Table(PDDMUnit(1), scores=scores.astype(np.float32))
    numbers = np.arange(max(Q, M), dtype=np.float32)[:, None]
    return nearest_neighbours(numbers[:Q], numbers[:M], k, exclude=exclude, distance=scorer)


@pytest.mark.parametrize("normalize_inputs", [False, True])
@pytest.mark.parametrize("normalize_embeddings", [False, True])
@pytest.mark.parametrize(("columns", "hidden"), [(1, 3), (17, 17), (64, 32)])
def test_agrees_with_brute_force(columns, hidden, normalize_embeddings, normalize_inputs):
    scorer = pair_scorer(
        columns,
        hidden,
        normalize_embeddings=normalize_embeddings,
        normalize_inputs=normalize_inputs,
    )
    rng = np.random.default_rng(columns)
    queries = rng.normal(size=(50, columns)).astype(np.float32)
    gallery = np.concatenate([queries[:20], 3 * rng.normal(size=(70, columns))]).astype(np.float32)
    own = np.where(np.arange(50) < 20, np.arange(50), -1)
    found, distances = nearest_neighbours(queries, gallery, 9, exclude=own, distance=scorer)
    assert (found.dtype, distances.dtype) == (np.int64, np.float32)
    exact = exact_scores(queries, gallery, scorer)
    exact[np.arange(20), np.arange(20)] = -np.inf
    best = -np.sort(-exact, axis=1)[:, :9]
    # float32 may exchange what float64 barely tells apart, and nothing else
    tolerance = 1e-5 * np.abs(best).max()
    np.testing.assert_allclose(np.take_along_axis(exact, found, 1), best, atol=tolerance)
    np.testing.assert_allclose(-distances, best, atol=tolerance)
    assert columns == 1 or (np.diff(best, axis=1) < -2 * tolerance).mean() > 0.9
    assert all(len(set(row)) == 9 for row in found.tolist())


def test_rows_are_scaled_as_the_loss_scales_them():
    scorer = pair_scorer(4, 3, normalize_embeddings=True)
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 1e-15
    rows[2] = 0
    assert torch.equal(scorer.rows(rows), ops.normalize(rows))
    assert scorer.rows(rows)[0].norm() == pytest.approx(1)


@pytest.mark.parametrize("tiles", [(64, 1024), (7, 11), (1, 1)])
@pytest.mark.parametrize("k", [1, 13, 60])
def test_signed_scores_and_ties_in_tiles_of_any_size(k, tiles, monkeypatch):
    monkeypatch.setattr(neighbours, "SCORE_TILES", tiles)
    rng = np.random.default_rng(k)
    values = np.array([-3e38, -2.5, -1e-40, -0.0, 0.0, 1e-40, 2.5, 3e38], np.float32)
    scores = values[rng.integers(0, len(values), (40, 60))]
    own = rng.integers(-1, 60, 40)
    kept = scores.copy()
    kept[own >= 0, own[own >= 0]] = -np.inf
    expected = np.argsort(-kept, axis=1, kind="stable")[:, :k]
    found, distances = search_table(scores, k, own)
    missing = np.isneginf(np.take_along_axis(kept, expected, 1))
    np.testing.assert_array_equal(found, np.where(missing, -1, expected))
    np.testing.assert_array_equal(distances, -np.take_along_axis(kept, expected, 1))
    assert missing.any() == (k == 60)


def test_all_alike_are_found_in_order():
    found, distances = search_table(np.full((3, 2000), -2.0), 3, np.arange(3))
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    assert (distances == 2).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_and_threads_do_not_show(threads, monkeypatch):
    scorer, x = pair_scorer(33), blobs(200, columns=33).embeddings
    x[150:] = x[:50]
    expected = nearest_neighbours(x, x, 20, exclude=np.arange(200), distance=scorer)
    monkeypatch.setattr(neighbours, "SCORE_TILES", (13, 21))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = nearest_neighbours(x, x, 20, exclude=np.arange(200), distance=scorer)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_floating_type_and_stride(dtype):
    scorer = pair_scorer(12)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = nearest_neighbours(x.float().numpy(), x.float().numpy(), 4, distance=scorer)
    strided = x.T.contiguous().T.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_neighbours(strided, strided, 4, distance=scorer)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize(("q", "m"), [(0, 0), (0, 5), (5, 0)])
def test_empty_sides(q, m):
    found, distances = nearest_neighbours(
        np.zeros((q, 8)), np.zeros((m, 8)), 2, distance=pair_scorer()
    )
    assert found.shape == distances.shape == (q, 2)
    assert (found == -1).all()
    assert np.isposinf(distances).all()


def test_wrong_arguments():
    x, scorer = np.zeros((5, 8)), pair_scorer()
    with pytest.raises(ValueError, match="FAISS cannot search by a PairScorer"):
        nearest_neighbours(x, x, 1, distance=scorer, backend="faiss")
    with pytest.raises(ValueError, match="the unit scores 8 dimensions, not 7"):
        nearest_neighbours(x[:, :7], x[:, :7], 1, distance=scorer)
    with pytest.raises(ValueError, match="hamming or a PairScorer, not 'pddm'"):
        nearest_neighbours(x, x, 1, distance="pddm")


def test_a_scorer_stays_what_it_was():
    loss_fn, x = PDDMLoss(8), torch.randn(6, 8)
    with pytest.raises(TypeError, match="unit must be a PDDMUnit, not PDDMLoss"):
        PairScorer(loss_fn)
    scorer = PairScorer(loss_fn.unit, loss_fn.normalize_embeddings)
    before = nearest_neighbours(x, x, 3, distance=scorer)
    with torch.no_grad():
        for weight in loss_fn.parameters():
            weight.normal_()
    for one, other in zip(nearest_neighbours(x, x, 3, distance=scorer), before, strict=True):
        np.testing.assert_array_equal(one, other)


def write(path, features, scorer, **more):
    with FeatureWriter(path, dimension=features.dimension, scorer=scorer, **more) as writer:
        paths = [f"{i}.png" for i in range(len(features))]
        writer.append(features.embeddings, features.labels, paths)
    return path


@pytest.mark.parametrize("normalize_inputs", [False, True])
@pytest.mark.parametrize("normalize_embeddings", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file(tmp_path, normalize_inputs, normalize_embeddings, dtype):
    settings = {"normalize_inputs": normalize_inputs, "normalize_embeddings": normalize_embeddings}
    features, scorer = blobs(20), pair_scorer(8, 5, **settings)
    path = write(tmp_path / "f.h5", features, scorer, dtype=dtype)
    with h5py.File(path) as file:
        assert set(file["pddm"]) == {
            f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")
        }
        assert dict(file["pddm"].attrs) == settings
    state = torch.get_rng_state()
    read = load_features(path)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = read.scorer.tensors()
    for name, tensor in scorer.unit.state_dict().items():
        assert tensors[name].dtype == torch.float32
        assert torch.equal(tensors[name], tensor)
    assert read.scorer.normalize_embeddings == normalize_embeddings
    assert read.scorer.unit.normalize_inputs == normalize_inputs
    assert read.scorer.agrees_with(scorer)
    # What knows nothing of a unit reads the same as without one.
    plain = load_features(write(tmp_path / "plain.h5", features, None, dtype=dtype))
    assert plain.scorer is None
    np.testing.assert_array_equal(read.embeddings, plain.embeddings)
    assert read.attributes | {"created": ""} == plain.attributes | {"created": ""}


def test_agreement():
    scorer = pair_scorer(8, 5)
    assert scorer.agrees_with(PairScorer(scorer.unit))
    assert scorer.agrees_with(PairScorer.from_tensors(scorer.tensors()))
    others = [
        pair_scorer(8, 5, seed=1),
        pair_scorer(8, 6),
        pair_scorer(8, 5, normalize_inputs=True),
        PairScorer(scorer.unit, normalize_embeddings=False),
        "euclidean",
    ]
    assert not any(scorer.agrees_with(other) for other in others)


def test_what_is_wrong_with_a_file_is_one_line(tmp_path):
    def told(message, **changes):
        """Puts values into a file, or takes away what is to be None."""
        path = write(tmp_path / "f.h5", blobs(20), pair_scorer(8, 5), overwrite=True)
        with h5py.File(path, "r+") as file:
            for name, value in changes.items():
                where = file["pddm"].attrs if name.startswith("normalize") else file
                del where[name]
                if value is not None:
                    where[name] = value
        with pytest.raises(UserError) as caught:
            load_features(path)
        assert str(caught.value) == f"{path}: {message}"

    eye = np.eye(5, dtype=np.float32)
    told(
        "no dataset /pddm/joint.bias, expected (out,) float32",
        **{"pddm/joint.bias": None},
    )
    told(
        "/pddm/mean.bias holds NaN or infinity",
        **{"pddm/mean.bias": np.full(5, np.inf, np.float32)},
    )
    told(
        "/pddm/score.weight must be (out, in) float32, not (5, 5) float64",
        **{"pddm/score.weight": np.eye(5)},
    )
    told("/pddm/joint.weight must be (5, 10), not (5, 5)", **{"pddm/joint.weight": eye})
    told(
        "/pddm/difference.weight must be (H, D), not (5, 0)",
        **{"pddm/difference.weight": eye[:, :0]},
    )
    told("/pddm must be a group", pddm=1)
    told("/pddm must be a group", pddm=h5py.SoftLink("/elsewhere"))
    told(
        "the attribute normalize_inputs of /pddm must be true or false, not None",
        normalize_inputs=None,
    )
    told(
        "the attribute normalize_embeddings of /pddm must be true or false, not 2",
        normalize_embeddings=2,
    )
    told(
        "the pddm unit scores 8 dimensions, and embeddings have 5",
        embeddings=np.zeros((20, 5), np.float32),
    )


def test_units_that_do_not_fit_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="scores 7 dimensions, and embeddings have 8"):
        write(tmp_path / "f.h5", blobs(20), pair_scorer(7))
    with pytest.raises(ValueError, match="scores floats, not sign bits"):
        write(tmp_path / "f.h5", blobs(20), pair_scorer(), distance="hamming")
    with pytest.raises(ValueError, match="scores 7 dimensions, and embeddings have 8"):
        blobs(20, scorer=pair_scorer(7))
    assert not list(tmp_path.iterdir())


def test_ann_benchmarks_gets_the_neighbours_by_distance(tmp_path):
    features = blobs(30)
    for name, scorer in (("plain", None), ("scored", pair_scorer())):
        export_ann_benchmarks(replace(features, scorer=scorer), tmp_path / name)
    with h5py.File(tmp_path / "plain") as plain, h5py.File(tmp_path / "scored") as scored:
        assert set(scored) == set(plain) == {"train", "test", "neighbors", "distances"}
        assert all((scored[name][:] == plain[name][:]).all() for name in plain)


def by_hand(features, gallery, own, ks):
    """Recall at each K, MAP at R and R-precision from all scores in float64."""
    scores = exact_scores(features.embeddings, gallery.embeddings, features.scorer)
    recalls, precisions, averages = [], [], []
    for i, label in enumerate(features.labels):
        ranked = [j for j in np.argsort(-scores[i]) if j != own[i]]
        right = gallery.labels[ranked] == label
        R = right.sum()
        if not R:
            continue
        recalls.append([right[:k].any() for k in ks])
        precisions.append(right[:R].mean())
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        averages.append((precision * right)[:R].sum() / R)
    return np.mean(recalls, axis=0), np.mean(averages), np.mean(precisions)


@pytest.mark.parametrize("apart", [False, True])
def test_retrieval_and_clustering(apart):
    features = blobs(300, 20, scorer=pair_scorer(), attributes={"dataset": "blobs"})
    gallery, own = features, np.arange(300)
    if apart:
        features, gallery = (replace(half, scorer=pair_scorer()) for half in halves(features, 90))
        own = np.full(90, -1)
    others = (gallery,) if apart else ()
    report = evaluate(features, *others, rank_by="pddm", bootstrap=0)
    recall, average, precision = by_hand(features, gallery, own, (1, 2, 4, 8))
    assert [report[f"recall_at_{k}"] for k in (1, 2, 4, 8)] == pytest.approx(recall, abs=1e-9)
    assert report["map_at_r"] == pytest.approx(average, abs=1e-9)
    assert report["r_precision"] == pytest.approx(precision, abs=1e-9)
    by_distance = evaluate(features, *others, bootstrap=0)
    assert (report["ranked_by"], by_distance["ranked_by"]) == ("pddm", "distance")
    assert report["map_at_r"] != by_distance["map_at_r"]
    for name in ("nmi", "ami", "f1", "distance", "queries", "gallery"):
        assert report[name] == by_distance[name]


def test_deep_recall_and_roles():
    features = blobs(400, 60, noise=3.0, scorer=pair_scorer())
    roles = np.random.default_rng(1).integers(0, 3, 400).astype(np.uint8)
    features = replace(features, roles=roles)
    ks = (1, 10, 150, 1000)
    report = evaluate(features, rank_by="pddm", ks=ks, clustering=False, bootstrap=0)
    queries, gallery = (features.rows_as(role) for role in ("query", "gallery"))
    own = np.where(roles[queries] == 0, np.searchsorted(gallery, queries), -1)
    sides = (
        replace(
            features, embeddings=features.embeddings[rows], labels=features.labels[rows], roles=None
        )
        for rows in (queries, gallery)
    )
    recall, average, _ = by_hand(*sides, own, ks)
    assert [report[f"recall_at_{k}"] for k in ks] == pytest.approx(recall, abs=1e-9)
    assert 0 < report["recall_at_1"] < report["recall_at_150"] <= report["recall_at_1000"]
    assert report["map_at_r"] == pytest.approx(average, abs=1e-9)


def test_what_cannot_be_ranked_by():
    features = blobs(20, source="a.h5")
    scored = replace(features, scorer=pair_scorer())
    with pytest.raises(UserError, match=r"a\.h5 holds no pddm unit to rank by"):
        evaluate(features, rank_by="pddm")
    with pytest.raises(UserError, match=r"g\.h5 holds no pddm unit"):
        evaluate(scored, replace(features, source="g.h5"), rank_by="pddm")
    with pytest.raises(UserError, match=r"a\.h5 holds sign bits, which a pddm unit cannot score"):
        evaluate(scored.binarized(), rank_by="pddm")
    other = replace(features, scorer=pair_scorer(seed=1), source="g.h5")
    with pytest.raises(UserError, match=r"a\.h5 and g\.h5 cannot be ranked by pddm: their units"):
        evaluate(scored, other, rank_by="pddm")
    assert evaluate(scored, other, clustering=False)["ranked_by"] == "distance"
    with pytest.raises(ValueError, match="rank_by must be one of distance, pddm, not 'score'"):
        evaluate(scored, rank_by="score")
    assert scored.binarized().scorer is None


def test_identity_draws():
    features = blobs(60, 12, scorer=pair_scorer())
    report = evaluate_identity_draws(features, rank_by="pddm", draws=1, ks=(1, 3))
    shuffled = np.random.default_rng([0, 0]).permutation(60)
    _, first = np.unique(features.labels[shuffled], return_index=True)
    drawn = np.sort(shuffled[first])
    rest = np.setdiff1d(np.arange(60), drawn)
    scores = exact_scores(features.embeddings[rest], features.embeddings[drawn], features.scorer)
    order = np.argsort(-scores, axis=1)
    right = features.labels[drawn][order] == features.labels[rest][:, None]
    assert report["cmc_at_1"] == right[:, :1].any(1).mean()
    assert report["cmc_at_3"] == right[:, :3].any(1).mean()
    assert report["ranked_by"] == "pddm"


def test_votes():
    scorer = pair_scorer()
    queries, train = (
        replace(half, scorer=scorer) for half in halves(blobs(300, 10, noise=2.0), 60)
    )
    report = evaluate_classification(queries, train, method="knn", neighbours=1, rank_by="pddm")
    nearest = exact_scores(queries.embeddings, train.embeddings, scorer).argmax(axis=1)
    assert report["top_1"] == (train.labels[nearest] == queries.labels).mean()
    assert report["ranked_by"] == "pddm"
    with pytest.raises(
        UserError, match="vote distance cannot be used with rank_by pddm: use vote majority"
    ):
        evaluate_classification(queries, train, method="knn", vote="distance", rank_by="pddm")
    with pytest.raises(ValueError, match="nearest-centroid does not rank images, by pddm"):
        evaluate_classification(queries, train, rank_by="pddm")
    classifier = LinearClassifier(np.zeros((10, 8)), np.zeros(10), np.arange(10))
    with pytest.raises(ValueError, match="classifier does not rank images"):
        evaluate_classification(
            queries, train, method="classifier", classifier=classifier, rank_by="pddm"
        )


def test_zero_shot():
    features = blobs(100, 10, scorer=pair_scorer())
    report = evaluate_zero_shot(features, against="images", rank_by="pddm", ks=(1, 4))
    expected = evaluate(features, rank_by="pddm", ks=(1, 4), clustering=False)
    assert report["hit_at_4"] == expected["recall_at_4"]
    assert report["ranked_by"] == "pddm"
    with pytest.raises(UserError, match="pddm ranks images, not prototypes: use --against images"):
        evaluate_zero_shot(features, rank_by="pddm")


def test_a_montage_shows_the_most_similar(monkeypatch):
    features = blobs(40, 4, scorer=pair_scorer())
    features = replace(features, paths=[str(i) for i in range(40)])
    shown, titles, header = [], [], montage.header

    def image_of(path):
        shown.append(int(path))
        return montage.Image.new("L", (8, 8))

    monkeypatch.setattr(
        montage, "header", lambda *args: titles.append(args[-1][0]) or header(*args)
    )
    draw_montage(features, image_of=image_of, rank_by="pddm", rows=1, neighbours=3)
    scores = exact_scores(features.embeddings, features.embeddings, features.scorer)
    np.fill_diagonal(scores, -np.inf)
    assert shown[1:4] == np.argsort(-scores[shown[0]])[:3].tolist()
    assert titles == ["Nearest neighbours by pddm score: features"]


MEMORY = """
import resource, numpy as np, torch
from dmlfast.losses import PDDMUnit
from dmlfast.retrieval import PairScorer, nearest_neighbours
scorer = PairScorer(PDDMUnit(4))
x = np.random.default_rng(0).normal(size=(8000, 4)).astype(np.float32)
nearest_neighbours(x[:100], x[:100], 1, distance=scorer)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_neighbours(x, x, 5, distance=scorer)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_memory_does_not_grow_with_the_square():
    # One 8,000 x 8,000 matrix of float32 would be 244 MiB.
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert float(done.stdout) < 60, done.stderr
