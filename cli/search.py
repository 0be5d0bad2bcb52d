"""`dmlfast search`: the images of a file nearest to one."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dmlfast.cli.pictures import picture_path, refuse_overwriting, save_picture

from dmlfast.errors import UserError
from dmlfast.text import columns, counted, visible

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dmlfast.retrieval import Features
    from dmlfast.retrieval.drawing import ImageOf


@dataclass(frozen=True)
class Hit:
    """One image that was found; `index` is its row in the file, `label` its class.

    `value` is what it was ranked by, a `measure`: a "distance" or a "score".
    """

    rank: int
    measure: str
    value: float
    index: int
    path: str
    label: int
    class_name: str

    def to_plain(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "rank": self.rank,
            self.measure: self.value,
            "index": self.index,
            "path": self.path,
            "label": self.label,
            "class_name": self.class_name,
        }


@click.command("search")
@click.argument("feats", metavar="FEATS.h5")
@click.option("--query", metavar="PHOTO", help="Search for this image file.")
@click.option("--query-index", type=click.IntRange(min=0), help="Search for this row of FEATS.h5.")
@click.option("--query-path", metavar="PATH", help="Search for the row of FEATS.h5 with this path.")
@click.option("--invert", is_flag=True, help="Swap dark and light in PHOTO.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of images to find.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["distance", "pddm"]),
    default="distance",
    show_default=True,
    help="Rank by distance, or by the score of the unit that --loss pddm learned and embed stored.",
)
@click.option(
    "--montage", metavar="OUT.png", callback=picture_path, help="Draw the images that were found."
)
@click.option("--data-dir", metavar="DIR", help="Folder with the data set's images.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    feats: str,
    query: str | None,
    query_index: int | None,
    query_path: str | None,
    invert: bool,
    top: int,
    rank_by: str,
    montage: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Find the images nearest to a given one.

    --query embeds an image file with the network that made FEATS.h5, which must still be where it
    was. The picture is treated like the data set's images: the glyphs, for example, are white on
    black, so ink on paper needs --invert. --query-index and --query-path search for a row of
    FEATS.h5 itself, which is then left out of the results.
    """
    if [query, query_index, query_path].count(None) != 2:
        raise click.UsageError("give exactly one of --query, --query-index and --query-path")
    if invert and query is None:
        raise click.UsageError("--invert works only with --query")
    refuse_overwriting({"--montage": montage}, {"FEATS.h5": feats, "--query": query})
    from dmlfast.retrieval import load_features
    from dmlfast.retrieval.images import embed_picture, image_source

    features = load_features(feats)
    features.ranking(rank_by)  # refused before a picture is embedded
    image_of = image_source(features, data_dir=data_dir) if montage else None
    if query is not None:
        row, asked = None, query
        embedding = embed_picture(features, query, invert=invert, data_dir=data_dir)
    else:
        row = find_row(features, query_index, query_path)
        asked = features.paths[row]
        embedding = features.embeddings[row : row + 1]
    hits = search(features, embedding, top, row, rank_by)

    if as_json:
        found = [hit.to_plain() for hit in hits]
        result = {"features": feats, "query": asked, "ranked_by": rank_by, "results": found}
        click.echo(json.dumps(result, indent=2))
    else:
        nearest = "nearest" if rank_by == "distance" else f"most similar by {rank_by} score"
        images = counted(len(features), "image")
        title = f"{nearest} to {asked} among {images} of {features.title}"
        click.echo("\n".join([visible(title), *table(hits, rank_by, 0 if features.binary else 4)]))
    if montage and image_of:
        save_picture(_draw(features, asked, row, hits, image_of, rank_by), montage)


def table(hits: list[Hit], rank_by: str, digits: int) -> Iterator[str]:
    """A heading and a line for each image that was found, its value with so many digits."""
    rows = [("rank", f"{_measure(rank_by):>8}", "path", "class")]
    for hit in hits:
        value = f"{hit.value:8.{digits}f}"
        rows.append((f"{hit.rank:4}", value, visible(hit.path), visible(hit.class_name)))
    return columns(rows)


def find_row(features: "Features", index: int | None, path: str | None) -> int:
    """The row of that index or that path; none, or several, raise a UserError."""
    if index is not None:
        if index < len(features):
            return index
        held = counted(len(features), "row")
        raise UserError(f"{features.source} has {held}: there is no row {index}")
    if path in features.paths:
        rows = features.paths.count(path)
        if rows > 1:
            raise UserError(
                f"{features.source} has {rows:,} rows with path '{path}': use --query-index"
            )
        return features.paths.index(path)
    close = difflib.get_close_matches(path or "", features.paths, n=1)
    hint = f": did you mean '{close[0]}'?" if close else ""
    raise UserError(f"{features.source} has no path '{path}'{hint}")


def search(
    features: "Features",
    embedding: "np.ndarray",
    top: int,
    exclude: int | None = None,
    rank_by: str = "distance",
) -> list[Hit]:
    """The `top` rows nearest to an embedding (1, D), but for row `exclude`."""
    import numpy as np

    from dmlfast.retrieval import nearest_neighbours

    measure = _measure(rank_by)
    sign = 1 if measure == "distance" else -1
    found, distances = nearest_neighbours(
        embedding,
        features.embeddings,
        min(top, max(1, len(features))),
        exclude=None if exclude is None else np.array([exclude]),
        distance=features.ranking(rank_by),
    )
    return [
        Hit(
            rank,
            measure,
            sign * float(distance),
            int(row),
            features.paths[row],
            int(features.labels[row]),
            features.class_name(int(features.labels[row])),
        )
        for rank, (row, distance) in enumerate(zip(found[0], distances[0], strict=True), start=1)
        if row >= 0
    ]


def _measure(rank_by: str) -> str:
    return "distance" if rank_by == "distance" else "score"


def _draw(
    features: "Features",
    asked: str,
    row: int | None,
    hits: list[Hit],
    image_of: "ImageOf",
    rank_by: str,
) -> "Image.Image":
    """The query and what was found; framed green or red where the query's class is known."""
    from dmlfast.retrieval.drawing import GREEN, RED, readable
    from dmlfast.retrieval.images import open_picture
    from dmlfast.retrieval.montage import Tile, draw_search

    label = None if row is None else int(features.labels[row])
    tiles = []
    digits = 0 if features.binary else 3
    for hit in hits:
        frame = None if label is None else GREEN if hit.label == label else RED
        caption = f"{hit.value:.{digits}f}  {readable(hit.class_name)}"
        tiles.append(Tile(image_of(hit.path), frame, caption))
    if label is None:
        name, query = Path(asked).name, Tile(open_picture(asked), None, "query")
    else:
        caption = f"query\n{readable(features.class_name(label))}"
        name, query = asked, Tile(image_of(asked), None, caption)
    by = f"{features.distance} distance" if rank_by == "distance" else f"{rank_by} score"
    subtitle = f"among {counted(len(features), 'image')} of {features.title}, by {by}"
    return draw_search(query, tiles, f"Nearest to {visible(name)}", subtitle)
