"""Data and yardsticks that the tests of the ops share.

Truth is the reference in float64. A kernel may err twice as much as straightforward float32
PyTorch, written out here, on the same input. That one is exact by luck now and then, on small
inputs above all, so a floor is always allowed: a few units in the last place of the largest result;
and, as a term t and its log-sum-exp L are both rounded before exp(t - L) is taken, one unit in the
last place of the largest term. Half-precision results get half a unit of their own.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch

from dmlfast import ops
from dmlfast.ops import gpu, native

Tensors = list[torch.Tensor]
ULPS = 4
ISAS = ("avx512", "avx2", "generic")
IMPLS = ("reference", "cpu", "triton", "cuda")
KERNELS = ("cpu", "triton", "cuda")
LONG_1024 = pytest.param(1024, marks=pytest.mark.long)  # emulated, so many components take long
LONG_4096 = pytest.param(4096, marks=pytest.mark.long)  # and these take minutes
NOT_CUDA = ("cpu", "triton")  # the kernels of ops that CUDA has none for
ON_GPU = ("triton", "cuda")  # those that run on a GPU, or where there is none in the CPU's stead
DEVICE = "cuda" if torch.cuda.is_available() and not gpu.interpreted() else "cpu"  # of those
INTERPRETED_PAIRS = 24_000  # more pairs take too long in Triton's interpreter
EMULATED_PAIRS = 100_000  # and in the emulation of CUDA
CAPABILITY = "DML_EMULATED_CAPABILITY"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Problem:
    """What an op may be given. Without columns the rows face themselves."""

    rows: torch.Tensor
    labels: torch.Tensor
    columns: torch.Tensor | None = None
    column_labels: torch.Tensor | None = None
    self_index: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    floor: torch.Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Problem":
        cast = (None if t is None else t.to(dtype) for t in (self.rows, self.columns, self.bias))
        rows, columns, bias = cast
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        floor = None if self.floor is None else self.floor.to(exact)
        return replace(self, rows=rows, columns=columns, bias=bias, floor=floor)

    def on(self, device: torch.device | str) -> "Problem":
        return Problem(*(None if t is None else t.to(device) for t in vars(self).values()))

    @property
    def pairs(self) -> int:
        return len(self.rows) * len(self.rows if self.columns is None else self.columns)

    @property
    def inputs(self) -> list[torch.Tensor | None]:
        """What can have a gradient."""
        return [self.rows, self.columns, self.bias]

    @property
    def selves(self) -> torch.Tensor | None:
        """The column that is row i itself, also where the rows face themselves."""
        if self.columns is not None:
            return self.self_index
        return torch.arange(len(self.rows), device=self.rows.device)


def problem(
    n: int,
    m: int | None = None,
    d: int = 8,
    *,
    selves: bool = False,
    bias: bool = False,
    per_class: int = 3,
    scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    """Normal rows (n, d) in classes of about ``per_class``, unordered; columns (m, d) unless None.

    With ``selves`` two thirds of the rows, as far as there are columns, are copied to a column of
    their own. Some classes have rows only, some columns only.
    """
    random = generator(seed)
    width = n if m is None else m
    classes = max(1, max(n, width) // per_class)
    rows = torch.randn(n, d, generator=random) * scale
    labels = torch.randint(0, classes, (n,), generator=random)
    offsets = torch.randn(width, generator=random) if bias else None
    if m is None:
        return Problem(rows, labels, bias=offsets)
    columns = torch.randn(m, d, generator=random) * scale
    column_labels = torch.randint(classes // 3, classes + classes // 3 + 1, (m,), generator=random)
    index = None
    if selves:
        index = torch.full((n,), -1)
        copied = torch.randperm(n, generator=random)[: min(m, (2 * n + 2) // 3)]
        index[copied] = torch.randperm(m, generator=random)[: len(copied)]
        columns[index[copied]], column_labels[index[copied]] = rows[copied], labels[copied]
    return Problem(rows, labels, columns, column_labels, index, offsets)


def with_duplicates(p: Problem, share: float = 0.1, noise: float = 0.0) -> Problem:
    """The same, a share of the rows replaced by near copies of others, mostly of another class."""
    copies = int(len(p.rows) * share)
    rows = p.rows.clone()
    rows[:copies] = rows[-copies:] + noise * torch.randn(
        copies, rows.shape[1], generator=generator(9)
    )
    return replace(p, rows=rows)


def gram_distances(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    squared = (x.square().sum(1)[:, None] + r.square().sum(1) - 2 * x @ r.T).clamp_min(0)
    return torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)


def direct_distances(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, r, compute_mode="donot_use_mm_for_euclid_dist")


def careful_distances(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """From products, but from differences where rows nearly coincide, as documented."""
    norms = x.square().sum(1)[:, None] + r.square().sum(1)
    direct = direct_distances(x, r)
    return torch.where(direct.square() < norms / 1024, direct, gram_distances(x, r))


def selected(p: Problem, select: str) -> torch.Tensor:
    """(N, M) mask of the pairs that a selection takes."""
    width = len(p.rows if p.columns is None else p.columns)
    column_labels = p.labels if p.columns is None else p.column_labels
    device = p.rows.device
    itself = torch.zeros(len(p.rows), width, dtype=torch.bool, device=device)
    if p.selves is not None:
        itself = p.selves[:, None] == torch.arange(width, device=device)
    if select == "other":
        return ~itself
    if select == "all":
        return torch.ones_like(itself)
    same = p.labels[:, None] == column_labels
    return same & ~itself if select == "positive" else ~same


def plain_logsumexp(terms: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    lowest = torch.finfo(terms.dtype).min
    found = torch.where(mask, terms, lowest).logsumexp(dim)
    return torch.where(mask.any(dim), found, -torch.inf)


def plain_pair_reduce(
    p: Problem,
    *,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gram_distances,
    score: str = "distance",
    select: str = "negative",
    scale: float = 1.0,
    offset: float = 0.0,
    reduce: str = "logsumexp",
) -> torch.Tensor:
    """The pair primitive as one would write it, in the dtype of the problem."""
    r = p.rows if p.columns is None else p.columns
    terms = scale * (distances(p.rows, r) if score == "distance" else p.rows @ r.T) + offset
    if p.bias is not None:
        terms = terms + p.bias
    mask = selected(p, select)
    if p.floor is not None:
        mask = mask & (terms > p.floor[:, None])
    if reduce == "softplus":
        return (torch.logaddexp(terms, torch.zeros_like(terms)) * mask).sum(1)
    if "hinge" in reduce:
        hinges = (terms * mask).relu()
        return (hinges.square() if reduce == "squared_hinge" else hinges).sum(1)
    return (terms * mask).sum(1) if reduce == "sum" else plain_logsumexp(terms, mask, 1)


def plain_lifted(
    p: Problem,
    *,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gram_distances,
    margin: float = 1.0,
) -> torch.Tensor:
    """The lifted loss as one would write it, in the dtype of the problem."""
    distance = distances(p.rows, p.rows if p.columns is None else p.columns)
    negative, positive = selected(p, "negative"), selected(p, "positive")
    row = plain_logsumexp(margin - distance, negative, 1)
    column = row if p.columns is None else plain_logsumexp(margin - distance, negative, 0)
    i, j = (positive.triu(1) if p.columns is None else positive).nonzero(as_tuple=True)
    keep = (row[i] > -torch.inf) | (column[j] > -torch.inf)
    joint = distance[i, j][keep] + torch.logaddexp(row[i][keep], column[j][keep])
    return joint.relu().square().sum() / (2 * max(len(i), 1))


def plain_contrastive(
    p: Problem,
    *,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gram_distances,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    squared: bool = False,
    reduction: str = "nonzero",
) -> torch.Tensor:
    """The contrastive loss as one would write it, in the dtype of the problem."""
    distance = distances(p.rows, p.rows if p.columns is None else p.columns)
    loss = 0
    for select, terms in (("positive", distance - pos_margin), ("negative", neg_margin - distance)):
        hinges = terms[selected(p, select)].relu()
        counts = {"nonzero": (hinges > 0).sum(), "mean": len(hinges), "sum": 1}
        hinges = hinges.square() / 2 if squared else hinges
        loss = loss + hinges.sum() / max(int(counts[reduction]), 1)
    return loss


def triplets(
    p: Problem, distance: torch.Tensor, mining: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anchors, positives and negatives of all triplets, picked one by one."""
    found = []
    positive, negative = selected(p, "positive").tolist(), selected(p, "negative").tolist()
    for a, d in enumerate(distance.tolist()):
        own = [j for j, is_one in enumerate(positive[a]) if is_one]
        others = [j for j, is_one in enumerate(negative[a]) if is_one]
        if not own or not others:
            continue
        if mining == "all":
            found += [(a, i, j) for i in own for j in others]
        elif mining == "hardest":
            found.append((a, max(own, key=d.__getitem__), min(others, key=d.__getitem__)))
        else:
            for i in own:
                beyond = [j for j in others if d[j] > d[i]]
                nearest = min(beyond, key=d.__getitem__, default=None)
                found.append((a, i, max(others, key=d.__getitem__) if nearest is None else nearest))
    return tuple(torch.tensor(found, dtype=torch.long).view(-1, 3).to(distance.device).T)


