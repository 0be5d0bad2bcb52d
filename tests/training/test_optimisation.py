"""Optimisers, their groups, and learning rates over the steps."""

import itertools

import pytest
import torch

from dmlfast.errors import UserError
from dmlfast.training import TrainConfig, train
from dmlfast.training.distributed import World
from dmlfast.training.loop import Trainer
from dmlfast.training.optimisation import learning_rate_factor

from .helpers import tiny_config, weights

ALONE = World(0, 1, torch.device("cpu"))


def groups(**changes):
    """(peak learning rate, decay, numbers of dimensions, numbers in all) of each group."""
    trainer = Trainer(tiny_config(lr=0.01, weight_decay=0.1, **changes), ALONE)
    return [
        (
            group["peak_lr"],
            group["weight_decay"],
            {weight.ndim for weight in group["params"]},
            sum(weight.numel() for weight in group["params"]),
        )
        for group in trainer.optimizer.param_groups
    ]


HEAD = 8 * 2048  # and 8 biases


def test_learning_rates_of_each_group():
    (_, _, _, matrices), (_, _, _, vectors) = plain = groups()
    assert plain == [(0.01, 0.1, {2, 4}, matrices), (0.01, 0.0, {1}, vectors)]
    assert groups(head_lr_multiplier=10.0) == [
        (0.01, 0.1, {4}, matrices - HEAD),
        (pytest.approx(0.1), 0.1, {2}, HEAD),
        (0.01, 0.0, {1}, vectors - 8),
        (pytest.approx(0.1), 0.0, {1}, 8),
    ]
    assert groups(bias_lr_multiplier=2.0, head_lr_multiplier=10.0) == [
        (0.01, 0.1, {4}, matrices - HEAD),
        (pytest.approx(0.1), 0.1, {2}, HEAD),
        (0.01, 0.0, {1}, 416),
        (0.02, 0.0, {1}, 416),
        (pytest.approx(0.2), 0.0, {1}, 8),
    ]
    assert groups(backbone_lr_multiplier=0.5)[0] == (0.005, 0.1, {4}, matrices - HEAD)
    assert groups(backbone_lr_multiplier=0.0) == [(0.01, 0.1, {2}, HEAD), (0.01, 0.0, {1}, 8)]


@pytest.mark.parametrize("width", [64, 128, 256, 512, 1024])
def test_the_head_of_the_lifted_paper(width):
    """Dropout, one linear layer as Caffe starts it, ten times the rate, its bias twenty times."""
    config = tiny_config(
        embedding_dim=width, head_dropout=0.4, head_init="caffe", head_lr_multiplier=10.0,
        bias_lr_multiplier=2.0, optimizer="sgd", lr=1e-4, warmup_steps=0, schedule="constant",
        sampler="pairs",
    )  # fmt: skip
    trainer = Trainer(config, ALONE)
    model, head = trainer.model, trainer.model.head
    assert (model.dropout.p, head.out_features, trainer.model.spec["normalize"]) == (
        0.4,
        width,
        False,
    )
    bound = (3 / head.in_features) ** 0.5
    assert 0.99 * bound < head.weight.abs().max() <= bound
    assert not head.bias.any()
    rates = {
        id(weight): group["peak_lr"]
        for group in trainer.optimizer.param_groups
        for weight in group["params"]
    }
    assert (rates[id(head.weight)], rates[id(head.bias)]) == pytest.approx((1e-3, 2e-3))
    assert {round(rates[id(weight)] / 1e-4, 6) for weight in model.backbone.parameters()} == {1, 2}

    shares, before = [], head.weight.detach().clone()
    head.register_forward_pre_hook(lambda head, args: shares.append((args[0] == 0).float().mean()))
    images, labels = next(iter(trainer.batches()))
    with torch.no_grad():
        model.eval()(images)
    trainer.model.train()
    trainer.set_learning_rate()
    trainer.train_step(images, labels)
    kept = (1 - shares[1]) / (1 - shares[0])
    assert kept == pytest.approx(0.6, abs=0.05)
    assert (head.weight - before).abs().max() > 0


