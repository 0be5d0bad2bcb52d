"""What every pair loss shares: the calling convention of the field."""

from typing import Any

import torch

from dmlfast import ops
from dmlfast.ops import checks, dispatch


class PairLoss(torch.nn.Module):
    """A loss that is called the way the field calls losses, see :meth:`forward`.

    Subclasses write :meth:`compute`, a few lines on top of :mod:`dmlfast.ops`.

    Args:
        normalize_embeddings: divide every row by its L2 norm first.
        impl: "auto" or the name of a backend, see :func:`dmlfast.ops.available`.

    Raises:
        TypeError, ValueError: an argument of the loss has the wrong type or value.
    """

    settings: tuple[str, ...] = ()  # the attributes of a subclass that are printed
    margin_argument = "margin"  # what the constructor calls the margin that no such loss is without

    def __init__(self, *, normalize_embeddings: bool = False, impl: str = "auto") -> None:
        super().__init__()
        self.normalize_embeddings = checks.flag("normalize_embeddings", normalize_embeddings)
        self.impl = dispatch.checked_impl(impl)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        self_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, ().

        Args:
            embeddings: (N, D).
            labels: (N,) integers; moved to the device of the embeddings.
            indices_tuple: must be None.
            ref_emb: columns of their own, (M, D); the batch itself where None.
            ref_labels: (M,) integers.
            self_index: (N,) the row of ``ref_emb`` that is row i itself, -1 for none.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, or ``indices_tuple`` was
                given.
        """
        if indices_tuple is not None:
            raise ValueError(
                f"{type(self).__name__} weighs every pair of the batch and cannot honour "
                "indices_tuple: leave the miner out, or pass the rows to compare with as ref_emb "
                "and ref_labels"
            )
        checks.embeddings("embeddings", embeddings)
        if ref_emb is not None:
            checks.embeddings("ref_emb", ref_emb, like=embeddings)
        labels = moved("labels", labels, embeddings)
        ref_labels = None if ref_labels is None else moved("ref_labels", ref_labels, embeddings)
        if self.normalize_embeddings:
            embeddings = ops.normalize(embeddings, impl=self.impl)
            if ref_emb is not None:
                ref_emb = ops.normalize(ref_emb, impl=self.impl)
        return self.compute(embeddings, labels, ref_emb, ref_labels, self_index)

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), of tensors on one device, whose rows are normalised if so wished."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        names = (*self.settings, "normalize_embeddings", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def moved(name: str, labels: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Labels on the device of the embeddings.

    Raises:
        TypeError, ValueError: they are not a tensor, or have no data where the embeddings have.
    """
    checks.is_tensor(name, labels)
    if labels.is_meta:
        checks.device(name, labels, embeddings)
    return labels.to(embeddings.device)


def refuse_recomputation(loss: torch.nn.Module, reason: str) -> None:
    """Refuses to compute a loss again within a backward pass, as `torch.utils.checkpoint` does.

    Args:
        reason: why it would be a different loss.

    Raises:
        RuntimeError: a backward pass is under way.
    """
    if torch._C._current_graph_task_id() >= 0:
        raise RuntimeError(
            f"{type(loss).__name__}: {reason}, and the loss cannot be computed again for its "
            "gradient: leave it out of torch.utils.checkpoint"
        )


def refuse(
    loss: torch.nn.Module, does: str, indices_tuple: Any, ref_emb: Any, ref_labels: Any
) -> None:
    """Refuses chosen pairs and columns of their own for a loss that has no use for them.

    Args:
        does: why, such as "compares with classes".

    Raises:
        ValueError: one of them is not None.
    """
    if indices_tuple is not None:
        raise ValueError(f"{type(loss).__name__} {does} and cannot honour indices_tuple")
    if ref_emb is not None or ref_labels is not None:
        raise ValueError(f"{type(loss).__name__} {does} and takes no ref_emb")
