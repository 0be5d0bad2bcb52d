"""`dmlfast eval`: how well the embeddings of a file retrieve."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from dmlfast.cli.eval_report import learner_lines, report_lines
from dmlfast.cli.pictures import picture_path, refuse_overwriting, save_picture
from dmlfast.cli.protocols import (
    CLASSIFICATION,
    OPTIONS,
    PROTOCOLS,
    choose_protocol,
    default_ks,
)

from dmlfast.errors import UserError
from dmlfast.text import counted, visible

if TYPE_CHECKING:
    from PIL import Image

    from dmlfast.recipes import Comparison
    from dmlfast.retrieval import Features, LinearClassifier

OF_CLUSTERING = ("clustering_runs", "kmeans")
MAX_RESAMPLES = 1_000_000  # minutes of work, for digits that nobody reads


def numbers_of_neighbours(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> list[int] | None:
    """Reads "1,2,4,8"."""
    return None if text is None else sorted(set(_numbers(ctx, param, text)))


def shot_bounds(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    """Reads "20,100"."""
    bounds = _numbers(ctx, param, text)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise click.BadParameter(f"'{text}' is not two ascending numbers", ctx, param)
    return bounds


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise click.BadParameter(f"'{text}' is not a list of positive numbers", ctx, param)
    return numbers


HELP = """Measure how well embeddings retrieve or classify, and draw them.

By default every image of FEATS.h5 searches among all others, or in G.h5, or as /role of FEATS.h5
says. Recall at K is the share of queries with an image of their class among the K nearest; MAP at R
and R-precision look at the R nearest, R being the number of images there are to find; NMI, AMI and
F1 compare the classes with clusters found by k-means. A query that has no image of its class to
find is left out and counted.

