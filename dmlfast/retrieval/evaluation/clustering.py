"""How well clusters found without labels agree with the classes."""

import importlib.util
import sys
import warnings
from typing import Any

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.evaluation.summary import mean_and_deviation
from dmlfast.retrieval.features import Features

METHODS = ("auto", "faiss", "sklearn")
FAISS_MIN_WORK = 2**35  # rows x clusters x D from which scikit-learn would take many minutes
FAISS_ITERATIONS = 25
SEEDS = 2**31  # that FAISS takes, and scikit-learn


def evaluate_clustering(
    features: Features, rows: np.ndarray, *, runs: int = 1, seed: int = 0, method: str = "auto"
) -> dict[str, Any]:
    """Compares the classes of `rows` with clusters by k-means, as many as there are classes.

    Run i starts from seed + i. Angular embeddings are scaled to length 1 first. Returns nmi,
    nmi_geometric, ami and f1, the means of the runs, with several runs also their standard
    deviations as NAME_std, and what the clusters were found by as kmeans. nan without rows.
    """
    labels = features.labels[rows]
    names = ("nmi", "nmi_geometric", "ami", "f1")
    if not len(rows):
        return dict.fromkeys(names, float("nan"))
    embeddings = features.vectors(rows)
    classes = len(np.unique(labels))
    method = choose_kmeans(method, embeddings.size * classes)
    found = [cluster(embeddings, classes, seed + run, method) for run in range(runs)]
    scores = {
        "nmi": [normalized_mutual_information(labels, clusters) for clusters in found],
        "nmi_geometric": [
            normalized_mutual_information(labels, clusters, "geometric") for clusters in found
        ],
        "ami": [adjusted_mutual_information(labels, clusters) for clusters in found],
        "f1": [pairwise_f1(labels, clusters) for clusters in found],
    }
    report: dict[str, Any] = {"kmeans": method, "clustering_runs": runs}
    for name in names:
        values = mean_and_deviation(name, np.array(scores[name]))
        report |= values if runs > 1 else {name: values[name]}
    return report


def choose_kmeans(method: str, work: int) -> str:
    """ "faiss" or "sklearn": what "auto" stands for, by rows x clusters x D.

    Raises ValueError for an unknown method, UserError for "faiss" where it is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"k-means must be one of {', '.join(METHODS)}, not '{method}'")
    installed = importlib.util.find_spec("faiss") is not None
    if method == "faiss" and not installed:
        raise UserError("FAISS is not installed: pip install 'dmlfast[cpu]'")
    if method != "auto":
        return method
    # On macOS the two libraries' OpenMP runtimes abort the process when they meet.
    usable = installed and sys.platform == "linux"
    return "faiss" if usable and work >= FAISS_MIN_WORK else "sklearn"


def cluster(
    embeddings: np.ndarray, clusters: int, seed: int = 0, method: str = "auto"
) -> np.ndarray:
    """Assigns N rows to clusters by k-means, (N,) integers.

    embeddings: (N, D) floats. method: "sklearn" (one run from a greedy k-means++ start, in float64,
    so that the order of a sum, which depends on the number of threads, does not show), "faiss" (25
    iterations from randomly chosen rows, in float32), or "auto", which takes FAISS where
    scikit-learn would take many minutes.
    """
    seed %= SEEDS
    if choose_kmeans(method, embeddings.size * clusters) == "faiss":
        return _cluster_faiss(embeddings.astype(np.float32), clusters, seed)
    return _cluster_sklearn(embeddings.astype(np.float64), clusters, seed)


def _cluster_sklearn(embeddings: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(clusters, init="k-means++", n_init=1, max_iter=100, random_state=seed)
    with warnings.catch_warnings():  # fewer distinct rows than clusters is no fault of the caller's
        warnings.simplefilter("ignore", ConvergenceWarning)
        return means.fit_predict(embeddings)


def _cluster_faiss(embeddings: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    import faiss

    means = faiss.Kmeans(
        embeddings.shape[1],
        clusters,
        niter=FAISS_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(embeddings),  # all rows, not a sample of them
    )
    means.train(np.ascontiguousarray(embeddings))
    return means.assign(np.ascontiguousarray(embeddings))[1]


def normalized_mutual_information(
    labels: np.ndarray, clusters: np.ndarray, average: str = "arithmetic"
) -> float:
    """Mutual information of classes and clusters over the mean of their entropies, 0 to 1.

    average: "arithmetic", as scikit-learn and pytorch-metric-learning have it, or "geometric", as
    many older papers. 1 for one class in one cluster, nan without rows.
    """
    from sklearn.metrics import normalized_mutual_info_score

    if not len(labels):
        return float("nan")
    return float(normalized_mutual_info_score(labels, clusters, average_method=average))


def adjusted_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Mutual information corrected for chance, over the arithmetic mean of the entropies.

    1 for equal partitions, about 0 for independent ones; nan without rows.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if not len(labels):
        return float("nan")
    return float(adjusted_mutual_info_score(labels, clusters))


def pairwise_f1(labels: np.ndarray, clusters: np.ndarray) -> float:
    """F1 of "in one cluster" as a prediction of "of one class" over all unordered pairs of rows.

    nan where no two rows share a class or a cluster.
    """
    from sklearn.metrics.cluster import pair_confusion_matrix

    if not len(labels):
        return float("nan")
    (_, false_positive), (false_negative, true_positive) = pair_confusion_matrix(labels, clusters)
    pairs = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / pairs) if pairs else float("nan")