def plain_triplet(
    p: Problem,
    *,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gram_distances,
    margin: float = 0.2,
    mining: str = "all",
    reduction: str = "nonzero",
) -> torch.Tensor:
    """The triplet loss over a list of triplets, in the dtype of the problem."""
    distance = distances(p.rows, p.rows if p.columns is None else p.columns)
    a, i, j = triplets(p, distance.detach(), mining)
    hinges = (distance[a, i] - distance[a, j] + margin).relu()
    counts = {"nonzero": (hinges > 0).sum(), "mean": len(hinges), "sum": 1}
    return hinges.sum() / max(int(counts[reduction]), 1)


def pair_reduce(p: Problem, **options) -> torch.Tensor:
    return ops.pair_reduce(
        p.rows,
        p.labels,
        p.columns,
        p.column_labels,
        self_index=p.self_index,
        column_bias=p.bias,
        row_floor=p.floor,
        **options,
    )


def pair_max(p: Problem, **options) -> torch.Tensor:
    return ops.pair_max(
        p.rows, p.labels, p.columns, p.column_labels, self_index=p.self_index, **options
    )


def with_floors(p: Problem, *, score: str, scale: float, offset: float, **_) -> Problem:
    """The same with a floor in a wide gap of each row's terms; a few floors leave out nothing, or
    all.
    """
    exact = p.to(torch.float64)
    r = exact.rows if exact.columns is None else exact.columns
    scores = exact.rows @ r.T if score == "dot" else direct_distances(exact.rows, r)
    terms = scale * scores + offset + (0.0 if exact.bias is None else exact.bias)
    random = generator(5)
    edges = terms.sort(1).values
    if terms.shape[1] > 1:
        gaps = edges.diff(dim=1) * (
            torch.rand(terms.shape[0], terms.shape[1] - 1, generator=random) < 0.5
        )
        at = gaps.argmax(1, keepdim=True)
        floor = (edges.gather(1, at) + edges.gather(1, at + 1))[:, 0] / 2
    else:
        floor = torch.full((terms.shape[0],), -1e3, dtype=torch.float64)
    chance = torch.rand(len(floor), generator=random)
    floor[chance < 0.1], floor[chance > 0.9] = torch.inf, -torch.inf
    return replace(p, floor=floor.float())


