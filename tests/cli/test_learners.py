"""Boosted learners from training to the report."""

import json

import pytest
from dmlfast.cli.main import main

from dmlfast.retrieval import learners_of, load_features
from dmlfast.training import TrainConfig, train


@pytest.fixture(scope="module")
def feats(tmp_path_factory) -> str:
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
    run = train(config, folder / "run")
    out = str(folder / "f.h5")
    assert main(["embed", str(run), "--out", out, "--device", "cpu"]) == 0
    return out


def test_the_file_says_which_learners_there_are(feats):
    features = load_features(feats)
    assert features.attributes["groups"] == [2, 4, 6]
    assert features.attributes["group_weights"] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert features.attributes["normalized"]


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
    assert main(["embed", str(train(config, tmp_path / "run")), "--out", out]) == 0
    capsys.readouterr()
    assert main(["eval", out, "--learners"]) == 1
    assert "has no learners" in capsys.readouterr().err
