"""Statements about results, each tested by a budget that is set before anything is run."""

import importlib
from typing import TYPE_CHECKING

from dmlfast.errors import unknown_name

if TYPE_CHECKING:
    from dmlfast.bench.claims.claim import Claim

# Each is a module here with a `Claim` called CLAIM.
CLAIMS = (
    "losses",
    "embedding_sizes",
    "batch_sizes",
    "same_curve",
    "sampled_classes",
    "binary",
    "pddm",
    "bier",
    "bier_sizes",
    "mined_pairs",
)


def get_claim(name: str) -> "Claim":
    """The claim called `name`. Raises `UserError` where there is none."""
    if name not in CLAIMS:
        raise unknown_name("claim", name, CLAIMS)
    claim: Claim = importlib.import_module(f"dmlfast.bench.claims.{name}").CLAIM
    return claim