def test_learning_rates_in_a_step():
    trainer = Trainer(tiny_config(lr=0.01, head_lr_multiplier=10.0, warmup_steps=2), ALONE)
    assert trainer.set_learning_rate() == pytest.approx(0.005)
    found = [group["lr"] for group in trainer.optimizer.param_groups]
    assert found == pytest.approx([0.005, 0.05, 0.005, 0.05])


def test_matrices_decay_and_vectors_do_not():
    config = tiny_config(weight_decay=0.3)
    trainer = Trainer(config, ALONE)
    decay = {
        id(weight): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for weight in group["params"]
    }
    for weight in trainer.model.parameters():
        assert decay.pop(id(weight)) == (0.3 if weight.ndim > 1 else 0)
    assert not decay


def factors(total_steps: int, steps: int, **settings) -> list[float]:
    config = TrainConfig(**settings)
    return [learning_rate_factor(config, step, total_steps) for step in range(steps)]


def test_a_warm_up_and_a_cosine_to_zero():
    found = factors(30, 31, warmup_steps=10)
    assert found[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert found[10] == 1
    assert found[20] == pytest.approx(0.5)
    assert found[30] == pytest.approx(0)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[10:]))
    assert factors(5, 1, warmup_steps=0) == [1]
    assert factors(5, 5, warmup_steps=9)[4] == pytest.approx(5 / 9)


def test_schedules_are_those_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4, 9], gamma=0.96)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(other, 12)
    expected: tuple[list[float], list[float]] = ([], [])
    for _ in range(12):
        for rates, scheduler in zip(expected, (steps, cosine), strict=True):
            rates += scheduler.get_last_lr()
            scheduler.optimizer.step()
            scheduler.step()
    by_steps = {"schedule": "step", "milestones": (3, 4, 9), "gamma": 0.96, "warmup_steps": 0}
    assert factors(12, 12, **by_steps) == pytest.approx(expected[0])
    assert factors(12, 12, warmup_steps=0) == pytest.approx(expected[1])
    assert factors(12, 12, schedule="constant", warmup_steps=2) == [0.5, *[1] * 11]
    assert factors(9, 6, **(by_steps | {"warmup_steps": 4, "gamma": 0.5})) == [
        *(0.25, 0.5, 0.75, 1.0),
        *(0.25, 0.25),
    ]


def test_milestones_without_their_schedule():
    with pytest.raises(UserError, match="milestones need schedule step"):
        TrainConfig(milestones=(3,))


