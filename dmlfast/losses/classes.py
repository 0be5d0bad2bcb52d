"""The classes that a loss has weights for, and the labels of a batch among them."""

from collections.abc import Sequence

import numpy as np
import torch

from dmlfast.ops import checks
from dmlfast.ops.library import is_plain


def known_classes(classes: torch.Tensor | np.ndarray | Sequence[int] | int) -> torch.Tensor:
    """(C,) int64, the labels that exist, ascending: those that are given, or 0 to C - 1.

    Raises:
        TypeError, ValueError: they are not integers, or one is there twice, or there is none.
    """
    if isinstance(classes, int | np.integer):
        return torch.arange(checks.whole_number("num_classes", classes, 1))
    if isinstance(classes, list | tuple | np.ndarray):
        classes = torch.as_tensor(classes)
    if not isinstance(classes, torch.Tensor) or classes.is_floating_point():
        what = classes.dtype if isinstance(classes, torch.Tensor) else type(classes).__name__
        raise TypeError(f"num_classes must be a number or a tensor of integers, not {what}")
    known = classes.long().sort().values
    if known.dim() != 1 or not len(known):
        raise ValueError(
            f"num_classes, as labels, must have shape (C,) with C >= 1, not {tuple(classes.shape)}"
        )
    if (twice := known[1:][known[1:] == known[:-1]]).numel():
        raise ValueError(
            f"num_classes must hold each label once, but {twice[0].item()} is there twice"
        )
    return known


def places_of(labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(N,) int64, the places of the labels among the classes (C,), which are in ascending order.

    Raises:
        ValueError: a label is none of them. On a GPU, where a check would make the host wait, and
            where labels are traced, its place is C instead.
    """
    labels = labels.long().contiguous()
    found = torch.searchsorted(classes, labels)
    at_most_last = found.clamp_max(len(classes) - 1)
    wrong = classes[at_most_last] != labels
    if is_plain(labels) and labels.device.type == "cpu" and wrong.any():
        raise ValueError(
            f"label {labels[wrong][0].item()} is not one of the classes of this loss: give those "
            "that there are, each once, as num_classes"
        )
    return torch.where(wrong, len(classes), found)
