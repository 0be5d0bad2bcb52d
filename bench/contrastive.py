"""The contrastive loss against the ways to write it in PyTorch."""

from functools import partial

from dmlfast.bench import baselines
from dmlfast.bench.batches import dmlfast, matrices, problem
from dmlfast.bench.benchmark import Benchmark, Competitor

from dmlfast import ops

BENCHMARK = Benchmark(
    name="contrastive",
    problem=problem,
    baselines=(
        Competitor("naive", lambda: baselines.contrastive_naive, memory=partial(matrices, 9)),
        Competitor(
            "compiled",
            lambda: baselines.compiled(baselines.contrastive_naive),
            memory=partial(matrices, 5),
            compiles=True,
        ),
        Competitor("chunked", lambda: baselines.contrastive_chunked, largest={"cpu": 16384}),
        Competitor("pml", baselines.contrastive_pml, memory=partial(matrices, 20)),
    ),
    dmlfast=partial(dmlfast, ops.contrastive_loss, without=("cuda",)),
    truth=lambda size: baselines.contrastive_chunked,
    product_flops=lambda size: 2.0 * size.n**2 * size.d,
)
