"""What results are compared by."""

import dataclasses

from dmlfast.models import create_model
from dmlfast.training import images_card, network_card, train, training_card
from dmlfast.training.card import versions

from .helpers import tiny_config


def test_the_network():
    model = create_model("convnet")
    plain = {"weights": "none", "pooling": "average of each of 4 x 4 cells"}
    assert network_card(tiny_config(), model) == {**plain, "batch_norm": "trained"}
    for frozen in ({"freeze_bn": True}, {"backbone_lr_multiplier": 0.0}):
        assert network_card(tiny_config(**frozen), model)["batch_norm"] == "frozen"
    model = create_model("bvlc-googlenet", 3)
    config = tiny_config(backbone="bvlc-googlenet", weights="bvlc.caffemodel")
    expected = {"weights": "bvlc.caffemodel", "pooling": "average", "batch_norm": "none"}
    assert network_card(config, model) == expected
    model.pooling = None
    assert "pooling" not in network_card(config, model)


def test_the_images():
    assert images_card(tiny_config(), None) == {}
    transform = {"name": "lifted", "size": 227}
    config = tiny_config(dataset="cub200", dataset_options="crop=true")
    cropped = {
        "dataset_options": "crop=true",
        "image_size": 227,
        "crop": "lifted",
        "pictures": "stretched to 256 x 256",
        "train_crop": "227 anywhere, mirrored or not",
        "test_crop": "centre 227",
        "bounding_boxes": "cut out",
    }
    assert images_card(config, transform) == cropped
    whole = images_card(tiny_config(augment=False), transform)
    assert (whole["train_crop"], whole["bounding_boxes"]) == ("centre 227", "not used")


def test_the_training(finished, tmp_path):
    best, last = finished.checkpoint("best"), finished.checkpoint("last")
    card = training_card(tiny_config(), best, "best")
    assert (card["selection"], card["selected_on"]) == ("best MAP at R on val", "val")
    assert not {"margin", "loss_options", "ce_weight"} & set(card)
    given = tiny_config(loss="triplet", margin=0.5, loss_options="mining=semihard", ce_weight=2.0)
    card = training_card(given, best, "best")
    assert (card["margin"], card["loss_options"], card["ce_weight"]) == (0.5, "mining=semihard", 2)
    card = training_card(tiny_config(), last, "last")
    assert (card["selection"], card["step"], "selected_on" in card) == ("last step", 8, False)
    known = versions("convnet")
    assert list(known) == ["dmlfast", "torch", "Python"]
    assert card["trained_with"] == ", ".join(f"{name} {known[name]}" for name in known)
    older = {name: value for name, value in last.state.items() if name != "versions"}
    assert "trained_with" not in training_card(
        tiny_config(), dataclasses.replace(last, state=older), "last"
    )
    run = train(tiny_config(val_fraction=0, max_steps=2), tmp_path / "run")
    assert training_card(run.config, run.checkpoint("best"), "best")["selection"] == "last step"