def test_a_step_of_sgd():
    """Momentum, decay and rates of their own, against the formula."""
    config = tiny_config(
        optimizer="sgd", lr=0.01, momentum=0.5, weight_decay=0.1, head_lr_multiplier=10.0,
        bias_lr_multiplier=2.0, schedule="step", milestones=(1,), gamma=0.5, warmup_steps=0,
    )  # fmt: skip
    trainer = Trainer(config, ALONE)
    head, velocity = trainer.model.head, {}
    before = {name: weight.detach().clone() for name, weight in head.named_parameters()}
    gradients = {name: [] for name in before}
    for name, weight in head.named_parameters():
        weight.register_post_accumulate_grad_hook(
            lambda weight, name=name: gradients[name].append(weight.grad.clone())
        )
    for images, labels in itertools.islice(trainer.batches(), 2):
        trainer.set_learning_rate()
        trainer.train_step(images, labels)
        trainer.step += 1
    for name, rates, decay in (("weight", (0.1, 0.05), 0.1), ("bias", (0.2, 0.1), 0.0)):
        weight, velocity = before[name], torch.zeros_like(before[name])
        for rate, gradient in zip(rates, gradients[name], strict=True):
            velocity = 0.5 * velocity + gradient + decay * weight
            weight = weight - rate * velocity
        torch.testing.assert_close(getattr(head, name).data, weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "schedule": "step", "milestones": (3, 6), "bias_lr_multiplier": 2.0},
        {"optimizer": "sgd", "momentum": 0.0, "head_dropout": 0.4, "head_init": "caffe"},
        {"schedule": "step", "milestones": (2, 5), "gamma": 0.5},
        {"sampler": "pairs", "ce_weight": 0.5, "loss_lr": 0.01},
        {"sampler": "hard-neighbours", "head_dropout": 0.4},
        {"loss": "norm-softmax", "loss_options": "class_count=4", "loss_weight_decay": 0.1},
        {
            "loss": "norm-softmax",
            "loss_options": "class_count=4",
            "optimizer": "sgd",
            "momentum": 0.5,
        },
        {"loss": "norm-softmax", "head": "layer-norm", "head_steps": 4, "max_steps": 4},
        {"loss": "pddm", "loss_options": "per=class"},
        {"loss": "a-bier", "learners": 2},
        {
            "loss": "bier",
            "groups": (3, 5),
            "head_steps": 4,
            "max_steps": 4,
            "loss_options": "diversity=activation,stage=init",
        },
        {"loss": "norm-softmax", "head": "layer-norm", "head_steps": 5, "max_steps": 3},
    ],
)
def test_stopping_and_going_on_gives_the_same_bits(tmp_path, monkeypatch, changes):
    config = tiny_config(lr=1e-3, **changes)
    whole = train(config, tmp_path / "whole")
    save = Trainer.save

    def stop_after_four(trainer, run):
        save(trainer, run)
        if trainer.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop_after_four)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    run = train(config, tmp_path / "run", resume=True)
    assert run.checkpoint("last").step == 8
    assert weights(run) == weights(whole)
    assert run.checkpoint("last").state["sha256"] == whole.checkpoint("last").state["sha256"]
    rates = [[float(row["lr"]) for row in each.summary()] for each in (run, whole)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


def test_the_head_and_the_loss_learn_alone_at_first(tmp_path):
    """At their full rates, as if the backbone were frozen; then all begin anew."""
    config = tiny_config(
        loss="norm-softmax", head="layer-norm", head_steps=3, max_steps=4, warmup_steps=2,
        loss_lr=0.02, loss_weight_decay=0.3, lr=0.01, optimizer="sgd",
    )  # fmt: skip
    trainer = Trainer(config, ALONE)
    assert trainer.total_steps == 7
    group = trainer.optimizer.param_groups[-1]
    assert group["params"] == [trainer.loss_fn.weight]
    assert (group["peak_lr"], group["weight_decay"]) == (0.02, 0.3)
    rates, moved = [], []
    for images, labels in trainer.batches():
        before = {
            name: weight.detach().clone() for name, weight in trainer.model.named_parameters()
        }
        proxies = trainer.loss_fn.weight.detach().clone()
        rates.append(trainer.set_learning_rate())
        known = len(trainer.optimizer.state)
        trainer.train_step(images, labels)
        trainer.step += 1
        changed = {
            name.split(".")[0]
            for name, weight in trainer.model.named_parameters()
            if not torch.equal(weight, before[name])
        }
        moved.append((changed, torch.equal(trainer.loss_fn.weight, proxies), known))
    assert moved[:3] == [({"head"}, False, 0), ({"head"}, False, 2), ({"head"}, False, 2)]
    every = len([*trainer.model.parameters()]) + 1
    assert moved[3:5] == [({"head", "backbone"}, False, 0), ({"head", "backbone"}, False, every)]
    expected = [learning_rate_factor(tiny_config(warmup_steps=2), step, 4) for step in range(4)]
    assert rates == pytest.approx([0.01] * 3 + [0.01 * factor for factor in expected])
