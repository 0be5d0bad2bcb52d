"""Time and memory of a loss and its gradient, against what one would write in PyTorch."""

import importlib
from typing import TYPE_CHECKING

from dmlfast.errors import UserError, unknown_name

if TYPE_CHECKING:
    from dmlfast.bench.benchmark import Benchmark

# Each module holds a `Benchmark` called BENCHMARK and is imported only to run it.
BENCHMARKS = {
    "boosted": ("dmlfast.bench.boosted", "BIER: boosted deviance of three learners"),
    "contrastive": ("dmlfast.bench.contrastive", "Contrastive loss, over all pairs of a batch"),
    "lifted": ("dmlfast.bench.lifted", "Lifted structured loss, over all pairs of a batch"),
    "multi-similarity": ("dmlfast.bench.multi_similarity", "Multi-similarity loss, over all pairs"),
    "norm-softmax": ("dmlfast.bench.norm_softmax", "Normalised softmax, over all classes"),
    "ntxent": ("dmlfast.bench.ntxent", "NT-Xent, over all positive pairs of a batch"),
    "pddm": ("dmlfast.bench.pddm", "PDDM loss on the hardest quadruplet of a batch"),
    "pddm-anchors": ("dmlfast.bench.pddm_anchors", "PDDM loss on a quadruplet of each anchor"),
    "supcon": ("dmlfast.bench.supcon", "Supervised contrastive loss, over all pairs of a batch"),
    "triplet": ("dmlfast.bench.triplet", "Triplet loss, over all triplets of a batch"),
}

# Losses by whose name there is no benchmark, and what is measured of them.
COVERED = {
    "a-bier": "boosted, without what makes learners differ",
    "bier": "boosted",
    "generalized-lifted": "lifted, the nearest to it",
    "proxy-anchor": "multi-similarity, the nearest to it",
}

DTYPES = ("float32", "bfloat16", "float16")  # that embeddings can be measured in


def check_name(name: str) -> None:
    """Raises a `UserError` where no benchmark is called `name`."""
    if name in COVERED:
        raise UserError(f"there is no benchmark '{name}': the one for that loss is {COVERED[name]}")
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)


def get_benchmark(name: str) -> "Benchmark":
    """The benchmark called `name`. Raises `UserError` where there is none."""
    check_name(name)
    benchmark: Benchmark = importlib.import_module(BENCHMARKS[name][0]).BENCHMARK
    return benchmark
