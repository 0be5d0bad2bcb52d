"""Recipes and what is wrong with them."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from dmlfast.errors import UserError
from dmlfast.losses import parse_loss_options
from dmlfast.recipes import Comparison, load_recipe, load_settings, recipe_names
from dmlfast.training import TrainConfig
from dmlfast.training.card import boxes_cut_out

RECIPE = """
title: a recipe
paper: a paper
settings:
  dataset: digits
  lr: 1e-3
  max-steps: 4
  milestones: [2]
  schedule: step
give:
  weights: a file
doubtful:
  lr: not known
targets:
  - source: the paper
    backbone: GoogLeNet
    crop: centre 227
    embedding-dim: 64
    metrics: {recall_at_1: 0.5, nmi: 0.25}
"""


@pytest.fixture
def write(tmp_path):
    def write_recipe(**changes):
        path = tmp_path / "own.yaml"
        content = yaml.safe_load(RECIPE) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(kept))
        return path

    return write_recipe


def test_a_recipe_in_a_file(write):
    path = write()
    recipe = load_recipe(str(path))
    assert recipe.name == str(path)
    assert recipe.settings == {
        "dataset": "digits",
        "lr": 1e-3,
        "max_steps": 4,
        "milestones": (2,),
        "schedule": "step",
    }
    assert recipe.config == TrainConfig(**recipe.settings, recipe=str(path))
    assert (recipe.give, recipe.doubtful) == ({"weights": "a file"}, {"lr": "not known"})
    (target,) = recipe.targets
    assert target.metrics == {"recall_at_1": 0.5, "nmi": 0.25}
    assert str(target) == "the paper; backbone GoogLeNet; 64 dimensions; crop centre 227"
    assert dataclasses.replace(target, note="a guess").to_plain()["note"] == "a guess"
    assert load_settings(str(path)) == recipe.settings | {"recipe": str(path)}
    bare = load_recipe(str(write(give=None, doubtful=None, targets=None)))
    assert (bare.give, bare.doubtful, bare.targets) == ({}, {}, ())


TARGET = yaml.safe_load(RECIPE)["targets"][0]
WIDE = TARGET | {"embedding-dim": "64"}


def metrics(**values):
    return {"targets": [TARGET | {"metrics": values}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setings": {}}, "unknown key 'setings': did you mean 'settings'?"),
        ({"title": None}, "'title' is missing"),
        ({"title": 3}, "title must be a string, not 3"),
        ({"settings": ["lr"]}, "settings must be keys and values, not ['lr']"),
        ({"settings": {"lrr": 1}}, "settings: unknown key 'lrr': did you mean 'lr'?"),
        ({"settings": {"lr": "fast"}}, "settings: lr must be a number, not 'fast'"),
        ({"settings": {"optimizer": "adam"}}, "settings: optimizer must be adamw or sgd"),
        ({"settings": {"milestones": 3}}, "settings: milestones need schedule step"),
        ({"settings": {"recipe": "x"}}, "settings: 'recipe' does not belong in a recipe"),
        ({"doubtful": {"lrr": "x"}}, "doubtful: unknown key 'lrr': did you mean 'lr'?"),
        ({"doubtful": {"lr": 3}}, "doubtful: lr must be a string, not 3"),
        ({"give": {"weihgts": "x"}}, "give: unknown key 'weihgts': did you mean 'weights'?"),
        ({"targets": ["x"]}, "target 1 must be keys and values, not 'x'"),
        ({"targets": [TARGET, TARGET | {"crops": 1}]}, "target 2: unknown key 'crops': did you"),
        ({"targets": [{"source": "x"}]}, "target 1: 'backbone' is missing"),
        ({"targets": [WIDE]}, "target 1: embedding-dim must be a whole number, not '64'"),
        (metrics(recall=0.5), "target 1: unknown metric 'recall': give one such as recall_at_1"),
        (metrics(nmi=47.2), "target 1: nmi must be a fraction from 0 to 1, not 47.2"),
        (metrics(nmi=True), "target 1: nmi must be a fraction from 0 to 1, not True"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(write, changes, message):
    path = write(**changes)
    with pytest.raises(UserError) as caught:
        load_settings(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_names_that_there_are_not(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown recipe 'lifted-cup': did you mean 'lifted-cub'"):
        load_settings("lifted-cup")
    with pytest.raises(UserError, match=r"cannot read lifted-cub\.yaml: No such file"):
        load_settings("lifted-cub.yaml")
    with pytest.raises(UserError, match="cannot read some/where: No such file"):
        load_recipe("some/where")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("lr: 0.5")
    (tmp_path / "lifted-cub").write_text("lr: 0.5")
    assert load_settings("plain") == load_settings("./lifted-cub") == {"lr": 0.5}
    assert load_settings("lifted-cub")["dataset"] == "cub200"  # the recipe, not the file
    with pytest.raises(UserError, match="plain holds only settings, for `dmlfast train -c`"):
        load_recipe("plain")


def test_a_file_of_settings_may_begin_with_a_recipe(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("recipe: lifted-cub\nlr: 0.5\n")
    recipe = load_recipe("lifted-cub")
    assert load_settings(str(path)) == recipe.settings | {"lr": 0.5, "recipe": "lifted-cub"}
    path.write_text(TrainConfig(seed=3).to_yaml())
    assert TrainConfig(**load_settings(str(path))) == TrainConfig(seed=3)


def test_differences(write):
    recipe = load_recipe(str(write()))
    given = dataclasses.replace(recipe.config, weights="a.safetensors")
    assert recipe.differences(given) == []
    same = {"seed": 9, "workers": 3, "data_dir": "x", "compile": True, "eval_interval": 7}
    assert recipe.differences(dataclasses.replace(given, **same, epochs=3)) == []
    changes = {"dataset_options": "crop=true", "lr": 0.5, "max_steps": 2, "milestones": (1, 3)}
    assert recipe.differences(dataclasses.replace(given, **changes)) == [
        "dataset-options crop=true, not none",
        "max-steps 2, not 4",
        "lr 0.5, not 0.001",
        "milestones 1,3, not 2",
    ]
    for weights in (None, "none"):
        config = dataclasses.replace(recipe.config, weights=weights)
        assert recipe.differences(config) == ["weights not given: a file"]
    by_epochs = load_recipe(str(write(settings={"epochs": 5}, give=None)))
    assert by_epochs.differences(by_epochs.config) == []
    changed = dataclasses.replace(by_epochs.config, epochs=6, max_steps=7)
    assert by_epochs.differences(changed) == ["epochs 6, not 5", "max-steps 7, not none"]


def test_a_comparison_goes_into_a_file_and_back(write):
    recipe = load_recipe(str(write()))
    for differences in ((), ("lr 1, not 2", "x")):
        comparison = Comparison(recipe.name, recipe.targets, differences)
        known = {name: value for name, value in comparison.to_attributes().items() if value}
        assert Comparison.from_attributes(known, "f.h5") == comparison
    assert Comparison.from_attributes({"model": "x"}, "f.h5") is None


def test_the_example_in_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "own.yaml").write_text(example)
    recipe = load_recipe(str(tmp_path / "own.yaml"))
    assert recipe.config.milestones == (3000, 4000)
    assert recipe.targets[0].note


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.targets
    assert recipe.doubtful.keys() <= recipe.settings.keys()
    assert not recipe.give.keys() & recipe.settings.keys()
    assert recipe.settings["loss"] in name
    assert {"backbone", "batch_size", "embedding_dim", "transform"} <= recipe.settings.keys()
    assert recipe.missing(recipe.config) == recipe.differences(recipe.config)


@pytest.mark.parametrize(
    ("name", "lr", "steps"),
    [("lifted-cub", 1e-6, 40_000), ("lifted-cars", 1e-4, 20_000), ("lifted-sop", 1e-4, 20_000)],
)
def test_settings_of_the_lifted_paper(name, lr, steps):
    config = load_recipe(name).config
    assert (config.lr, config.max_steps) == (lr, steps)
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 2e-4)
    assert (config.schedule, config.milestones, config.gamma) == ("step", (32_000,), 0.96)
    assert (config.warmup_steps, config.head_dropout, config.head_init) == (0, 0.4, "caffe")
    assert (config.head_lr_multiplier, config.bias_lr_multiplier) == (10, 2)
    assert (config.batch_size, config.backbone, config.margin) == (128, "bvlc-googlenet", 1)
    assert config.val_fraction == 0


@pytest.mark.parametrize(
    ("name", "dataset", "by_distance", "by_score"),
    [
        ("pddm-cub", "cub200", [0.583, 0.692, 0.790, 0.884], [0.550, 0.671, 0.774, 0.869]),
        ("pddm-cars", "cars196", [0.574, 0.686, 0.801, 0.894], [0.552, 0.665, 0.780, 0.882]),
    ],
)
def test_settings_and_targets_of_pddm(name, dataset, by_distance, by_score):
    recipe = load_recipe(name)
    config = recipe.config
    assert (config.dataset, config.backbone) == (dataset, "bvlc-googlenet")
    assert boxes_cut_out(config)
    assert (config.margin, parse_loss_options(config.loss_options)) == (
        3,
        {"embedding_margin": 1, "embedding_weight": 0.5},
    )
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 2e-4)
    assert config.lr * config.head_lr_multiplier == config.loss_lr == 0.01
    assert (config.max_steps, config.val_fraction, config.normalize) == (20_000, 0, True)
    assert {"batch_size", "embedding_dim", "margin", "loss_options", "lr"} <= recipe.doubtful.keys()
    metrics = [list(target.metrics.values()) for target in recipe.targets]
    assert metrics == [by_distance, by_score]
    assert "--rank-by pddm" in recipe.targets[1].note


BIER_TARGETS = {
    "cub": ("cub200", 0.553, 0.575),
    "cars": ("cars196", 0.780, 0.820),
    "sop": ("sop", 0.727, 0.742),
    "inshop": ("inshop", 0.769, 0.831),
    "vehicleid": ("vehicleid", 0.826, 0.863),
}


@pytest.mark.parametrize("data", BIER_TARGETS)
def test_settings_and_targets_of_bier(data):
    dataset, *targets = BIER_TARGETS[data]
    for loss, target in zip(("bier", "a-bier"), targets, strict=True):
        recipe = load_recipe(f"{loss}-{data}")
        config = recipe.config
        assert (config.dataset, config.loss, config.transform) == (dataset, loss, "padded")
        assert (config.groups, config.embedding_dim) == ((96, 160, 256), 512)
        assert (config.lr, config.head_lr_multiplier, config.loss_lr) == (1e-5, 10, 1e-5)
        assert (config.gamma, config.batch_size, config.images_per_class) == (0.5, 128, 2)
        assert bool(config.head_steps) == (loss == "bier")
        options = parse_loss_options(config.loss_options)
        if loss == "bier":
            assert options == {"diversity": "activation", "stage": "init", "norm_weight": 100}
        else:
            assert options == {"diversity_weight": 5e-5, "norm_weight": 1e5}
        assert recipe.targets[0].metrics["recall_at_1"] == target
        assert {"loss", "weight_decay", "head_init"} <= recipe.doubtful.keys()
