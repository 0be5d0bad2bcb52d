import numpy as np
import pytest
from PIL import Image, ImageColor

from dmlfast.data import create_dataset
from dmlfast.errors import UserError
from dmlfast.retrieval import Features, draw_map, draw_montage, embedding_map, montage
from dmlfast.retrieval.drawing import GREEN, RED, SCALE, readable, shortened, typeface
from dmlfast.retrieval.images import image_source, open_picture
from dmlfast.retrieval.montage import FRAME, TILE


@pytest.fixture(scope="module")
def digits():
    """The raw pixels of 200 digits of five classes, as features."""
    dataset = create_dataset("digits", split="test")
    embeddings = dataset.images[:200].flatten(1).numpy().astype(np.float32)
    return Features(
        embeddings,
        dataset.labels[:200],
        dataset.paths[:200],
        class_names=dataset.class_names,
        attributes={"dataset": "digits", "split": "test"},
    )


def plain(path):
    return Image.new("L", (8, 8), 128)


def frames(picture, colour):
    """How many tiles have a frame of that colour, by the pixels of their frames."""
    pixels = (np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=2)
    side, border = TILE * SCALE, FRAME * SCALE
    runs = 0
    for row in pixels:  # the upper edge of a tile is `border` rows of `side` pixels
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        runs += ((edges[1::2] - edges[::2]) == side).sum()
    assert runs % (2 * border) == 0
    return runs // (2 * border)


def line(labels, **more):
    """Embeddings at 0, 1, 2, ... with these labels."""
    embeddings = np.arange(len(labels), dtype=np.float32)[:, None]
    return Features(
        embeddings, np.array(labels, dtype=np.int64), [str(i) for i in range(len(labels))], **more
    )


def test_frames_tell_right_from_wrong():
    # 0 finds 1 (wrong) and 2 (right), 2 finds 1 (wrong) and 0 (right); 1 has nothing to find.
    features = line([5, 7, 5])
    picture = draw_montage(features, image_of=plain, neighbours=2)
    # Both queries stand in the random block, and one, the only class, among the worst.
    assert frames(picture, GREEN) == 3
    assert frames(picture, RED) == 3
    alone = draw_montage(features, image_of=plain, neighbours=2, rows=1)
    assert (frames(alone, GREEN), frames(alone, RED)) == (2, 2)


def test_captions_of_neighbours_stay_apart():
    captions = ["W" * 40, "Greek small letter omega with dasia", "WWW WWW WWW WWW WWW WWW"]
    tiles = [montage.Tile(plain("a"), None, caption) for caption in captions]
    picture = np.asarray(montage.draw_search(tiles[0], tiles * 2, "", "", columns=6))
    top = (montage.MARGIN + montage.HEADER + TILE) * SCALE
    inked = np.flatnonzero((picture[top : top + montage.CAPTION * SCALE] < 255).any(axis=(0, 2)))
    gaps = np.diff(inked)
    wide = gaps[gaps >= (montage.CAPTION_GAP - 1) * SCALE]  # a letter's edge is between pixels
    assert len(wide) == 6  # between seven captions
    assert 2 * typeface(7).getlength(" ") < montage.CAPTION_GAP * SCALE


def test_the_worst_queries_are_the_worst():
    asked = []

    def image_of(path):
        asked.append(path)
        return plain(path)

    # Row 3 is alone among strangers; the others of its class, rows 4 to 6, are together.
    embeddings = np.array([0.0, 0.2, 0.4, 0.3, 9.0, 9.1, 9.3], dtype=np.float32)[:, None]
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    features = Features(embeddings, labels, list("abcdefg"))
    draw_montage(features, image_of=image_of, rows=1, neighbours=1, seed=0)
    assert asked[2] == "d"  # query and neighbour of the random block, then the worst query
    assert asked[3] in "bc"


@pytest.mark.parametrize(
    ("labels", "heading"),
    [
        ([1, 1, 2, 2], "Worst queries, one a class"),  # 1 finds 2, as near as 0, only after it
        ([1, 2, 1, 2], "Worst queries, one a class"),
        ([1, 1, 1, 1], "Every query finds its whole class first"),
        ([1, 2, 3, 4], "Worst queries, one a class"),  # none
    ],
)
def test_the_worst_queries_are_called_so_where_something_is_wrong(monkeypatch, labels, heading):
    headings = []
    monkeypatch.setattr(montage, "_draw_heading", lambda *args: headings.append(args[2]))
    draw_montage(line(labels), image_of=plain, rows=2, neighbours=2)
    assert headings == ["Random queries", heading]


