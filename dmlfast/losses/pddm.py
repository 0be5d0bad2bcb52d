"""The double-header hinge loss on hard quadruplets, with its metric unit (Huang, Loy and Tang, NIPS
2016).
"""

from typing import Any

import torch
from torch import nn

from dmlfast import ops
from dmlfast.losses.base import moved, refuse
from dmlfast.ops import checks, dispatch
from dmlfast.ops.checks import choice, finite, flag, whole_number
from dmlfast.ops.numerics import computed
from dmlfast.ops.pddm.hinges import quadruplet_loss
from dmlfast.ops.pddm.op import PER
from dmlfast.ops.pddm.settings import Hinges

FORMS = ("quadruplet", "triplet")
MININGS = ("score", "distance")


class PDDMUnit(nn.Module):
    """The position-dependent deep metric unit: a learned similarity of pairs.

    Args:
        embedding_dim: D.
        hidden_dim: H, the width of all layers; D by default (the paper's is not known).
        normalize_inputs: divide |x - y| and (x + y) / 2 by their norms first.

    Raises:
        TypeError, ValueError: a dimension is not an integer, or less than 1.

    Attributes:
        difference: linear layer D -> H on |x - y|.
        mean: linear layer D -> H on (x + y) / 2.
        joint: linear layer 2H -> H on both, each after its ReLU and at length 1.
        score: linear layer H -> 1.
    """

    def __init__(
        self, embedding_dim: int, hidden_dim: int | None = None, *, normalize_inputs: bool = False
    ) -> None:
        super().__init__()
        embedding_dim = whole_number("embedding_dim", embedding_dim, 1)
        hidden = embedding_dim if hidden_dim is None else whole_number("hidden_dim", hidden_dim, 1)
        self.difference = nn.Linear(embedding_dim, hidden)
        self.mean = nn.Linear(embedding_dim, hidden)
        self.joint = nn.Linear(2 * hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.normalize_inputs = flag("normalize_inputs", normalize_inputs)
        for layer in (self.difference, self.mean, self.joint, self.score):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, embeddings: torch.Tensor, ref_emb: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of all pairs, (N, M), see :func:`dmlfast.ops.pddm_scores`."""
        return ops.pddm_scores(embeddings, self, ref_emb)

    def extra_repr(self) -> str:
        return f"normalize_inputs={self.normalize_inputs}"


class PDDMLoss(nn.Module):
    """Hinges on the scores of a `PDDMUnit` and on Euclidean distances, of hard quadruplets.

    A quadruplet is the least similar positive pair i, j with the most similar negatives k of i and
    l of j, by score. It costs [score_margin + S_ik - S_ij]_+ + [score_margin + S_jl - S_ij]_+ and,
    times embedding_weight, [embedding_margin + D_ij - D_ik]_+ + [embedding_margin + D_ij - D_jl]_+.
    The loss is the mean over the quadruplets. Their choice has no gradient.

    Args:
        embedding_dim: D.
        hidden_dim: width of the unit's layers; D by default.
        score_margin: between scores, which have no bounds.
        embedding_margin: between distances.
        embedding_weight: the weight of the hinges on distances.
        squared: whether distances are squared.
        per: which quadruplets there are: one for each "batch", "class" or "anchor".
        form: "quadruplet", or "triplet", which leaves l out.
        mining: by "score", or by "distance" for comparison.
        normalize_embeddings: divide every row by its L2 norm first.
        normalize_inputs: see :class:`PDDMUnit`.
        impl: "auto" or the name of a backend.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.

    Attributes:
        unit: the :class:`PDDMUnit`, learned with the network.
    """

    margin_argument = "score_margin"

    def __init__(
        self,
        embedding_dim: int,
        hidden_dim: int | None = None,
        *,
        score_margin: float = 3.0,
        embedding_margin: float = 1.0,
        embedding_weight: float = 0.5,
        squared: bool = False,
        per: str = "batch",
        form: str = "quadruplet",
        mining: str = "score",
        normalize_embeddings: bool = True,
        normalize_inputs: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        choice("per", per, PER)
        choice("form", form, FORMS)
        choice("mining", mining, MININGS)
        self.unit = PDDMUnit(embedding_dim, hidden_dim, normalize_inputs=normalize_inputs)
        self.score_margin = finite("score_margin", score_margin)
        self.embedding_margin = finite("embedding_margin", embedding_margin)
        self.embedding_weight = finite("embedding_weight", embedding_weight)
        self.squared = flag("squared", squared)
        self.per = per
        self.form = form
        self.mining = mining
        self.normalize_embeddings = flag("normalize_embeddings", normalize_embeddings)
        self.impl = dispatch.checked_impl(impl)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, ().

        Args:
            embeddings: (N, D).
            labels: (N,) integers; moved to the device of the embeddings.
            indices_tuple, ref_emb, ref_labels: must be None.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, or what must be None was
                given.
        """
        refuse(self, "mines its quadruplets in the batch", indices_tuple, ref_emb, ref_labels)
        checks.embeddings("embeddings", embeddings)
        labels = moved("labels", labels, embeddings)
        if self.normalize_embeddings:
            embeddings = ops.normalize(embeddings, impl=self.impl)
        unit = self.unit if self.mining == "score" else None
        found = ops.pddm_hard_quadruplets(embeddings, labels, unit, per=self.per, impl=self.impl)
        if not len(embeddings):
            return computed(embeddings).sum()
        return quadruplet_loss(embeddings, found, self.unit, self._hinges, impl=self.impl)

    @property
    def _hinges(self) -> Hinges:
        margins = self.score_margin, self.embedding_margin, self.embedding_weight
        return Hinges(*margins, self.squared, ends=1 if self.form == "triplet" else 2)

    def extra_repr(self) -> str:
        names = ["score_margin", "embedding_margin", "embedding_weight", "squared", "per", "form"]
        names += ["mining", "normalize_embeddings", "impl"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
