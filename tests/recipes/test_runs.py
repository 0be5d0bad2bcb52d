"""Every recipe trains two steps, embeds and is evaluated, on a small tree in the official layout.

Backbone, transform, loss, optimiser and schedule are the recipe's; there are no pretrained weights,
and the batch holds eight images.
"""

import importlib.util
import json

import pytest
from dmlfast.cli.main import main

from dmlfast.data import listing
from dmlfast.recipes import load_recipe, recipe_names
from dmlfast.training import RunFolder

from ..data.trees import IMAGES, WRITERS

CLASSES = 12  # half of them train


@pytest.mark.long
@pytest.mark.parametrize("name", recipe_names())
def test_two_steps_embed_and_eval(name, tmp_path, monkeypatch, capsys):
    recipe = load_recipe(name)
    items = CLASSES // 2
    half = (items * IMAGES, items)
    counts = {"train": half, "test": half}
    if recipe.config.dataset == "inshop":
        counts |= {"query": (items, items), "gallery": (half[0] - items, items)}
    if recipe.config.dataset == "vehicleid":
        counts |= {"800": half}
    monkeypatch.setitem(listing.COUNTS, recipe.config.dataset, counts)
    WRITERS[recipe.config.dataset](tmp_path, CLASSES)
    run, feats = str(tmp_path / "run"), str(tmp_path / "feats.h5")
    batch, first = 8, min(recipe.settings.get("head_steps", 0), 1)
    words = [
        *("train", "-c", name, "--data-dir", str(tmp_path), "--out", run, "--device", "cpu"),
        *("--max-steps", "2", "--batch-size", str(batch), "--head-steps", str(first)),
        *(word for option in recipe.give for word in (f"--{option.replace('_', '-')}", "none")),
    ]
    if recipe.config.sampler == "balanced":
        words += ["--images-per-class", "4"]
    backbone = recipe.settings["backbone"]
    if backbone.startswith("torchvision/"):
        if not importlib.util.find_spec("torchvision"):
            backbone = "bvlc-googlenet"
        words += ["--backbone", backbone, "--weights", "none"]
    assert main(words) == 0
    config = RunFolder(run).config
    assert (config.recipe, config.max_steps, config.batch_size) == (name, 2, batch)
    assert config.backbone == backbone
    assert RunFolder(run).checkpoint("last").step == first + 2
    assert main(["embed", run, "--out", feats, "--batch-size", "8", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["eval", feats, "--bootstrap", "10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["queries"] == (items if "query" in counts else half[0])
    assert 0 <= result["recall_at_1"] <= 1
    known = result["attributes"]
    assert known["model"] == backbone
    assert known["crop"] == recipe.settings["transform"]
    assert known["dimension"] == recipe.settings["embedding_dim"]
    assert {"weights", "pooling", "batch_norm", "train_crop", "test_crop"} <= known.keys()
    assert {"bounding_boxes", "selection", "trained_with", "image_size"} <= known.keys()
    shown = result["recipe"]
    assert shown["name"] == name
    assert shown["targets"] == [target.to_plain() for target in recipe.targets]
    assert f"max-steps 2, not {recipe.config.max_steps or 'none'}" in shown["differences"]
    assert f"batch-size {batch}, not {recipe.config.batch_size}" in shown["differences"]
