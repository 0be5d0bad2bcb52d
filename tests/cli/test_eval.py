import json

import h5py
import numpy as np
import pytest
from dmlfast.cli.main import main
from PIL import Image

from dmlfast.data import create_dataset
from dmlfast.retrieval import FeatureWriter, evaluate, load_features


def write(path, rows=slice(None), *, shift=0, **attributes):
    """The raw pixels of digits as an embedding file."""
    dataset = create_dataset("digits", split="test")
    attributes = {"dataset": "digits", "split": "test", "model": "raw pixels"} | attributes
    embeddings = dataset.images.flatten(1).float().numpy()[rows]
    with FeatureWriter(path, dimension=64, attributes=attributes) as writer:
        writer.append(embeddings, dataset.labels[rows] + shift, dataset.paths[rows])
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
    assert output[1] == "raw pixels, 64 dimensions, euclidean distance"
    recall = f"recall at 1   {100 * report['recall_at_1']:6.2f} %   {low:.2f} % to {high:.2f} %"
    assert recall in output
    names = [line.split("  ")[0] for line in output[4:]]
    assert names == ["recall at 1", "recall at 10", "MAP at R", "R-precision", "NMI", "F1"]
    assert f"{100 * report['nmi']:.2f} %" in output[-2]


def test_json(feats, capsys):
    assert main(["eval", feats, "--json", "--no-clustering", "--seed", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    report = evaluate(load_features(feats), clustering=False, seed=3)
    assert {name: result[name] for name in report} == report
    assert "nmi" not in result
    assert result["features"] == feats
    assert result["attributes"]["model"] == "raw pixels"


def test_what_is_not_defined_is_null_in_json_and_named_in_the_table(tmp_path, capsys):
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.array([[0.0], [1.0]]), np.array([1, 2]), ["a", "b"])
    assert main(["eval", str(tmp_path / "f.h5"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recall_at_1"] is None
    assert result["intervals"]["map_at_r"] == [None, None]
    assert main(["eval", str(tmp_path / "f.h5"), "--bootstrap", "0"]) == 0
    output = lines(capsys)
    assert "recall at 1       n/a" in output
    assert output[-1] == "left out: 2 queries with nothing to find"


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
    assert "classes cannot be compared" in capsys.readouterr().err


def test_a_checkpoint_selected_on_the_test_classes_is_stamped(tmp_path, capsys):
    feats = write(tmp_path / "f.h5", slice(50), selected_on="test")
    assert main(["eval", feats, "--no-clustering"]) == 0
    assert "selected on the test classes" in lines(capsys)[-1]


def test_pictures(tmp_path, feats, capsys):
    montage, drawn = tmp_path / "montage.png", tmp_path / "map.png"
    arguments = ["--no-clustering", "--montage", str(montage), "--map", str(drawn)]
    assert main(["eval", feats, *arguments]) == 0
    assert f"wrote {montage}" in capsys.readouterr().err
    assert Image.open(montage).width > 800
    assert Image.open(drawn).size == (2000, 1600)


def test_pictures_without_images(tmp_path, capsys):
    feats = write(tmp_path / "f.h5", slice(30), dataset="cub")
    drawn = tmp_path / "map.png"
    arguments = ["eval", feats, "--no-clustering", "--map", str(drawn)]
    assert main(arguments) == 0
    assert "the map shows dots: unknown data set 'cub'" in capsys.readouterr().err
    assert Image.open(drawn).size == (2000, 1600)
    assert main([*arguments[:-2], "--montage", str(tmp_path / "montage.png")]) == 1
    output = capsys.readouterr()
    assert "unknown data set 'cub'" in output.err
    assert output.out == ""  # told before the evaluation
    assert not (tmp_path / "montage.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ks", "1,x"], "'1,x' is not a list of positive numbers"),
        (["--ks", "0"], "'0' is not a list of positive numbers"),
        (["--seed", "-1"], "--seed"),
        (["--bootstrap", "-1"], "--bootstrap"),
        (["--bootstrap", "9999999999999999"], "not in the range 0<=x<=1000000"),
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
