"""Training on a GPU, with the kernels that "auto" takes there."""

import csv

import pytest
import torch

from dmlfast.ops import gpu
from dmlfast.training import train

from .helpers import tiny_config


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"sampler": "hard-neighbours", "ce_weight": 0.5, "precision": "bf16"}],
    ids=["balanced", "hard-neighbours"],
)
def test_the_loss_falls(tmp_path, changes):
    device = "cpu" if gpu.interpreted() else "cuda"
    config = tiny_config(device=device, max_steps=60, eval_interval=30, augment=False, **changes)
    run = train(config, tmp_path / "run")
    with run.summary_path.open() as file:
        losses = torch.tensor([float(row["loss"]) for row in csv.DictReader(file)])
    assert len(losses) == 60
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()
