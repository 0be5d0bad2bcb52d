import json
import os
import shutil

import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.files import TEMPORARY_PREFIX
from dmlfast.models import create_model
from dmlfast.training.checkpoint import Checkpoint, save_checkpoint
from dmlfast.training.loop import build_optimizer

from .helpers import tiny_config

STATE = {
    "step": 2,
    "selected_on": "val",
    "best": {"step": 2, "recall_at_1": 0.75, "map_at_r": 0.5},
}


class Proxies(torch.nn.Module):
    """A loss with weights of its own."""

    def __init__(self, rows: int = 3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(rows, 8))

    def forward(self, embeddings, labels):
        return torch.nn.functional.cross_entropy(embeddings @ self.weight.T, labels)


def trained_parts(seed: int, steps: int = 2, width: int = 8):
    torch.manual_seed(seed)
    model, loss_fn = create_model("convnet", channels=1, embedding_dim=width), Proxies()
    optimizer = build_optimizer(tiny_config(), model, loss_fn)
    for _ in range(steps):
        loss_fn(model(torch.rand(4, 1, 8, 8))[:, :8], torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return model, loss_fn, optimizer


def test_everything_comes_back(tmp_path):
    model, loss_fn, optimizer = trained_parts(0)
    save_checkpoint(tmp_path / "step-2", model, loss_fn, optimizer, STATE)
    restored = trained_parts(1, steps=0)
    checkpoint = Checkpoint.open(tmp_path / "step-2")
    checkpoint.restore(*restored)
    assert checkpoint.step == 2
    for before, after in zip((model, loss_fn), restored[:2], strict=True):
        for name, value in before.state_dict().items():
            assert torch.equal(value, after.state_dict()[name]), name
    before, after = optimizer.state_dict()["state"], restored[2].state_dict()["state"]
    assert before.keys() == after.keys()
    for index in before:
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(before[index][key], after[index][key])


def test_files_hold_nothing_that_executes(tmp_path):
    save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    names = {path.name for path in (tmp_path / "step-2").iterdir()}
    assert names == {
        "model.json",
        "model.safetensors",
        "loss.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "model.json"])
def test_a_damaged_file_is_found(tmp_path, name):
    folder = tmp_path / "step-2"
    save_checkpoint(folder, *trained_parts(0), STATE)
    damaged = folder / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} is not what was written"):
        Checkpoint.open(folder)
    damaged.unlink()
    with pytest.raises(UserError, match=name):
        Checkpoint.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', '{"step": 2'])
def test_a_damaged_state_is_found(tmp_path, text):
    folder = tmp_path / "step-2"
    save_checkpoint(folder, *trained_parts(0), STATE)
    (folder / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json is not what was written"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "selected_on",
        "best",
        "best step",
        "best recall_at_1",
        "best map_at_r",
        "sha256",
        "sha256 model.json",
        "sha256 model.safetensors",
        "sha256 optimizer.safetensors",
    ],
)
def test_a_state_that_lacks_something_is_found(tmp_path, name):
    folder = tmp_path / "step-2"
    save_checkpoint(folder, *trained_parts(0), STATE)
    state = json.loads((folder / "state.json").read_text())
    *outer, key = name.split()
    part = state[outer[0]] if outer else state
    for damage in (lambda: part.update({key: [7]}), lambda: part.pop(key)):
        damage()
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match=r"step-2 is damaged: "):
            Checkpoint.open(folder)


def test_another_models_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    with pytest.raises(UserError, match=r"checkpoint of another model \(embedding_dim 8, not 16\)"):
        Checkpoint.open(tmp_path / "step-2").restore(*trained_parts(0, width=16))


def test_another_losss_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    model, _, _ = trained_parts(0)
    loss_fn = Proxies(rows=5)
    with pytest.raises(UserError, match="checkpoint of another loss"):
        Checkpoint.open(tmp_path / "step-2").restore(
            model, loss_fn, build_optimizer(tiny_config(), model, loss_fn)
        )


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmlfast.training.checkpoint.save", full)
    with pytest.raises(UserError, match=r"cannot write .*step-2: No space left on device"):
        save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_all_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-2").iterdir()}
    tensors = [f"{name}.safetensors" for name in ("model", "loss", "optimizer")]
    assert modes == dict.fromkeys(["model.json", "state.json", *tensors], 0o666 & ~umask)


def test_the_name_stands_for_a_whole_checkpoint_only(tmp_path, monkeypatch):
    seen = []
    real = json.dumps

    def look(*args, **kwargs):
        seen.extend(path.name for path in tmp_path.iterdir())
        return real(*args, **kwargs)

    monkeypatch.setattr("dmlfast.training.checkpoint.json.dumps", look)
    save_checkpoint(tmp_path / "step-2", *trained_parts(0), STATE)
    assert seen
    assert all(name.startswith(TEMPORARY_PREFIX) for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    shutil.rmtree(tmp_path / "step-2")
