import json

import numpy as np
import pytest
import torch
from dmlfast.cli.main import main
from PIL import Image, ImageOps

from dmlfast.data import create_dataset, prepare_images
from dmlfast.models import create_model, save_model
from dmlfast.retrieval import FeatureWriter, load_features, montage

WIDTHS = (4, 4, 8, 8, 8)


@pytest.fixture
def dataset():
    return create_dataset("digits", split="test")


def embed(folder, dataset, *, normalized=False, distance="euclidean", **more):
    """Embeds 100 digits with a network saved in `folder`."""
    torch.manual_seed(0)
    model = create_model("convnet", embedding_dim=8, widths=WIDTHS).eval()
    with torch.no_grad():
        model.head.bias -= model(dataset.images[:100]).mean(0)  # so that signs differ
    save_model(model, folder / "model")
    attributes = {"dataset": "digits", "split": "test", "checkpoint": str(folder / "model")}
    with torch.no_grad():
        embeddings = model(dataset.images[:100])
    if normalized:
        embeddings = torch.nn.functional.normalize(embeddings)
    path = folder / f"{distance}.h5"
    with FeatureWriter(
        path,
        dimension=8,
        normalized=normalized,
        distance=distance,
        attributes=attributes | more,
        class_names=dataset.class_names,
        overwrite=True,
    ) as writer:
        writer.append(embeddings, dataset.labels[:100], dataset.paths[:100])
    return str(path)


@pytest.fixture
def feats(tmp_path, dataset):
    return embed(tmp_path, dataset)


def results(capsys):
    return json.loads(capsys.readouterr().out)["results"]


@pytest.mark.parametrize("invert", [False, True])
def test_a_picture_finds_itself(tmp_path, feats, dataset, capsys, invert):
    image = dataset.image(42)
    image = ImageOps.invert(image) if invert else image
    image.convert("RGB").save(tmp_path / "photo.png")
    arguments = ["search", feats, "--query", str(tmp_path / "photo.png"), "--json", "--top", "3"]
    assert main([*arguments, "--invert"] if invert else arguments) == 0
    first, second, third = results(capsys)
    assert (first["index"], first["path"], first["rank"]) == (42, dataset.paths[42], 1)
    assert first["distance"] < 1e-5
    assert first["class_name"] == dataset.class_names[dataset.labels[42]]
    assert first["distance"] < second["distance"] <= third["distance"]


def test_a_picture_of_any_size_and_shape_is_fitted(tmp_path, feats, dataset, capsys):
    large = ImageOps.expand(dataset.image(7).resize((80, 80), Image.Resampling.NEAREST), 0)
    wide = Image.new("L", (200, 80))
    wide.paste(large, (60, 0))
    wide.save(tmp_path / "photo.png")
    assert main(["search", feats, "--query", str(tmp_path / "photo.png"), "--json"]) == 0
    assert len(results(capsys)) == 10


def test_rows_of_the_file_do_not_find_themselves(feats, dataset, capsys):
    for option in (["--query-index", "5"], ["--query-path", dataset.paths[5]]):
        assert main(["search", feats, *option, "--top", "99", "--json"]) == 0
        found = results(capsys)
        assert {hit["index"] for hit in found} == set(range(100)) - {5}
        assert [hit["rank"] for hit in found] == list(range(1, 100))
        assert all(np.diff([hit["distance"] for hit in found]) >= 0)


def test_the_lines(feats, dataset, capsys):
    assert main(["search", feats, "--query-index", "5", "--top", "2"]) == 0
    head, columns, *lines = capsys.readouterr().out.splitlines()
    assert head == f"nearest to {dataset.paths[5]} among 100 images of digits test"
    wide = max(len(line.split()[2]) for line in lines)
    assert columns == f"rank  distance  {'path':{wide}}  class"
    assert main(["search", feats, "--query-index", "5", "--top", "2", "--json"]) == 0
    assert lines == [
        f"{hit['rank']:4}  {hit['distance']:8.4f}  {hit['path']:{wide}}  {hit['class_name']}"
        for hit in results(capsys)
    ]