def test_seeds_choose_the_random_queries(digits):
    image_of = image_source(digits)
    first, again, other = (
        draw_montage(digits, image_of=image_of, seed=seed).tobytes() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_montage_of_query_and_gallery(digits):
    queries = Features(
        digits.embeddings[:20], digits.labels[:20], digits.paths[:20], attributes=digits.attributes
    )
    rows = draw_montage(queries, digits, image_of=image_source(digits), rows=2, neighbours=3)
    assert frames(rows, GREEN) + frames(rows, RED) == 2 * 2 * 3


@pytest.mark.parametrize("labels", [[], [3], [1, 2, 3]])
def test_a_montage_with_nothing_to_find(labels):
    picture = draw_montage(line(labels), image_of=plain)
    assert picture.width > 500
    assert frames(picture, GREEN) == frames(picture, RED) == 0


def colours(picture):
    pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    colourful = pixels[(pixels.max(axis=1) - pixels.min(axis=1)) > 60]
    return len(np.unique(colourful // 16, axis=0))


@pytest.mark.parametrize("with_images", [True, False])
def test_a_map_shows_every_class_in_its_colour(digits, with_images):
    image_of = image_source(digits) if with_images else None
    picture = draw_map(digits, image_of=image_of, seed=1)
    assert colours(picture.crop((0, 0, 2000, 1560))) >= 5  # above the legend
    ink = (np.asarray(picture).min(axis=2) < 200).mean()
    assert 0.005 < ink < 0.3
    assert picture.tobytes() == draw_map(digits, image_of=image_of, seed=1).tobytes()


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([1, 1, 2, 2, 3, 3], "6 images of 3 classes; a colour a class"),
        ([1, 1, 2, 2, 3], "4 images of 2 classes, of 3; a colour a class"),
    ],
)
def test_a_map_says_of_how_many_classes_it_is_where_some_are_left_out(monkeypatch, labels, shown):
    texts = []
    monkeypatch.setattr(embedding_map, "header", lambda *args: texts.append(args[-1]))
    draw_map(line(labels))
    assert texts == [("Map of the embedding: features", f"t-SNE of {shown}")]


def test_similar_images_are_neighbours_on_the_map(digits):
    from dmlfast.retrieval.embedding_map import _lay_out

    rows = np.arange(len(digits))
    points = _lay_out(digits, rows, 9, seed=0)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    same = digits.labels[apart.argmin(axis=1)] == digits.labels
    assert same.mean() > 0.9
    assert apart.min() > 4  # pushed off each other


@pytest.mark.parametrize(
    "features",
    [
        line([]),
        line([4]),
        line([1, 1]),
        line([1, 2, 3, 4, 5]),
        Features(np.full((30, 4), 2.0, np.float32), np.arange(30) % 3),
        Features(
            np.random.default_rng(0).normal(size=(30, 4)),
            np.arange(30) % 3,
            attributes={"distance": "angular"},
        ),
    ],
)
def test_maps_of_little(features):
    assert draw_map(features).size == (2000, 1600)


def test_a_map_of_photos_has_frames_and_a_legend(monkeypatch):
    image = Image.new("RGB", (30, 10), "black")
    features = line([1, 1, 2, 2, 1, 2], class_names=["", "first", "second"])
    picture = draw_map(features, image_of=lambda path: image)
    pixels = np.asarray(picture)
    assert picture.size == (2000, 1600 + 14 * SCALE)
    frame = 56 * 27 - 44 * 15  # 3 units around 44 x 15 pixels
    swatch = 9 * SCALE + 1
    for index, x in enumerate([56, 434]):
        coloured = (pixels == embedding_map._colour(index, 2)).all(axis=2)
        assert coloured.sum() == 3 * frame + swatch**2
        assert coloured[1574:1588, x + 2 : x + 16].all()
    names = []
    monkeypatch.setattr(embedding_map, "_draw_legend", lambda *args: names.append(args[1:4]))
    draw_map(features, image_of=lambda path: image)
    assert names == [(0, 0, "first"), (1, 0, "second")]
    many = line(list(range(41)) * 2)
    assert draw_map(many, image_of=plain, classes=41).size == (2000, 1600)
    assert len(names) == 2


def test_colour_images_keep_their_colours_and_any_shape():
    image = Image.new("RGB", (30, 10), (10, 200, 250))
    features = line([1, 1, 2, 2, 1, 2])
    for picture in (
        draw_map(features, image_of=lambda path: image),
        draw_montage(features, image_of=lambda path: image),
    ):
        assert (np.asarray(picture) == (10, 200, 250)).all(axis=2).any()


def test_text_is_broken_and_cut():
    font = typeface(7.5)
    assert shortened("Greek small letter", font, 10_000, 3) == "Greek small letter"
    broken = shortened("one two three four five six", font, font.getlength("three four"), 2)
    assert broken.split("\n")[0] == "one two"
    assert broken.endswith("…")
    assert all(font.getlength(row) <= font.getlength("three four") for row in broken.split("\n"))
    assert shortened("", font, 50, 3) == ""
    word = shortened("Black_footed_Albatross_2", font, font.getlength("Black_footed"), 3)
    assert word == "Black_footed\n_Albatross_2"
    own = shortened("query\none two three four five six", font, font.getlength("three four"), 3)
    assert own.split("\n")[:2] == ["query", "one two"]
    assert own.count("\n") == 2


def test_characters_without_a_glyph_are_escapes():
    font = typeface(7.5)
    assert shortened("dog \u72ac 1", font, 10_000, 1) == r"dog \u72ac 1"
    assert shortened("\u03a9\xef \u0645 \x1b", font, 10_000, 1) == "\u03a9\xef \u0645 \\x1b"
    assert shortened("\u72ac" * 20, font, 200, 3).endswith("\u2026")
    assert readable("a\nb\tc") == r"a\nb\tc"

    empty = plain("a").resize((30, 30))
    boxes, escapes = (
        np.asarray(montage.draw_search(montage.Tile(empty, None, name), [], "", ""))
        for name in ("\u72ac", r"\u72ac")
    )
    assert (boxes == escapes).all()


def test_names_in_capitals_are_written_small():
    assert readable("GREEK SMALL LETTER") == "Greek small letter"
    assert [readable(name) for name in ("NOR", "Black footed Albatross", "7")] == [
        "NOR",
        "Black footed Albatross",
        "7",
    ]


def test_images_come_from_the_data_set(digits):
    dataset = create_dataset("digits", split="test")
    image_of = image_source(digits)
    assert image_of(digits.paths[17]).tobytes() == dataset.image(17).tobytes()
    validation = create_dataset("digits", split="val", val_fraction=0.4, seed=5)
    features = Features(
        np.zeros((len(validation), 1)),
        validation.labels,
        validation.paths,
        attributes={"dataset": "digits", "split": "val"},
    )
    image = image_source(features)(validation.paths[3])
    assert image.tobytes() == validation.image(3).tobytes()


@pytest.mark.parametrize(
    ("attributes", "paths", "message"),
    [
        ({}, ["a"], "does not say which data set"),
        ({"dataset": "digit", "split": "test"}, ["a"], "did you mean 'digits'"),
        ({"dataset": "digits", "split": "test"}, ["a"], "1 of its 1 path is not in .* such as 'a'"),
        ({"dataset": "digits", "split": "test"}, [], "no images for here"),
    ],
)
def test_images_that_cannot_be_had(attributes, paths, message):
    features = Features(
        np.zeros((1, 1)), np.zeros(1, int), paths, attributes=attributes, source="here"
    )
    with pytest.raises(UserError, match=message):
        image_source(features)


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png is not an image"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"cannot read .*none\.png: No such file"):
        open_picture(tmp_path / "none.png")
    Image.new("L", (50, 50), 7).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:60])
    with pytest.raises(UserError, match=r"b\.png"):
        open_picture(tmp_path / "b.png")


@pytest.mark.parametrize("draw", [draw_montage, draw_map])
def test_rows_without_paths_have_no_images(draw):
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="Features have no paths, by which image_of would know"):
        draw(Features(rows, np.arange(6) // 2), image_of=plain)
