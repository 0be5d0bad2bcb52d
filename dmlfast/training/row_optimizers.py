"""Optimisers for weights of which a step sees some rows only, such as those of sampled classes.

A sparse gradient changes the rows that it has, and the optimiser's state of these rows; all others,
and their state, stay as they are: they neither decay nor go on by their momentum, and have no share
in the cost of the step. Dense gradients are served by torch's own optimisers.
"""

from typing import Any

import torch
from torch import Tensor


class _Rows(torch.optim.Optimizer):
    """Takes what is sparse out of a step of the optimiser that it is mixed into."""

    refused: tuple[str, ...]  # options of that optimiser which rows do not know

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, see torch; ValueError for an option that is not served."""
        super().add_param_group(param_group)
        for name in self.refused:
            if self.param_groups[-1][name]:
                raise ValueError(f"{type(self).__name__} does not serve {name}: leave it out")

    def step(self, closure: Any = None) -> Any:
        """One step, on all gradients that there are."""
        sparse = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    gradient = weight.grad.coalesce()
                    with torch.no_grad():
                        rows = gradient.indices()[0]
                        self._step_rows(group, weight, rows, gradient.values())
                    sparse.append((weight, weight.grad))
                    weight.grad = None
        result = super().step(closure)
        for weight, gradient in sparse:
            weight.grad = gradient
        return result

    def _state_of(self, weight: Tensor, *names: str) -> dict[str, Tensor]:
        state = self.state[weight]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(weight)
        return dict(state)

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, rows: Tensor, gradient: Tensor
    ) -> None:
        """Changes the given rows (S,) of `weight` (C, D) by their gradient (S, D)."""
        raise NotImplementedError


class RowSGD(_Rows, torch.optim.SGD):
    """SGD with momentum and decay."""

    refused = ("dampening", "nesterov", "maximize")

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, rows: Tensor, gradient: Tensor
    ) -> None:
        gradient = gradient + group["weight_decay"] * weight[rows]
        if group["momentum"]:
            momentum = self._state_of(weight, "momentum_buffer")["momentum_buffer"]
            gradient = gradient + group["momentum"] * momentum[rows]
            momentum[rows] = gradient
        weight.index_add_(0, rows, gradient, alpha=-group["lr"])


class RowAdamW(_Rows, torch.optim.AdamW):
    """AdamW; a row's moments are corrected for how often it was seen."""

    refused = ("amsgrad", "maximize")

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, rows: Tensor, gradient: Tensor
    ) -> None:
        state = self._state_of(weight, "exp_avg", "exp_avg_sq")
        times = self.state[weight].setdefault("step", weight.new_zeros(len(weight)))
        times[rows] += 1
        seen = times[rows, None]
        moments = []
        for name, beta, value in zip(
            ("exp_avg", "exp_avg_sq"), group["betas"], (gradient, gradient.square()), strict=True
        ):
            moment = beta * state[name][rows] + (1 - beta) * value
            state[name][rows] = moment
            moments.append(moment / (1 - beta**seen))
        change = moments[0] / (moments[1].sqrt() + group["eps"])
        change += group["weight_decay"] * weight[rows]
        weight.index_add_(0, rows, change, alpha=-group["lr"])