def test_a_picture_is_called_as_it_was_given(tmp_path, feats, dataset, capsys, monkeypatch):
    (tmp_path / "photos").mkdir()
    dataset.image(42).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    arguments = ["search", feats, "--query", "photos/a.png"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["query"] == "photos/a.png"
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("nearest to photos/a.png among 100 images")


def test_names_do_not_break_the_lines(tmp_path, capsys):
    odd, names = ["a\nb", "\x1b[31mc", "d"], ["Gr\u00fcn \u72ac", "x\ty\u202e"]
    with FeatureWriter(tmp_path / "f.h5", dimension=1, class_names=names) as writer:
        writer.append(np.arange(3.0)[:, None], np.array([0, 0, 1]), odd)
    feats = str(tmp_path / "f.h5")
    assert main(["search", feats, "--query-path", odd[0]]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == rf"nearest to a\nb among 3 images of {feats}"
    assert [line.split()[2:] for line in lines] == [
        [r"\x1b[31mc", "Gr\u00fcn", "\u72ac"],
        ["d", r"x\ty\u202e"],
    ]
    told = fails([feats, "--query-path", "a\nc"], capsys)
    assert r"has no path 'a\nc': did you mean 'a\nb'" in told
    assert main(["search", feats, "--query-path", odd[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["query"], found["results"][0]["path"]) == (odd[0], odd[1])


def test_the_picture(tmp_path, feats, dataset, monkeypatch):
    queries, draw = [], montage.draw_search
    monkeypatch.setattr(
        montage, "draw_search", lambda query, *rest: queries.append(query) or draw(query, *rest)
    )
    out = tmp_path / "found.png"
    assert main(["search", feats, "--query-index", "5", "--montage", str(out)]) == 0
    with_classes = Image.open(out).convert("RGB")
    dataset.image(5).save(tmp_path / "photo.png")
    query = ["--query", str(tmp_path / "photo.png")]
    assert main(["search", feats, *query, "--montage", str(out)]) == 0
    assert queries[0].caption == f"query\n{dataset.class_names[dataset.labels[5]]}"
    assert queries[1].caption == "query"
    framed = [np.asarray(p).std(axis=2).max() for p in (with_classes, Image.open(out))]
    assert framed[0] > 50 > framed[1]  # no right and wrong where the query's class is not known


def test_a_montage_without_images_is_refused_before_the_search(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.zeros((2, 1)), np.zeros(2, int), ["a", "b"])
    out = tmp_path / "m.png"
    arguments = ["search", str(tmp_path / "f.h5"), "--query-index", "0", "--montage", str(out)]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "does not say which data set" in output.err
    assert output.out == ""
    assert not out.exists()


def test_fewer_rows_than_wanted(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.array([[0.0], [1.0]]), np.array([1, 2]), ["a", "b"])
    assert main(["search", str(tmp_path / "f.h5"), "--query-index", "0", "--json"]) == 0
    assert [hit["path"] for hit in results(capsys)] == ["b"]


def test_among_normalized_embeddings_the_query_is_normalized(tmp_path, dataset, capsys):
    feats = embed(tmp_path, dataset, normalized=True)
    dataset.image(42).save(tmp_path / "photo.png")
    assert main(["search", feats, "--query", str(tmp_path / "photo.png"), "--json"]) == 0
    assert results(capsys)[0]["distance"] < 1e-5


def test_among_sign_bits_the_query_is_its_sign_bits(tmp_path, dataset, capsys):
    feats = embed(tmp_path, dataset, distance="hamming")
    codes = load_features(feats).embeddings
    dataset.image(42).save(tmp_path / "photo.png")
    query = ["--query", str(tmp_path / "photo.png")]
    distances = np.unpackbits(codes ^ codes[42], axis=1).sum(axis=1)
    expected = np.argsort(distances, kind="stable")[:99]
    assert main(["search", feats, *query, "--top", "99", "--json"]) == 0
    found = results(capsys)
    assert [hit["index"] for hit in found] == expected.tolist()
    assert [hit["distance"] for hit in found] == distances[expected].tolist()
    assert distances[expected[-1]] > 0

    out = tmp_path / "found.png"
    assert main(["search", feats, "--query-index", "42", "--montage", str(out)]) == 0
    first = expected[expected != 42][0]
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[:3] == ["1", str(distances[first]), dataset.paths[first]]
    assert Image.open(out).width > 100


def test_a_network_that_makes_nan_of_a_picture_is_refused(tmp_path, dataset, capsys):
    model = create_model("convnet", embedding_dim=8, widths=WIDTHS).eval()
    feats = embed(tmp_path, dataset, distance="hamming")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    save_model(model, tmp_path / "model")
    dataset.image(42).save(tmp_path / "photo.png")
    query = ["--query", str(tmp_path / "photo.png")]
    assert "produces NaN or infinity for" in fails([feats, *query], capsys)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--query-index", "1", "--query-path", "a"], ["--query", "a.png", "--query-index", "1"]],
)
def test_one_query_is_given(feats, capsys, arguments):
    assert main(["search", feats, *arguments]) == 2
    assert "give exactly one of --query, --query-index and --query-path" in capsys.readouterr().err


def test_inversion_is_of_a_picture(feats, capsys):
    assert main(["search", feats, "--query-index", "1", "--invert"]) == 2
    assert "--invert works only with --query" in capsys.readouterr().err


def test_the_picture_is_not_a_file_that_is_read(tmp_path, feats, dataset, capsys):
    photo, link = tmp_path / "photo.png", tmp_path / "link.png"
    dataset.image(42).save(photo)
    link.symlink_to(feats)
    before = photo.read_bytes()
    for query, out, name in [
        (["--query", str(photo)], tmp_path / "model" / ".." / "photo.png", "--query"),
        (["--query-index", "1"], link, "FEATS.h5"),
    ]:
        assert main(["search", feats, *query, "--montage", str(out)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        expected = f"Error: --montage would overwrite the file of {name}, '{out}'"
        assert output.err.splitlines()[-1] == expected
    assert photo.read_bytes() == before
    assert link.is_symlink()


def fails(arguments, capsys):
    assert main(["search", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_queries_that_cannot_be_made(tmp_path, feats, dataset, capsys):
    assert "has 100 rows: there is no row 100" in fails([feats, "--query-index", "100"], capsys)
    near = dataset.paths[0][:-1]
    assert f"no path '{near}': did you mean" in fails([feats, "--query-path", near], capsys)
    twice = tmp_path / "twice.h5"
    with FeatureWriter(twice, dimension=1) as writer:
        writer.append(np.zeros((3, 1)), np.zeros(3, int), ["a", "b", "a"])
    ambiguous = fails([str(twice), "--query-path", "a"], capsys)
    assert ambiguous == f"Error: {twice} has 2 rows with path 'a': use --query-index\n"
    assert "cannot read" in fails([feats, "--query", str(tmp_path / "none.png")], capsys)
    assert fails([feats, "--query", ""], capsys) == "Error: the name of the image is empty\n"
    (tmp_path / "text.png").write_text("hello")
    assert "is not an image" in fails([feats, "--query", str(tmp_path / "text.png")], capsys)


def test_networks_that_are_not_the_one(tmp_path, feats, dataset, capsys):
    dataset.image(0).save(tmp_path / "photo.png")
    query = ["--query", str(tmp_path / "photo.png")]
    changed = embed(tmp_path, dataset, checkpoint_sha256="0" * 64)
    assert "has changed since" in fails([changed, *query], capsys)
    unknown = embed(tmp_path, dataset, checkpoint=None)
    assert "does not say which checkpoint" in fails([unknown, *query], capsys)
    gone = embed(tmp_path, dataset, checkpoint=str(tmp_path / "gone"))
    assert fails([gone, *query], capsys) == (
        f"Error: cannot read {tmp_path / 'gone' / 'model.safetensors'}: No such file or directory;"
        f" {gone} was embedded with it: put it back there, or embed again\n"
    )
    save_model(create_model("convnet", embedding_dim=4, widths=WIDTHS), tmp_path / "small")
    small = embed(tmp_path, dataset, checkpoint=str(tmp_path / "small"))
    assert "makes 4 dimensions" in fails([small, *query], capsys)


def test_a_picture_becomes_an_image_by_the_networks_transform(tmp_path, dataset, capsys):
    """Of a data set whose pictures are not as the network takes them, nothing is asked."""
    transform = {"name": "lifted", "size": 24}
    model = create_model("convnet", 3, 8, widths=WIDTHS, transform=transform).eval()
    save_model(model, tmp_path / "model")
    images = prepare_images(dataset, transform)
    with torch.no_grad():
        embeddings = model(images.take(range(100))[0])
    attributes = {"dataset": "digits", "split": "test", "checkpoint": str(tmp_path / "model")}
    path = tmp_path / "feats.h5"
    with FeatureWriter(path, dimension=8, attributes=attributes) as writer:
        writer.append(embeddings, dataset.labels[:100], dataset.paths[:100])
    dataset.image(42).save(tmp_path / "photo.png")
    assert main(["search", str(path), "--query", str(tmp_path / "photo.png"), "--json"]) == 0
    first = results(capsys)[0]
    assert (first["index"], first["distance"]) == (42, pytest.approx(0, abs=1e-3))
