"""Pictures of queries with their nearest neighbours."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dmlfast.retrieval.drawing import (
    GREEN,
    GREY,
    INK,
    LINE,
    RED,
    SCALE,
    ImageOf,
    canvas,
    fitted,
    header,
    readable,
    shortened,
    typeface,
)
from dmlfast.retrieval.evaluation import Scores, Sides, match_sides, score_queries
from dmlfast.retrieval.features import Features, check_paths
from dmlfast.retrieval.neighbours import nearest_neighbours
from dmlfast.text import counted

# Units of layout. A row of tiles is a query, a gap and its neighbours.
TILE, GAP, QUERY_GAP, BLOCK_GAP, CAPTION, MARGIN = 62, 10, 18, 32, 32, 28
FRAME = 3
CAPTION_GAP = 6  # between captions of neighbours, more than between words
HEADER, HEADING = 56, 40  # above the blocks, and above the rows of a block
ROW = TILE + CAPTION + GAP


class Tile(NamedTuple):
    """One image, the colour of its frame (None for a hairline) and the text below it."""

    image: Image.Image
    frame: str | None
    caption: str


def draw_montage(
    features: Features,
    gallery: Features | None = None,
    *,
    image_of: ImageOf,
    rank_by: str = "distance",
    rows: int = 6,
    neighbours: int = 5,
    seed: int = 0,
) -> Image.Image:
    """Draws queries and their nearest neighbours, random ones at the left, the worst at the right.

    Who searches among whom, and by what, is as in `evaluate`. `image_of` gives the image of a path.
    Neighbours of the query's class have a green frame, others a red one and their class's name. The
    worst queries have the least average precision at R and among equals the nearest, so the surest,
    neighbour; of a class only the worst is shown, and where none has anything wrong among the R
    nearest, their heading says so. `seed` draws the random ones.
    """
    sides = match_sides(features, gallery, rank_by)
    scores = score_queries(features, sides, (1,))
    random = np.random.default_rng(seed).permutation(len(scores.queries))[:rows]
    blocks = {
        "Random queries": scores.queries[random],
        _worst_heading(scores): _worst(features, scores, rows),
    }
    block_width = _row_width(neighbours)
    width = 2 * MARGIN + 2 * block_width + BLOCK_GAP
    height = 2 * MARGIN + HEADER + HEADING + len(random) * ROW - GAP
    picture, draw = canvas(width, height)
    header(draw, MARGIN, width, _title(features, sides, scores, rank_by))
    for position, (heading, queries) in enumerate(blocks.items()):
        left = MARGIN + position * (block_width + BLOCK_GAP)
        _draw_heading(draw, left, heading, neighbours)
        for row, tiles in enumerate(_rows_of_tiles(features, sides, queries, neighbours, image_of)):
            _draw_row(picture, left, MARGIN + HEADER + HEADING + row * ROW, tiles)
    return picture


def draw_search(
    query: Tile,
    found: Sequence[Tile],
    title: str,
    subtitle: str,
    columns: int = 5,
) -> Image.Image:
    """Draws one query and what was found for it, the nearest first, `columns` in a row."""
    rows = [found[start : start + columns] for start in range(0, len(found), columns)]
    width = max(2 * MARGIN + _row_width(columns), 480)
    picture, draw = canvas(width, 2 * MARGIN + HEADER + max(1, len(rows)) * ROW - GAP)
    header(draw, MARGIN, width, (title, subtitle))
    for row, tiles in enumerate(rows or [[]]):
        first = query if row == 0 else None
        _draw_row(picture, MARGIN, MARGIN + HEADER + row * ROW, [first, *tiles])
    return picture


def _title(features: Features, sides: Sides, scores: Scores, rank_by: str) -> tuple[str, str]:
    by = "" if rank_by == "distance" else f" by {rank_by} score"
    title = f"Nearest neighbours{by}: {features.title}"
    if not len(scores.queries):
        return title, "no query has an image of its class to find"
    queries = counted(len(scores.queries), "query", "queries")
    subtitle = (
        f"recall at 1 {scores.recall[:, 0].mean():.1%}, MAP at R"
        f" {scores.average_precision.mean():.1%}: {queries} among"
        f" {counted(len(sides.rows), 'image')}; green: the query's class, red: another"
    )
    return title, subtitle


def _worst_heading(scores: Scores) -> str:
    if len(scores.queries) and scores.average_precision.min() == 1:
        return "Every query finds its whole class first"
    return "Worst queries, one a class"


def _worst(features: Features, scores: Scores, count: int) -> np.ndarray:
    """Rows of the worst queries, the worst first, one a class."""
    order = np.lexsort((scores.nearest, scores.average_precision))
    _, first = np.unique(features.labels[scores.queries[order]], return_index=True)
    return scores.queries[order[np.sort(first)[:count]]]


def _rows_of_tiles(
    features: Features, sides: Sides, queries: np.ndarray, neighbours: int, image_of: ImageOf
) -> list[list[Tile]]:
    """For each query its own tile and those of its neighbours."""
    if len(queries):
        check_paths(features, sides.gallery)
    found, _ = nearest_neighbours(
        features.embeddings[queries],
        sides.gallery.embeddings[sides.rows],
        neighbours,
        exclude=sides.own[np.searchsorted(sides.queries, queries)],
        distance=sides.ranking,
    )
    rows = []
    for query, places in zip(queries, found, strict=True):
        label = features.labels[query]
        image = image_of(features.paths[query])
        tiles = [Tile(image, None, readable(features.class_name(label)))]
        for row in sides.rows[places[places >= 0]]:
            other = sides.gallery.labels[row]
            caption = "" if other == label else readable(sides.gallery.class_name(other))
            frame = GREEN if other == label else RED
            tiles.append(Tile(image_of(sides.gallery.paths[row]), frame, caption))
        rows.append(tiles)
    return rows


def _row_width(neighbours: int) -> int:
    return _column(neighbours) + TILE


def _column(index: int) -> int:
    """Where tile `index` of a row begins, the query's being 0."""
    return index * (TILE + GAP) + (QUERY_GAP - GAP if index else 0)


def _draw_heading(draw: ImageDraw.ImageDraw, left: int, heading: str, neighbours: int) -> None:
    top = MARGIN + HEADER
    draw.text((left * SCALE, top * SCALE), heading, INK, typeface(13, bold=True))
    for index in range(neighbours + 1):
        at = ((left + _column(index) + TILE / 2) * SCALE, (top + 28) * SCALE)
        draw.text(at, str(index) if index else "query", GREY, typeface(9), anchor="mm")


def _draw_row(picture: Image.Image, left: int, top: int, tiles: Sequence[Tile | None]) -> None:
    for index, tile in enumerate(tiles):
        if tile is not None:
            _draw_tile(picture, (left + _column(index)) * SCALE, top * SCALE, tile)


def _draw_tile(picture: Image.Image, x: int, y: int, tile: Tile) -> None:
    """One tile with its upper left corner at pixel (x, y)."""
    draw, side = ImageDraw.Draw(picture), TILE * SCALE
    border = FRAME * SCALE if tile.frame else SCALE
    image = fitted(tile.image.convert("RGB"), side - 2 * border)
    picture.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
    draw.rectangle((x, y, x + side - 1, y + side - 1), outline=tile.frame or LINE, width=border)
    font = typeface(7)
    draw.multiline_text(
        (x + side / 2, y + side + 3 * SCALE),
        shortened(tile.caption, font, (TILE + GAP - CAPTION_GAP) * SCALE, lines=3),
        tile.frame or GREY,
        font,
        anchor="ma",
        align="center",
        spacing=SCALE,
    )
