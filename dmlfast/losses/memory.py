"""Pairs with the embeddings of earlier batches."""

from typing import Any

import torch

from dmlfast.losses.base import PairLoss, moved, refuse_recomputation
from dmlfast.ops import checks


class CrossBatchMemory(torch.nn.Module):
    """A pair loss between the batch and what was embedded last, including the batch itself (Wang,
    Zhang, Huang and Scott, Cross-Batch Memory for Embedding Learning, CVPR 2020).

    Embeddings of earlier batches are a little out of date and have no gradient. In eval mode
    nothing is kept or compared with: the loss is that of the batch alone. A batch with NaN or
    infinity is not kept; until the memory is full, the host waits for a GPU to check for these.

    Args:
        loss: one that takes ``ref_emb``, which is every :class:`PairLoss`.
        embedding_dim: D.
        size: how many rows are kept, the last ones; they are in the state dict.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """

    rows: torch.Tensor
    labels: torch.Tensor

    def __init__(self, loss: PairLoss, embedding_dim: int, size: int = 1024) -> None:
        super().__init__()
        if not isinstance(loss, PairLoss):
            raise TypeError(f"loss must be one that takes ref_emb, not {type(loss).__name__}")
        embedding_dim = checks.whole_number("embedding_dim", embedding_dim, 1)
        self.loss = loss
        self.size = checks.whole_number("size", size, 1)
        self.seen = 0
        self.register_buffer("rows", torch.zeros(self.size, embedding_dim))
        self.register_buffer("labels", torch.zeros(self.size, dtype=torch.long))

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, indices_tuple: Any = None
    ) -> torch.Tensor:
        """The loss, ().

        Args:
            embeddings: (N, D); in training, N is at most ``size``.
            labels: (N,) integers; moved to the device of the embeddings.
            indices_tuple: must be None.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, or ``indices_tuple`` was
                given.
            RuntimeError: a backward pass computes the loss again, which would meet other rows.
        """
        if not self.training or indices_tuple is not None:
            alone: torch.Tensor = self.loss(embeddings, labels, indices_tuple)
            return alone
        refuse_recomputation(self, "its memory has other rows by then")
        labels = self._checked(embeddings, labels)
        N = len(embeddings)
        places = torch.arange(self.seen, self.seen + N, device=self.rows.device) % self.size
        kept = min(self.seen + N, self.size)
        # copies, of which the gradient is taken when other rows have come
        rows = self.rows[:kept].to(embeddings, copy=True)
        rows[places] = embeddings.detach()
        all_labels = self.labels[:kept].clone()
        all_labels[places] = labels.to(all_labels)
        loss: torch.Tensor = self.loss(
            embeddings, labels, ref_emb=rows, ref_labels=all_labels, self_index=places
        )
        self._keep(places, rows[places].to(self.rows), all_labels[places])
        return loss

    @torch.no_grad()
    def _keep(self, places: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """Puts a batch that the loss has taken in the place of the oldest rows."""
        is_finite = rows.isfinite().all()
        if self.seen < self.size:  # there is nothing yet that could stay in its place
            if not is_finite:
                return
        else:
            rows = torch.where(is_finite, rows, self.rows[places])
            labels = torch.where(is_finite, labels, self.labels[places])
        self.rows[places], self.labels[places] = rows, labels
        self.seen += len(places)

    def _checked(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The labels, moved to the embeddings; raises where they or the embeddings do not fit."""
        checks.embeddings("embeddings", embeddings)
        labels = moved("labels", labels, embeddings)
        checks.labels("labels", labels, embeddings)
        if self.rows.shape[1] != embeddings.shape[1] or self.size < len(embeddings):
            raise ValueError(
                f"embeddings must have shape (N, {self.rows.shape[1]}) with N <= {self.size}, the "
                f"size of the memory, not {tuple(embeddings.shape)}"
            )
        return labels

    def get_extra_state(self) -> torch.Tensor:
        """How many rows there were so far, () int64: safetensors hold nothing but tensors."""
        return torch.tensor(self.seen)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = int(state)

    def extra_repr(self) -> str:
        return f"size={self.size}"
