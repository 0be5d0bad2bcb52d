"""Means over queries, and what another draw of the queries would change."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def summarize(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, Any]:
    """The mean of each named (Q,) array and, if there are resamples, their `intervals` by name.

    nan without queries.
    """
    table = np.column_stack([np.asarray(column, dtype=np.float64) for column in values.values()])
    means = table.mean(axis=0) if len(table) else np.full(len(values), np.nan)
    report: dict[str, Any] = dict(zip(values, means.tolist(), strict=True))
    if resamples:
        intervals = bootstrap_intervals(table, resamples, seed).tolist()
        report["intervals"] = dict(zip(values, intervals, strict=True))
    return report


def bootstrap_intervals(values: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """95 % percentile intervals of the column means of (Q, m) values under resampled rows, (m, 2).

    nan without rows.
    """
    Q, m = values.shape
    if not Q:
        return np.full((m, 2), np.nan)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, m))
    for row in means:
        row[:] = np.bincount(generator.integers(Q, size=Q), minlength=Q) @ values / Q
    return np.percentile(means, [2.5, 97.5], axis=0).T


def summarize_classes(
    right: np.ndarray,
    queries: np.ndarray,
    groups: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The accuracy averaged over each named group of classes and, if asked for, its `intervals`.

    These are as in `summarize`, but the queries of each class are resampled among themselves.

    Args:
        right, queries: (C,) integers, how many queries of a class are right, and how many it has.
        groups: by name, (C,) bool; the average of no class is nan.
        resamples: 0 for no intervals.
        seed: of the resampling.
    """

    def averages(accuracy: np.ndarray) -> list[float]:
        chosen = (accuracy[members] for members in groups.values())
        return [float(values.mean()) if len(values) else float("nan") for values in chosen]

    accuracy = right / queries
    report: dict[str, Any] = dict(zip(groups, averages(accuracy), strict=True))
    if resamples:
        generator = np.random.default_rng(seed)
        means = np.empty((resamples, len(groups)))
        for row in means:
            row[:] = averages(generator.binomial(queries, accuracy) / queries)
        intervals = np.percentile(means, [2.5, 97.5], axis=0).T.tolist()
        report["intervals"] = dict(zip(groups, intervals, strict=True))
    return report


def mean_and_deviation(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean of repeated measurements as `name`, their standard deviation as `name`_std.

    The deviation is the sample's (n - 1); it is not defined, nan, for one measurement.
    """
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return {name: float(values.mean()), f"{name}_std": float(deviation)}
