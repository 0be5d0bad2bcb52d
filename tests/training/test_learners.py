"""Boosted learners in training: what reaches which weights, and what is refused before it."""

import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.losses.diversity import activation_loss, norm_loss
from dmlfast.models import load_model
from dmlfast.training import loop, train

from .helpers import tiny_config

ALONE = loop.World(0, 1, torch.device("cpu"))
INIT = "diversity=activation,stage=init,diversity_weight=3,norm_weight=0.5"


def trainer_of(**changes) -> loop.Trainer:
    settings = {"loss": "bier", "augment": False, "optimizer": "sgd", "weight_decay": 0.0}
    return loop.Trainer(tiny_config(**settings | changes), ALONE)


def gradients_of_a_step(trainer, monkeypatch):
    """(the embedding layer's weight, the backbone's weights): their gradients at the update."""
    found = {}

    def note(*args, **kwargs):
        found["layer"] = trainer.model.embedding_weight.grad.clone()
        found["backbone"] = [w.grad for w in trainer.model.backbone.parameters()]

    monkeypatch.setattr(trainer.optimizer, "step", note)
    images, labels = next(iter(trainer.batches()))
    loss, _ = trainer.train_step(images, labels)
    return images, loss, found["layer"], found["backbone"]


def test_the_head_alone_learns_to_differ_at_first(monkeypatch):
    """Its gradient is that of what makes learners differ, and the loss is nothing else."""
    trainer = trainer_of(head_steps=2, loss_options=INIT)
    images, loss, found, backbone = gradients_of_a_step(trainer, monkeypatch)
    weight = trainer.model.embedding_weight.detach().clone().requires_grad_()
    with torch.no_grad():
        _, features = trainer.model(images, with_features=True)
    groups = trainer.model.spec["groups"]
    outputs = (features @ weight.T).split(groups, 1)
    expected = 3 * (activation_loss(outputs) + 0.5 * norm_loss(weight.split(groups), "output"))
    (gradient,) = torch.autograd.grad(expected, weight)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found, gradient)
    assert all(grad is None or not grad.any() for grad in backbone)


def test_what_makes_learners_differ_adds_to_the_head_in_training(monkeypatch):
    found = {}
    for weight in (0.0, 2.0):
        options = f"diversity=activation,diversity_weight={weight}"
        _, _, layer, backbone = gradients_of_a_step(trainer_of(loss_options=options), monkeypatch)
        found[weight] = layer, backbone
    assert not torch.allclose(found[0.0][0], found[2.0][0])
    torch.testing.assert_close(found[0.0][1], found[2.0][1])  # the backbone knows nothing of it


def test_learners_are_weighed_as_asked(tmp_path):
    config = tiny_config(loss="bier", weighting="released", max_steps=1)
    model = load_model(train(config, tmp_path / "run").checkpoint("last").folder)
    assert (model.spec["weighting"], model.spec["groups"]) == ("released", [1, 3, 4])
    lengths = [part.norm(dim=1) for part in model(torch.rand(3, 1, 8, 8)).split([1, 3, 4], 1)]
    expected = torch.tensor([1.0, 3.0, 4.0]) / 26**0.5
    torch.testing.assert_close(torch.stack(lengths, 1), expected.expand(3, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_options": INIT}, "the stage of the bier loss needs head-steps, which are 0"),
        ({"loss_options": "stage=both"}, "stage 'both' needs a diversity, and there is none"),
        ({"loss_options": "groups=8"}, "'groups' is not a loss option but a setting"),
        (
            {"loss_options": "diversity=activation", "head": "layer-norm", "embedding_dim": 128},
            "the head has no linear layer",
        ),
    ],
)
def test_what_is_refused_before_anything_is_written(changes, message, tmp_path):
    width = loop.Trainer(tiny_config(), ALONE).model.embedding_weight.shape[1]
    changes = {**changes, **({"embedding_dim": width} if "embedding_dim" in changes else {})}
    with pytest.raises(UserError, match=message):
        train(tiny_config(loss="bier", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
