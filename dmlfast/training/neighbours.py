"""Batches of positive pairs and the images that the network takes for theirs."""

import numpy as np
import torch
from torch import Tensor

from dmlfast.ops.numerics import computed

OWN_CLASS, TAKEN = 1e30, float("inf")  # distances that put a candidate behind all others


def hard_neighbours(embeddings: Tensor, labels: Tensor | np.ndarray, group: int) -> Tensor:
    """The rows to train on, of those that `HardNeighbourSampler` drew for a step.

    Each image of a pair, one after the other, takes the nearest candidate of another class that no
    other has taken yet, of the candidates of all groups; where there is none left, one of its own.

    Args:
        embeddings: (groups * group, D) float; in each group a positive pair, then candidates.
        labels: (groups * group,) integers, a tensor or an array.
        group: rows in a group.

    Returns:
        (groups * 4,) int64 on the device of the embeddings, numbers of rows: of each group the pair
        and the neighbours of the one and of the other.
    """
    embeddings = computed(embeddings.detach())
    labels = torch.as_tensor(labels, device=embeddings.device)
    rows = torch.arange(len(labels)).view(-1, group)
    pairs, candidates = rows[:, :2].flatten(), rows[:, 2:].flatten()
    distances = torch.cdist(
        embeddings[pairs], embeddings[candidates], compute_mode="donot_use_mm_for_euclid_dist"
    )
    own = labels[pairs, None] == labels[candidates]
    remaining = distances.masked_fill(own, OWN_CLASS).cpu().numpy()
    taken = []
    for distance in remaining:
        nearest = int(distance.argmin())
        remaining[:, nearest] = TAKEN
        taken.append(nearest)
    chosen = torch.cat([pairs.view(-1, 2), candidates[taken].view(-1, 2)], dim=1)
    return chosen.flatten().to(embeddings.device)
