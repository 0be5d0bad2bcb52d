"""NT-Xent over all positive pairs against the ways to write it in PyTorch."""

from dmlfast.bench import cosines
from dmlfast.bench.batches import positives_by_all
from dmlfast.bench.benchmark import Size

from dmlfast.losses import NTXentLoss


def pml_memory(size: Size) -> float:
    """Of tensors of positive pairs x negative pairs."""
    return size.n * positives_by_all(4.4, size)


BENCHMARK = cosines.benchmark(
    "ntxent",
    cosines.ntxent,
    NTXentLoss,
    "NTXentLoss",
    pml_memory=pml_memory,
    without=("cuda",),
)
