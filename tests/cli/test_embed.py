import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dmlfast.cli import embed as cli_embed
from dmlfast.cli.main import main
from PIL import Image

from dmlfast.data import create_dataset, prepare_images
from dmlfast.models import create_model, load_model
from dmlfast.retrieval import load_features
from dmlfast.training import RunFolder, TrainConfig, load_split, train

CONFIG = TrainConfig(
    dataset="digits",
    batch_size=12,
    embedding_dim=8,
    max_steps=4,
    eval_interval=2,
    checkpoint_interval=2,
    device="cpu",
    seed=3,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return train(CONFIG, tmp_path_factory.mktemp("home") / "runs" / "one")


@pytest.fixture(autouse=True)
def _at_home(run, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)


def embed(*words: str) -> int:
    return main(["embed", *words, "--device", "cpu"])


def test_embeddings_are_the_checkpoints_and_say_so(run, tmp_path, capsys):
    out = tmp_path / "f.h5"
    assert embed(str(run), "--out", str(out)) == 0
    images = len(create_dataset("digits", split="test"))
    first, _ = capsys.readouterr().out.splitlines()
    assert first == f"{out}: {images} images of the test split of digits"
    features, checkpoint = load_features(out), run.checkpoint("best")
    dataset = create_dataset("digits", split="test", seed=3)
    with torch.no_grad():
        expected = load_model(checkpoint.folder)(dataset.take(range(len(dataset)))[0]).numpy()
    np.testing.assert_allclose(features.embeddings, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features.labels, dataset.labels)
    weights = checkpoint.folder / "model.safetensors"
    wanted = {
        "model": "convnet",
        "loss": "lifted",
        "dataset": "digits",
        "split": "test",
        "run": str(run),
        "checkpoint": str(checkpoint.folder),
        "checkpoint_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "step": checkpoint.step,
        "selected_on": "val",
        "distance": "euclidean",
        "dimension": 8,
    }
    assert wanted.items() <= features.attributes.items()
    assert not features.attributes["normalized"]
    assert checkpoint.folder.is_absolute()


def test_the_newest_run_is_taken_and_named(tmp_path, capsys):
    assert embed("--out", str(tmp_path / "f.h5"), "--json") == 0
    out, err = capsys.readouterr()
    assert "embedding with the newest run, runs/one" in err
    result = json.loads(out)
    assert result["run"] == "runs/one"
    assert result["images"] == len(load_features(tmp_path / "f.h5"))


def test_other_checkpoint_split_and_form(run, tmp_path):
    out = tmp_path / "f.h5"
    words = [
        "--checkpoint",
        "last",
        "--split",
        "val",
        "--normalize",
        "--float16",
        "--batch-size",
        "7",
    ]
    assert embed(str(run), "--out", str(out), *words, "--batch-size", "7") == 0
    features = load_features(out)
    assert features.attributes["step"] == 4
    assert features.attributes["split"] == "val"
    assert "selected_on" not in features.attributes
    assert features.attributes["normalized"]
    assert features.embeddings.dtype == np.float16
    lengths = np.linalg.norm(features.embeddings.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
    trained_on = create_dataset("digits", split="train", seed=3)
    assert not set(features.labels) & set(trained_on.labels)


def test_sign_bits(run, tmp_path, capsys):
    out, floats = tmp_path / "b.h5", tmp_path / "f.h5"
    assert embed(str(run), "--out", str(out), "--binary", "--batch-size", "7") == 0
    assert embed(str(run), "--out", str(floats), "--batch-size", "7") == 0
    bits, features = load_features(out), load_features(floats)
    np.testing.assert_array_equal(bits.embeddings, np.packbits(features.embeddings > 0, axis=1))
    assert bits.embeddings.shape == (len(features), 1)
    assert (bits.dimension, bits.distance) == (8, "hamming")
    assert bits.paths == features.paths
    own = {"created", "distance", "point_type", "n_bits", "normalized"}
    kept = {name: value for name, value in features.attributes.items() if name not in own}
    assert kept.items() <= bits.attributes.items()
    assert "normalized" not in bits.attributes
    with h5py.File(out) as file:
        assert set(file) == {"codes", "labels", "paths", "class_names"}
    assert f"next: dmlfast eval {out}" in capsys.readouterr().out
    both = tmp_path / "both of them.h5"
    options = "--binary", "--keep-float", "--float16", "--normalize", "--batch-size", "7"
    assert embed(str(run), "--out", str(both), *options) == 0
    np.testing.assert_array_equal(load_features(both).embeddings, bits.embeddings)
    with h5py.File(both) as file:
        lengths = np.linalg.norm(file["embeddings"][()].astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
    assert f"next: dmlfast eval '{both}'" in capsys.readouterr().out


def test_baselines(run, tmp_path):
    dataset = create_dataset("digits", split="test", seed=3)
    images, _ = dataset.take(range(len(dataset)))
    assert embed(str(run), "--out", str(tmp_path / "u.h5"), "--untrained") == 0
    untrained = load_features(tmp_path / "u.h5")
    torch.manual_seed(3)
    model = create_model("convnet", channels=1, embedding_dim=8).eval()
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(untrained.embeddings, expected, rtol=1e-4, atol=1e-5)
    assert untrained.attributes["model"] == "convnet, untrained"
    assert "checkpoint_sha256" not in untrained.attributes
    assert embed(str(run), "--out", str(tmp_path / "p.h5"), "--raw-pixels") == 0
    pixels = load_features(tmp_path / "p.h5")
    np.testing.assert_allclose(pixels.embeddings, images.flatten(1).numpy() / 255, atol=1e-7)
    assert pixels.attributes["model"] == "raw pixels"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--out here.h5", 1, "here.h5 already exists: --overwrite replaces it"),
        ("nowhere --out f.h5", 1, "nowhere is not a run folder"),
        ("--out none/f.h5", 1, "none/f.h5: No such file"),
        ("", 2, "Missing option '--out'"),
        ("--out f.h5 --split tst", 2, "'tst' is not one of"),
        ("--out f.h5 --checkpoint first", 2, "'first' is not one of"),
        ("--out f.h5 --untrained --raw-pixels", 2, "cannot be used together"),
        ("--out f.h5 --untrained --checkpoint last", 2, "--untrained and --checkpoint cannot be"),
        ("--out f.h5 --raw-pixels --checkpoint best", 2, "--raw-pixels and --checkpoint cannot be"),
        ("--out f.h5 --batch-size 0", 2, "--batch-size"),
        (
            "--out f.h5 --binary --float16",
            2,
            "--binary and --float16 can only be used together with",
        ),
        ("--out f.h5 --keep-float", 2, "--keep-float needs --binary"),
        ("--out=", 1, "cannot write '.': the path must end in a name"),
        ("--out .", 1, "cannot write '.': the path must end in a name"),
        ("--out runs", 1, "cannot write runs: it is not a regular file"),
        (
            "--out f.h5 --binary --normalize",
            2,
            "--normalize does not change any sign: leave it out",
        ),
        ("--out here.h5 --binary", 1, "here.h5 already exists: --overwrite replaces it"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(capsys, words, code, message):
    Path("here.h5").write_text("mine")
    assert embed(*words.split()) == code
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("Error")]
    assert message in line
    assert {path.name for path in Path().iterdir()} == {"here.h5", "runs"}
    assert Path("here.h5").read_text() == "mine"


@pytest.mark.parametrize("out", ["here.h5", "nowhere/f.h5"])
def test_a_file_that_cannot_be_written_is_told_before_images_are_read(
    run, tmp_path, monkeypatch, out
):
    monkeypatch.chdir(tmp_path)
    Path("here.h5").touch()
    monkeypatch.setattr(cli_embed, "load_split", lambda *_: pytest.fail("images are read"))
    assert embed(str(run), "--out", out) == 1


def test_without_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert embed("--out", "f.h5") == 1
    assert "there is no trained run in runs" in capsys.readouterr().err


def test_a_damaged_checkpoint(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run.path, tmp_path / "run", symlinks=True)
    weights = tmp_path / "run" / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert embed(str(tmp_path / "run"), "--out", str(tmp_path / "f.h5")) == 1
    assert "model.safetensors is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "f.h5").exists()


def test_layout_of_ann_benchmarks(run, tmp_path, capsys):
    out, features = tmp_path / "a.hdf5", tmp_path / "f.h5"
    assert embed(str(run), "--out", str(features)) == 0
    assert embed(str(run), "--out", str(out), "--layout", "ann-benchmarks") == 0
    assert "dmlfast eval" not in capsys.readouterr().out.splitlines()[-1]
    with h5py.File(out) as file:
        assert sorted(file) == ["distances", "neighbors", "test", "train"]
        np.testing.assert_array_equal(file["train"], load_features(features).embeddings)
        np.testing.assert_array_equal(file["neighbors"][:, 0], np.arange(len(file["test"])))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "f.h5"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "there.h5"], 1, "there.h5 already exists: --overwrite replaces it"),
        (["--out", "missing/a.h5"], 1, "cannot write missing/a.h5: No such file or directory"),
        (["--out", "a.h5", "--float16"], 2, "--float16 needs --layout features"),
        (["--out", "a.h5", "--binary"], 2, "--binary needs --layout features"),
    ],
)
def test_ann_benchmarks_refusals(run, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.h5").touch()
    assert embed(str(run), *words, "--layout", "ann-benchmarks") == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5"]


def test_pictures_become_images_as_in_training(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, transform="reality-check", image_size=16)
    run = train(config, tmp_path / "run")
    out, cached = tmp_path / "f.h5", tmp_path / "cached.h5"
    assert embed(str(run), "--out", str(out)) == 0
    words = ["--workers", "2", "--cache-images", str(tmp_path / "cache")]
    assert embed(str(run), "--out", str(cached), *words) == 0
    dataset = create_dataset("digits", split="test", seed=3)
    model = load_model(run.checkpoint("best").folder)
    images, _ = prepare_images(dataset, model.spec["transform"]).take(range(len(dataset)))
    with torch.no_grad():
        expected = model(images).numpy()
    found = load_features(out).embeddings
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(load_features(cached).embeddings, found)
    attributes = load_features(out).attributes
    wanted = {"crop": "reality-check", "image_size": 16, "batch_size": config.batch_size}
    assert wanted.items() <= attributes.items()
    pixels = tmp_path / "pixels.h5"
    assert embed(str(run), "--out", str(pixels), "--raw-pixels") == 0
    assert load_features(pixels).embeddings.shape == (len(dataset), 3 * 16 * 16)
    capsys.readouterr()


def test_pictures_are_found_from_any_folder_and_where_they_moved_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    for number in range(24):
        folder = Path("pictures", f"class{number // 4}")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = numbers.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    config = dataclasses.replace(
        CONFIG, dataset="folder", val_fraction=0, batch_size=8, max_steps=1
    )
    run = train(dataclasses.replace(config, data_dir="pictures", image_size=8), tmp_path / "run")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert embed(str(run), "--out", "a.h5") == 0
    assert load_features("a.h5").attributes["data_dir"] == str(tmp_path / "pictures")
    draw = ["--query-index", "0", "--montage"]
    assert main(["search", "a.h5", *draw, "a.png"]) == 0  # the file knows where its pictures are

    (tmp_path / "pictures").rename(elsewhere / "moved")
    assert embed(str(run), "--out", "b.h5") == 1
    assert f"there is no {tmp_path / 'pictures'}" in capsys.readouterr().err
    assert embed(str(run), "--out", "b.h5", "--data-dir", "moved") == 0
    assert load_features("b.h5").attributes["data_dir"] == str(elsewhere / "moved")
    embeddings = [load_features(file).embeddings for file in ("a.h5", "b.h5")]
    np.testing.assert_array_equal(*embeddings)
    assert main(["search", "a.h5", *draw, "b.png"]) == 1
    gone = f"a.h5 has its images in {tmp_path / 'pictures'}, which does not exist: give --data-dir"
    assert gone in capsys.readouterr().err
    assert main(["search", "a.h5", *draw, "b.png", "--data-dir", "moved"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    capsys.readouterr()


def test_untrained_is_what_training_started_from(run, tmp_path, capsys):
    weights = run.checkpoint("last").folder / "model.safetensors"
    other = train(dataclasses.replace(CONFIG, weights=str(weights)), tmp_path / "run")
    assert embed(str(other), "--untrained", "--out", str(tmp_path / "f.h5")) == 0
    torch.manual_seed(3)
    model = create_model("convnet", 1, 8, weights=weights).eval()
    dataset = create_dataset("digits", split="test", seed=3)
    with torch.no_grad():
        expected = model(dataset.images).numpy()
    found = load_features(tmp_path / "f.h5").embeddings
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    capsys.readouterr()


def test_a_picture_that_cannot_be_read_need_not_end_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(96):
        folder = Path("pictures", f"class{number // 8}")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    words = "--dataset folder --data-dir pictures --batch-size 4 --images-per-class 2 --device cpu"
    words += " --embedding-dim 4 --image-size 8 --max-steps 2 --out a"
    assert main(["train", *words.split()]) == 0
    broken = list(load_split(RunFolder("a").config, "test").paths)[1]
    Path("pictures", broken).write_bytes(b"no picture")
    assert embed("a", "--out", "f.h5") == 1
    assert (
        "is not an image; folder leaves such images out with the option" in capsys.readouterr().err
    )
    assert embed("a", "--out", "f.h5", "--on-error", "skip") == 0
    assert broken not in load_features("f.h5").paths
    more = ["train", "--out", "a", "--resume", "--max-steps", "3", "--dataset-options"]
    assert main([*more, "on_error=skip"]) == 0
    assert RunFolder("a").config.dataset_options == "on_error=skip"
    assert main([*more, "on_error=skip,upright=true"]) == 1
    assert "was trained with dataset-options" in capsys.readouterr().err