\b
Protocols:
""" + "\n".join(f"  {name:17} {protocol.summary}" for name, protocol in PROTOCOLS.items())


@click.command("eval", help=HELP)
@click.argument("feats", metavar="FEATS.h5")
@click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    metavar="NAME",
    help="One of those above; by default leave-one-out, or query-gallery where there is a gallery.",
)
@click.option("--gallery-feats", metavar="G.h5", help="Search in this file instead of FEATS.h5.")
@click.option(
    "--train-feats",
    metavar="T.h5",
    help="Classify by this file; elsewhere, check that it shares no class with FEATS.h5.",
)
@click.option(
    "--ks",
    "--k",
    metavar="K,K,...",
    callback=numbers_of_neighbours,
    help="Numbers of neighbours for recall at K; by default those that papers report on the data"
    " set, or else 1,2,4,8.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["distance", "pddm"]),
    default="distance",
    show_default=True,
    help="Neighbours by distance, or by the score of the unit that --loss pddm learned and embed"
    " stored: 10,000 operations a pair and more. Clusters are by distance.",
)
@click.option(
    "--binary", is_flag=True, help="Evaluate the sign bits of the embeddings too, side by side."
)
@click.option(
    "--learners",
    is_flag=True,
    help="Evaluate each learner of --loss bier and a-bier alone too, and how alike they are.",
)
@click.option("--clustering/--no-clustering", default=True, help="NMI, AMI and F1 by k-means.")
@click.option(
    "--clustering-runs",
    type=click.IntRange(min=1, max=1000),
    default=1,
    show_default=True,
    help="Runs of k-means, from seeds --seed, --seed + 1, ...; mean and deviation are reported.",
)
@click.option(
    "--kmeans",
    type=click.Choice(["auto", "faiss", "sklearn"]),
    default="auto",
    show_default=True,
    help="Whose k-means; auto is FAISS where it is installed and scikit-learn would take long.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Random galleries of vehicleid-reid.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Voters of knn.",
)
@click.option(
    "--vote",
    type=click.Choice(["majority", "distance"]),
    default="majority",
    show_default=True,
    help="What a neighbour's vote counts in knn: one, or one over its distance.",
)
@click.option(
    "--shots",
    default="20,100",
    show_default=True,
    metavar="FEW,MANY",
    callback=shot_bounds,
    help="A class has few shots below FEW training images, many above MANY.",
)
@click.option(
    "--against",
    type=click.Choice(["prototypes", "images"]),
    default="prototypes",
    show_default=True,
    help="What zero-shot ranks: the class means, or the images.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0, max=MAX_RESAMPLES),
    default=1000,
    show_default=True,
    help="Resamples for the 95 % intervals; 0 leaves them out.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of clustering, intervals, random galleries and the choice of images in pictures.",
)
@click.option(
    "--montage",
    metavar="OUT.png",
    callback=picture_path,
    help="Draw queries with their nearest neighbours.",
)
@click.option("--map", "map_path", metavar="OUT.png", callback=picture_path, help="Draw a 2-D map.")
@click.option("--data-dir", metavar="DIR", help="Where the data set's images are, for pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    feats: str,
    protocol: str | None,
    gallery_feats: str | None,
    train_feats: str | None,
    rank_by: str,
    binary: bool,
    learners: bool,
    seed: int,
    montage: Path | None,
    map_path: Path | None,
    data_dir: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Evaluates an embedding file by a protocol and prints the report."""
    assumed = protocol or ("query-gallery" if gallery_feats else "leave-one-out")
    check_options(ctx, assumed)
    if assumed in CLASSIFICATION and not train_feats:
        raise click.UsageError(f"protocol {assumed} needs the training images: --train-feats")
    if binary and rank_by != "distance":
        raise click.UsageError(f"--binary is ranked by distance, not by {rank_by}")
    files = {"FEATS.h5": feats, "--gallery-feats": gallery_feats, "--train-feats": train_feats}
    refuse_overwriting({"--montage": montage, "--map": map_path}, files)

    from dmlfast.retrieval import load_features

    features = load_features(feats)
    gallery = load_features(gallery_feats) if gallery_feats else None
    train = load_features(train_feats) if train_feats else None
    if binary:
        refuse_binary(features, gallery, train)
    protocol = choose_protocol(protocol, features, gallery)
    shared = shared_classes(features, train) if train else None
    if protocol == "zero-shot" and shared:
        both = counted(shared, f"class of {feats} is", f"classes of {feats} are")
        seen = "it was" if shared == 1 else "they were"
        raise UserError(f"{both} in {train_feats} too: {seen} seen")
    pictures = []
    if montage:
        pictures.append((_montage(features, gallery, rank_by, seed, data_dir), montage))
    if map_path:
        pictures.append((_map(features, seed, data_dir), map_path))
    settings["ks"] = settings["ks"] or default_ks(protocol, features)
    comparison = None if gallery else recipe_comparison(features)
    ranked = {"rank_by": rank_by, "seed": seed, **settings}
    report = evaluate_by(protocol, features, gallery, train, **ranked)
    refuse_nothing(report, feats, train_feats if protocol in CLASSIFICATION else gallery_feats)
    of_bits = None
    if binary:
        others = [None if file is None else file.binarized() for file in (gallery, train)]
        of_bits = evaluate_by(protocol, features.binarized(), *others, **ranked)
    alone = None
    if learners:
        apart = {**ranked, "rank_by": "distance", "clustering": False, "bootstrap": 0}
        alone = evaluate_learners(protocol, features, gallery, **apart)
    if as_json:
        files = {"features": feats, "gallery_features": gallery_feats}
        result = {**files, "protocol": protocol, **report}
        if train_feats:
            result |= {"train_features": train_feats, "classes_shared_with_train": shared}
        if of_bits:
            result["binary"] = of_bits
        if alone:
            result |= alone
        if comparison is not None:
            result["recipe"] = comparison.to_plain()
        click.echo(json.dumps(_finite(result | {"attributes": features.attributes}), indent=2))
    else:
        lines = report_lines(features, gallery, protocol, report, comparison, of_bits)
        click.echo("\n".join(map(visible, lines)))
        if alone:
            click.echo("\n".join(["", *learner_lines(alone)]))
        if shared is not None:
            click.echo(visible(f"classes shared with {train_feats}: {shared}"))
    for draw, path in pictures:
        save_picture(draw(), path)


def refuse_nothing(report: dict[str, Any], feats: str, among: str | None) -> None:
    """Raises a `UserError` where no query has anything to find."""
    if report["queries"] == report.get("lone_queries", 0):
        where = f" in {among}" if among else ""
        raise UserError(
            f"nothing to rank: no query of {feats} has an image of its class to find{where}"
        )


