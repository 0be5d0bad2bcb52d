"""The optimiser of a run, and how its learning rates change with the steps."""

import math
from bisect import bisect_right

import torch
from torch import nn

from dmlfast.training.config import TrainConfig
from dmlfast.training.row_optimizers import RowAdamW, RowSGD


def build_optimizer(
    config: TrainConfig, model: nn.Module, loss_fn: nn.Module
) -> torch.optim.Optimizer:
    """The optimiser, with a group for each learning rate and decay.

    Vectors do not decay. Each group has its rate's maximum as `peak_lr`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for name, weight in sorted(named, key=lambda item: item[1].ndim <= 1):  # matrices first
        in_head = name.startswith("head.")
        multiplier = config.head_lr_multiplier if in_head else config.backbone_lr_multiplier
        if name.endswith(".bias"):
            multiplier *= config.bias_lr_multiplier
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((config.lr * multiplier, decay), []).append(weight)
    loss_lr = config.lr if config.loss_lr is None else config.loss_lr
    of_loss = (loss_lr, config.loss_weight_decay)
    settings = [*groups.items(), (of_loss, list(loss_fn.parameters()))]
    params = [
        {"params": params, "peak_lr": peak_lr, "weight_decay": weight_decay}
        for (peak_lr, weight_decay), params in settings
        if params
    ]
    if config.optimizer == "sgd":
        return RowSGD(params, lr=config.lr, momentum=config.momentum)
    return RowAdamW(params, lr=config.lr)


def learning_rate_factor(config: TrainConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rates in a step: all of it in the head's own steps, and from then
    on a linear warm-up and the schedule.

    It depends on the step alone, so that a run which is resumed, or made longer, needs no state.
    """
    if step < config.head_steps:
        return 1.0
    step, total_steps = step - config.head_steps, total_steps - config.head_steps
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "step":
        return config.gamma ** bisect_right(config.milestones, step)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))
