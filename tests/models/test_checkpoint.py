"""Models on the disk."""

import json
import pickle

import numpy as np
import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.models import create_model, load_model, save_model


@pytest.fixture
def model():
    """A model whose batch norms have seen images, as after training."""
    model = create_model("convnet", embedding_dim=16, mean=[0.3], std=[0.4], normalize=True)
    model(torch.rand(16, 1, 8, 8))
    return model


@pytest.fixture
def folder(tmp_path, model):
    folder = tmp_path / "run" / "model"
    save_model(model, folder)
    return folder


def load_error(folder) -> str:
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(folder, model):
    loaded = load_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert not loaded.training
    assert loaded.spec == model.spec
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    images = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(images), model.eval()(images))


def test_saving_the_loaded_model_writes_the_same_bytes(folder, tmp_path):
    save_model(load_model(folder), tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_model_replaces_another(folder):
    other = create_model("convnet", embedding_dim=5)
    save_model(other, folder)
    assert load_model(folder).spec == other.spec


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert load_error(folder) == f"cannot read {folder / name}: No such file or directory"


def test_a_missing_folder(tmp_path):
    assert load_error(tmp_path / "none").startswith(f"cannot read {tmp_path / 'none'}")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_tensors(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in load_error(folder)


@pytest.mark.parametrize(
    "data", [pickle.dumps({"weight": 1}), b"\x89HDF\r\n\x1a\n" + bytes(100), b"\xff" * 64]
)
def test_foreign_tensors(folder, data):
    path = folder / "model.safetensors"
    path.write_bytes(data)
    assert str(path) in load_error(folder)


@pytest.mark.parametrize(
    "text",
    ["", '{"name": "conv', "[1, 2]", "3", "{}", '{"name": "convnet", "depth": 3}', "\xff\xfe"],
)
def test_a_damaged_spec(folder, text):
    path = folder / "model.json"
    path.write_bytes(text.encode("latin1"))
    assert str(path) in load_error(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": "wide"},
        {"widths": [8, 8]},
        {"channels": "one"},
        {"channels": None},
        {"embedding_dim": 2.5},
        {"embedding_dim": 0},
        {"embedding_dim": 10**15},
        {"embedding_dim": 10**30},
        {"mean": 0.5},
        {"mean": ["grey"]},
        {"name": ["convnet"]},
    ],
)
def test_a_spec_of_no_model(folder, change):
    path = folder / "model.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps({**spec, **change}))
    assert str(path) in load_error(folder)


def test_an_unknown_backbone(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace("convnet", "covnet"))
    assert "unknown backbone 'covnet': did you mean 'convnet'?" in load_error(folder)


@pytest.mark.parametrize("change", [{"embedding_dim": 17}, {"channels": 3}, {"widths": [8] * 5}])
def test_tensors_of_another_model(folder, tmp_path, change):
    spec = json.loads((folder / "model.json").read_text())
    save_model(create_model(**{**spec, **change}), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    error = load_error(folder)
    assert "a checkpoint of another model" in error
    assert str(folder / "model.safetensors") in error


def test_nothing_is_half_written(folder, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(UserError) as error:
        save_model(create_model("convnet"), folder)
    assert str(error.value) == (
        f"cannot write {folder / 'model.safetensors'}: No space left on device"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        save_model(model, tmp_path / "file" / "model")
    assert str(tmp_path / "file") in str(error.value)


def test_a_wrapped_model_is_taken_out(model, folder, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for number, wrapped in enumerate((torch.compile(model), averaged, torch.compile(averaged))):
        save_model(wrapped, tmp_path / str(number))
        loaded = load_model(tmp_path / str(number))
        assert loaded.spec == model.spec
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    with pytest.raises(TypeError, match="model must be an EmbeddingModel, not Linear"):
        save_model(torch.nn.Linear(3, 2), tmp_path / "linear")
    assert not (tmp_path / "linear").exists()


@pytest.mark.parametrize("made", [torch.tensor, np.float32, tuple])
def test_mean_and_std_may_be_arrays(made, tmp_path):
    numbers = made([0.5, 0.5, 0.5])
    save_model(create_model("convnet", 3, 8, mean=numbers, std=numbers), tmp_path)
    assert load_model(tmp_path).spec["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_made_without_memory_is_whole_once_it_is_loaded(model, assign):
    with torch.device("meta"):
        other = create_model(**model.spec)
    if not assign:
        other.to_empty(device="cpu")
        other.preprocess.mean.fill_(torch.nan)
    other.load_state_dict(model.state_dict(), assign=assign)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(other.eval()(images), model.eval()(images))
