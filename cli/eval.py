"""`dmlfast eval`: how well the embeddings of a file retrieve."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dmlfast.cli.pictures import picture_path, save_picture

if TYPE_CHECKING:
    from PIL import Image

    from dmlfast.retrieval import Features

MAX_RESAMPLES = 1_000_000  # minutes of work, for digits that nobody reads


def numbers_of_neighbours(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    """Reads "1,2,4,8"."""
    try:
        ks = sorted({int(word) for word in text.split(",")})
    except ValueError:
        ks = [0]
    if min(ks) < 1:
        raise click.BadParameter(f"'{text}' is not a list of positive numbers", ctx, param)
    return ks


@click.command("eval")
@click.argument("feats", metavar="FEATS.h5")
@click.option("--gallery-feats", metavar="G.h5", help="Search in this file instead of FEATS.h5.")
@click.option(
    "--train-feats", metavar="T.h5", help="Check that no class of FEATS.h5 is also in this file."
)
@click.option(
    "--ks",
    default="1,2,4,8",
    show_default=True,
    metavar="K,K,...",
    callback=numbers_of_neighbours,
    help="Numbers of neighbours for recall at K.",
)
@click.option("--clustering/--no-clustering", default=True, help="NMI and F1 by k-means.")
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
    help="Of the clustering, the intervals and the choice of images in pictures.",
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
def command(
    feats: str,
    gallery_feats: str | None,
    train_feats: str | None,
    ks: list[int],
    clustering: bool,
    bootstrap: int,
    seed: int,
    montage: Path | None,
    map_path: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Measure how well embeddings retrieve, and draw them.

    Every image of FEATS.h5 searches among all others, or in G.h5. Recall at K is the share of
    queries with an image of their class among the K nearest; MAP at R and R-precision look at the R
    nearest, R being the number of images there are to find; NMI and F1 compare the classes with
    clusters found by k-means. A query that has no image of its class to find is left out.
    """
    from dmlfast.retrieval import evaluate, load_features

    features = load_features(feats)
    gallery = load_features(gallery_feats) if gallery_feats else None
    shared = shared_classes(features, load_features(train_feats)) if train_feats else None
    pictures = []
    if montage:
        pictures.append((_montage(features, gallery, seed, data_dir), montage))
    if map_path:
        pictures.append((_map(features, seed, data_dir), map_path))
    report = evaluate(
        features,
        gallery,
        ks=ks,
        seed=seed,
        bootstrap=bootstrap,
        clustering=clustering,
        progress=sys.stderr.isatty(),
    )
    if as_json:
        result = {"features": feats, "gallery_features": gallery_feats, **report}
        if train_feats:
            result |= {"train_features": train_feats, "classes_shared_with_train": shared}
        click.echo(json.dumps(_finite(result | {"attributes": features.attributes}), indent=2))
    else:
        click.echo("\n".join(_lines(features, gallery, report, ks)))
        if shared is not None:
            click.echo(f"classes shared with {train_feats}: {shared}")
    for draw, path in pictures:
        save_picture(draw(), path)


def shared_classes(features: "Features", train: "Features") -> int:
    """The number of classes that are in both files; they must be of one data set."""
    import numpy as np

    from dmlfast.errors import UserError

    names = [file.attributes.get("dataset") for file in (features, train)]
    if names[0] != names[1]:
        raise UserError(
            f"{features.source} is of {names[0]} and {train.source} of {names[1]}:"
            " their classes cannot be compared"
        )
    return len(np.intersect1d(features.labels, train.labels))


def _lines(
    features: "Features", gallery: "Features | None", report: dict[str, Any], ks: Sequence[int]
) -> list[str]:
    """The report as a person reads it."""
    known = features.attributes
    lines = [
        f"{features.title}: {report['queries']:,} queries of {report['classes']:,} classes among"
        f" {report['gallery']:,} images" + (f" of {gallery.title}" if gallery else ""),
        f"{known.get('model', 'unknown model')}, {features.dimension} dimensions,"
        f" {features.distance} distance",
        "",
    ]
    names = {f"recall_at_{k}": f"recall at {k}" for k in ks}
    names |= {"map_at_r": "MAP at R", "r_precision": "R-precision", "nmi": "NMI", "f1": "F1"}
    intervals = report.get("intervals", {})
    wide = max(map(len, names.values()))
    if intervals:
        lines.append(f"{'':{wide}}  {'value':>8}   95 % interval")
    for key, name in names.items():
        if key in report:
            interval = " to ".join(_percent(end) for end in intervals.get(key, ()))
            lines.append(f"{name:{wide}}  {_percent(report[key]):>8}   {interval}".rstrip())
    if report["lone_queries"]:
        lines += ["", f"left out: {report['lone_queries']:,} queries with nothing to find"]
    if known.get("selected_on") == "test":
        lines += ["", "The checkpoint was selected on the test classes: compare with care."]
    return lines


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.2f} %"


def _finite(value: Any) -> Any:
    """The value with null, which JSON knows, for nan and infinity, which it does not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _montage(
    features: "Features", gallery: "Features | None", seed: int, data_dir: str | None
) -> "Callable[[], Image.Image]":
    """What draws the montage; images that it cannot have are found at once."""
    from dmlfast.retrieval import draw_montage
    from dmlfast.retrieval.images import image_source

    files = [features] if gallery is None else [features, gallery]
    image_of = image_source(*files, data_dir=data_dir)
    return partial(draw_montage, features, gallery, image_of=image_of, seed=seed)


def _map(features: "Features", seed: int, data_dir: str | None) -> "Callable[[], Image.Image]":
    """What draws the map, of dots where there are no images."""
    from dmlfast.errors import UserError
    from dmlfast.retrieval import draw_map
    from dmlfast.retrieval.images import image_source

    try:
        image_of = image_source(features, data_dir=data_dir)
    except UserError as error:
        click.echo(f"the map shows dots: {error}", err=True)
        image_of = None
    return partial(draw_map, features, image_of=image_of, seed=seed)
