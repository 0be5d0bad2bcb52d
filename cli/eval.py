"""`dmlfast eval`: how well the embeddings of a file retrieve."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from dmlfast.cli.eval_report import report_lines
from dmlfast.cli.pictures import picture_path, refuse_overwriting, save_picture
from dmlfast.cli.protocols import (
    CLASSIFICATION,
    OPTIONS,
    PROTOCOLS,
    choose_protocol,
    default_ks,
)

from dmlfast.errors import UserError
from dmlfast.text import visible

if TYPE_CHECKING:
    from dmlfast.cli.evaluation import Files
    from PIL import Image

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
        raise click.BadParameter(f"'{text}' is not two numbers in ascending order", ctx, param)
    return bounds


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise click.BadParameter(f"'{text}' is not a list of positive whole numbers", ctx, param)
    return numbers


HELP = """Measure how well embeddings retrieve or classify, and draw them.

By default, every image of FEATS.h5 searches among all the others, or in G.h5 if it is given, or as
the roles stored in FEATS.h5 say. Recall at K is the share of queries with an image of their class
among the K nearest; MAP at R and R-precision look at the R nearest, where R is the number of images
there are to find; NMI, AMI and F1 compare the classes with clusters found by k-means. Queries with
no image of their class to find are left out and counted.

\b
Protocols:
""" + "\n".join(f"  {name:17} {protocol.summary}" for name, protocol in PROTOCOLS.items())


@click.command("eval", help=HELP)
@click.argument("feats", metavar="FEATS.h5")
@click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    metavar="NAME",
    help="One of the protocols above; by default, query-gallery if there is a gallery, otherwise"
    " leave-one-out.",
)
@click.option("--gallery-feats", metavar="G.h5", help="Search in this file instead of FEATS.h5.")
@click.option(
    "--train-feats",
    metavar="T.h5",
    help="Training images to classify by; other protocols count the classes shared with FEATS.h5.",
)
@click.option(
    "--ks",
    "--k",
    metavar="K,K,...",
    callback=numbers_of_neighbours,
    help="Numbers of neighbours for recall at K; by default, those that papers report for the data"
    " set, otherwise 1,2,4,8.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["distance", "pddm"]),
    default="distance",
    show_default=True,
    help="Rank neighbours by distance, or by the score of the unit that --loss pddm learned and"
    " embed stored (10,000 operations or more per pair). Clusters always go by distance.",
)
@click.option(
    "--binary", is_flag=True, help="Also evaluate the sign bits of the embeddings, side by side."
)
@click.option(
    "--learners",
    is_flag=True,
    help="Also evaluate each learner of --loss bier or a-bier alone, and how alike they are.",
)
@click.option(
    "--clustering/--no-clustering", default=True, help="Compute NMI, AMI and F1 by k-means."
)
@click.option(
    "--clustering-runs",
    type=click.IntRange(min=1, max=1000),
    default=1,
    show_default=True,
    help="Runs of k-means, with seeds --seed, --seed + 1, ...; mean and deviation are reported.",
)
@click.option(
    "--kmeans",
    type=click.Choice(["auto", "faiss", "sklearn"]),
    default="auto",
    show_default=True,
    help="Implementation of k-means; auto is FAISS if it is installed and scikit-learn would take"
    " long.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Random galleries drawn for vehicleid-reid.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of neighbours that vote in knn.",
)
@click.option(
    "--vote",
    type=click.Choice(["majority", "distance"]),
    default="majority",
    show_default=True,
    help="Weight of a neighbour's vote in knn: one, or one over its distance.",
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
    help="Number of resamples for the 95 % intervals; 0 leaves these out.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed for clustering, intervals, random galleries and the choice of images in pictures.",
)
@click.option(
    "--montage",
    metavar="OUT.png",
    callback=picture_path,
    help="Draw queries with their nearest neighbours.",
)
@click.option(
    "--map",
    "map_path",
    metavar="OUT.png",
    callback=picture_path,
    help="Draw a 2-D map of the embeddings.",
)
@click.option("--data-dir", metavar="DIR", help="Folder with the data set's images, for pictures.")
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
        raise click.UsageError(f"--binary can only be ranked by distance, not by {rank_by}")
    paths = {"FEATS.h5": feats, "--gallery-feats": gallery_feats, "--train-feats": train_feats}
    refuse_overwriting({"--montage": montage, "--map": map_path}, paths)

    from dmlfast.cli.evaluation import Files, evaluate_files, refuse_seen, shared_classes

    files = Files.load(feats, gallery_feats, train_feats)
    if binary:
        files.refuse_binary()
    protocol = choose_protocol(protocol, files.features, files.gallery)
    shared = None if files.train is None else shared_classes(files.features, files.train)
    if protocol == "zero-shot" and shared:
        refuse_seen(shared, files)
    pictures = []
    if montage:
        pictures.append((_montage(files, rank_by, seed, data_dir), montage))
    if map_path:
        pictures.append((_map(files, seed, data_dir), map_path))
    settings["ks"] = settings["ks"] or default_ks(protocol, files.features)
    settings |= {"rank_by": rank_by, "seed": seed}
    found = evaluate_files(
        files, protocol, shared=shared, binary=binary, learners=learners, **settings
    )
    if as_json:
        click.echo(json.dumps(_finite(found.to_plain()), indent=2))
    else:
        click.echo("\n".join(map(visible, report_lines(found))))
    for draw, path in pictures:
        save_picture(draw(), path)


def check_options(ctx: click.Context, protocol: str) -> None:
    """Refuses what was asked for on the command line and has no part in the evaluation."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        takers = OPTIONS.get(param.opts[0])
        if given and takers is not None and protocol not in takers:
            raise click.UsageError(
                f"{param.opts[0]} cannot be used with protocol {protocol}, only with"
                f" {', '.join(takers)}"
            )
        if given and param.name in OF_CLUSTERING and not ctx.params["clustering"]:
            raise click.UsageError(f"{param.opts[0]} cannot be used with --no-clustering")


def _finite(value: Any) -> Any:
    """The value with null, which JSON knows, for nan and infinity, which it does not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _montage(
    files: "Files", rank_by: str, seed: int, data_dir: str | None
) -> "Callable[[], Image.Image]":
    """What draws the montage; images that it cannot have are found at once."""
    from dmlfast.retrieval import draw_montage
    from dmlfast.retrieval.images import image_source

    sides = files.features, files.gallery
    image_of = image_source(*(each for each in sides if each is not None), data_dir=data_dir)
    return partial(draw_montage, *sides, image_of=image_of, rank_by=rank_by, seed=seed)


def _map(files: "Files", seed: int, data_dir: str | None) -> "Callable[[], Image.Image]":
    """What draws the map, of dots where there are no images."""
    from dmlfast.retrieval import draw_map
    from dmlfast.retrieval.images import image_source

    try:
        image_of = image_source(files.features, data_dir=data_dir)
    except UserError as error:
        click.echo(visible(f"the map shows dots instead of images: {error}"), err=True)
        image_of = None
    return partial(draw_map, files.features, image_of=image_of, seed=seed)
