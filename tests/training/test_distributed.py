import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dmlfast.errors import UserError
from dmlfast.losses import NormSoftmaxLoss
from dmlfast.training import RunFolder, checkpoint, loop, train
from dmlfast.training.distributed import join_world, resolve_device

from .helpers import start, tiny_config


class Perceptron(nn.Module):
    """A network without batch statistics, which every process would have its own of."""

    def __init__(self, **spec):
        super().__init__()
        self.spec = spec
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, images, with_features=False):
        features = self.layers[:-1](images.float() / 255)
        embeddings = self.layers[-1](features)
        return (embeddings, features) if with_features else embeddings

    @property
    def backbone(self):
        return self.layers[1]

    @property
    def embedding_weight(self):
        return self.layers[-1].weight


def load_perceptron(folder: Path) -> Perceptron:
    model = Perceptron(**json.loads((folder / "model.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


class Scaled(nn.Module):
    """A loss with a further weight of its own."""

    def __init__(self, loss_fn):
        super().__init__()
        self.loss_fn = loss_fn
        self.needs_features = getattr(loss_fn, "needs_features", False)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, embeddings, labels, **others):
        return self.loss_fn(embeddings * self.log_scale.exp(), labels, **others)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def join(rank: int, size: int, port: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def run_processes(target, size: int, *args) -> None:
    port = free_port()
    processes = [start(target, rank, size, port, *args) for rank in range(size)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * size


def soften(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Keeps Adam from making full steps of gradients that are rounding errors."""
    for group in optimizer.param_groups:
        group["eps"] = 1.0
    return optimizer


def train_perceptron(
    rank: int, size: int, port: str, out: Path, steps: int, changes: dict[str, Any]
) -> None:
    join(rank, size, port)
    real, real_optimizer = loop.create_loss, loop.build_optimizer
    loop.create_model = lambda name, **spec: Perceptron(**spec)
    checkpoint.load_model = load_perceptron
    loop.create_loss = lambda name, **kwargs: Scaled(real(name, **kwargs))
    loop.build_optimizer = lambda *args: soften(real_optimizer(*args))
    config = tiny_config(max_steps=steps, augment=False, warmup_steps=0, lr=0.1, **changes)
    loop.learning_rate_factor = lambda config, step, total_steps: 1.0
    train(config, out, resume=(out / "args.yaml").exists())


def check_gather(rank: int, size: int, port: str) -> None:
    join(rank, size, port)
    with join_world("cpu") as world:
        rows = torch.full((2, 3), float(rank + 1), requires_grad=True)
        every = world.gather(rows)
        assert torch.equal(every[:, 0].detach(), torch.tensor([1.0, 1, 2, 2]))
        (every * torch.arange(4.0)[:, None]).sum().backward()
        expected = torch.tensor([[0.0, 1], [2, 3]])[rank]
        assert torch.equal(rows.grad, expected[:, None].expand(2, 3))
        labels = world.gather(torch.tensor([rank, rank + 10]))
        assert labels.tolist() == [0, 10, 1, 11]
        assert world.any(rank == 1)
        assert not world.any(False)
        assert world.from_main({"rank": rank}) == {"rank": 0}


def test_rows_of_all_processes_and_the_gradient_of_ones_own():
    run_processes(check_gather, 2)


def check_uneven_parts(rank: int, size: int, port: str) -> None:
    join(rank, size, port)
    with join_world("cpu") as world:
        told = "the same number of rows of the batch, but they have 2, 3$"
        with pytest.raises(ValueError, match=told):
            world.gather(torch.zeros(2 + rank, 3))
        plain = nn.Linear(2, 2)
        plain.samples = True  # an attribute that says nothing of its gradients
        assert world.wrap(plain) is not plain
        assert world.wrap(sampled := NormSoftmaxLoss(5, 2, class_count=2)) is sampled


def test_parts_of_other_sizes_are_told():
    run_processes(check_uneven_parts, 2)


def check_own_loop(rank: int, size: int, port: str) -> None:
    """docs/training.md, loops of your own."""
    torch.manual_seed(0)
    network, loss_fn = nn.Linear(6, 4), NormSoftmaxLoss(3, 4)
    images, labels = torch.randn(8, 6), torch.tensor([0, 0, 1, 2, 1, 2, 0, 1])
    weights = [*network.parameters(), loss_fn.weight]
    expected = torch.autograd.grad(loss_fn(network(images), labels), weights)
    images, labels = images.chunk(size)[rank], labels.chunk(size)[rank]
    join(rank, size, port)
    with join_world("auto") as world:
        network = world.wrap(network)
        embeddings = network(images)
        rows = embeddings.detach().requires_grad_()
        loss_fn(world.gather(rows), world.gather(labels)).backward()
        embeddings.backward(rows.grad * world.size)
    for weight, gradient in zip(weights, expected, strict=True):
        assert gradient.any()
        torch.testing.assert_close(weight.grad, gradient)


def test_a_loop_of_ones_own_has_the_gradient_of_the_whole_batch():
    run_processes(check_own_loop, 2)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.long),
        {"sampler": "pairs", "ce_weight": 0.5},
        {"loss": "norm-softmax", "loss_options": "class_count=4"},
        pytest.param({"loss": "pddm", "loss_options": "per=anchor"}, marks=pytest.mark.long),
        pytest.param(
            {"loss": "a-bier", "learners": 2, "loss_options": "diversity_weight=0.01"},
            marks=pytest.mark.long,
        ),
        {
            "loss": "a-bier",
            "loss_options": "diversity_weight=0.01,norm_weight=0.1,stage=init",
            "head_steps": 3,
            "ce_weight": 0.5,
        },
        {"sampler": "hard-neighbours", "batch_size": 16},
    ],
)
def test_two_processes_train_the_weights_that_one_does(tmp_path, changes):
    """Also through a resumption: the loss is that of the whole batch, its gradient exact."""
    for size, steps in ((1, 8), (2, 5), (2, 8)):
        run_processes(train_perceptron, size, tmp_path / f"run-{size}", steps, changes)
    one, two = (RunFolder(tmp_path / f"run-{size}") for size in (1, 2))
    for name in ("model.safetensors", "loss.safetensors"):
        ours, theirs = (load_file(run.checkpoint("last").folder / name) for run in (two, one))
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6)
    losses = [[float(row["loss"]) for row in run.summary()] for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 8 + changes.get("head_steps", 0)  # one process wrote each row


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(UserError, match=r"12 cannot .* 5"):
        loop.Trainer(tiny_config(), loop.World(0, 5, torch.device("cpu")))


def test_device_names():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:", "cuda:x", "auto:0", ""):
        with pytest.raises(UserError, match="unknown device"):
            resolve_device(name)
