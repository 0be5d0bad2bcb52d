import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from dmlfast.cli.main import main
from dmlfast.cli.protocols import PROTOCOLS
from PIL import Image

from dmlfast.data import create_dataset
from dmlfast.retrieval import (
    FeatureWriter,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
    load_features,
)


def write(path, rows=slice(None), *, shift=0, roles=None, **attributes):
    """The raw pixels of digits as an embedding file."""
    dataset = create_dataset("digits", split="test")
    attributes = {"dataset": "digits", "split": "test", "model": "raw pixels"} | attributes
    embeddings = dataset.images.flatten(1).float().numpy()[rows]
    with FeatureWriter(path, dimension=64, attributes=attributes) as writer:
        writer.append(embeddings, dataset.labels[rows] + shift, dataset.paths[rows], roles)
    return str(path)


@pytest.fixture
def feats(tmp_path):
    return write(tmp_path / "feats.h5", slice(300))


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_the_table(feats, capsys):
    assert main(["eval", feats, "--ks", "1,10", "--bootstrap", "200"]) == 0
    report = evaluate(load_features(feats), ks=[1, 10], bootstrap=200)
    low, high = (100 * end for end in report["intervals"]["recall_at_1"])
    output = lines(capsys)
    assert output[0] == "digits test: 300 queries of 5 classes among 300 images"
    assert output[1] == "raw pixels, 64 dimensions, euclidean distance, 256 bytes per image"
    assert output[2:5] == [
        "protocol leave-one-out, checkpoint selection unknown",
        "",
        "retrieval, 95 % interval",
    ]
    recall = 100 * report["recall_at_1"]
    assert f"  recall at 1     {recall:6.2f} %   {low:.2f} % to {high:.2f} %" in output
    names = [line.strip().split("  ")[0] for line in output[5:]]
    ranking = ["recall at 1", "recall at 10", "MAP at R", "R-precision"]
    clustering = ["NMI", "NMI, geometric", "AMI", "F1"]
    assert names == [*ranking, "", "clustering by k-means (sklearn, 1 run)", *clustering]
    assert output[-4].endswith(f"{100 * report['nmi']:.2f} %")


