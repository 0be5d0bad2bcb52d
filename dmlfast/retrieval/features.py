"""Embeddings with what is known about each row."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmlfast.errors import UserError
from dmlfast.models.checkpoint import TENSORS_FILE
from dmlfast.retrieval.arrays import to_numpy
from dmlfast.retrieval.codes import binarize
from dmlfast.retrieval.pair_scorer import PairScorer
from dmlfast.text import counted

# Name in a file: name in a search.
DISTANCES = {"euclidean": "euclidean", "angular": "cosine", "hamming": "hamming"}
ROLES = {"both": 0, "query": 1, "gallery": 2}
RANKINGS = ("distance", "pddm")


# Fields that may be given as something else, and what makes them what they are.
CONVERTED: dict[str, Callable[[Any], Any]] = {
    "embeddings": to_numpy,
    "labels": to_numpy,
    "roles": to_numpy,
    "paths": list,
}


@dataclass(frozen=True, eq=False)
class Features:
    """The embeddings of N images and what belongs to each of them, row by row.

    embeddings: (N, D) floating point, finite, D >= 1; or, where the distance is "hamming", codes
    (N, ceil(D / 8)) uint8 as `binarize` packs them. labels: (N,) integers, opaque class
    identifiers; where `class_names` is given they index it. paths: N identifiers, or none at all.
    roles: (N,) uint8, 0 query and gallery, 1 query only, 2 gallery only; None stands for all 0.
    attributes: plain values, where the embeddings come from; `distance` says how they are compared
    ("euclidean", the default, "angular" or "hamming"), `n_bits` is the D of codes, by default all
    their bits. source: the name that error messages call them by, such as their file's. scorer: the
    metric unit that was trained along with them, where there is one; sign bits have none.

    Arrays may be given as tensors, which are detached and brought to the CPU, bfloat16 as float32,
    or as anything else that `numpy.asarray` takes.

    Raises ValueError where these do not fit each other, or embeddings are not finite in float32.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    paths: list[str] = field(default_factory=list)
    roles: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    source: str = "features"
    scorer: PairScorer | None = None

    def __post_init__(self) -> None:
        for name, convert in CONVERTED.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, convert(getattr(self, name)))
        if self.distance not in DISTANCES:
            raise ValueError(f"distance '{self.distance}' is not one of {', '.join(DISTANCES)}")
        if self.binary:
            self._check_codes()
        elif self.embeddings.ndim != 2 or self.embeddings.dtype.kind != "f":
            raise ValueError(f"embeddings must be (N, D) floats, not {_describe(self.embeddings)}")
        if not self.embeddings.shape[1]:
            raise ValueError(f"embeddings {self.embeddings.shape} have no columns")
        N = len(self.embeddings)
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be (N,) integers, not {_describe(self.labels)}")
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))
        if len(self.labels) != N:
            raise ValueError(f"{counted(N, 'embedding')} but {counted(len(self.labels), 'label')}")
        if self.paths and len(self.paths) != N:
            raise ValueError(f"{counted(N, 'embedding')} but {counted(len(self.paths), 'path')}")
        roles = np.zeros(N) if self.roles is None else self.roles
        if roles.shape != (N,) or not np.isin(roles, list(ROLES.values())).all():
            raise ValueError(f"role must be ({N},) integers, each 0, 1 or 2")
        with np.errstate(over="ignore"):  # told below; distances are given in float32
            finite = np.isfinite(self.embeddings, signature="f->?", casting="unsafe")
        bad = np.flatnonzero(~finite.all(axis=1))
        if len(bad):
            first = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
            of = f"of {counted(N, 'embedding')}"
            held = counted(len(bad), f"{of} holds", f"{of} hold")
            raise ValueError(f"{held} NaN or infinity (rows {first}) as float32")
        if self.scorer is not None:
            check_scorer(self.scorer, self.dimension, self.binary)

    def _check_codes(self) -> None:
        if self.embeddings.ndim != 2 or self.embeddings.dtype != np.uint8:
            raise ValueError(
                f"codes must be (N, ceil(D / 8)) uint8, not {_describe(self.embeddings)}"
            )
        bits, width = self.dimension, self.embeddings.shape[1]
        if not isinstance(bits, int) or (bits + 7) // 8 != width:
            raise ValueError(f"codes have {width} bytes, but n_bits is {bits!s:.32}")
        if (self.embeddings[:, -1:] & (2 ** (8 * width - bits) - 1)).any():
            raise ValueError(f"codes have bits set beyond the first {bits}")

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def dimension(self) -> int:
        """D, the length of one embedding."""
        width = self.embeddings.shape[1]
        return self.attributes.get("n_bits", 8 * width) if self.binary else width

    @property
    def binary(self) -> bool:
        """Whether the embeddings are sign bits."""
        return self.distance == "hamming"

    @property
    def bytes_per_image(self) -> int:
        """What one embedding takes."""
        return self.embeddings.itemsize * self.embeddings.shape[1]

    @property
    def distance(self) -> str:
        """How the embeddings are compared: "euclidean", "angular" or "hamming"."""
        return str(self.attributes.get("distance", "euclidean"))

    @property
    def title(self) -> str:
        """What these are the embeddings of, such as "glyphs test", or else `source`."""
        known = [self.attributes.get("dataset"), self.attributes.get("split")]
        return " ".join(str(word) for word in known if word) or self.source

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    def ranking(self, rank_by: str = "distance") -> str | PairScorer:
        """What `nearest_neighbours` is to rank these by, as its `distance`.

        rank_by: "distance", the one that they are compared by, or "pddm", the unit stored with
        them. Raises UserError where there is none, ValueError for another name.
        """
        if rank_by not in RANKINGS:
            raise ValueError(f"rank_by must be one of {', '.join(RANKINGS)}, not '{rank_by}'")
        if rank_by == "distance":
            return DISTANCES[self.distance]
        if self.binary:
            raise UserError(f"{self.source} holds sign bits, which a pddm unit cannot score")
        if self.scorer is None:
            raise UserError(
                f"{self.source} holds no pddm unit to rank by: `dmlfast embed` stores that of a run"
                " with --loss pddm"
            )
        return self.scorer

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
            raise UserError(
                f"cannot read {weights}: {error.strerror}; {self.source} was embedded with it: put"
                " it back there, or embed again"
            ) from error
        made_by = self.attributes.get("checkpoint_sha256")
        if made_by and digest != made_by:
            raise UserError(f"{weights} has changed since {self.source} was made with it")
        return Path(folder)

    def floats(self, rows: np.ndarray | slice) -> np.ndarray:
        """Embeddings of some rows as floating point, (n, D); bits are 0 and 1 in float32."""
        if self.binary:
            bits = np.unpackbits(self.embeddings[rows], axis=1, count=self.dimension)
            return bits.astype(np.float32)
        return self.embeddings[rows]

    def vectors(self, rows: np.ndarray | slice) -> np.ndarray:
        """Embeddings of some rows as they are averaged, (n, D) float64.

        Scaled to length 1 where the distance is angular; zero rows stay zero. Bits are 0 and 1.
        """
        vectors = self.floats(rows).astype(np.float64)
        if self.distance == "angular":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(norms > 0, norms, 1.0)
        return vectors

    def binarized(self) -> "Features":
        """The same rows with the sign bits of their embeddings, compared by Hamming distance.

        Raises ValueError where they are sign bits already.
        """
        attributes = self.attributes | bit_attributes(self.dimension)
        attributes.pop("normalized", None)  # a length changes no sign
        bits = binarize(self.embeddings)
        return replace(self, embeddings=bits, attributes=attributes, scorer=None)


def check_features(*sides: object) -> None:
    """Raises TypeError for what is not `Features`."""
    for side in sides:
        if not isinstance(side, Features):
            raise TypeError(
                f"expected Features, not {type(side).__name__}: make them with"
                " Features(embeddings, labels) or load_features(path)"
            )


def check_scorer(scorer: PairScorer, dimension: int, binary: bool) -> None:
    """Raises ValueError where a unit does not score embeddings of D = `dimension`."""
    if binary:
        raise ValueError("a pddm unit scores floats, not sign bits")
    if scorer.dimension != dimension:
        raise ValueError(
            f"the pddm unit scores {scorer.dimension} dimensions, and embeddings have {dimension}"
        )


def check_paths(*features: Features) -> None:
    """Raises the ValueError of rows that have no paths, by which their images would be known."""
    if not all(each.paths for each in features):
        raise ValueError("Features have no paths, by which image_of would know their images")


def bit_attributes(dimension: int) -> dict[str, Any]:
    """What the attributes of sign bits say of them."""
    return {"distance": "hamming", "point_type": "bit", "n_bits": dimension}


def _describe(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
