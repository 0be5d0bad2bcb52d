"""Writes dmlfast/ops/fastest.csv: the fastest backend at each size on each GPU, by bench/results.

    python tools/fastest.py [bench/results/GPU.csv ...]

Without files, all results that were taken on GPUs count.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dmlfast.bench.report import Row, read_csv

from dmlfast.ops import fastest

RESULTS = Path(__file__).parents[1] / "bench" / "results"
MODE = "forward+backward"
PROVIDERS = {"dmlfast-triton": "triton", "dmlfast-cuda": "cuda"}


Size = tuple[str, str, str, int, int]  # as in fastest.FIELDS


def winners(rows: Iterable[Row]) -> dict[Size, str]:
    """The faster of both backends, where both were measured."""
    times: dict[Size, dict[str, float]] = defaultdict(dict)
    for row in rows:
        measured = row.mode == MODE and row.median_ms is not None
        if row.provider in PROVIDERS and measured:
            times[row.machine, row.op, row.dtype, row.n, row.d][PROVIDERS[row.provider]] = (
                row.median_ms
            )
    return {
        size: min(found, key=lambda impl: found[impl])
        for size, found in sorted(times.items())
        if len(found) == len(PROVIDERS)
    }


def main(files: list[str]) -> None:
    found: dict[Size, str] = {}
    for path in files or sorted(RESULTS.glob("*.csv")):
        if path in files or "provider" in Path(path).read_text(encoding="utf-8").split("\n", 1)[0]:
            found |= winners(read_csv(path))
    with open(fastest.TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fastest.FIELDS)
        writer.writerows((*size, impl) for size, impl in sorted(found.items()))
    print(f"{fastest.TABLE}: {len(found)} sizes")


if __name__ == "__main__":
    main(sys.argv[1:])
