"""Optimisers for weights of which a step sees some rows only, such as those of sampled classes.

A sparse gradient changes the rows that it has, and the optimiser's state of these rows; all others,
and their state, stay as they are: they neither decay nor go on by their momentum, and have no share
in the cost of the step. Numbers are computed in float32, and rounded once to half-precision weights
and their state. Dense gradients are served by torch's own optimisers, or as those of all
rows where some had a state of their own.
"""

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops.numerics import computed


class _Rows(torch.optim.Optimizer):
    """Takes what is sparse out of a step of the optimiser that it is mixed into."""

    refused: tuple[str, ...]  # options of that optimiser which rows do not know

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, see torch; ValueError for an option that is not served."""
        super().add_param_group(param_group)
        for name in self.refused:
            if self.param_groups[-1][name]:
                raise ValueError(f"{type(self).__name__} does not support {name}: leave it out")

    def step(self, closure: Any = None) -> Any:
        """One step, on all gradients that there are. ``closure`` computes them, and the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        taken = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and self._by_rows(weight):
                    with torch.no_grad():
                        self._step_rows(group, weight, *_rows_of(weight.grad))
                    taken.append((weight, weight.grad))
                    weight.grad = None
        others = super().step
        if getattr(others, "hooked", False):  # this step has called the hooks
            others.__wrapped__(self)  # type: ignore[attr-defined]
        else:
            others()
        for weight, gradient in taken:
            weight.grad = gradient
        return loss

    def _by_rows(self, weight: Tensor) -> bool:
        return weight.grad is not None and weight.grad.is_sparse

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


def _rows_of(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) the rows that a gradient has, and (S, D) their gradients."""
    if not gradient.is_sparse:
        return torch.arange(len(gradient), device=gradient.device), gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


class RowSGD(_Rows, torch.optim.SGD):
    """`torch.optim.SGD` with momentum and decay, of which a sparse gradient changes the rows that
    it has, and their momentum, and no others.

    Raises ValueError for dampening, nesterov and maximize.
    """

    refused = ("dampening", "nesterov", "maximize")

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, rows: Tensor, gradient: Tensor
    ) -> None:
        own = computed(weight[rows])
        change = computed(gradient) + group["weight_decay"] * own
        if group["momentum"]:
            momentum = self._state_of(weight, "momentum_buffer")["momentum_buffer"]
            change += group["momentum"] * momentum[rows]
            momentum[rows] = change.to(momentum.dtype)
        weight[rows] = (own - group["lr"] * change).to(weight.dtype)


class RowAdamW(_Rows, torch.optim.AdamW):
    """`torch.optim.AdamW`, of which a sparse gradient changes the rows that it has, and their
    moments, and no others; a row's moments are corrected for how often it was seen.

    Raises ValueError for amsgrad and maximize.
    """

    refused = ("amsgrad", "maximize")

    def _by_rows(self, weight: Tensor) -> bool:
        state = self.state.get(weight, {})
        return super()._by_rows(weight) or ("step" in state and state["step"].dim() == 1)

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, rows: Tensor, gradient: Tensor
    ) -> None:
        state = self._state_of(weight, "exp_avg", "exp_avg_sq")
        times = self._times_seen(weight)
        times[rows] += 1
        seen = times[rows, None]
        own, gradient = computed(weight[rows]), computed(gradient)
        moments = []
        for name, beta, value in zip(
            ("exp_avg", "exp_avg_sq"), group["betas"], (gradient, gradient.square()), strict=True
        ):
            moment = beta * computed(state[name][rows]) + (1 - beta) * value
            state[name][rows] = moment.to(weight.dtype)
            moments.append(moment / (1 - beta**seen))
        change = moments[0] / (moments[1].sqrt() + group["eps"])
        change += group["weight_decay"] * own
        weight[rows] = (own - group["lr"] * change).to(weight.dtype)

    def _times_seen(self, weight: Tensor) -> Tensor:
        """(C,) how often each row was seen. What was loaded is where it was stored, and of dense
        gradients torch counts one number.
        """
        state = self.state[weight]
        times = state.get("step", torch.zeros(())).to(weight.device, torch.float32)
        if times.dim() == 0:
            times = times.repeat(len(weight))
        state["step"] = times
        return times