def lifted(p: Problem, **options) -> torch.Tensor:
    return ops.lifted_structured_loss(
        p.rows, p.labels, p.columns, p.column_labels, self_index=p.self_index, **options
    )


def contrastive(p: Problem, **options) -> torch.Tensor:
    return ops.contrastive_loss(
        p.rows, p.labels, p.columns, p.column_labels, self_index=p.self_index, **options
    )


def triplet(p: Problem, **options) -> torch.Tensor:
    return ops.triplet_loss(
        p.rows, p.labels, p.columns, p.column_labels, self_index=p.self_index, **options
    )


def decided(
    *shape, margins: tuple[float, ...] = (0.0, 0.2), dtype: torch.dtype = torch.float32, **options
) -> Problem:
    """A `problem` in which no rounding decides whether a distance exceeds another by a margin."""
    for seed in range(50):
        p = problem(*shape, seed=seed, **options).to(dtype)
        r = p.rows if p.columns is None else p.columns
        distance = direct_distances(p.rows.double(), r.double())
        clear = True
        for own, positive, negative in zip(
            distance, selected(p, "positive"), selected(p, "negative"), strict=True
        ):
            gaps = own[positive][:, None] - own[negative][None, :]
            for margin in margins:
                clear &= not ((gaps + margin).abs() < 1e-6 * own.max()).any()
        if clear:
            return p
    raise AssertionError("no seed serves")


