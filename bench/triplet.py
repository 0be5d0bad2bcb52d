"""The triplet loss over all triplets of a batch against the ways to write it in PyTorch."""

from functools import partial

from dmlfast.bench import baselines
from dmlfast.bench.batches import dmlfast, matrices, positives_by_all, problem
from dmlfast.bench.benchmark import Benchmark, Competitor, Size

from dmlfast import ops


def cubes(count: float, size: Size) -> float:
    """Bytes of so many float32 tensors N x N x N."""
    return size.n * matrices(count, size)


BENCHMARK = Benchmark(
    name="triplet",
    problem=problem,
    baselines=(
        Competitor("naive", lambda: baselines.triplet_naive, memory=partial(cubes, 5)),
        Competitor(
            "indexed", lambda: baselines.triplet_indexed, memory=partial(positives_by_all, 7)
        ),
        Competitor("chunked", lambda: baselines.triplet_chunked, largest={"cpu": 16384}),
        Competitor("pml", baselines.triplet_pml, memory=partial(cubes, 0.4)),
    ),
    dmlfast=partial(dmlfast, ops.triplet_loss, without=("cuda",), memory=200),
    truth=lambda size: baselines.triplet_chunked,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
