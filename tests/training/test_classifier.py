"""The classifier that is trained beside a metric loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from dmlfast.errors import UserError
from dmlfast.models import load_model
from dmlfast.training import loop, train
from dmlfast.training.classifier import ClassifierLoss, load_classifier
from dmlfast.training.distributed import World

from .helpers import tiny_config, weights

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_the_loss_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    metric = loop.create_loss("lifted", impl="reference")
    loss_fn = ClassifierLoss(metric, torch.tensor([40, 7, 21]), 4, weight=0.3)
    assert loss_fn.classes.tolist() == [7, 21, 40]
    labels = torch.tensor([7, 40, 40, 21, 7, 21])
    rows = torch.randn(6, 4, requires_grad=True)
    again = rows.detach().clone().requires_grad_()
    logits = again @ loss_fn.classifier.weight.T + loss_fn.classifier.bias
    targets = torch.tensor([0, 2, 2, 1, 0, 1])
    picked = logits.log_softmax(dim=1)[torch.arange(6), targets]
    expected = metric(again, labels) - 0.3 * picked.mean()
    loss = loss_fn(rows, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(rows.grad, again.grad)
    assert loss_fn.classifier.weight.grad.abs().sum() > 0


def test_a_weight_of_zero_is_no_classifier():
    trainer = loop.Trainer(tiny_config(), ALONE)
    assert not list(trainer.loss_fn.parameters())


def test_the_classifier_is_trained_at_its_rate_and_saved_apart_from_the_network(tmp_path):
    config = tiny_config(ce_weight=0.5, loss_lr=0.02, max_steps=4)
    trainer = loop.Trainer(config, ALONE)
    group = trainer.optimizer.param_groups[-1]
    classifier = trainer.loss_fn.classifier
    assert group["params"] == [classifier.weight, classifier.bias]
    assert (group["peak_lr"], group["weight_decay"]) == (0.02, 0.0)
    assert classifier.weight.shape == (3, 8)

    run = train(config, tmp_path / "run")
    folder = run.checkpoint("last").folder
    plain = train(tiny_config(max_steps=4), tmp_path / "plain")
    names = load_file(folder / "model.safetensors").keys()
    assert names == load_file(plain.checkpoint("last").folder / "model.safetensors").keys()
    assert weights(run) != weights(plain)
    assert load_model(folder)(torch.zeros(1, 1, 8, 8)).shape == (1, 8)
    found = load_classifier(folder)
    assert found.classes.tolist() == np.unique(trainer.dataset.labels).tolist()
    assert found.weight.shape == (3, 8)
    assert not np.allclose(found.weight, classifier.weight.detach().numpy(), atol=1e-3)
    with pytest.raises(UserError, match="has no classifier: --ce-weight trains one"):
        load_classifier(plain.checkpoint("last").folder)
    (folder / "loss.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read .*loss\.safetensors"):
        load_classifier(folder)


def test_the_classifier_learns(tmp_path):
    config = tiny_config(ce_weight=1.0, max_steps=60, lr=3e-3, eval_interval=60)
    run = train(config, tmp_path / "run")
    folder = run.checkpoint("last").folder
    found, dataset = load_classifier(folder), loop.load_split(config, "train")
    with torch.no_grad():
        embeddings = load_model(folder)(dataset.images)
    logits = F.linear(embeddings, torch.from_numpy(found.weight), torch.from_numpy(found.bias))
    right = found.classes[logits.argmax(dim=1).numpy()] == dataset.labels
    assert right.mean() > 0.9


def test_a_run_is_resumed_with_its_classifier(tmp_path):
    train(tiny_config(ce_weight=0.5, max_steps=2), tmp_path / "run")
    with pytest.raises(UserError, match=r"trained with ce-weight 0\.5, not 0\.0"):
        train(tiny_config(max_steps=4), tmp_path / "run", resume=True)
