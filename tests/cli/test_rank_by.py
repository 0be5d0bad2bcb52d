"""Ranking by the unit of a pddm run: train, embed, eval and search."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from dmlfast.cli.main import main
from PIL import Image
from safetensors.torch import load_file, save_file

from dmlfast.data import create_dataset
from dmlfast.errors import UserError
from dmlfast.losses import PDDMLoss
from dmlfast.retrieval import FeatureWriter, PairScorer, evaluate, load_features, nearest_neighbours
from dmlfast.training import RunFolder, TrainConfig, load_scorer, train

CONFIG = TrainConfig(
    dataset="digits",
    batch_size=12,
    embedding_dim=8,
    loss="pddm",
    loss_options="hidden_dim=6,normalize_inputs=true",
    max_steps=4,
    eval_interval=2,
    checkpoint_interval=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def feats(run, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("feats") / "f.h5")
    assert embed(run, out) == 0
    return out


def embed(run, out, *words):
    return main(["embed", str(run), "--out", str(out), "--device", "cpu", *words])


def stored(path):
    """The tensors of the group /pddm."""
    with h5py.File(path) as file:
        return {name: dataset[()] for name, dataset in file["pddm"].items()}


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_stored_unit_is_the_checkpoints(run, tmp_path, capsys, name):
    out = tmp_path / "f.h5"
    assert embed(run, out, "--checkpoint", name) == 0
    assert "eval and search accept --rank-by pddm" in capsys.readouterr().out
    saved = load_file(run.checkpoint(name).folder / "loss.safetensors")
    found = stored(out)
    assert {f"unit.{part}" for part in found} == saved.keys()
    for part, tensor in found.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, saved[f"unit.{part}"].numpy())
    assert found["joint.weight"].shape == (6, 12)
    scorer = load_features(out).scorer
    assert (scorer.normalize_embeddings, scorer.unit.normalize_inputs) == (True, True)


def test_a_classifier_beside_the_loss(run, tmp_path):
    config = dataclasses.replace(CONFIG, ce_weight=0.5, max_steps=2, loss_options=None)
    other = train(config, tmp_path / "with")
    assert embed(other, tmp_path / "f.h5") == 0
    saved = load_file(other.checkpoint("best").folder / "loss.safetensors")
    assert "classifier.weight" in saved
    for part, tensor in stored(tmp_path / "f.h5").items():
        np.testing.assert_array_equal(tensor, saved[f"loss_fn.unit.{part}"].numpy())
    assert not load_features(tmp_path / "f.h5").scorer.unit.normalize_inputs


def test_which_files_have_a_unit(run, tmp_path, capsys):
    without = [["--untrained"], ["--raw-pixels"], ["--binary"]]
    for number, words in enumerate([*without, ["--normalize", "--float16"]]):
        out = tmp_path / f"{number}.h5"
        assert embed(run, out, *words, "--json") == 0
        with h5py.File(out) as file:
            assert ("pddm" in file) == (words not in without)
        assert json.loads(capsys.readouterr().out)["pddm_unit"] == (words not in without)
    out = tmp_path / "ann.h5"
    assert embed(run, out, "--layout", "ann-benchmarks", "--split", "val") == 0
    assert "pddm" not in capsys.readouterr().out
    with h5py.File(out) as file:
        assert set(file) == {"train", "test", "neighbors", "distances"}


def test_a_unit_of_other_rows_is_left_out(run, tmp_path, capsys, monkeypatch):
    def unscaled(folder, config):
        return dataclasses.replace(load_scorer(folder, config), normalize_embeddings=False)

    monkeypatch.setattr("dmlfast.cli.embed.load_scorer", unscaled)
    assert embed(run, tmp_path / "n.h5", "--normalize") == 0
    assert (
        "the pddm unit is not stored: it scores embeddings as they are, not scaled"
        in capsys.readouterr().err
    )
    assert load_features(tmp_path / "n.h5").scorer is None
    assert embed(run, tmp_path / "f.h5") == 0
    assert not load_features(tmp_path / "f.h5").scorer.normalize_embeddings


def test_checkpoints_of_another_loss(run, tmp_path):
    lifted = dataclasses.replace(CONFIG, loss="lifted", loss_options=None)
    assert load_scorer(tmp_path, lifted) is None
    with pytest.raises(UserError, match=r"cannot read .*loss\.safetensors: No such file"):
        load_scorer(tmp_path, CONFIG)
    shutil.copy(run.checkpoint("last").folder / "loss.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"has no loss_fn\.unit\.\S+: it belongs to another loss"):
        load_scorer(tmp_path, dataclasses.replace(CONFIG, ce_weight=1.0))
    tensors = load_file(tmp_path / "loss.safetensors")
    tensors["unit.joint.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "loss.safetensors")
    with pytest.raises(UserError, match=r"joint\.bias must be \(6,\), not \(5,\)"):
        load_scorer(tmp_path, CONFIG)
    (tmp_path / "loss.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        load_scorer(tmp_path, CONFIG)


def test_eval(feats, run, capsys):
    arguments = ["eval", feats, "--rank-by", "pddm"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    # The scores of the checkpoint's own loss, all at once.
    loss_fn = PDDMLoss(8, 6, normalize_inputs=True)
    loss_fn.load_state_dict(load_file(run.checkpoint("best").folder / "loss.safetensors"))
    features = load_features(feats)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.from_numpy(features.embeddings))
        scores = loss_fn.unit(rows).fill_diagonal_(-torch.inf)
    nearest = scores.argmax(dim=1).numpy()
    right = features.labels[nearest] == features.labels
    assert result["recall_at_1"] == pytest.approx(right.mean(), abs=1e-9)
    assert result["ranked_by"] == "pddm"
    by_distance = evaluate(features)
    assert by_distance["recall_at_1"] != result["recall_at_1"]
    assert by_distance["nmi"] == result["nmi"]
    assert main([*arguments, "--bootstrap", "0"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[1] == "convnet, 8 dimensions, ranked by pddm score, 32 bytes per image"
    (line,) = (line for line in output if line.startswith("  recall at 1 "))
    assert line.split()[3:] == [f"{100 * right.mean():.2f}", "%"]
    assert "clustering by k-means (sklearn, 1 run), by euclidean distance" in output
    assert main(["eval", feats, "--json", "--no-clustering"]) == 0
    assert json.loads(capsys.readouterr().out)["ranked_by"] == "distance"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--protocol", "vehicleid-dml"], "recall_at_1"),
        (["--protocol", "vehicleid-reid", "--draws", "2"], "cmc_at_1"),
        (["--protocol", "zero-shot", "--against", "images"], "hit_at_1"),
        (["--protocol", "knn", "--train-feats", "{feats}"], "top_1"),
    ],
)
def test_protocols(feats, capsys, words, named):
    words = [word.format(feats=feats) for word in words]
    assert main(["eval", feats, *words, "--rank-by", "pddm", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ranked_by"] == "pddm"
    assert 0 < result[named] < 1
    assert main(["eval", feats, *words]) == 0
    assert "euclidean distance" in capsys.readouterr().out


def test_a_gallery(run, feats, tmp_path, capsys):
    gallery = str(tmp_path / "g.h5")
    assert embed(run, gallery, "--split", "val") == 0
    capsys.readouterr()
    words = ["--gallery-feats", gallery, "--rank-by", "pddm", "--json", "--no-clustering"]
    assert main(["eval", gallery, *words]) == 0  # its images by their paths are their own
    result = json.loads(capsys.readouterr().out)
    alone = evaluate(load_features(gallery), rank_by="pddm", clustering=False)
    assert {name: result[name] for name in alone} == alone
    with h5py.File(gallery, "r+") as file:
        file["pddm/score.bias"][0] += 1
    assert main(["eval", feats, *words]) == 1
    message = f"Error: {feats} and {gallery} cannot be ranked by pddm: their units differ\n"
    assert capsys.readouterr().err == message


@pytest.fixture
def plain(tmp_path):
    """A file of a run that has no unit."""
    dataset = create_dataset("digits", split="test")
    with FeatureWriter(tmp_path / "p.h5", dimension=64) as writer:
        images = dataset.images[:40].flatten(1).float()
        writer.append(images, dataset.labels[:40], dataset.paths[:40])
    return str(tmp_path / "p.h5")


def test_what_cannot_be_ranked_by(run, feats, plain, tmp_path, capsys):
    def told(code, *words):
        assert main([*words, "--rank-by", "pddm"]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[-1].startswith("Error: ")
        return err.splitlines()[-1].removeprefix("Error: ")

    none = f"{plain} holds no pddm unit to rank by: `dmlfast embed` stores that of a run with"
    assert told(1, "eval", plain).startswith(none)
    assert told(1, "search", plain, "--query-index", "1").startswith(none)
    assert (
        told(2, "eval", feats, "--binary") == "--binary can only be ranked by distance, not by pddm"
    )
    bits = str(tmp_path / "bits.h5")
    assert embed(run, bits, "--binary") == 0
    capsys.readouterr()
    assert told(1, "eval", bits) == f"{bits} holds sign bits, which a pddm unit cannot score"
    for protocol in ("nearest-centroid", "classifier"):
        words = ["eval", feats, "--train-feats", feats, "--protocol", protocol]
        assert f"--rank-by cannot be used with protocol {protocol}" in told(2, *words)
    images = "pddm ranks images, not prototypes: use --against images"
    assert told(1, "eval", feats, "--protocol", "zero-shot") == images
    words = ["--protocol", "knn", "--train-feats", feats, "--vote", "distance"]
    assert "vote distance cannot be used with rank_by pddm: use vote majority" in told(
        1, "eval", feats, *words
    )
    narrow = tmp_path / "narrow.h5"
    shutil.copy(feats, narrow)
    with h5py.File(narrow, "r+") as file:
        embeddings = file["embeddings"][:, :7]
        del file["embeddings"], file.attrs["dimension"]
        file["embeddings"] = embeddings
    message = f"{narrow}: the pddm unit scores 8 dimensions, and embeddings have 7"
    assert told(1, "eval", str(narrow)) == message


def test_search(feats, tmp_path, capsys):
    arguments = ["search", feats, "--query-index", "5", "--top", "4"]
    assert main([*arguments, "--rank-by", "pddm", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    features = load_features(feats)
    found, distances = nearest_neighbours(
        features.embeddings[5:6],
        features.embeddings,
        4,
        exclude=np.array([5]),
        distance=PairScorer(features.scorer.unit),
    )
    assert result["ranked_by"] == "pddm"
    assert [hit["index"] for hit in result["results"]] == found[0].tolist()
    assert [hit["score"] for hit in result["results"]] == (-distances[0]).tolist()
    assert "distance" not in result["results"][0]
    montage = tmp_path / "found.png"
    assert main([*arguments, "--rank-by", "pddm", "--montage", str(montage)]) == 0
    head, columns, first, *_ = capsys.readouterr().out.splitlines()
    assert columns.split() == ["rank", "score", "path", "class"]
    assert head.startswith(f"most similar by pddm score to {features.paths[5]} among ")
    assert first.split()[:3] == ["1", f"{-distances[0, 0]:.4f}", features.paths[found[0, 0]]]
    assert Image.open(montage).width > 100
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ranked_by"] == "distance"
    assert result["results"][0]["distance"] >= 0
    assert "score" not in result["results"][0]


def test_a_montage(feats, tmp_path, capsys):
    out = tmp_path / "m.png"
    words = ["--no-clustering", "--bootstrap", "0", "--rank-by", "pddm", "--montage", str(out)]
    assert main(["eval", feats, *words]) == 0
    assert Image.open(out).width > 100