def upstream_for(value: torch.Tensor) -> torch.Tensor:
    """Gradients that arrive at a result: all different, most of them positive."""
    upstream = 1.5 - 2 * torch.rand(value.shape, generator=generator(3))
    return upstream.to(value.device, value.dtype)


def results(
    op: Callable[..., torch.Tensor], p: Problem, upstream=upstream_for, **options
) -> Tensors:
    """The value of an op and its gradient for every input that it has."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in p.inputs]
    value = op(replace(p, rows=inputs[0], columns=inputs[1], bias=inputs[2]), **options)
    present = [t for t in inputs if t is not None]
    grads = torch.autograd.grad(value, present, upstream(value), allow_unused=True)
    zeros = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, present, strict=True))
    return [value.detach(), *zeros]


def half_unit(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What rounding to ``dtype`` may change; nothing for float32, which kernels compute in."""
    if dtype not in (torch.float16, torch.bfloat16):
        return torch.zeros_like(exact)
    info = torch.finfo(dtype)
    return (exact.abs() * info.eps).clamp_min(info.smallest_normal * info.eps) / 2


def cut_off(dtype: torch.dtype, impl: str) -> float:
    """Units in the last place of float32 that Triton's interpreter loses, which cuts results off
    where a GPU rounds them.
    """
    interpreted = impl in ON_GPU and gpu.interpreted()
    return torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if interpreted else 0.0


def assert_accurate(
    found: Tensors, exact: Tensors, plain: Tensors, ulps: float = ULPS, name: str = ""
) -> None:
    """Each of ``found`` errs at most twice as much as that of ``plain``, plus ``ulps``."""
    for k, (got, truth, yard) in enumerate(zip(found, exact, plain, strict=True)):
        assert got.shape == truth.shape
        assert torch.equal(got.isinf(), truth.isinf()), f"{name} result {k}: infinite elsewhere"
        finite = truth.isfinite()
        if not finite.any():
            continue
        got, truth, yard = got[finite], truth[finite], yard[finite].double()
        yardstick, largest = (yard - truth).abs().max(), truth.abs().max()
        floor = ulps * torch.finfo(torch.float32).eps * largest
        limit = 2 * yardstick + floor + half_unit(truth, got.dtype)
        error = (got.double() - truth).abs()
        assert (error <= limit).all(), (
            f"{name} result {k}: error {error.max():.3g}, allowed {limit.max():.3g} "
            f"(plain {yardstick:.3g}, largest result {largest:.3g})"
        )


def largest_term(
    p: Problem, *, score="distance", reduce="logsumexp", scale=-1.0, offset=0.0, margin=0.0, **_
):
    """The size of what is exponentiated; 0 where nothing is."""
    r = p.rows if p.columns is None else p.columns
    if reduce != "logsumexp" or p.rows.numel() == 0 or r.numel() == 0:
        return 0.0
    bias = 0.0 if p.bias is None else p.bias
    largest = 0.0
    for rows in p.rows.split(1024):
        scores = rows @ r.T if score == "dot" else torch.cdist(rows.double(), r.double())
        largest = max(largest, float((scale * scores + (offset + margin) + bias).abs().max()))
    return largest


def instruction_sets() -> Iterator[str]:
    """Runs the body of a loop under the kernels of each instruction set that this machine has."""
    library = native.cpu_library()
    best = library.dml_cpu_isa()
    try:
        for name in ISAS:
            if not library.dml_cpu_set_isa(name.encode()):
                yield name
    finally:
        library.dml_cpu_set_isa(best)


