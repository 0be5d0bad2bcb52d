"""The loss and its gradients from what the kernels do: the part that is O(N D), in float32.

Kernels take each row's logits of all classes but its own. Here are the row's own logit with its
margins, the smoothing of labels, and rows that do not count.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.norm_softmax.settings import Settings
from dmlfast.ops.norm_softmax.units import sum_of_units, through_norm, units

Gradients = tuple[torch.Tensor | None, torch.Tensor | None]


class Kernels(Protocol):
    """What a backend's module has. rows: (N, D) of weight's dtype; weight: (C, D); labels: (N,)
    int64, -1 where none; target, row_weights: (N,) float32; everyone: (D,) float32 or None.
    """

    def forward(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        target: torch.Tensor,
        row_weights: torch.Tensor,
        scale: float,
        low_memory: bool,
        want_rows: bool,
        want_weight: bool,
        everyone: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-sum-exps L (N,) of scale * cosine over all classes but the label's, -inf over none;
        and the gradients of sum_i row_weight_i softplus(L_i - target_i) for rows and weight, with
        the targets held fixed, float32, None where not wanted. Each class at length 1 has
        everyone's gradient besides.
        """

    def gradients(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        target: torch.Tensor,
        row_weights: torch.Tensor,
        logsumexp: torch.Tensor,
        scale: float,
        want_rows: bool,
        want_weight: bool,
        everyone: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> Gradients:
        """The gradients alone, where memory is low and L is known; that of weight in ``dtype``. Not
        of every backend.
        """

    def own_pairs(
        self, rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """(4, N) float32: inverse lengths of the rows and of the classes of their labels, which are
        all classes, 0 of zeros; and at length 1 the lengths of the difference and of the sum of
        both, `TINY` where they are 0.
        """

    def own_gradients(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        pairs: torch.Tensor,
        d_angle: torch.Tensor,
        d_rows: torch.Tensor | None,
        want_classes: bool,
    ) -> torch.Tensor | None:
        """Adds to ``d_rows`` the gradient of the angles between rows and their classes, times
        d_angle (N,); returns that of each row's class, (N, D) float32, where wanted. ``pairs`` is
        what `own_pairs` returns. Where both are parallel there is none.
        """


def counting(labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(N,) 1 for the rows that count, else 0."""
    return (labels != settings.ignore_index).float()


class _Batch:
    """A call, as far as no kernel is needed.

    x: (N, D), 0 where rows do not count; of the dtype in which kernels compute, as weight (C, D).
    labels: (N,) 0 where there is none. for_kernels: the same, -1 where there is none.
    everyone: (D,) the gradient that smoothing gives each class at length 1, or None.
    """

    def __init__(
        self,
        kernels: Kernels,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        row_weights: torch.Tensor,
        settings: Settings,
    ):
        self.kernels = kernels
        self.weight = weight if rows.dtype == weight.dtype else weight.float()
        self.ignored = labels == settings.ignore_index
        self.labels, self.unknown = _known(labels, self.ignored, len(weight))
        self.for_kernels = self.labels.masked_fill(self.ignored, -1)
        self.x = rows.to(self.weight.dtype)
        if rows.is_cuda or self.ignored.any():  # a GPU would be waited for
            self.x = self.x.masked_fill(self.ignored[:, None], 0)
        self.row_weights = self._shown(row_weights)
        self.settings, self.scale = settings, 1 / settings.temperature
        self.share = settings.label_smoothing / len(weight)
        self.pairs = kernels.own_pairs(self.x, self.weight, self.labels)
        self.angle = 2 * torch.atan2(self.pairs[2], self.pairs[3])
        cosine = self._margined().cos()
        if settings.cosine_margin:
            cosine = cosine - settings.cosine_margin
        self.target = self.scale * cosine
        self.everyone = self.total = self.others = None
        if settings.label_smoothing:
            self.total = sum_of_units(self.weight, settings.low_memory)
            unit = units(self.x.float())[0]
            self.others = unit @ self.total
            self.everyone = self._d_everyone() @ unit

    def _shown(self, values: torch.Tensor) -> torch.Tensor:
        """Values (N,) of rows, 0 where one does not count and NaN where its label is unknown."""
        return values.masked_fill(self.ignored, 0).masked_fill_(self.unknown, math.nan)

    def _margined(self) -> torch.Tensor:
        margin = self.settings.angular_margin
        return self.angle + margin if margin else self.angle

    def _d_everyone(self) -> torch.Tensor:
        """(N,) the gradient of each cosine of a row, of all classes alike."""
        return -self.share * self.scale * self.row_weights

    def losses(self, L: torch.Tensor) -> torch.Tensor:
        """(N,), NaN where a label is unknown."""
        # log sum exp of all logits less the own one, which does not cancel where that one is large
        losses = F.softplus(L - self.target)
        if self.others is not None:
            everyone = self.scale * (self.others - self.angle.cos()) + self.target
            losses = losses + self.settings.label_smoothing * self.target - self.share * everyone
        return self._shown(losses)

    def d_angle(self, L: torch.Tensor) -> torch.Tensor:
        """(N,) the gradient of the angles with the own classes."""
        d_target = torch.sigmoid(L - self.target)
        if self.share:
            d_target = d_target - (self.settings.label_smoothing - self.share)
        d_angle = d_target * self._margined().sin()
        if self.share:
            d_angle = d_angle - self.share * self.angle.sin()
        return self.scale * self.row_weights * d_angle

    def finish(
        self, d_angle: torch.Tensor, d_rows: torch.Tensor | None, want_classes: bool
    ) -> torch.Tensor | None:
        """Adds to what kernels have found what the own classes and smoothing give the rows; returns
        what each row gives its class, (N, D), where wanted.
        """
        if d_rows is not None and self.total is not None:
            everyone = self._d_everyone()[:, None] * self.total
            d_rows += through_norm(everyone, *units(self.x.float()))
        given = self.x, self.weight, self.labels, self.pairs, d_angle
        return self.kernels.own_gradients(*given, d_rows, want_classes)


def losses_and_gradients(
    kernels: Kernels,
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    settings: Settings,
    want_rows: bool,
    want_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The loss of each row, (N,), the log-sum-exps of the kernels (N,), and the gradients, float32,
    of the sum of the losses by ``row_weights`` (N,).
    """
    if not len(rows):
        found = _no_gradients(rows, weight, want_rows, want_weight, torch.float32)
        return row_weights.float(), row_weights.new_zeros(0), *found
    batch = _Batch(kernels, rows, weight, labels, row_weights, settings)
    given = batch.x, batch.weight, batch.for_kernels, batch.target, batch.row_weights, batch.scale
    wants = settings.low_memory, want_rows, want_weight
    L, d_rows, d_weight = kernels.forward(*given, *wants, batch.everyone)
    if want_rows or want_weight:
        d_own = batch.finish(batch.d_angle(L), d_rows, want_weight)
        if d_weight is not None and d_own is not None:
            _add(d_weight, batch.labels, d_own)
    return batch.losses(L), L, d_rows, d_weight


def gradients(
    kernels: Kernels,
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    L: torch.Tensor,
    settings: Settings,
    want_rows: bool,
    want_weight: bool,
) -> Gradients:
    """The same gradients in the dtypes of rows and weight, where log-sum-exps (N,) are known.

    That of the weights never exists in float32. Each is rounded once: the classes of the batch,
    which have more to them than kernels give, are gone through on their own and written last.
    """
    if not len(rows):
        return _no_gradients(rows, weight, want_rows, want_weight, None)
    batch = _Batch(kernels, rows, weight, labels, row_weights, settings)
    d_angle = batch.d_angle(L)

    def by_kernels(weight: torch.Tensor, labels: torch.Tensor, *wants: Any) -> Gradients:
        given = batch.x, weight, labels, batch.target, batch.row_weights, L, batch.scale
        want_rows, want_weight, dtype = wants
        return kernels.gradients(*given, want_rows, want_weight, batch.everyone, dtype)

    own = _of_own_classes(by_kernels, batch, d_angle, weight.dtype) if want_weight else None
    wants = want_rows, want_weight, weight.dtype
    d_rows, d_weight = by_kernels(batch.weight, batch.for_kernels, *wants)
    if d_weight is not None and own is not None:
        d_weight.index_put_((own[0],), own[1])
    del own
    if d_rows is not None:
        batch.finish(d_angle, d_rows, False)
        d_rows = d_rows.to(rows.dtype)
    return d_rows, d_weight


def _of_own_classes(
    by_kernels: Callable[..., Gradients], batch: _Batch, d_angle: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of the batch in order (N,), some of them repeated, and their gradient (N, D)."""
    classes = batch.labels.sort().values
    place = torch.searchsorted(classes, batch.labels)  # the first of equal ones
    some = batch.weight.index_select(0, classes)
    labels = place.masked_fill(batch.ignored, -1)
    found = by_kernels(some, labels, False, True, torch.float32)[1]
    d_own = batch.finish(d_angle, None, True)
    assert found is not None
    assert d_own is not None
    _add(found, place, d_own)
    first = torch.searchsorted(classes, classes)
    return classes, found.index_select(0, first).to(dtype)


def _no_gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    want_rows: bool,
    want_weight: bool,
    dtype: torch.dtype | None,
) -> Gradients:
    """Of no rows, in their own dtypes or in one that is given."""
    return (
        torch.zeros_like(rows, dtype=dtype) if want_rows else None,
        torch.zeros_like(weight, dtype=dtype) if want_weight else None,
    )


def _add(out: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds rows (N, D) to those of ``out`` at some places (N,), always in one order."""
    if out.is_cuda:  # sorts
        out.index_put_((places,), rows, accumulate=True)
    else:
        out.index_add_(0, places, rows)


def _known(
    labels: torch.Tensor, ignored: torch.Tensor, C: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels that are classes, 0 in the place of others, and (N,) which of them are neither a class
    nor ignored.
    """
    labels = labels.long().masked_fill(ignored, 0)
    known = labels.clamp(0, C - 1)
    unknown = labels != known
    if not labels.is_cuda and unknown.any():
        label = labels[unknown][0].item()
        raise ValueError(f"labels must be from 0 to {C - 1}, or ignore_index: there is {label}")
    return known, unknown
