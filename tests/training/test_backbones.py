"""Runs with pictures, transforms, weights, frozen parts and learning rates of their own."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from dmlfast.data import create_transform
from dmlfast.errors import UserError
from dmlfast.models import load_model
from dmlfast.training import RunFolder, loop, train
from dmlfast.training.distributed import World
from dmlfast.training.loop import StepBatches, Trainer
from dmlfast.training.preparation import image_transform, model_arguments, starting_weights

from ..data.pictures import PictureFiles
from .helpers import tiny_config, weights

ALONE = World(0, 1, torch.device("cpu"))


def pictures_config(**changes):
    return tiny_config(**({"transform": "reality-check", "image_size": 12} | changes))


def changed(trainer) -> set[str]:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train_step(*next(iter(trainer.batches())))
    after = trainer.model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_batch_norms_are_bit_equal_after_a_step():
    everything = changed(Trainer(tiny_config(), ALONE))
    trainer = Trainer(tiny_config(freeze_bn=True), ALONE)
    batch_norms = {
        f"backbone.{name}.{key}"
        for name, module in trainer.model.backbone.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert len(batch_norms) == 25
    assert batch_norms <= everything
    assert changed(trainer) == everything - batch_norms
    trainer.evaluate()
    assert changed(trainer) == everything - batch_norms


def test_a_frozen_backbone_is_bit_equal_after_a_step():
    trainer = Trainer(tiny_config(backbone_lr_multiplier=0.0), ALONE)
    assert changed(trainer) == {"head.weight", "head.bias"}


def test_weights_from_a_file_and_from_another_run(finished, tmp_path):
    path = finished.checkpoint("last").folder / "model.safetensors"
    trainer = Trainer(tiny_config(weights=str(path), seed=5), ALONE)
    source = load_model(path.parent)
    for name, tensor in source.backbone.state_dict().items():
        assert torch.equal(trainer.model.backbone.state_dict()[name], tensor)
    assert not torch.equal(trainer.model.head.weight, source.head.weight)
    with pytest.raises(UserError, match="cannot read nowhere"):
        train(tiny_config(weights="nowhere.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_backbone_starts_from():
    assert starting_weights(tiny_config()) == "none"
    assert starting_weights(tiny_config(backbone="timm/resnet10t")) == "default"
    assert starting_weights(tiny_config(backbone="timm/resnet10t", weights="none")) == "none"


def test_the_transform_is_stored_with_the_model(tmp_path):
    run = train(pictures_config(max_steps=2), tmp_path / "run")
    spec = json.loads((run.checkpoint("last").folder / "model.json").read_text())
    assert spec["transform"] == {"name": "reality-check", "size": 12}
    assert spec["channels"] == 3
    assert create_transform(**spec["transform"]).size == 12


def test_transforms_of_a_run(tmp_path):
    files = PictureFiles(tmp_path)
    digits = loop.load_split(tiny_config(), "val")

    def arguments(dataset, **changes):
        return image_transform(tiny_config(**changes), dataset)

    weights_of_any = {"name": "weights", "size": 64, "interpolation": "bilinear", "crop_pct": 0.875}
    assert arguments(digits) is None
    assert arguments(files) == weights_of_any
    assert arguments(files, transform="none") is None
    assert arguments(digits, image_size=20) == weights_of_any | {"size": 20}
    assert arguments(digits, transform="lifted") == {"name": "lifted", "size": 227}
    assert arguments(files, backbone="bvlc-googlenet") == weights_of_any | {"size": 224}
    config = tiny_config(backbone="timm/vit", weights="none", head_dropout=0.25)
    found = model_arguments(config, 3, {"name": "lifted", "size": 227})
    assert (found["image_size"], found["dropout"], found["weights"]) == (227, 0.25, "none")


def test_without_augmentation_the_crops_are_those_of_a_test():
    trainer = Trainer(pictures_config(augment=False), ALONE)
    images, _ = next(iter(trainer.batches()))
    expected, _ = trainer.images.take(trainer.sampler.batch(0))
    assert torch.equal(images, expected)
    augmented, _ = next(iter(Trainer(pictures_config(), ALONE).batches()))
    assert not torch.equal(augmented, expected)


def test_a_batch_is_the_same_in_any_number_of_processes():
    trainer = Trainer(pictures_config(), ALONE)
    whole, labels = next(iter(trainer.batches()))
    for workers in (0, 2):
        alone = Trainer(pictures_config(workers=workers), ALONE)
        assert torch.equal(next(iter(alone.batches()))[0], whole)
    seed, shards = trainer.config.seed, [trainer.sampler.shard(rank, 3) for rank in range(3)]
    parts = [StepBatches(trainer.images, shards[i], seed)[0] for i in range(3)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(torch.cat([labels for _, labels in parts]), labels)


def test_an_image_drawn_twice_is_cropped_twice():
    trainer = Trainer(pictures_config(batch_size=12, images_per_class=4), ALONE)
    trainer.sampler.batch = lambda step: np.zeros(12, dtype=np.int64)
    images, _ = StepBatches(trainer.images, trainer.sampler, 0)[0]
    assert len({image.numpy().tobytes() for image in images}) > 6


def test_processes_and_a_cache_change_no_bit(tmp_path):
    whole = train(pictures_config(), tmp_path / "whole")
    cached = pictures_config(workers=2, cache_images=str(tmp_path / "cache"))
    assert weights(train(cached, tmp_path / "cached")) == weights(whole)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of each split one


def test_an_error_ends_the_processes_that_make_images(tmp_path, monkeypatch):
    """They ignore what would end them, and Python waits for them before it ends."""

    def unreadable(batches, step):
        raise UserError("cannot read an image")

    monkeypatch.setattr(StepBatches, "__getitem__", unreadable)
    with pytest.raises(UserError, match="cannot read") as kept:
        train(pictures_config(workers=2), tmp_path / "run")
    assert kept.tb is not None  # refers to all that was under way
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left


def test_stopping_and_going_on_gives_the_same_bits(tmp_path, monkeypatch):
    whole = train(pictures_config(), tmp_path / "whole")
    save = Trainer.save

    def stop_after_four(trainer, run):
        save(trainer, run)
        if trainer.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop_after_four)
        with pytest.raises(KeyboardInterrupt):
            train(pictures_config(workers=2), tmp_path / "run")
    run = train(pictures_config(workers=1), tmp_path / "run", resume=True)
    assert weights(run) == weights(whole)
    assert RunFolder(tmp_path / "run").checkpoint("last").step == 8


def test_the_bar_tells_of_waiting_where_pictures_are_decoded(tmp_path):
    for config, text in (
        (tiny_config(), "60 images/s, 25% in the loss"),
        (pictures_config(), "60 images/s, 25% in the loss, 5% waiting for images"),
    ):
        run = loop.create_run(config, tmp_path / config.transform)
        progress = Trainer(config, ALONE).progress(run)
        progress.steps, progress.seconds = 10, 2.0
        progress.loss_seconds, progress.wait_seconds = 0.5, 0.1
        assert progress._postfix(1.0) == f"loss 1.000, {text}"
