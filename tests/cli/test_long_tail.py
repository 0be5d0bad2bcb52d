"""A long tail from training to the accuracies of many, medium and few shots."""

import json

import numpy as np
import pytest
from dmlfast.cli.main import main

from dmlfast.data import create_dataset
from dmlfast.retrieval import load_features
from dmlfast.training import RunFolder
from dmlfast.training.classifier import load_classifier

QUICK = ["--bootstrap", "0", "--shots", "3,6", "--json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps, and the embedding files of its test and training images."""
    folder = tmp_path_factory.mktemp("long-tail")
    words = [
        *("train", "--dataset", "glyphs-lt", "--loss", "lifted", "--ce-weight", "1"),
        *("--batch-size", "64", "--embedding-dim", "16", "--max-steps", "12", "--device", "cpu"),
        *("--warmup-steps", "2", "--eval-interval", "12", "--out", str(folder / "run")),
    ]
    assert main(words) == 0
    files = [str(folder / f"{split}.h5") for split in ("test", "train")]
    for path, split in zip(files, ("test", "train"), strict=True):
        assert main(["embed", str(folder / "run"), "--split", split, "--out", path]) == 0
    return RunFolder(folder / "run"), *files


def evaluated(capsys, *words):
    capsys.readouterr()
    assert main(["eval", *words, *QUICK]) == 0
    return json.loads(capsys.readouterr().out)


def test_accuracy_of_the_classifier_by_shots(trained, capsys):
    run, test, train = trained
    found = evaluated(capsys, test, "--train-feats", train, "--protocol", "classifier")
    features, classifier = load_features(test), load_classifier(run.checkpoint().folder)
    scores = features.embeddings.astype(np.float64) @ classifier.weight.T.astype(np.float64)
    right = classifier.classes[(scores + classifier.bias).argmax(axis=1)] == features.labels
    assert found["top_1"] == pytest.approx(right.mean())
    images = np.bincount(create_dataset("glyphs-lt").labels)
    groups = {"many": images > 6, "medium": (images >= 3) & (images <= 6), "few": images < 3}
    for name, members in groups.items():
        assert found[f"{name}_shot_classes"] == members.sum() > 100
        accuracy = right[members[features.labels]].mean()
        assert found[f"{name}_shot_top_1"] == pytest.approx(accuracy)
    assert found["class_average_top_1"] == pytest.approx(found["top_1"])
    assert found["attributes"]["ce_weight"] == 1


def test_the_other_protocols_take_the_same_files(trained, capsys):
    _, test, train = trained
    for protocol in ("nearest-centroid", "knn"):
        found = evaluated(capsys, test, "--train-feats", train, "--protocol", protocol)
        assert found["top_1"] > 10 / found["classes"]
        assert found["lone_queries"] == 0


def test_what_a_run_says_of_its_images(trained, capsys):
    run, _, _ = trained
    capsys.readouterr()
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert "on held-out images of the training classes, step 12" in capsys.readouterr().out


def test_embeddings_that_have_no_classifier(trained, tmp_path, capsys):
    run, _, train = trained
    words = ["--train-feats", train, "--protocol", "classifier"]
    scaled = str(tmp_path / "scaled.h5")
    assert main(["embed", str(run), "--normalize", "--out", scaled]) == 0
    capsys.readouterr()
    assert main(["eval", scaled, *words]) == 1
    assert "cannot be compared" in (error := capsys.readouterr().err) or "length 1" in error
    untrained = str(tmp_path / "untrained.h5")
    assert main(["embed", str(run), "--untrained", "--out", untrained]) == 0
    again = ["--train-feats", untrained, "--protocol", "classifier"]
    capsys.readouterr()
    assert main(["eval", untrained, *again]) == 1
    assert "does not say which checkpoint made it" in capsys.readouterr().err


def test_the_imbalance_is_an_option_of_the_data_set(tmp_path, capsys):
    words = ["train", "--dataset", "glyphs-lt", "--dataset-options", "imbalance=20"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    assert "imbalance must be a number from 1 to 10, not 20" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