def emulated_gpus() -> Iterator[str]:
    """Runs the body of a loop as on a GPU of each kind, sm_80 with a few multiprocessors and sm_90;
    once where kernels run on a GPU.
    """
    try:
        for capability in ("8", "9") if gpu.emulated() else ("",):
            os.environ[CAPABILITY] = capability
            yield capability
    finally:
        os.environ.pop(CAPABILITY, None)


def backends(p: Problem, kernels: tuple[str, ...]) -> Iterator[str]:
    """The names of the backends with kernels, the CPU's once for each instruction set, CUDA's once
    for each kind of GPU that is emulated.
    """
    if "cpu" in kernels:
        for _ in instruction_sets():
            yield "cpu"
    if "triton" in kernels and not (gpu.interpreted() and p.pairs > INTERPRETED_PAIRS):
        yield "triton"
    if "cuda" in kernels and not (gpu.emulated() and p.pairs > EMULATED_PAIRS):
        for _ in emulated_gpus():
            yield "cuda"


def assert_kernels_accurate(
    op: Callable[..., torch.Tensor],
    plain: Callable[..., torch.Tensor],
    p: Problem,
    *,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gram_distances,
    upstream: Callable[[torch.Tensor], torch.Tensor] = upstream_for,
    ulps: float = ULPS,
    kernels: tuple[str, ...] = KERNELS,
    truth: Callable[..., torch.Tensor] | None = None,
    **options,
) -> None:
    """``op`` on the kernels of every backend against truth, in value and gradients.

    ``truth``: computes in float64 what ``op`` would; the reference where None.
    """
    exact = results(truth or op, p.to(torch.float64), upstream, impl="reference", **options)
    yard = results(plain, p.to(torch.float32), upstream, distances=distances, **options)
    ulps += largest_term(p.to(torch.float64), **options)
    for impl in backends(p, kernels):
        found = results(op, p, upstream, impl=impl, **options)
        assert found[0].dtype == torch.float32
        assert [t.dtype for t in found[1:]] == [t.dtype for t in p.inputs if t is not None]
        # a GPU's weights are as precise as the rows that they are multiplied with
        rounded = torch.finfo(p.rows.dtype).eps if impl in ON_GPU else 0.0
        allowed = ulps + rounded / torch.finfo(torch.float32).eps
        assert_accurate(found, exact, yard, allowed, impl)


class PairCase(NamedTuple):
    """Options of the pair primitive, and rows of d components that it is given.

    columns: "themselves" or "themselves, biased", where rows face themselves; "others", or
    "gathered" for columns with a bias of which some are rows.
    """

    select: str
    columns: str
    score: str
    reduce: str
    dtype: torch.dtype
    d: int

    def problem(self, n: int, m: int) -> Problem:
        p = problem(
            n,
            None if "themselves" in self.columns else m,
            self.d,
            selves=self.columns == "gathered",
            bias=self.columns in ("themselves, biased", "gathered"),
            seed=self.d,
        )
        return p.to(self.dtype)

    @property
    def options(self) -> dict[str, object]:
        return {
            "select": self.select,
            "score": self.score,
            "reduce": self.reduce,
            "scale": -1 / self.d**0.5,
            "offset": 0.3,
        }

    @property
    def coincide(self) -> bool:
        """Whether selected rows and columns coincide."""
        return self.select == "all" and self.columns != "others"


def pair_cases() -> list[PairCase]:
    """Sixteen cases in which any two options meet in all their combinations.

    They are the lines of an orthogonal array: s, c, s + c, s + a c and s + (a + 1) c over the field
    of four elements 0, 1, a = 2 and a + 1 = 3, whose sum is the exclusive or.
    """
    selects = "negative", "positive", "other", "all"
    columns = "themselves", "themselves, biased", "others", "gathered"
    dtypes = torch.float32, torch.bfloat16, torch.float16, torch.float32
    widths = 3, 64, 129, 200
    cases = []
    for s in range(4):
        for c in range(4):
            first, second, third = s ^ c, s ^ (0, 2, 3, 1)[c], s ^ (0, 3, 1, 2)[c]
            score, reduce = ("dot", "distance")[first % 2], ("logsumexp", "sum")[first // 2]
            kind = (selects[s], columns[c], score, reduce)
            cases.append(PairCase(*kind, dtypes[second], widths[third]))
    return cases
