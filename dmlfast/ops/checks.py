"""Checks of arguments, each raising one line that names the argument and what was expected."""

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch


def embeddings(name: str, tensor: torch.Tensor, like: torch.Tensor | None = None) -> None:
    """A floating (N, D) matrix with D >= 1; on the device and of the width of ``like``."""
    is_tensor(name, tensor)
    if tensor.dim() != 2 or tensor.shape[1] < 1:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, not {tuple(tensor.shape)}")
    floats(name, tensor, tensor if like is None else like)
    if like is not None and tensor.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name} must have the width of embeddings, {like.shape[1]}, not {tensor.shape[1]}"
        )


def labels(name: str, tensor: torch.Tensor, rows: torch.Tensor) -> None:
    """Integers (N,), one for each of the rows, on their device."""
    one_each(name, tensor, rows)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, not {tensor.dtype}")
    device(name, tensor, rows)


def bias(name: str, tensor: torch.Tensor, rows: torch.Tensor) -> None:
    """Floating (N,), one for each of the rows, on their device."""
    one_each(name, tensor, rows)
    floats(name, tensor, rows)


def is_tensor(name: str, tensor: torch.Tensor) -> None:
    """A tensor, and not what could be turned into one."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not {tensor.layout}")


def one_each(name: str, tensor: torch.Tensor, rows: torch.Tensor) -> None:
    """A tensor (N,), one value for each of the rows."""
    is_tensor(name, tensor)
    if tensor.dim() != 1 or tensor.shape[0] != rows.shape[0]:
        raise ValueError(f"{name} must have shape ({rows.shape[0]},), not {tuple(tensor.shape)}")


def floats(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Floating point, float64 where ``like`` is and only there, on the device of ``like``."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, not {tensor.dtype}")
    if (tensor.dtype == torch.float64) != (like.dtype == torch.float64):
        raise TypeError(
            f"{name} must be float64 where embeddings are, and only there: "
            f"it is {tensor.dtype}, they are {like.dtype}"
        )
    device(name, tensor, like)


def device(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """On the device of ``like``."""
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on the device of embeddings, {like.device}, not {tensor.device}"
        )


def finite(name: str, value: float) -> float:
    """The number as a float, neither NaN nor infinite; none that gets a gradient."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise TypeError(f"{name} must be a number: it gets no gradient")
    try:
        is_finite = not isinstance(value, bool) and -math.inf < value < math.inf
    except TypeError:  # no number compares with it
        raise TypeError(f"{name} must be a finite number, not {value!r}") from None
    if not is_finite:
        raise ValueError(f"{name} must be a finite number, not {value}")
    return float(value)


def above_zero(name: str, value: float) -> float:
    """The finite number above 0 as a float."""
    if finite(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return float(value)


def flag(name: str, value: bool) -> bool:
    """True or False, and not what could be taken for one of them."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def whole_number(name: str, value: int, least: float = -math.inf) -> int:
    """The integer, ``least`` or above."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return number


def whole_numbers(name: str, values: Sequence[int]) -> list[int]:
    """The integers of a sequence."""
    if isinstance(values, (list, tuple)) and all(hasattr(each, "__index__") for each in values):
        return [int(each) for each in values]
    raise TypeError(f"{name} must be a list or tuple of integers, not {values!r}")


def choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """One of the known values."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def columns(
    rows: torch.Tensor,
    ref_emb: torch.Tensor | None,
    ref_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    with_labels: bool = True,
) -> torch.Tensor | None:
    """``ref_emb``, ``ref_labels`` and ``self_index`` against the rows they go with; the last is
    returned as int64, since torch takes uint8 for a mask.
    """
    if ref_emb is None:
        for name, tensor in (("ref_labels", ref_labels), ("self_index", self_index)):
            if tensor is not None:
                raise ValueError(f"{name} was given without ref_emb")
        return None
    embeddings("ref_emb", ref_emb, like=rows)
    if ref_labels is not None:
        labels("ref_labels", ref_labels, ref_emb)
    elif with_labels:
        raise ValueError("ref_labels is missing: ref_emb needs one label a row")
    if self_index is None:
        return None
    labels("self_index", self_index, rows)
    return self_index.long()
