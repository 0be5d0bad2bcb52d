"""Boosted learners from training to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from dmlfast.cli.main import main

from dmlfast.data import create_dataset
from dmlfast.retrieval import FeatureWriter, evaluate, learners_of, load_features
from dmlfast.retrieval.images import embed_picture
from dmlfast.training import TrainConfig, train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("learners")
    config = TrainConfig(
        dataset="digits",
        batch_size=12,
        embedding_dim=12,
        loss="a-bier",
        max_steps=3,
        eval_interval=3,
        device="cpu",
    )
    return str(train(config, folder / "run"))


def embedded(run: str, out: Path, *options: str) -> str:
    assert main(["embed", run, "--out", str(out), "--device", "cpu", *options]) == 0
    return str(out)


@pytest.fixture(scope="module")
def feats(run, tmp_path_factory) -> str:
    return embedded(run, tmp_path_factory.mktemp("feats") / "f.h5")


def test_the_file_says_which_learners_there_are(feats):
    features = load_features(feats)
    assert features.attributes["groups"] == [2, 4, 6]
    assert features.attributes["group_weights"] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert features.attributes["weighting"] == "paper"
    assert features.attributes["normalized"]


def test_one_learner_is_embedded_alone(run, feats, tmp_path):
    alone = load_features(embedded(run, tmp_path / "f.h5", "--learner", "2"))
    assert alone.attributes["learner"] == 2
    assert "groups" not in alone.attributes
    assert alone.attributes["normalized"]
    part = learners_of(load_features(feats))[1].embeddings
    part = part / np.linalg.norm(part, axis=1, keepdims=True)
    np.testing.assert_allclose(alone.embeddings, part, atol=1e-6)


def test_learners_are_weighed_otherwise(run, feats, tmp_path, capsys):
    out = embedded(run, tmp_path / "f.h5", "--weighting", "released")
    features = load_features(out)
    assert features.attributes["weighting"] == "released"
    expected = np.array([4, 16, 36]) / 56
    assert features.attributes["group_weights"] == pytest.approx(expected)
    squares = [(x.embeddings**2).sum(1) for x in learners_of(features)]
    np.testing.assert_allclose(squares, expected[:, None].repeat(len(features), 1), rtol=1e-5)
    capsys.readouterr()
    assert main(["eval", out, "--gallery-feats", feats]) == 1
    assert "their weighting is released and paper" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--learner", "1"), ("--weighting", "released"), ()])
def test_a_picture_is_embedded_as_the_file_was(options, run, tmp_path, capsys):
    out = embedded(run, tmp_path / "f.h5", *options)
    features = load_features(out)
    image = create_dataset("digits", "test").image(3)
    image.save(tmp_path / "three.png")
    found = embed_picture(features, tmp_path / "three.png")
    np.testing.assert_allclose(found[0], features.embeddings[3], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--learner", "4"], "no learner 4: its learners are 1 to 3", 1),
        (["--learner", "0"], "0 is not in the range", 2),
        (["--learner", "1", "--weighting", "paper"], "cannot be used together", 2),
        (["--learner", "1", "--raw-pixels"], "has no learners", 2),
    ],
)
def test_learners_that_cannot_be_embedded(options, said, code, run, tmp_path, capsys):
    assert main(["embed", run, "--out", str(tmp_path / "f.h5"), *options]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "f.h5").exists()


def test_each_learner_is_evaluated_alone(feats, tmp_path, capsys):
    assert main(["eval", feats, "--no-clustering", "--learners", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["dimensions"] for each in result["learners"]] == [2, 4, 6]
    assert 0 < result["learner_correlation"] < 1
    for learner, report in zip(learners_of(load_features(feats)), result["learners"], strict=True):
        assert learner.dimension == report["dimensions"]
    assert main(["eval", feats, "--no-clustering", "--learners"]) == 0
    out = capsys.readouterr().out
    assert "learners alone\n  1, 2 dimensions:  recall at 1 " in out
    assert f"between learners {result['learner_correlation']:.3f}" in out


def test_others_have_none(tmp_path, capsys):
    config = TrainConfig(dataset="digits", batch_size=12, max_steps=1, device="cpu")
    out = str(tmp_path / "f.h5")
    run = str(train(config, tmp_path / "run"))
    assert main(["embed", run, "--out", out, "--learner", "1"]) == 1
    assert "the network has no learners" in capsys.readouterr().err
    assert main(["embed", run, "--out", out]) == 0
    capsys.readouterr()
    assert main(["eval", out, "--learners"]) == 1
    assert "has no learners" in capsys.readouterr().err


def test_a_classifier_beside_learners_is_evaluated_on_what_it_was_trained_on(tmp_path, capsys):
    config = TrainConfig(
        dataset="digits",
        batch_size=12,
        embedding_dim=12,
        loss="bier",
        ce_weight=1.0,
        max_steps=2,
        device="cpu",
    )
    run = str(train(config, tmp_path / "run"))
    train_feats = embedded(run, tmp_path / "train.h5", "--split", "train")
    classify = ["--protocol", "classifier", "--train-feats", train_feats]
    capsys.readouterr()
    assert main(["eval", train_feats, *classify, "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["top_1"] <= 1
    for options in (["--learner", "1"], ["--weighting", "released"]):
        other = embedded(run, tmp_path / "other.h5", "--split", "train", "--overwrite", *options)
        capsys.readouterr()
        assert main(["eval", other, "--protocol", "classifier", "--train-feats", other]) == 1
        assert "weighted differently from the classifier's" in capsys.readouterr().err


def test_learners_are_compared_with_those_of_a_gallery(feats, tmp_path, capsys):
    """Each with its own part of the gallery."""
    features, gallery = load_features(feats), str(tmp_path / "gallery.h5")
    made = features.attributes
    with FeatureWriter(gallery, dimension=12, normalized=True, attributes=made) as writer:
        writer.append(features.embeddings[::2], features.labels[::2], features.paths[::2])
    capsys.readouterr()
    alone = ["eval", feats, "--gallery-feats", gallery, "--no-clustering", "--learners", "--json"]
    assert main(alone) == 0
    found = json.loads(capsys.readouterr().out)["learners"]
    parts = zip(learners_of(features), learners_of(load_features(gallery)), strict=True)
    for report, (queries, others) in zip(found, parts, strict=True):
        expected = evaluate(queries, others, clustering=False, bootstrap=0)
        assert report["recall_at_1"] == expected["recall_at_1"]
        assert report["map_at_r"] == expected["map_at_r"]


@pytest.mark.parametrize(
    ("words", "groups"),
    [("", [4, 8]), ("--learners 3", [2, 4, 6]), ("--groups 6,6", [6, 6]), ("--loss lifted", None)],
)
def test_the_command_line_wins_over_the_groups_of_a_file(words, groups, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(
        "dataset: digits\nbatch-size: 12\nembedding-dim: 12\nloss: bier\ngroups: 4,8\n"
        "max-steps: 1\ndevice: cpu\n"
    )
    assert main(["train", "-c", "c.yaml", "--out", "a", *words.split()]) == 0
    model = json.loads(Path("a/checkpoints/last/model.json").read_text())
    assert model["groups"] == groups


def test_groups_of_nothing_are_no_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "train --dataset digits --batch-size 12 --embedding-dim 12 --max-steps 1 --device cpu"
    assert main([*words.split(), "--loss", "lifted", "--groups", "", "--out", "a"]) == 0
