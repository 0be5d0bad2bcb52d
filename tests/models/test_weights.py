"""Weights of backbones from files."""

import pickle

import pytest
import safetensors.torch
import torch

from dmlfast.errors import UserError
from dmlfast.models import create_model, save_model


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(3)
    return create_model("convnet", 3, 8)


def same(model, source) -> bool:
    tensors = source.backbone.state_dict()
    return all(
        torch.equal(value, tensors[key]) for key, value in model.backbone.state_dict().items()
    )


def save(path, tensors) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_files_of_tensors(source, tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    save(path, {name: tensor.contiguous() for name, tensor in source.backbone.state_dict().items()})
    assert same(create_model("convnet", 3, 16, weights=path), source)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_of_training_scripts(source, tmp_path, key):
    tensors = {f"module.{name}": value for name, value in source.backbone.state_dict().items()}
    torch.save({"epoch": 3, key: tensors}, tmp_path / "weights.pth")
    assert same(create_model("convnet", 3, 16, weights=tmp_path / "weights.pth"), source)


def test_a_model_of_a_run(source, tmp_path):
    save_model(source, tmp_path)
    assert same(create_model("convnet", 3, 16, weights=tmp_path / "model.safetensors"), source)


def test_all_that_does_not_fit_is_told_in_one_line(source, tmp_path):
    tensors = dict(source.backbone.state_dict())
    tensors["layers.0.weight"] = tensors["layers.0.weight"][:, :1]
    tensors["layers.99.weight"] = tensors.pop("layers.1.weight")
    del tensors["layers.1.bias"]
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(UserError) as error:
        create_model("convnet", 3, 8, weights=tmp_path / "weights.pth")
    assert str(error.value) == (
        f"{tmp_path / 'weights.pth'} does not fit the backbone: missing layers.1.weight and 1 more;"
        " unknown layers.99.weight; of another shape layers.0.weight (32, 1, 5, 5),"
        " not (32, 3, 5, 5)"
    )


class Trap:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or holds more than tensors"),
        (pickle.dumps({"a": Trap()}, protocol=2), "is damaged, or holds more than tensors"),
        (None, "cannot read"),
    ],
    ids=["empty", "pickle", "missing"],
)
def test_files_that_are_no_weights(tmp_path, content, message, capsys):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        create_model("convnet", 3, 8, weights=path)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}])
def test_files_without_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no named tensors"):
        create_model("convnet", 3, 8, weights=tmp_path / "weights.pth")


def test_a_safetensors_file_that_is_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged or not a safetensors file"):
        create_model("convnet", 3, 8, weights=tmp_path / "w.safetensors")


def test_backbones_without_default_weights():
    with pytest.raises(UserError, match="bvlc-googlenet has no default weights: give a file"):
        create_model("bvlc-googlenet", 3, weights="default")
