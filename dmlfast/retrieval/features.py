"""Embeddings with what is known about each row."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dmlfast.errors import UserError
from dmlfast.models.checkpoint import TENSORS_FILE

DISTANCES = {"euclidean": "euclidean", "angular": "cosine"}  # name in a file: name in a search
ROLES = {"both": 0, "query": 1, "gallery": 2}


@dataclass(frozen=True, eq=False)
class Features:
    """The embeddings of N images and what belongs to each of them, row by row.

    embeddings: (N, D) floating point, finite, D >= 1. labels: (N,) integers, opaque class
    identifiers; where `class_names` is given they index it. paths: N identifiers, or none at all.
    roles: (N,) uint8, 0 query and gallery, 1 query only, 2 gallery only; None stands for all 0.
    attributes: plain values, where the embeddings come from; `distance` says how they are compared
    ("euclidean", the default, or "angular"). source: the name that error messages call them by,
    such as their file's.

    Raises ValueError where these do not fit each other.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    paths: list[str] = field(default_factory=list)
    roles: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    source: str = "features"

    def __post_init__(self) -> None:
        N = len(self.embeddings)
        if self.embeddings.ndim != 2 or self.embeddings.dtype.kind != "f":
            raise ValueError(f"embeddings must be (N, D) floats, not {_describe(self.embeddings)}")
        if not self.dimension:
            raise ValueError(f"embeddings {self.embeddings.shape} have no columns")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be (N,) integers, not {_describe(self.labels)}")
        if len(self.labels) != N:
            raise ValueError(f"{N} embeddings but {len(self.labels)} labels")
        if self.paths and len(self.paths) != N:
            raise ValueError(f"{N} embeddings but {len(self.paths)} paths")
        roles = np.zeros(N) if self.roles is None else self.roles
        if roles.shape != (N,) or not np.isin(roles, list(ROLES.values())).all():
            raise ValueError(f"role must be ({N},) integers, each 0, 1 or 2")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance '{self.distance}' is none of {', '.join(DISTANCES)}")
        bad = np.flatnonzero(~np.isfinite(self.embeddings).all(axis=1))
        if len(bad):
            first = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
            raise ValueError(f"{len(bad)} of {N} embeddings hold NaN or infinity (rows {first})")

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def dimension(self) -> int:
        """D, the length of one embedding."""
        return self.embeddings.shape[1]

    @property
    def distance(self) -> str:
        """How the embeddings are compared: "euclidean" or "angular"."""
        return str(self.attributes.get("distance", "euclidean"))

    @property
    def title(self) -> str:
        """What these are the embeddings of, such as "glyphs test", or else `source`."""
        known = [self.attributes.get("dataset"), self.attributes.get("split")]
        return " ".join(str(word) for word in known if word) or self.source

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    def rows_as(self, role: str) -> np.ndarray:
        """The rows that take part as "query" or as "gallery", (n,) int64."""
        if self.roles is None:
            return np.arange(len(self))
        return np.flatnonzero(np.isin(self.roles, [ROLES["both"], ROLES[role]]))

    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoint that made these; a `UserError` where it is another now."""
        folder = self.attributes.get("checkpoint")
        if not folder:
            raise UserError(
                f"{self.source} does not say which checkpoint made it (no `checkpoint`)"
            )
        weights = Path(folder) / TENSORS_FILE
        try:
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {weights}: {error.strerror}") from error
        made_by = self.attributes.get("checkpoint_sha256")
        if made_by and digest != made_by:
            raise UserError(f"{weights} has changed since {self.source} was made with it")
        return Path(folder)

    def vectors(self, rows: np.ndarray | slice) -> np.ndarray:
        """Embeddings of some rows as they are averaged, (n, D) float64.

        Scaled to length 1 where the distance is angular; zero rows stay zero.
        """
        vectors = self.embeddings[rows].astype(np.float64)
        if self.distance == "angular":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(norms > 0, norms, 1.0)
        return vectors


def _describe(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
