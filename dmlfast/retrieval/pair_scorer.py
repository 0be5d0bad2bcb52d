"""Similarity of embeddings by the metric unit that was trained along with them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dmlfast import ops
from dmlfast.losses import PDDMUnit


@dataclass(frozen=True, eq=False)
class PairScorer:
    """Scores pairs of embeddings as a `PDDMLoss` did in training.

    unit: gives the scores; larger is more similar, there are no bounds. normalize_embeddings:
    whether the loss divided every row by its L2 norm first. `nearest_neighbours` ranks by one.

        loss_fn = PDDMLoss(embedding_dim=64)
        scorer = PairScorer(loss_fn.unit, loss_fn.normalize_embeddings)

    The unit is copied: further training does not change what is scored. Raises TypeError where it
    is no `PDDMUnit`.
    """

    unit: PDDMUnit
    normalize_embeddings: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.unit, PDDMUnit):
            raise TypeError(f"unit must be a PDDMUnit, not {type(self.unit).__name__}")
        object.__setattr__(self, "unit", copy.deepcopy(self.unit))

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        *,
        normalize_inputs: bool = False,
        normalize_embeddings: bool = True,
    ) -> "PairScorer":
        """One with the weights that `tensors` gave.

        Raises ValueError where they are not those of a unit, or hold NaN or infinity.
        """
        shape = tensors["difference.weight"].shape
        if len(shape) != 2 or not min(shape):
            raise ValueError(f"difference.weight must be (H, D), not {tuple(shape)}")
        # weights are replaced, and the global generator is left as it is
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            unit = PDDMUnit(shape[1], shape[0], normalize_inputs=normalize_inputs)
        for name, own in unit.state_dict().items():
            if tensors[name].shape != own.shape:
                found, wanted = tuple(tensors[name].shape), tuple(own.shape)
                raise ValueError(f"{name} must be {wanted}, not {found}")
            if not tensors[name].isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity")
        unit.load_state_dict(dict(tensors), assign=True)
        return cls(unit, normalize_embeddings)

    @property
    def dimension(self) -> int:
        """D, the length of the embeddings it scores."""
        return self.unit.difference.in_features

    def tensors(self) -> dict[str, torch.Tensor]:
        """The eight tensors of the unit on the CPU, float32, by their names in its state dict."""
        return {name: t.detach().cpu().float() for name, t in self.unit.state_dict().items()}

    def agrees_with(self, other: object) -> bool:
        """Whether the other is a scorer with the same weights and settings."""
        if self is other or not isinstance(other, PairScorer):
            return self is other
        ours, theirs = self.tensors(), other.tensors()
        return (
            self.normalize_embeddings == other.normalize_embeddings
            and self.unit.normalize_inputs == other.unit.normalize_inputs
            and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        )

    def rows(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What the unit takes of embeddings (N, D), (N, D) float32."""
        rows = embeddings.float()
        return ops.normalize(rows) if self.normalize_embeddings else rows

    def scores_on(
        self, device: torch.device
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """What scores rows (q, D) with rows (m, D) on a device, (q, m) float32."""
        unit = copy.deepcopy(self.unit).to(device, torch.float32)
        return lambda rows, columns: ops.pddm_scores(rows, unit, columns)
