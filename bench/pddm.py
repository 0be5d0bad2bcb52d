"""A step of the PDDM loss, mining and hinges, against the ways to write it in PyTorch."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F  # noqa: N812
from dmlfast.bench import batches
from dmlfast.bench.baselines import chunk_rows, wide
from dmlfast.bench.benchmark import Benchmark, Competitor, Loss, Problem
from dmlfast.bench.sizes import Size, Sizes

from dmlfast import losses

SCORE_MARGIN, EMBEDDING_MARGIN, EMBEDDING_WEIGHT = 3.0, 1.0, 0.5
SIZES = {
    "cpu": Sizes("128x128,512x128", "128x128", "4096x128"),
    "cuda": Sizes("512x128,4096x128", "512x128", "4096x512"),
}
Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def problem(size: Size) -> Problem:
    """Unit-norm rows as of other pair losses, and the weights of a unit as wide as they are."""
    torch.manual_seed(0)
    unit = losses.PDDMUnit(size.d)
    weights = {name.replace(".", "_"): weight for name, weight in unit.state_dict().items()}
    for name, weight in weights.items():  # differences of scores do not depend on the last bias
        weights[name] = weight.clone().requires_grad_(name != "score_bias")
    return {**batches.problem(size), **weights}


@cache
def module(per: str, d: int, impl: str) -> losses.PDDMLoss:
    """The loss without weights, which are those of the problem."""
    with torch.device("meta"):
        loss = losses.PDDMLoss(d, per=per, normalize_embeddings=False, impl=impl)
    for layer in loss.unit.children():
        layer._parameters.clear()
    return loss


def ours(per: str, impl: str) -> Competitor:
    """The loss module on one backend."""

    def step(
        embeddings: torch.Tensor, labels: torch.Tensor, **weights: torch.Tensor
    ) -> torch.Tensor:
        loss = module(per, embeddings.shape[1], impl)
        for name, weight in weights.items():  # no parameter any more, but as quick to find
            layer, of_layer = name.split("_")
            vars(getattr(loss.unit, layer))[of_layer] = weight
        value: torch.Tensor = loss(embeddings, labels)
        return value

    competitor = batches.dmlfast(step, impl, without=("cuda",))
    wanted = activations if impl == "reference" else None
    return Competitor(competitor.name, lambda: step, memory=wanted, declines=competitor.declines)


def unit_scores(w: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The scores of x (..., D) with y (..., D), as the formula reads."""
    u = F.linear((x - y).abs(), w["difference_weight"], w["difference_bias"]).relu()
    v = F.linear((x + y) / 2, w["mean_weight"], w["mean_bias"]).relu()
    joined = torch.cat([F.normalize(u, dim=-1), F.normalize(v, dim=-1)], dim=-1)
    joint = F.linear(joined, w["joint_weight"], w["joint_bias"]).relu()
    return F.linear(joint, w["score_weight"], w["score_bias"]).squeeze(-1)


def hinges(x: torch.Tensor, quadruplets: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The double-header hinge of quadruplets (Q, 4), their mean."""
    i, j, k, l = quadruplets.unbind(1)  # noqa: E741

    def pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scores(x[a], x[b]), torch.linalg.vector_norm(x[a] - x[b], dim=1)

    (s, d), (s_i, d_i), (s_j, d_j) = pair(i, j), pair(i, k), pair(j, l)
    on_scores = (SCORE_MARGIN + s_i - s).relu() + (SCORE_MARGIN + s_j - s).relu()
    on_distances = (EMBEDDING_MARGIN + d - d_i).relu() + (EMBEDDING_MARGIN + d - d_j).relu()
    return (on_scores + EMBEDDING_WEIGHT * on_distances).mean()


def mined(scores: torch.Tensor, labels: torch.Tensor, per: str) -> torch.Tensor:
    """Quadruplets by the scores of all pairs (N, N)."""
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = scores.masked_fill(~others, torch.inf).min(1)
    negative = scores.masked_fill(same, -torch.inf).argmax(1)
    i = torch.arange(len(labels), device=labels.device)
    if per == "batch":
        i = positive.values.argmin(keepdim=True)
    j = positive.indices[i]
    return torch.stack([i, j, negative[i], negative[j]], 1)


def naive(
    per: str, embeddings: torch.Tensor, labels: torch.Tensor, **weights: torch.Tensor
) -> torch.Tensor:
    """All scores at once, without their gradient; then the loss of what they select."""
    x, scores = wide(embeddings), partial(unit_scores, weights)
    with torch.no_grad():
        found = mined(scores(x[:, None], x), labels, per)
    return hinges(x, found, scores)


def chunked(
    per: str, embeddings: torch.Tensor, labels: torch.Tensor, **weights: torch.Tensor
) -> torch.Tensor:
    """The same with the scores of few rows at a time."""
    x, scores = wide(embeddings), partial(unit_scores, weights)
    step = max(1, chunk_rows(x) ** 2 // len(x) // 16)
    with torch.no_grad():
        parts = [scores(rows[:, None], x) for rows in x.split(step)]
        found = mined(torch.cat(parts), labels, per)
    return hinges(x, found, scores)


def selective(
    embeddings: torch.Tensor, labels: torch.Tensor, **weights: torch.Tensor
) -> torch.Tensor:
    """Of a batch's one quadruplet the positive pairs, and the rows of the ends, alone."""
    x, scores = wide(embeddings), partial(unit_scores, weights)
    with torch.no_grad():
        i, j = (labels[:, None] == labels).triu(1).nonzero(as_tuple=True)
        hardest = scores(x[i], x[j]).argmin()
        ends = torch.stack([i[hardest], j[hardest]])
        same = labels[ends, None] == labels
        negatives = scores(x[ends][:, None], x).masked_fill(same, -torch.inf).argmax(1)
    return hinges(x, torch.cat([ends, negatives])[None], scores)


def activations(size: Size) -> float:
    """Bytes of what all pairs take at once where their gradient is not wanted."""
    return 4.0 * size.n**2 * 6 * size.d


def few_pairs(size: Size) -> float:
    """Bytes of a problem and its truth in float64."""
    return 8.0 * (20 * size.n * size.d + 2**16 // 16 * 12 * size.d + 20 * size.d**2)


def benchmark(per: str, truth: Loss, others: tuple[Competitor, ...] = ()) -> Benchmark:
    """A step of so many quadruplets."""
    way = partial(naive, per)
    return Benchmark(
        name="pddm" if per == "batch" else "pddm-anchors",
        problem=problem,
        baselines=(
            Competitor("naive", lambda: way, memory=activations),
            Competitor("chunked", lambda: partial(chunked, per), largest={"cpu": 1024}),
            *others,
        ),
        dmlfast=partial(ours, per),
        truth=lambda size: truth,
        # of a pair once: its difference through a layer, and both branches through another
        product_flops=lambda size: size.n**2 / 2 * 2.0 * 3 * size.d**2,
        memory=few_pairs,
        sizes=SIZES,
    )


BENCHMARK = benchmark("batch", selective, (Competitor("selective", lambda: selective),))
ANCHORS = benchmark("anchor", partial(chunked, "anchor"))
