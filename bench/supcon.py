"""The supervised contrastive loss against the ways to write it in PyTorch."""

from dmlfast.bench import cosines

from dmlfast.losses import SupConLoss

BENCHMARK = cosines.benchmark("supcon", cosines.supcon, SupConLoss, "SupConLoss")
