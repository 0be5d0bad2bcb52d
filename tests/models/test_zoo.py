"""Networks of timm and torchvision. Nothing here needs the network."""

import importlib
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.models import backbone_preprocessing, create_model, load_model, optional, save_model

NAMES = [
    "timm/resnet10t",
    "timm/mobilenetv3_small_050",
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/googlenet",
]


def needs(name: str) -> None:
    try:
        optional.import_timm() if name.startswith("timm/") else optional.import_torchvision()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_rebuilt_from_its_files(name, tmp_path):
    needs(name)
    model = create_model(name, 3, 8).eval()
    assert json.loads(json.dumps(model.spec)) == model.spec
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.spec == model.spec
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_loading_asks_for_no_pretrained_weights(tmp_path, monkeypatch):
    needs("timm/")
    timm = optional.import_timm()
    save_model(create_model("timm/resnet10t", 3, 8), tmp_path)
    spec = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**spec, "weights": "default"}))
    create, asked = timm.create_model, []
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *args, **kwargs: asked.append(kwargs["pretrained"]) or create(*args, **kwargs),
    )
    load_model(tmp_path)
    assert asked == [False]


def test_preprocessing_of_the_weights():
    needs("timm/")
    found = backbone_preprocessing("timm/resnet50.a1_in1k")
    assert (found.image_size, found.interpolation, found.crop_pct) == (224, "bicubic", 0.95)
    found = backbone_preprocessing("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert tuple(found.mean) == tuple(found.std) == (0.5, 0.5, 0.5)
    found = backbone_preprocessing("torchvision/resnet50")
    assert (found.image_size, found.interpolation) == (224, "bilinear")
    assert found.crop_pct == pytest.approx(224 / 232)
    assert tuple(found.mean) == (0.485, 0.456, 0.406)
    assert tuple(found.std) == (0.229, 0.224, 0.225)
    spec = create_model("torchvision/resnet18", 3, 8).spec
    assert (spec["mean"], spec["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("name", "pooling", "batch_norm"),
    [
        ("timm/resnet10t", "average", True),
        ("timm/convnext_atto", "average", False),
        ("timm/vit_tiny_patch16_224", "class token", False),
        ("torchvision/resnet18", "average", True),
        ("torchvision/vit_b_16", "class token", False),
        ("torchvision/alexnet", "average of each of 6 x 6 cells", False),
        ("torchvision/densenet121", None, True),
    ],
)
def test_pooling_and_batch_norm(name, pooling, batch_norm):
    needs(name)
    model = create_model(name, 3, 8)
    assert (model.pooling, model.has_batch_norm) == (pooling, batch_norm)


def test_grey_images():
    needs("timm/")
    model = create_model("timm/resnet10t", 1, 8).eval()
    assert model.spec["mean"] == [pytest.approx(0.449)]
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 8)
    with pytest.raises(UserError, match="torchvision/resnet18 takes images of 3 channels, not 1"):
        create_model("torchvision/resnet18", 1)


def test_networks_for_one_size():
    needs("timm/")
    model = create_model("timm/vit_tiny_patch16_224", 3, 8, image_size=96).eval()
    assert model.spec["image_size"] == 96
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 8)
    assert "image_size" not in create_model("timm/resnet10t", 3, 8, image_size=96).spec


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18"])
def test_classifiers_in_files_are_left_out(name, tmp_path):
    needs(name)
    if name.startswith("timm/"):
        whole = optional.import_timm().create_model("resnet10t")
    else:
        whole = optional.import_torchvision().models.resnet18()
    assert "fc.weight" in whole.state_dict()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = create_model(name, 3, 8, weights=tmp_path / "weights.pth")
    tensors = model.backbone.state_dict()
    assert all(torch.equal(tensors[key], whole.state_dict()[key]) for key in tensors)
    torch.save({**whole.state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"does not fit the backbone: unknown extra\.weight"):
        create_model(name, 3, 8, weights=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5", "unknown backbone 'timm/resnet5': did you mean 'timm/resnet5"),
        ("timm/qqqqqqqqqqq", "unknown backbone 'timm/qqqqqqqqqqq'"),
        (
            "torchvision/resnet5",
            "unknown backbone 'torchvision/resnet5': did you mean 'torchvision/",
        ),
        ("torchvision/squeezenet1_0", "has no linear classifier to leave out"),
    ],
)
def test_names_that_are_no_backbones(name, message):
    needs(name)
    with pytest.raises(UserError) as error:
        create_model(name, 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_had(monkeypatch):
    needs("timm/")
    timm, create = optional.import_timm(), optional.import_timm().create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no connection\nand more")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as error:
        create_model("timm/resnet10t", 3, weights="default")
    assert str(error.value) == (
        "cannot get the weights of timm/resnet10t (no connection): give a file, --weights PATH, or "
        "--weights none"
    )


@pytest.mark.parametrize(
    ("name", "absent"),
    [("timm", {"timm"}), ("timm", {"timm", "torchvision"}), ("torchvision", {"torchvision"})],
)
def test_a_library_that_is_missing(name, absent, monkeypatch):
    real = importlib.import_module

    def missing(module, *args):
        if module in absent:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        return real(module, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    if absent == {"timm"}:
        monkeypatch.setattr(optional, "import_torchvision", lambda: None)
    with pytest.raises(UserError) as error:
        create_model(f"{name}/resnet18", 3)
    assert str(error.value) == f"{name} is not installed: pip install 'dmlfast[models]'"


def test_neither_library_is_imported_before_it_is_needed():
    program = "import sys, dmlfast.training; print({'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_default_weights_are_loaded_without_auxiliary_heads(monkeypatch):
    needs("torchvision/")
    models = optional.import_torchvision().models
    whole = models.googlenet(init_weights=False)
    weights = models.get_model_weights("googlenet")
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **kwargs: whole.state_dict())
    model = create_model("torchvision/googlenet", 3, 8, weights="default").eval()
    tensors = model.backbone.state_dict()
    assert not any(name.startswith(("aux", "fc")) for name in tensors)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in tensors.items())
    again = create_model(**model.spec).eval()
    again.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
