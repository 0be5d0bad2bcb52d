"""How well clusters found without labels agree with the classes."""

import warnings

import numpy as np


def cluster(embeddings: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Assigns N rows to clusters by k-means, (N,) integers.

    scikit-learn's k-means, one run from a greedy k-means++ start. In float64, so that the order of
    a sum, which depends on the number of threads, does not show.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(clusters, init="k-means++", n_init=1, max_iter=100, random_state=seed)
    with warnings.catch_warnings():  # fewer distinct rows than clusters is no fault of the caller's
        warnings.simplefilter("ignore", ConvergenceWarning)
        return means.fit_predict(embeddings.astype(np.float64))


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
