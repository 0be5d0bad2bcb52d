import json
import re
from pathlib import Path

import pytest
from dmlfast.cli.main import main

from dmlfast.recipes import load_recipe, recipe_names
from dmlfast.training import RunFolder

OWN = """
title: small
paper: none
settings:
  dataset: digits
  batch-size: 12
  embedding-dim: 8
  optimizer: sgd
  lr: 1e-3
  schedule: step
  milestones: [2]
  max-steps: 4
  warmup-steps: 0
  device: cpu
give:
  weights: a file of weights; else at random
targets:
  - source: the paper
    backbone: another
    crop: all of it
    embedding-dim: 8
    metrics: {recall_at_1: 0.472}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(OWN)


def output(capsys, *words: str) -> list[str]:
    assert main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table(capsys):
    lines = output(capsys, "recipes")
    assert lines[0].split() == ["name", "data", "set", "loss", "backbone", "length", "targets"]
    assert [line.split()[0] for line in lines[1:-2]] == recipe_names()
    (cub,) = (line for line in lines if line.startswith("lifted-cub "))
    cells = [cell for cell in re.split("  +", cub) if cell]
    expected = ["cub200", "lifted", "bvlc-googlenet", "40,000 steps", "recall at 1 47.2, 43.6 %"]
    assert cells == ["lifted-cub", *expected]


def test_one_recipe(capsys):
    lines, recipe = output(capsys, "recipes", "lifted-cub"), load_recipe("lifted-cub")
    assert lines[0] == f"lifted-cub: {recipe.title}"
    marked = {line.split()[0] for line in lines if line.startswith("  ") and "doubtful" in line}
    assert {name.replace("-", "_") for name in marked} == recipe.doubtful.keys()
    assert "  lr                      1e-06" in lines
    assert f"  sampler: {recipe.doubtful['sampler']}" in lines
    for number, target in enumerate(recipe.targets, start=1):
        assert f"  [{number}] {target}" in lines
    assert any(line.strip().startswith("recall at 1 47.2 %, recall at 2 58.9 %") for line in lines)
    assert lines[-1] == "dmlfast train -c lifted-cub --data-dir DIR --weights WEIGHTS"


def test_json(capsys):
    recipes = json.loads("\n".join(output(capsys, "recipes", "--json")))
    assert [recipe["name"] for recipe in recipes] == recipe_names()
    one = json.loads("\n".join(output(capsys, "recipes", "lifted-sop", "--json")))
    assert one == next(recipe for recipe in recipes if recipe["name"] == "lifted-sop")
    assert one["settings"]["max-steps"] == 20_000
    assert one["targets"][0]["metrics"]["recall_at_1"] == 0.621


def test_names_that_there_are_not(capsys):
    assert main(["recipes", "lifted-cup"]) == 1
    assert "unknown recipe 'lifted-cup': did you mean 'lifted-cub'?" in capsys.readouterr().err
    assert main(["train", "-c", "lifted-cup"]) == 2
    assert "unknown recipe 'lifted-cup': did you mean 'lifted-cub'?" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["own.yaml"]


def test_a_file_of_settings_is_told_from_a_recipe(capsys):
    Path("c.yaml").write_text("recipe: lifted-cub\nbatch-size: 64\n")
    assert main(["recipes", "c.yaml"]) == 1
    assert capsys.readouterr().err == (
        "Error: c.yaml holds only settings, for `dmlfast train -c`; a recipe has a title, a paper"
        " and settings\n"
    )


def test_a_run_by_a_recipe(capsys):
    words = ["-c", "own.yaml", "--out", "a"]
    assert main(["train", *words, "--weights", "none", "--json"]) == 0
    out, err = capsys.readouterr()
    path, result = str(Path("own.yaml").resolve()), json.loads(out)
    missing = "weights not given: a file of weights; else at random"
    assert err.splitlines()[0] == f"{path}: {missing}"
    target = load_recipe("own.yaml").targets[0].to_plain()
    expected = {"name": path, "targets": [target], "differences": [missing]}
    assert result["recipe"] == expected
    card = result["card"]
    versions = card.pop("trained_with")
    assert versions.startswith("dmlfast 0.")
    assert ", torch 2." in versions
    assert ", Python 3." in versions
    assert card == {
        "model": "convnet",
        "embedding_dim": 8,
        "weights": "none",
        "pooling": "average of each of 4 x 4 cells",
        "batch_norm": "trained",
        "loss": "lifted",
        "batch_size": 12,
        "sampler": "balanced",
        "images_per_class": 4,
        "step": 4,
        "selection": "best MAP at R on val",
        "selected_on": "val",
    }
    assert main(["embed", "a", "--out", "f.h5"]) == 0
    capsys.readouterr()
    quick = ["--no-clustering", "--bootstrap", "0"]
    found = json.loads("\n".join(output(capsys, "eval", "f.h5", "--json", *quick)))
    assert found["recipe"] == expected
    lines = output(capsys, "eval", "f.h5", *quick)
    assert sum(line.endswith("target 47.2 % [1]") for line in lines) == 1
    assert lines[-2:] == ["NOT BY THE RECIPE:", f"  {missing}"]


def test_the_end_of_training_shows_the_targets(capsys):
    lines = output(capsys, "train", "-c", "own.yaml", "--lr", "0.01", "--out", "a")
    path = Path("own.yaml").resolve()
    assert lines[-7:] == [
        f"targets of recipe {path}, on the test images:",
        "  [1] the paper; backbone another; 8 dimensions; crop all of it",
        "      recall at 1 47.2 %",
        "NOT BY THE RECIPE:",
        "  lr 0.01, not 0.001",
        "  weights not given: a file of weights; else at random",
        "next: dmlfast embed a --out feats.h5",
    ]


def test_the_command_line_wins_and_a_run_can_be_repeated(capsys):
    output(capsys, "train", "-c", "own.yaml", "--lr", "0.01", "--max-steps", "3", "--out", "a")
    config = RunFolder("a").config
    assert (config.lr, config.max_steps, config.optimizer) == (0.01, 3, "sgd")
    assert config.recipe == str(Path("own.yaml").resolve())
    output(capsys, "train", "-c", "a/args.yaml", "--out", "b")
    assert RunFolder("b").config == config
    output(capsys, "train", "-c", "own.yaml", "--epochs", "2", "--out", "c")
    assert RunFolder("c").checkpoint("last").step == 2
    output(capsys, "train", "-c", "own.yaml", "--schedule", "cosine", "--out", "d")
    assert (RunFolder("d").config.schedule, RunFolder("d").config.milestones) == ("cosine", ())
    output(capsys, "train", "-c", "own.yaml", "--schedule", "step", "--out", "e")
    assert RunFolder("e").config.milestones == (2,)


def test_what_is_not_the_recipes_result_has_no_targets(capsys):
    output(capsys, "train", "-c", "own.yaml", "--out", "a")
    for words in (["--split", "val"], ["--untrained"], ["--raw-pixels"]):
        output(capsys, "embed", "a", "--out", "f.h5", "--overwrite", *words)
        lines = output(capsys, "eval", "f.h5", "--no-clustering", "--bootstrap", "0")
        assert not [line for line in lines if "target" in line or "recipe" in line]
    output(capsys, "embed", "a", "--out", "f.h5", "--overwrite", "--normalize")
    lines = output(capsys, "eval", "f.h5", "--no-clustering", "--bootstrap", "0")
    assert lines[-1] == "  embeddings scaled to length 1"
    output(capsys, "embed", "a", "--out", "f.h5", "--overwrite", "--binary")
    lines = output(capsys, "eval", "f.h5", "--no-clustering", "--bootstrap", "0")
    assert lines[-1] == "  sign bits alone"


def test_a_run_that_is_not_finished_and_a_recipe_that_is_gone(capsys):
    words = ["train", "-c", "own.yaml", "--out", "a"]
    output(capsys, *words)
    args = Path("a/args.yaml")
    args.write_text(args.read_text().replace("max-steps: 4", "max-steps: 9"))
    state = Path("a/checkpoints/last/state.json")
    state.write_text(state.read_text().replace('"total_steps": 4', '"total_steps": 9'))
    output(capsys, "embed", "a", "--out", "f.h5")
    quick = ["eval", "f.h5", "--no-clustering", "--bootstrap", "0"]
    assert "  stopped after step 4 of 9" in output(capsys, *quick)
    Path("own.yaml").unlink()
    output(capsys, "embed", "a", "--out", "f.h5", "--overwrite")
    lines = output(capsys, *quick)
    assert "  none" in lines
    assert lines[-1].endswith("own.yaml: No such file or directory")
