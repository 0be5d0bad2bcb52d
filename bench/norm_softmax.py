"""The normalised softmax over many classes against the ways to write it in PyTorch."""

from functools import partial

import torch
from dmlfast.bench import baselines
from dmlfast.bench.batches import dmlfast
from dmlfast.bench.benchmark import Benchmark, Competitor, Problem
from dmlfast.bench.sizes import CLASS_SIZES, Size
from torch.func import functional_call

from dmlfast import losses, ops
from dmlfast.ops.norm_softmax.op import without

SPREAD = 1.0  # length of the noise around the direction of a row's class, which has length 1
SAMPLED = 0.1  # share of the classes


def problem(size: Size) -> Problem:
    """Rows around the weights of their classes, which are drawn at random."""
    n, d, classes = size
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, d, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    noise = torch.randn(n, d, generator=generator) * SPREAD
    rows = weight[labels] + noise
    return {
        "embeddings": rows.requires_grad_(),
        "weight": weight.requires_grad_(),
        "labels": labels,
    }


def logits(count: float, size: Size) -> float:
    """Bytes of so many float32 matrices of logits, beside the weights at length 1."""
    return 4.0 * size.classes * (count * size.n + 2 * size.d)


def memory(size: Size) -> float:
    """Bytes of a problem and its truth in float64, with a chunk of logits."""
    return 8.0 * size.classes * (5 * size.d + 2 * baselines.CHUNK_ROWS)


def ours(impl: str) -> Competitor:
    """The op on one backend."""
    competitor = dmlfast(ops.norm_softmax_loss, impl)

    def declines(device: str, dtype: torch.dtype) -> str | None:
        if impl in without(torch.device(device), dtype, dtype):
            return "it has no kernels for it"
        return competitor.declines(device, dtype)

    wanted = partial(logits, 4) if impl == "reference" else None
    return Competitor(competitor.name, competitor.make, memory=wanted, declines=declines)


def sampler(classes: int) -> losses.NormSoftmaxLoss:
    """The loss over a tenth of the classes, always the same."""
    return losses.NormSoftmaxLoss(classes, 1, class_fraction=SAMPLED)


def sampled(embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss over a tenth of the classes, with the time to draw them."""
    loss = sampler(len(weight))
    value: torch.Tensor = functional_call(loss, {"weight": weight}, (embeddings, labels))
    return value


def sampled_truth(
    embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The same over the rows of the classes that it draws."""
    drawn = sampler(len(weight)).draw(labels)
    own = torch.searchsorted(drawn, labels)
    return baselines.norm_softmax_chunked(embeddings, weight[drawn], own)


def on_cpu(device: str, dtype: torch.dtype) -> str | None:
    """Why a kernel in Triton is not measured there, or None."""
    return None if device == "cuda" else "it runs on a GPU alone"


low_memory = partial(ops.norm_softmax_loss, low_memory=True)
BENCHMARK = Benchmark(
    name="norm-softmax",
    problem=problem,
    baselines=(
        Competitor("naive", lambda: baselines.norm_softmax_naive, memory=partial(logits, 4)),
        Competitor(
            "compiled",
            lambda: baselines.compiled(baselines.norm_softmax_naive),
            memory=partial(logits, 4),
            compiles=True,
        ),
        Competitor("linear-ce", baselines.norm_softmax_linear, memory=partial(logits, 4)),
        Competitor("chunked", lambda: baselines.norm_softmax_chunked),
        Competitor("cce", baselines.norm_softmax_cce, declines=on_cpu),
        Competitor("liger", baselines.norm_softmax_liger, declines=on_cpu),
        Competitor("low-memory", lambda: low_memory),
        Competitor(
            "low-memory-cuda",
            lambda: partial(low_memory, impl="cuda"),
            declines=ours("cuda").declines,
        ),
        Competitor("sampled", lambda: sampled, truth=lambda size: sampled_truth),
    ),
    dmlfast=ours,
    truth=lambda size: baselines.norm_softmax_chunked,
    product_flops=lambda size: 2.0 * size.n * size.classes * size.d,
    memory=memory,
    sizes=CLASS_SIZES,
)