def evaluate_learners(
    protocol: str, features: "Features", gallery: "Features | None", **settings: Any
) -> dict[str, Any]:
    """`learners`, the report of each alone, and `learner_correlation`."""
    from dmlfast.retrieval import learner_correlation, learners_of

    galleries = learners_of(gallery) if gallery else None
    reports = []
    for k, learner in enumerate(learners_of(features)):
        beside = galleries[k] if galleries else None
        report = evaluate_by(protocol, learner, beside, None, **settings)
        reports.append({"dimensions": learner.dimension, **report})
    return {"learners": reports, "learner_correlation": learner_correlation(features)}


def check_options(ctx: click.Context, protocol: str) -> None:
    """Refuses what was asked for on the command line and has no part in the evaluation."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        takers = OPTIONS.get(param.opts[0])
        if given and takers is not None and protocol not in takers:
            raise click.UsageError(
                f"{param.opts[0]} does not go with protocol {protocol}, only with"
                f" {', '.join(takers)}"
            )
        if given and param.name in OF_CLUSTERING and not ctx.params["clustering"]:
            raise click.UsageError(f"{param.opts[0]} does not go with --no-clustering")


def refuse_binary(*files: "Features | None") -> None:
    """Refuses files that hold sign bits already."""
    for file in files:
        if file is not None and file.binary:
            raise UserError(f"{file.source} holds sign bits already: leave --binary out")


def evaluate_by(
    protocol: str,
    features: "Features",
    gallery: "Features | None",
    train: "Features | None",
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
) -> dict[str, Any]:
    """The report of a protocol, computed with those of the settings that it takes."""
    from dmlfast.retrieval import (
        evaluate,
        evaluate_classification,
        evaluate_identity_draws,
        evaluate_zero_shot,
    )

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
    if protocol in CLASSIFICATION and train is not None:
        return evaluate_classification(
            features,
            train,
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


def own_classifier(features: "Features") -> "LinearClassifier":
    """The classifier that was trained with the network that made the embeddings."""
    from dmlfast.models import load_model
    from dmlfast.training.classifier import load_classifier

    folder, made = features.checkpoint_folder(), features.attributes
    model = load_model(folder)
    if made.get("normalized") and not (model.spec["normalize"] or model.spec["groups"]):
        raise UserError(f"{features.source} has embeddings of length 1, not the classifier's")
    if made.get("learner") or made.get("weighting", model.weighting) != model.weighting:
        raise UserError(f"{features.source} has learners weighed otherwise than the classifier's")
    return load_classifier(folder)


def recipe_comparison(features: "Features") -> "Comparison | None":
    """The targets of the recipe that a file's network was trained by, if there was one."""
    if "recipe_targets" not in features.attributes:
        return None
    from dmlfast.recipes import Comparison

    return Comparison.from_attributes(features.attributes, features.source)


def shared_classes(features: "Features", train: "Features") -> int:
    """The number of classes that are in both files; they must be of one data set."""
    import numpy as np

    names = [file.attributes.get("dataset") for file in (features, train)]
    if names.count(None) == 1:
        silent, other = (features, train) if names[0] is None else (train, features)
        raise UserError(
            f"{silent.source} does not say of which data set it is (no `dataset`), and"
            f" {other.source} is of {names[0] or names[1]}: their classes cannot be compared"
        )
    if names[0] != names[1]:
        raise UserError(
            f"{features.source} is of {names[0]} and {train.source} of {names[1]}:"
            " their classes cannot be compared"
        )
    return len(np.intersect1d(features.labels, train.labels))


def _finite(value: Any) -> Any:
    """The value with null, which JSON knows, for nan and infinity, which it does not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _montage(
    features: "Features",
    gallery: "Features | None",
    rank_by: str,
    seed: int,
    data_dir: str | None,
) -> "Callable[[], Image.Image]":
    """What draws the montage; images that it cannot have are found at once."""
    from dmlfast.retrieval import draw_montage
    from dmlfast.retrieval.images import image_source

    files = [features] if gallery is None else [features, gallery]
    image_of = image_source(*files, data_dir=data_dir)
    return partial(draw_montage, features, gallery, image_of=image_of, rank_by=rank_by, seed=seed)


def _map(features: "Features", seed: int, data_dir: str | None) -> "Callable[[], Image.Image]":
    """What draws the map, of dots where there are no images."""
    from dmlfast.retrieval import draw_map
    from dmlfast.retrieval.images import image_source

    try:
        image_of = image_source(features, data_dir=data_dir)
    except UserError as error:
        click.echo(visible(f"the map shows dots: {error}"), err=True)
        image_of = None
    return partial(draw_map, features, image_of=image_of, seed=seed)
