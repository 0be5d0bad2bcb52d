"""The scores of the position-dependent metric unit in plain PyTorch: the definition of right."""

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.numerics import computed, nan_unless_finite, unit_rows
from dmlfast.ops.pairs.reference import pair_distances
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.unit import Weights


def pair_scores(
    x: torch.Tensor, y: torch.Tensor, weights: Weights, normalize_inputs: bool
) -> torch.Tensor:
    """(...) the scores of x (..., D) with y (..., D)."""
    difference, mean = (x - y).abs(), (x + y) / 2
    if normalize_inputs:
        difference, mean = unit_rows(difference), unit_rows(mean)
    u = F.linear(difference, weights.difference_weight, weights.difference_bias).relu()
    v = F.linear(mean, weights.mean_weight, weights.mean_bias).relu()
    joined = torch.cat([unit_rows(u), unit_rows(v)], dim=-1)
    joint = F.linear(joined, weights.joint_weight, weights.joint_bias).relu()
    return F.linear(joint, weights.score_weight, weights.score_bias).squeeze(-1)


def pddm_scores(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    pairs: tuple[torch.Tensor, torch.Tensor] | None,
    weights: Weights,
    normalize_inputs: bool,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.pddm_scores`."""
    x = computed(rows)
    y = x if columns is None else computed(columns)
    x, y = (x[pairs[0]], y[pairs[1]]) if pairs else (x[:, None], y[None])
    with torch.autocast(x.device.type, enabled=False):
        scores = pair_scores(x, y, weights.computed(), normalize_inputs)
    broken = (0 * (x + y).detach()).sum(-1)  # NaN where a row is not finite
    return scores + broken + nan_unless_finite(*weights)


def quadruplet_loss(
    rows: torch.Tensor,
    quadruplets: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
    hinges: Hinges,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.pddm.hinges.quadruplet_loss`."""
    some = quadruplets[:, 0] >= 0
    i, j, k, l = quadruplets.clamp_min(0).unbind(1)  # noqa: E741
    pairs = torch.cat([i, i, j][: 1 + hinges.ends]), torch.cat([j, k, l][: 1 + hinges.ends])
    shape = 1 + hinges.ends, len(quadruplets)
    S = pddm_scores(rows, None, pairs, weights, normalize_inputs).view(shape)
    x = computed(rows)
    difference = x[pairs[0]] - x[pairs[1]]
    D = difference.square().sum(1) if hinges.squared else difference.norm(dim=1)
    D = D.view(shape)
    on_scores = (hinges.score_margin + S[1:] - S[0]).relu().sum(0)
    on_distances = (hinges.embedding_margin + D[0] - D[1:]).relu().sum(0)
    losses = torch.where(some, on_scores + hinges.embedding_weight * on_distances, 0)
    return losses.sum() / some.sum().clamp_min(1) + nan_unless_finite(rows, *weights)


def pddm_hard_quadruplets(
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: Weights | None,
    normalize_inputs: bool,
    per: str,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.pddm_hard_quadruplets`."""
    x = computed(rows)
    if weights is None:
        scores = -pair_distances(x, x)
    else:
        scores = pddm_scores(rows, None, None, weights, normalize_inputs)
    return quadruplets(scores, labels, per)


def quadruplets(scores: torch.Tensor, labels: torch.Tensor, per: str) -> torch.Tensor:
    """The hard quadruplets by all scores (N, N), of which S_ij and S_ji are the same."""
    N = len(scores)
    same = labels[:, None] == labels
    others = same & ~torch.eye(N, dtype=torch.bool, device=scores.device)
    hardest = scores.masked_fill(same, -torch.inf)
    found = torch.full((1 if per == "batch" else N, 4), -1, device=scores.device)
    for q in range(len(found) if N else 0):
        if per == "anchor":
            pairs = torch.zeros_like(others)
            pairs[q] = others[q]
        else:  # each once
            pairs = others.triu() if per == "batch" else others.triu() & same[q]
        if not pairs.any():
            continue
        i, j = divmod(int(scores.masked_fill(~pairs, torch.inf).argmin()), N)
        if same[i].all() or (per == "class" and i != q):
            continue
        found[q] = torch.tensor([i, j, int(hardest[i].argmax()), int(hardest[j].argmax())])
    return found
