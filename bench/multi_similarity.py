"""The multi-similarity loss against the ways to write it in PyTorch."""

from dmlfast.bench import cosines

from dmlfast.losses import MultiSimilarityLoss

BENCHMARK = cosines.benchmark(
    "multi-similarity", cosines.multi_similarity, MultiSimilarityLoss, "MultiSimilarityLoss"
)
