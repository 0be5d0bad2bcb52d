"""What `dmlfast eval` computes from embedding files, by a protocol."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dmlfast.cli.protocols import CLASSIFICATION

from dmlfast.errors import UserError
from dmlfast.recipes import Comparison
from dmlfast.retrieval import (
    Features,
    LinearClassifier,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
    learner_correlation,
    learners_of,
    load_features,
)
from dmlfast.text import counted

Report = dict[str, Any]  # a measure's name, its value; and how it was measured


@dataclass(frozen=True)
class Files:
    """The embeddings that are evaluated, and those they are searched or classified in."""

    features: Features
    gallery: Features | None = None
    train: Features | None = None

    @classmethod
    def load(cls, features: str, gallery: str | None, train: str | None) -> "Files":
        """Reads those that are given; UserError for one that cannot be."""
        others = (load_features(path) if path else None for path in (gallery, train))
        return cls(load_features(features), *others)

    @property
    def others(self) -> "tuple[Features | None, Features | None]":
        """The gallery and the training images."""
        return self.gallery, self.train

    def refuse_binary(self) -> None:
        """Raises UserError where one holds sign bits already."""
        for file in (self.features, *self.others):
            if file is not None and file.binary:
                raise UserError(f"{file.source} already holds sign bits: leave --binary out")

    def binarized(self) -> "Files":
        """The sign bits of all."""
        others = (None if file is None else file.binarized() for file in self.others)
        return Files(self.features.binarized(), *others)

    def learners(self) -> list["Files"]:
        """Each learner's part of the embeddings, and of the gallery."""
        own = learners_of(self.features)
        galleries = [None] * len(own) if self.gallery is None else learners_of(self.gallery)
        return [Files(*pair) for pair in zip(own, galleries, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    binary: the report of the sign bits. learners: the reports of each learner alone, and how alike
    they are. shared: the number of classes of `features` that are in `train` too. comparison: the
    targets of the recipe that the network was trained by. Each None where it was not asked for, or
    where there is none.
    """

    files: Files
    protocol: str
    report: Report
    binary: Report | None
    learners: Report | None
    shared: int | None
    comparison: Comparison | None

    def to_plain(self) -> Report:
        """As it is printed for machines."""
        files = self.files
        result = {
            "features": files.features.source,
            "gallery_features": None if files.gallery is None else files.gallery.source,
            "protocol": self.protocol,
            **self.report,
        }
        if files.train is not None:
            result |= {
                "train_features": files.train.source,
                "classes_shared_with_train": self.shared,
            }
        if self.binary:
            result["binary"] = self.binary
        result |= self.learners or {}
        if self.comparison is not None:
            result["recipe"] = self.comparison.to_plain()
        return result | {"attributes": files.features.attributes}


def evaluate_files(
    files: Files,
    protocol: str,
    *,
    shared: int | None,
    binary: bool,
    learners: bool,
    **settings: Any,
) -> Evaluation:
    """Evaluates the files by a protocol; `settings` are those of `evaluate_by`.

    Raises UserError where no query has anything to find.
    """
    comparison = recipe_comparison(files.features) if files.gallery is None else None
    report = evaluate_by(protocol, files, **settings)
    refuse_nothing(report, protocol, files)
    return Evaluation(
        files=files,
        protocol=protocol,
        report=report,
        binary=evaluate_by(protocol, files.binarized(), **settings) if binary else None,
        learners=evaluate_learners(protocol, files, **settings) if learners else None,
        shared=shared,
        comparison=comparison,
    )


def evaluate_by(
    protocol: str,
    files: Files,
    *,
    rank_by: str,
    ks: Sequence[int],
    seed: int,
    bootstrap: int,
    clustering: bool,
    clustering_runs: int,
    kmeans: str,
    draws: int,
    neighbours: int,
    vote: str,
    shots: Sequence[int],
    against: str,
) -> Report:
    """The report of a protocol, computed with those of the settings that it takes."""
    features, gallery = files.features, files.gallery
    progress = sys.stderr.isatty()
    if protocol == "vehicleid-reid":
        return evaluate_identity_draws(features, rank_by=rank_by, ks=ks, draws=draws, seed=seed)
    if protocol == "zero-shot":
        return evaluate_zero_shot(
            features,
            gallery,
            against=against,
            rank_by=rank_by,
            ks=ks,
            seed=seed,
            bootstrap=bootstrap,
            progress=progress,
        )
    if protocol in CLASSIFICATION and files.train is not None:
        return evaluate_classification(
            features,
            files.train,
            method=protocol,
            classifier=own_classifier(features) if protocol == "classifier" else None,
            neighbours=neighbours,
            vote=vote,
            rank_by=rank_by,
            shots=shots,
            seed=seed,
            bootstrap=bootstrap,
        )
    return evaluate(
        features,
        gallery,
        rank_by=rank_by,
        ks=ks,
        seed=seed,
        bootstrap=bootstrap,
        clustering=clustering,
        clustering_runs=clustering_runs,
        kmeans=kmeans,
        progress=progress,
    )


def evaluate_learners(protocol: str, files: Files, **settings: Any) -> Report:
    """`learners`, the report of each alone, and `learner_correlation`."""
    settings |= {"rank_by": "distance", "clustering": False, "bootstrap": 0}
    reports = [
        {"dimensions": alone.features.dimension, **evaluate_by(protocol, alone, **settings)}
        for alone in files.learners()
    ]
    return {"learners": reports, "learner_correlation": learner_correlation(files.features)}


def refuse_nothing(report: Report, protocol: str, files: Files) -> None:
    """Raises UserError where no query has anything to find."""
    if report["queries"] > report.get("lone_queries", 0):
        return
    among = files.train if protocol in CLASSIFICATION else files.gallery
    where = "" if among is None else f" in {among.source}"
    raise UserError(
        f"nothing to rank: no query of {files.features.source} has an image of its class to"
        f" find{where}"
    )


def shared_classes(features: Features, train: Features) -> int:
    """The number of classes that are in both files; they must be of one data set."""
    names = [file.attributes.get("dataset") for file in (features, train)]
    if names.count(None) == 1:
        silent, other = (features, train) if names[0] is None else (train, features)
        raise UserError(
            f"{silent.source} does not say which data set it is from (no `dataset`), and"
            f" {other.source} is from {names[0] or names[1]}: their classes cannot be compared"
        )
    if names[0] != names[1]:
        raise UserError(
            f"{features.source} is from {names[0]} and {train.source} from {names[1]}:"
            " their classes cannot be compared"
        )
    return len(np.intersect1d(features.labels, train.labels))


def refuse_seen(shared: int, files: Files) -> None:
    """Raises UserError where classes that should be unseen are in the training images too."""
    if shared and files.train is not None:
        source = files.features.source
        both = counted(shared, f"class of {source} is", f"classes of {source} are")
        seen = "it was" if shared == 1 else "they were"
        raise UserError(f"{both} also in {files.train.source}, so {seen} seen in training")


def own_classifier(features: Features) -> LinearClassifier:
    """The classifier that was trained with the network that made the embeddings."""
    from dmlfast.models import load_model
    from dmlfast.training.classifier import load_classifier

    folder, made = features.checkpoint_folder(), features.attributes
    model = load_model(folder)
    if made.get("normalized") and not (model.spec["normalize"] or model.spec["groups"]):
        raise UserError(f"{features.source} has embeddings of length 1, unlike the classifier's")
    if made.get("learner") or made.get("weighting", model.weighting) != model.weighting:
        raise UserError(
            f"{features.source} has learners weighted differently from the classifier's"
        )
    return load_classifier(folder)


def recipe_comparison(features: Features) -> Comparison | None:
    """The targets of the recipe that a file's network was trained by, if there was one."""
    if "recipe_targets" not in features.attributes:
        return None
    return Comparison.from_attributes(features.attributes, features.source)
