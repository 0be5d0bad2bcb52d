"""The loss and its gradients from what the kernels do: the part that is O(N D), in float32.

Kernels take each row's logits of all classes but its own, and apart from these the own one with its
margins. Here are the smoothing of labels, and rows that do not count.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from dmlfast.ops.norm_softmax.settings import Settings
from dmlfast.ops.norm_softmax.units import sum_of_units, units
from dmlfast.ops.numerics import add_rows, through_norm

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
        self, rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows and their own classes: the labels, (N,) int64, -1 of rows that do not count; and
        (5, N) float32: inverse lengths of rows and of classes, 0 of zeros; at length 1 the squared
        lengths of the difference and of the sum of both; the logits. A label that is no class is
        refused, or has a logit of NaN where the host would have to wait to see it.
        """

    def own_losses(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        known: torch.Tensor,
        pairs: torch.Tensor,
        logsumexp: torch.Tensor,
        row_weights: torch.Tensor,
        others: torch.Tensor | None,
        settings: Settings,
        d_rows: torch.Tensor | None,
        want_classes: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Losses (N,) from the log-sum-exps of `forward`, 0 where a row does not count; and where
        wanted what each row gives its class, (N, D) float32. Adds to ``d_rows``, if given.

        That is the gradient of the losses by row_weights (N,) with respect to the angles between
        rows and classes; where both are parallel there is none. ``known`` and ``pairs`` are what
        `own_pairs` returns, ``others`` (N,) the cosines of each row with all classes, added up, or
        None where labels are not smoothed.
        """


def counting(labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(N,) 1 for the rows that count, else 0."""
    return (labels != settings.ignore_index).float()


class _Batch:
    """A call, as far as no log-sum-exp is needed.

    x: (N, D), 0 where rows do not count; of the dtype in which kernels compute, as weight (C, D).
    known, pairs: of the own classes, as `Kernels.own_pairs` has them. row_weights: (N,), 0 where
    rows do not count. everyone: (D,) the gradient that smoothing gives each class at length 1, or
    None.
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
        self.kernels, self.settings = kernels, settings
        self.weight = weight if rows.dtype == weight.dtype else weight.float()
        self.ignored = labels == settings.ignore_index
        self.x = rows.to(self.weight.dtype)
        if rows.is_cuda or self.ignored.any():  # a GPU would be waited for
            self.x = self.x.masked_fill(self.ignored[:, None], 0)
        self.row_weights = row_weights
        self.known, self.pairs = kernels.own_pairs(self.x, self.weight, labels, settings)
        self.target = self.pairs[4]
        self.everyone = self.total = self.others = None
        if settings.label_smoothing:
            self.total = sum_of_units(self.weight, settings.low_memory)
            unit = units(self.x.float())[0]
            self.others = unit @ self.total
            self.everyone = self._d_everyone() @ unit

    def _d_everyone(self) -> torch.Tensor:
        """(N,) the gradient of each cosine of a row, of all classes alike."""
        share = self.settings.label_smoothing / len(self.weight)
        return -share * self.settings.scale * self.row_weights

    @property
    def places(self) -> torch.Tensor:
        """(N,) the own classes, 0 where there is none."""
        return self.known.clamp_min(0)

    def finish(
        self, L: torch.Tensor, d_rows: torch.Tensor | None, want_classes: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The losses (N,). Adds to what kernels have found what the own classes and smoothing give
        the rows; returns what each row gives its class, (N, D), where wanted.
        """
        if d_rows is not None and self.total is not None:
            everyone = self._d_everyone()[:, None] * self.total
            d_rows += through_norm(everyone, *units(self.x.float()))
        own = self.known, self.pairs, L, self.row_weights, self.others, self.settings
        return self.kernels.own_losses(self.x, self.weight, *own, d_rows, want_classes)


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
    of the sum of the losses by ``row_weights`` (N,), which are 0 where rows do not count.
    """
    if not len(rows):
        found = _no_gradients(rows, weight, want_rows, want_weight, torch.float32)
        return row_weights.float(), row_weights.new_zeros(0), *found
    batch = _Batch(kernels, rows, weight, labels, row_weights, settings)
    given = batch.x, batch.weight, batch.known, batch.target, row_weights, settings.scale
    wants = settings.low_memory, want_rows, want_weight
    L, d_rows, d_weight = kernels.forward(*given, *wants, batch.everyone)
    losses, d_own = batch.finish(L, d_rows, want_weight)
    if d_weight is not None and d_own is not None:
        add_rows(d_weight, batch.places, d_own)
    return losses, L, d_rows, d_weight


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

    def by_kernels(weight: torch.Tensor, labels: torch.Tensor, *wants: Any) -> Gradients:
        given = batch.x, weight, labels, batch.target, row_weights, L, settings.scale
        want_rows, want_weight, dtype = wants
        return kernels.gradients(*given, want_rows, want_weight, batch.everyone, dtype)

    own = _of_own_classes(by_kernels, batch, L, weight.dtype) if want_weight else None
    wants = want_rows, want_weight, weight.dtype
    d_rows, d_weight = by_kernels(batch.weight, batch.known, *wants)
    if d_weight is not None and own is not None:
        d_weight.index_put_((own[0],), own[1])
    del own
    if d_rows is not None:
        batch.finish(L, d_rows, False)
        d_rows = d_rows.to(rows.dtype)
    return d_rows, d_weight


def _of_own_classes(
    by_kernels: Callable[..., Gradients], batch: _Batch, L: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of the batch in order (N,), some of them repeated, and their gradient (N, D)."""
    classes = batch.places.sort().values
    place = torch.searchsorted(classes, batch.places)  # the first of equal ones
    some = batch.weight.index_select(0, classes)
    labels = place.masked_fill(batch.ignored, -1)
    found = by_kernels(some, labels, False, True, torch.float32)[1]
    d_own = batch.finish(L, None, True)[1]
    assert found is not None
    assert d_own is not None
    add_rows(found, place, d_own)
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
