"""The lifted structured loss against the ways to write it in PyTorch."""

from functools import partial

from dmlfast.bench import baselines
from dmlfast.bench.batches import ROWS_PER_CLASS, dmlfast, matrices, problem
from dmlfast.bench.benchmark import Benchmark, Competitor, Loss, Size

from dmlfast import ops

FULLY_CHECKED = 2**18  # above so many rows the gradient is checked on a sample of them:
SAMPLED_CHUNKS = 16  # at even distances in the order of labels, which is a random one of rows


def pml_memory(size: Size) -> float:
    """Bytes of its tensors of positive pairs x negative pairs: 22 for an entry, measured."""
    n, m = size.n, min(ROWS_PER_CLASS, size.n)
    return 22.0 * (n * (m - 1)) * (n * (n - m))


def truth(size: Size) -> Loss:
    """The loss that others are held to, with its whole gradient or that of a sample of rows."""
    sampled = SAMPLED_CHUNKS if size.n > FULLY_CHECKED else None
    return partial(baselines.lifted_chunked, sampled_chunks=sampled)


BENCHMARK = Benchmark(
    name="lifted",
    problem=problem,
    baselines=(
        Competitor("naive", lambda: baselines.lifted_naive, memory=partial(matrices, 8.5)),
        Competitor(
            "compiled",
            lambda: baselines.compiled(baselines.lifted_naive),
            memory=partial(matrices, 4),
            compiles=True,
        ),
        Competitor("indexed", lambda: baselines.lifted_indexed, memory=partial(matrices, 6.5)),
        Competitor("chunked", lambda: baselines.lifted_chunked, largest={"cpu": 16384}),
        Competitor("pml", baselines.lifted_pml, memory=pml_memory),
    ),
    dmlfast=partial(dmlfast, ops.lifted_structured_loss),
    truth=truth,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