def test_json(feats, capsys):
    assert main(["eval", feats, "--json", "--no-clustering", "--seed", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    report = evaluate(load_features(feats), clustering=False, seed=3)
    assert {name: result[name] for name in report} == report
    assert "nmi" not in result
    assert result["features"] == feats
    assert result["attributes"]["model"] == "raw pixels"


def test_what_is_not_defined_is_null_in_json_and_named_in_the_table(tmp_path, feats, capsys):
    words = ["--protocol", "knn", "--train-feats", write(tmp_path / "t.h5", slice(300, 700))]
    assert main(["eval", feats, *words, "--shots", "1,2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["medium_shot_top_1"] is None
    assert result["intervals"]["medium_shot_top_1"] == [None, None]
    assert main(["eval", feats, *words, "--shots", "1,2", "--bootstrap", "0"]) == 0
    (line,) = (line for line in lines(capsys) if line.startswith("  1 to 2 images, 0 classes"))
    assert line.endswith(" n/a")


def test_lone_queries_are_counted_in_the_table(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.arange(4.0)[:, None], np.array([1, 2, 3, 3]), list("abcd"))
    assert main(["eval", str(tmp_path / "f.h5"), "--bootstrap", "0", "--no-clustering"]) == 0
    output = lines(capsys)
    assert "  recall at 1   50.00 %" in output  # c finds b first, and d finds c
    assert output[-1] == "left out: 2 queries with nothing to find"


def test_one_of_anything_is_singular(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.zeros((2, 1)), np.array([1, 1]), ["a", "b"], np.array([1, 2]))
    assert main(["eval", str(tmp_path / "f.h5"), "--bootstrap", "0"]) == 0
    output = lines(capsys)
    assert output[0].endswith(": 1 query of 1 class among 1 image")
    assert ", 1 dimension, euclidean" in output[1]


def test_one_lone_query_is_singular(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.arange(3.0)[:, None], np.array([1, 1, 2]), ["a", "b", "c"])
    assert main(["eval", str(tmp_path / "f.h5"), "--bootstrap", "0"]) == 0
    assert lines(capsys)[-1] == "left out: 1 query with nothing to find"


@pytest.mark.parametrize(
    ("rows", "words", "where"),
    [
        (slice(1), [], ""),
        (slice(1), ["--protocol", "vehicleid-reid"], ""),
        (slice(1), ["--protocol", "zero-shot"], ""),
        (slice(40), ["--gallery-feats"], " in {other}"),
        (slice(40), ["--protocol", "knn", "--train-feats"], " in {other}"),
    ],
)
def test_where_there_is_nothing_to_find_it_is_an_error(tmp_path, capsys, rows, words, where):
    feats = write(tmp_path / "f.h5", rows)
    other = write(tmp_path / "o.h5", slice(60), shift=-5)
    others = [other for word in words if word.endswith("-feats")]
    assert main(["eval", feats, *words, *others, "--json"]) == 1
    output = capsys.readouterr()
    told = f"Error: nothing to rank: no query of {feats} has an image of its class to find"
    assert output.err == told + where.format(other=other) + "\n"
    assert output.out == ""


def test_k_beyond_the_gallery_is_the_whole_gallery(feats, capsys):
    ks = ["--ks", "1,299,1000000000", "--no-clustering"]
    result = result_of(capsys, feats, *ks)
    assert result["recall_at_1"] < result["recall_at_299"] == result["recall_at_1000000000"] == 1
    assert main(["eval", feats, *ks]) == 0
    assert "  recall at 1000000000  100.00 %   100.00 % to 100.00 %" in lines(capsys)


def test_paths_that_tell_no_image_from_another(tmp_path, feats, capsys):
    same = tmp_path / "same.h5"
    same.write_bytes(Path(feats).read_bytes())
    with h5py.File(same, "r+") as file:
        file["paths"][:] = ["x.png"] * 300
    one, other = (result_of(capsys, path, "--no-clustering") for path in (feats, str(same)))
    assert one["map_at_r"] == other["map_at_r"]  # by row
    assert main(["eval", str(same), "--gallery-feats", str(same)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        f"Error: 300 images of {same} have the path 'x.png': it is unclear which of them"
        " is the query itself\n"
    )


def test_a_file_of_float64(tmp_path, feats, capsys):
    wide = tmp_path / "wide.h5"
    with h5py.File(feats) as old, h5py.File(wide, "w") as file:
        file["embeddings"] = old["embeddings"][:].astype(np.float64)
        file["labels"], file["paths"] = old["labels"][:], old["paths"][:]
    expected = result_of(capsys, feats)
    result = result_of(capsys, str(wide))
    assert (expected["bytes_per_image"], result["bytes_per_image"]) == (256, 512)
    for name in ("recall_at_1", "map_at_r", "nmi", "intervals"):
        assert result[name] == expected[name]
    drawn = tmp_path / "map.png"
    assert main(["eval", str(wide), "--binary", "--no-clustering", "--map", str(drawn)]) == 0
    assert lines(capsys)[4].split() == ["float64", "binary"]
    assert Image.open(drawn).size == (2000, 1600)


def test_the_smallest_file_of_another_program(tmp_path, feats, capsys):
    """As docs/feature_files.md has it."""
    own = tmp_path / "own.h5"
    with h5py.File(feats) as old, h5py.File(own, "w") as file:
        file["embeddings"], file["labels"] = old["embeddings"][:], old["labels"][:]
        file["paths"] = [f"{row}" for row in range(300)]
    expected, result = result_of(capsys, feats), result_of(capsys, str(own))
    assert result["intervals"] == expected["intervals"]
    assert result["map_at_r"] == expected["map_at_r"]


def test_json_holds_nothing_but_json(tmp_path, capsys):
    feats = write(tmp_path / "f.h5", slice(30), rate=np.inf, rates=[1.0, np.nan])
    assert main(["eval", feats, "--json", "--no-clustering"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["attributes"]["rate"] is None
    assert result["attributes"]["rates"] == [1.0, None]


def test_a_gallery(tmp_path, capsys):
    queries = write(tmp_path / "q.h5", slice(40))
    gallery = write(tmp_path / "g.h5", slice(40, 300))
    arguments = ["eval", queries, "--gallery-feats", gallery, "--json", "--no-clustering"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["queries"], result["gallery"]) == (40, 260)
    expected = evaluate(load_features(queries), load_features(gallery), clustering=False)
    assert result["map_at_r"] == expected["map_at_r"]
    assert main(arguments[:4]) == 0
    assert "among 260 images of digits test" in capsys.readouterr().out


def test_classes_that_were_trained_on_are_counted(tmp_path, feats, capsys):
    clean = write(tmp_path / "clean.h5", slice(50), shift=-5)
    assert main(["eval", feats, "--train-feats", clean, "--no-clustering"]) == 0
    assert lines(capsys)[-1] == f"classes shared with {clean}: 0"
    assert main(["eval", feats, "--train-feats", feats, "--json", "--no-clustering"]) == 0
    assert json.loads(capsys.readouterr().out)["classes_shared_with_train"] == 5
    other = write(tmp_path / "other.h5", slice(50), dataset="glyphs")
    assert main(["eval", feats, "--train-feats", other]) == 1
    message = f"{feats} is from digits and {other} from glyphs: their classes cannot be compared"
    assert capsys.readouterr().err == f"Error: {message}\n"


@pytest.mark.parametrize("silent", [0, 1])
def test_a_file_that_does_not_say_its_data_set_is_not_compared_with_one_that_does(
    tmp_path, capsys, silent
):
    names = [{"dataset": None}, {"dataset": "digits"}]
    files = [write(tmp_path / f"{n}.h5", slice(50), **names[n != silent]) for n in range(2)]
    assert main(["eval", files[0], "--protocol", "knn", "--train-feats", files[1]]) == 1
    assert capsys.readouterr().err == (
        f"Error: {files[silent]} does not say which data set it is from (no `dataset`), and"
        f" {files[1 - silent]} is from digits: their classes cannot be compared\n"
    )


def test_a_checkpoint_selected_on_the_test_classes_is_stamped(tmp_path, capsys):
    feats = write(tmp_path / "f.h5", slice(50), selected_on="test")
    assert main(["eval", feats, "--no-clustering"]) == 0
    output = lines(capsys)
    assert output[2] == "protocol leave-one-out, checkpoint SELECTED ON TEST"
    assert "selected on the test classes" in output[-1]


def test_the_card_says_what_the_file_knows(tmp_path, capsys):
    card = {"weights": "imagenet1k_v2", "crop": "center", "image_size": 224, "selected_on": "val"}
    more = {"batch_norm": "frozen", "bounding_boxes": "cut out", "step": 5, "loss": "lifted"}
    made = {"pooling": "average", "trained_with": "dmlfast 1, torch 2, Python 3"}
    feats = write(tmp_path / "f.h5", slice(50), model="resnet50", **card, **more, **made)
    assert main(["eval", feats, "--no-clustering"]) == 0
    assert lines(capsys)[1:7] == [
        "resnet50, 64 dimensions, euclidean distance, 256 bytes per image",
        "weights imagenet1k_v2; pooling average; batch norm frozen",
        "image size 224; crop center; bounding boxes cut out",
        "loss lifted; step 5",
        "trained with dmlfast 1, torch 2, Python 3",
        "protocol leave-one-out, checkpoint selected on val",
    ]
    feats = write(tmp_path / "g.h5", slice(50), selection="last step")
    assert main(["eval", feats, "--no-clustering"]) == 0
    assert "protocol leave-one-out, checkpoint of the last step" in lines(capsys)


def test_what_a_file_says_breaks_no_line(tmp_path, capsys):
    feats = write(tmp_path / "f\n.h5", slice(50), model="res\x1b[31mnet", loss="lif\nted")
    assert main(["eval", feats, "--no-clustering"]) == 0
    output = lines(capsys)
    assert output[1].startswith(r"res\x1b[31mnet, 64 dimensions")
    assert output[2] == r"loss lif\nted"
    assert main(["eval", feats, "--ks", "1", "--gallery-feats", str(tmp_path / "n\n.h5")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert r"n\n.h5" in error


def test_targets_stand_beside_the_results(tmp_path, capsys):
    targets = [
        {
            "source": source,
            "backbone": "ResNet-50",
            "crop": "centre 224",
            "embedding-dim": 512,
            "metrics": metrics,
        }
        for source, metrics in (
            ("one", {"recall_at_1": 0.653, "recall_at_10": 0.9}),
            ("two", {"recall_at_1": 0.6536, "nmi": 0.7}),
        )
    ]
    known = {"recipe": "some", "recipe_targets": json.dumps(targets)}
    feats = write(tmp_path / "f.h5", slice(50), **known, recipe_differences=["lr 1, not 2"])
    arguments = ["eval", feats, "--ks", "1,10,20", "--bootstrap", "20"]
    assert main(arguments) == 0
    output = lines(capsys)
    rows = {line.strip().split("  ")[0]: line for line in output}
    assert rows["recall at 1"].endswith("   target 65.3 % [1], 65.36 % [2]")
    assert rows["recall at 10"].endswith("   target 90.0 % [1]")
    assert "target" not in rows["recall at 20"]
    assert rows["NMI"].endswith("   target 70.0 % [2]")
    assert len({rows[name].index("target") for name in ("recall at 1", "recall at 10")}) == 1
    assert output[-6:] == [
        "",
        "targets of recipe some, on the test images:",
        "  [1] one; backbone ResNet-50; 512 dimensions; crop centre 224",
        "  [2] two; backbone ResNet-50; 512 dimensions; crop centre 224",
        "NOT BY THE RECIPE:",
        "  lr 1, not 2",
    ]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["recipe"]
    assert result == {"name": "some", "targets": targets, "differences": ["lr 1, not 2"]}
    same = write(tmp_path / "same.h5", slice(50), **known)
    assert main(["eval", same, "--no-clustering"]) == 0
    assert lines(capsys)[-1] == "settings as in the recipe"
    gallery = write(tmp_path / "g.h5", slice(50, 90))
    assert main(["eval", feats, "--gallery-feats", gallery]) == 0
    assert "target" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its recipe_targets are not as they were written"),
        ("3", "its recipe_targets are not as they were written"),
        ('[{"source": "x"}]', "target 1: 'backbone' is missing"),
    ],
)
def test_targets_that_are_not_as_they_were_written(tmp_path, capsys, text, message):
    feats = write(tmp_path / "f.h5", slice(50), recipe="x", recipe_targets=text)
    assert main(["eval", feats]) == 1
    assert capsys.readouterr().err == f"Error: {feats}: {message}\n"


@pytest.mark.parametrize(
    ("dataset", "ks"),
    [
        ("cub", [1, 2, 4, 8]),
        ("cars196", [1, 2, 4, 8]),
        ("SOP", [1, 10, 100, 1000]),
        ("in-shop", [1, 10, 20, 30, 40, 50]),
        ("InShop", [1, 10, 20, 30, 40, 50]),
        ("vehicleid-800", [1, 5]),
        ("digits", [1, 2, 4, 8]),
    ],
)
def test_the_data_set_says_which_k(tmp_path, capsys, dataset, ks):
    feats = write(tmp_path / "f.h5", slice(60), dataset=dataset)

    def reported(*arguments):
        assert main(["eval", feats, "--json", *arguments]) == 0
        return [
            int(name.removeprefix("recall_at_"))
            for name in json.loads(capsys.readouterr().out)
            if name.startswith("recall_at_")
        ]

    quick = ["--no-clustering", "--bootstrap", "0"]
    assert reported(*quick) == ks
    assert reported(*quick, "--k", "3") == reported(*quick, "--ks", "3") == [3]
    assert reported(*quick, "--protocol", "vehicleid-dml") == [1, 5]


def result_of(capsys, *arguments):
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_vehicleid(feats, capsys):
    arguments = ["--protocol", "vehicleid-reid", "--draws", "4", "--seed", "2"]
    result = result_of(capsys, feats, *arguments)
    expected = evaluate_identity_draws(load_features(feats), draws=4, seed=2)
    assert {name: result[name] for name in expected} == expected
    assert result["protocol"] == "vehicleid-reid"
    assert main(["eval", feats, *arguments]) == 0
    output = lines(capsys)
    assert output[0] == "digits test: 295 queries of 5 classes among 5 images"
    mean, deviation = 100 * expected["cmc_at_1"], 100 * expected["cmc_at_1_std"]
    assert output[-3:-1] == [
        "identification, mean of 4 draws",
        f"  CMC at 1   {mean:.2f} %   +- {deviation:.2f} %",
    ]
    whole = result_of(capsys, feats, "--protocol", "vehicleid-dml", "--no-clustering")
    report = evaluate(load_features(feats), ks=[1, 5], clustering=False)
    assert whole["recall_at_5"] == report["recall_at_5"]
    assert (whole["protocol"], whole["queries"]) == ("vehicleid-dml", 300)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["nearest-centroid", "--shots", "30,40"], {"shots": (30, 40)}),
        (["knn"], {"method": "knn"}),
        (
            ["knn", "--neighbours", "3", "--vote", "distance", "--bootstrap", "20", "--seed", "1"],
            {"method": "knn", "neighbours": 3, "vote": "distance", "bootstrap": 20, "seed": 1},
        ),
    ],
)
def test_classification(tmp_path, capsys, arguments, settings):
    feats = write(tmp_path / "f.h5", slice(0, 300, 2))
    train = write(tmp_path / "t.h5", slice(1, 300, 2))
    arguments = ["--protocol", *arguments, "--train-feats", train]
    result = result_of(capsys, feats, *arguments)
    expected = evaluate_classification(load_features(feats), load_features(train), **settings)
    shown = json.loads(json.dumps(expected).replace("NaN", "null"))
    assert {name: result[name] for name in expected} == shown
    assert main(["eval", feats, *arguments]) == 0
    output = lines(capsys)
    few, many = expected["shots"]
    medium = expected["medium_shot_classes"]
    assert any(line.startswith(f"  {few} to {many} images, {medium} classes") for line in output)
    assert not any("n/a to n/a" in line for line in output)
    assert output[-1] == f"classes shared with {train}: 5"


@pytest.mark.parametrize("against", ["prototypes", "images"])
def test_zero_shot(tmp_path, feats, capsys, against):
    arguments = ["--protocol", "zero-shot", "--against", against]
    result = result_of(capsys, feats, *arguments)
    expected = evaluate_zero_shot(load_features(feats), against=against)
    assert {name: result[name] for name in expected} == expected
    unseen = write(tmp_path / "t.h5", slice(50), shift=-5)
    assert main(["eval", feats, *arguments, "--train-feats", unseen]) == 0
    capsys.readouterr()
    seen = write(tmp_path / "s.h5", slice(50))
    assert main(["eval", feats, *arguments, "--train-feats", seen]) == 1
    assert capsys.readouterr().err.endswith("s.h5, so they were seen in training\n")


def test_roles_decide_where_no_protocol_is_named(tmp_path, capsys):
    roles = np.repeat(np.array([1, 2], np.uint8), [40, 60])
    feats = write(tmp_path / "f.h5", slice(100), roles=roles)
    quick = ["--no-clustering", "--bootstrap", "0"]
    result = result_of(capsys, feats, *quick)
    assert (result["protocol"], result["queries"], result["gallery"]) == ("query-gallery", 40, 60)
    assert result == result_of(capsys, feats, *quick, "--protocol", "query-gallery")
    for name in ("leave-one-out", "vehicleid-dml", "vehicleid-reid"):
        assert main(["eval", feats, "--protocol", name]) == 1
        assert "separates them (/role): use query-gallery" in capsys.readouterr().err
    every = write(tmp_path / "g.h5", slice(100), roles=np.zeros(100, np.uint8))
    assert result_of(capsys, every, *quick)["protocol"] == "leave-one-out"
    assert main(["eval", every, "--protocol", "query-gallery"]) == 1
    assert "needs --gallery-feats, or a /role in" in capsys.readouterr().err


def test_runs_of_k_means(feats, capsys):
    result = result_of(capsys, feats, "--clustering-runs", "2", "--kmeans", "sklearn")
    expected = evaluate(load_features(feats), clustering_runs=2)
    assert result["nmi_std"] == expected["nmi_std"] > 0
    assert main(["eval", feats, "--clustering-runs", "2"]) == 0
    output = lines(capsys)
    assert "clustering by k-means (sklearn, 2 runs)" in output
    assert output[-4].endswith(f"+- {100 * expected['nmi_std']:.2f} %")


@pytest.mark.parametrize(
    ("protocol", "option"),
    [
        ("leave-one-out", ["--draws", "3"]),
        ("leave-one-out", ["--gallery-feats", "x.h5"]),
        ("query-gallery", ["--vote", "distance"]),
        ("vehicleid-reid", ["--train-feats", "x.h5"]),
        ("vehicleid-reid", ["--bootstrap", "10"]),
        ("vehicleid-reid", ["--no-clustering"]),
        ("nearest-centroid", ["--neighbours", "3"]),
        ("knn", ["--ks", "1"]),
        ("knn", ["--gallery-feats", "x.h5"]),
        ("zero-shot", ["--shots", "1,2"]),
        ("zero-shot", ["--kmeans", "faiss"]),
        ("knn", ["--montage", "x.png"]),
        (None, ["--against", "images"]),
    ],
)
def test_an_option_that_a_protocol_does_not_take(feats, capsys, protocol, option):
    named = ["--protocol", protocol] if protocol else []
    assert main(["eval", feats, *named, *option]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    name = option[0].replace("--no-", "--")
    assert error.startswith(
        f"Error: {name} cannot be used with protocol {protocol or 'leave-one-out'}"
    )


def test_pictures(tmp_path, feats, capsys):
    montage, drawn = tmp_path / "montage.png", tmp_path / "map.png"
    arguments = ["--no-clustering", "--montage", str(montage), "--map", str(drawn)]
    assert main(["eval", feats, *arguments]) == 0
    assert f"wrote {montage}" in capsys.readouterr().err
    assert Image.open(montage).width > 800
    assert Image.open(drawn).size == (2000, 1628)  # with a line of the legend


def test_pictures_without_images(tmp_path, capsys):
    feats = write(tmp_path / "f.h5", slice(30), dataset="cub")
    drawn = tmp_path / "map.png"
    arguments = ["eval", feats, "--no-clustering", "--map", str(drawn)]
    assert main(arguments) == 0
    assert "the map shows dots instead of images: unknown data set 'cub'" in capsys.readouterr().err
    assert Image.open(drawn).size == (2000, 1600)
    assert main([*arguments[:-2], "--montage", str(tmp_path / "montage.png")]) == 1
    output = capsys.readouterr()
    assert "unknown data set 'cub'" in output.err
    assert output.out == ""  # told before the evaluation
    assert not (tmp_path / "montage.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ks", "1,x"], "'1,x' is not a list of positive whole numbers"),
        (["--ks", "0"], "'0' is not a list of positive whole numbers"),
        (["--seed", "-1"], "--seed"),
        (["--bootstrap", "-1"], "--bootstrap"),
        (["--bootstrap", "9999999999999999"], "not in the range 0<=x<=1000000"),
        (["--protocol", "loo"], "'loo' is not one of 'leave-one-out', "),
        (["--protocol", "knn"], "protocol knn needs the training images: --train-feats"),
        (["--shots", "100,20"], "'100,20' is not two numbers in ascending order"),
        (["--shots", "20"], "'20' is not two numbers in ascending order"),
        (["--shots", "0,20"], "'0,20' is not a list of positive whole numbers"),
        (
            ["--clustering-runs", "5", "--no-clustering"],
            "--clustering-runs cannot be used with --no-clustering",
        ),
        (["--no-clustering", "--kmeans", "faiss"], "--kmeans cannot be used with --no-clustering"),
        (["--montage", "feats.h5"], "'feats.h5' must end in one of .png"),
        (["--map", "/nowhere/map.png"], "the folder of '/nowhere/map.png' does not exist"),
        (["--map", "/proc/map.png"], "'--map': cannot write /proc/map.png: "),
    ],
)
def test_wrong_usage(feats, capsys, arguments, message):
    assert main(["eval", feats, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err


def test_a_picture_replaces_no_other_file(tmp_path, capsys):
    """Also where the files are not there yet, and so before they are read."""
    drawn = str(tmp_path / "a.png")
    other = str(tmp_path / "none" / ".." / "a.png")
    (tmp_path / "none").mkdir()
    for arguments, message in [
        (
            ["f.h5", "--montage", drawn, "--map", other],
            "--map would overwrite the file of --montage",
        ),
        ([drawn, "--map", other], "--map would overwrite the file of FEATS.h5"),
        (["f.h5", "--gallery-feats", drawn, "--montage", drawn], "the file of --gallery-feats"),
    ]:
        assert main(["eval", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_files_that_are_wrong(tmp_path, feats, capsys):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["train"] = np.zeros((3, 2))
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "feats.h5").read_bytes()[:5000])
    cases = {
        "none.h5": "cannot read",
        "foreign.h5": "no dataset /embeddings, expected (N, D) float32",
        "text.h5": "is not an HDF5 file",
        "cut.h5": "is damaged or cut short",
    }
    for name, message in cases.items():
        for arguments in ([], [feats, "--gallery-feats"]):
            assert main(["eval", *arguments, str(tmp_path / name)]) == 1
            output = capsys.readouterr()
            assert output.out == ""
            assert output.err.startswith("Error: ")
            assert message in output.err
            assert name in output.err
            assert output.err.count("\n") == 1


def test_help_lists_the_protocols(capsys):
    assert main(["eval", "--help"]) == 0
    output = lines(capsys)
    for name, protocol in PROTOCOLS.items():
        assert f"    {name:17} {protocol.summary}" in output


@pytest.fixture
def centred(tmp_path):
    """Digits whose pixels have signs, as floats, as half floats and as sign bits."""
    dataset = create_dataset("digits", split="test")
    pixels = dataset.images[:300].flatten(1).float().numpy()
    attributes = {"dataset": "digits", "split": "test", "model": "raw pixels"}
    kinds = {"f": {}, "h": {"dtype": "float16"}, "b": {"distance": "hamming"}}
    for name, kind in kinds.items():
        path = tmp_path / f"{name}.h5"
        with FeatureWriter(path, dimension=64, attributes=attributes, **kind) as writer:
            writer.append(pixels - pixels.mean(axis=0), dataset.labels[:300], dataset.paths[:300])
    return {name: str(tmp_path / f"{name}.h5") for name in kinds}


def test_a_binary_file(centred, capsys):
    assert main(["eval", centred["b"], "--json", "--ks", "1,1000"]) == 0
    result = json.loads(capsys.readouterr().out)
    report = evaluate(load_features(centred["f"]).binarized(), ks=[1, 1000])
    assert {name: result[name] for name in report} == report
    assert 0.5 < result["recall_at_1"] < 1
    assert result["recall_at_1000"] == 1
    assert result["bytes_per_image"] == 8
    assert result["attributes"]["n_bits"] == 64
    assert main(["eval", centred["b"], "--no-clustering"]) == 0
    assert lines(capsys)[1] == "raw pixels, 64 sign bits, hamming distance, 8 bytes per image"


@pytest.mark.parametrize(("kind", "name", "size"), [("f", "float32", 256), ("h", "float16", 128)])
def test_floats_and_their_bits_side_by_side(centred, capsys, kind, name, size):
    features = load_features(centred[kind])
    of_floats, of_bits = evaluate(features, ks=[1, 10]), evaluate(features.binarized(), ks=[1, 10])
    assert of_floats["map_at_r"] > of_bits["map_at_r"] > 0.3
    arguments = ["eval", centred[kind], "--binary", "--ks", "1,10"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {key: result[key] for key in of_floats} == of_floats
    assert result["binary"] == of_bits
    assert (result["bytes_per_image"], result["binary"]["bytes_per_image"]) == (size, 8)

    assert main(arguments) == 0
    output = lines(capsys)
    assert output[1] == "raw pixels, 64 dimensions, euclidean distance; sign bits, hamming distance"
    assert output[4].split() == [name, "binary"]
    assert output[5].split() == ["bytes", "per", "image", str(size), "8"]
    assert output[4].index("binary") + len("binary") == len(output[5])
    for metric, key in [("recall at 10", "recall_at_10"), ("MAP at R", "map_at_r")]:
        (line,) = [line for line in output if line.startswith(f"  {metric} ")]
        for report in (of_floats, of_bits):
            low, high = (100 * end for end in report["intervals"][key])
            assert f"{100 * report[key]:.2f} %   {low:.2f} % to {high:.2f} %" in line
    (line,) = [line for line in output if line.startswith("  NMI ")]
    assert line.split()[1::2] == [f"{100 * report['nmi']:.2f}" for report in (of_floats, of_bits)]


@pytest.mark.parametrize(
    "words",
    [
        ["--protocol", "vehicleid-reid"],
        ["--protocol", "vehicleid-dml", "--no-clustering"],
        ["--protocol", "zero-shot"],
        ["--protocol", "zero-shot", "--against", "images"],
        ["--protocol", "nearest-centroid", "--train-feats"],
        ["--protocol", "knn", "--vote", "distance", "--train-feats"],
        ["--gallery-feats"],
    ],
)
def test_binary_files_by_every_protocol(centred, capsys, words):
    """As the bits beside the floats, with a gallery or training images of the same kind."""
    reports = []
    for kind, more in (("b", []), ("f", ["--binary"])):
        other = [centred[kind]] if words[-1].endswith("-feats") else []
        assert main(["eval", centred[kind], *words, *other, *more, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    of_bits = reports[1]["binary"]
    assert {key: reports[0][key] for key in of_bits} == of_bits
    assert of_bits["distance"] == "hamming"
    assert main(["eval", centred["f"], *words, *other, "--binary"]) == 0
    assert "bytes per image" in capsys.readouterr().out


def test_the_bits_of_queries_and_gallery(tmp_path, capsys):
    roles = (np.arange(300) % 3).astype(np.uint8)
    feats = write(tmp_path / "f.h5", slice(300), roles=roles)
    assert main(["eval", feats, "--binary", "--no-clustering", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = evaluate(load_features(feats).binarized(), clustering=False)
    assert result["protocol"] == "query-gallery"
    assert (result["binary"]["queries"], result["binary"]["gallery"]) == (200, 200)
    assert result["binary"] == expected


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("b.h5 --binary", 1, "b.h5 already holds sign bits: leave --binary out"),
        ("f.h5 --gallery-feats b.h5 --binary", 1, "b.h5 already holds sign bits"),
        ("f.h5 --gallery-feats b.h5", 1, "one holds sign bits, the other floats"),
        ("b.h5 --protocol knn --train-feats f.h5", 1, "one holds sign bits, the other floats"),
        (
            "f.h5 --protocol classifier --train-feats f.h5 --binary",
            2,
            "--binary cannot be used with protocol classifier",
        ),
    ],
)
def test_bits_and_floats_are_not_mixed(
    centred, monkeypatch, tmp_path, capsys, words, code, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *words.split()]) == code
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("Error")]
    assert message in line
    assert output.out == ""


def test_pictures_of_a_binary_file(centred, tmp_path, capsys):
    pictures = ["--montage", str(tmp_path / "m.png"), "--map", str(tmp_path / "p.png")]
    assert main(["eval", centred["b"], "--no-clustering", *pictures]) == 0
    assert Image.open(tmp_path / "m.png").width > 100
    assert Image.open(tmp_path / "p.png").width > 100
