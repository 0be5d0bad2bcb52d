"""What a benchmark consists of: a problem of any size, and the competitors that solve it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

Loss = Callable[..., torch.Tensor]
Problem = Mapping[str, torch.Tensor]


class Size(NamedTuple):
    """Rows and columns of the embeddings."""

    n: int
    d: int

    def __str__(self) -> str:
        return f"{self.n}x{self.d}"

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Reads "512x128"; anything else is a ValueError."""
        size = cls(*(int(word) for word in text.lower().split("x", 1)))
        if min(size) < 1:
            raise ValueError(text)
        return size


class LeftOutError(Exception):
    """Why a competitor is not measured, in one line."""


@dataclass(frozen=True)
class Competitor:
    """One way to compute a loss.

    name: the provider, as tables and plots show it.
    make: returns the loss, a function of the problem's tensors by name; may raise `LeftOutError`.
    memory: predicts the bytes that a call takes beyond inputs and gradients; None where that is
        linear in the rows.
    largest: the most rows that it is worth measuring at.
    compiles: whether the first call at a size compiles, which is not measured.
    """

    name: str
    make: Callable[[], Loss]
    memory: Callable[[Size], float] | None = None
    largest: int | None = None
    compiles: bool = False


def linear_memory(size: Size) -> float:
    """Bytes of a problem and its solution in float64, seven matrices N x D and three buffers.

    Measured on the lifted loss; more than dmlfast takes.
    """
    return 8.0 * size.n * (7 * size.d + 3 * 256)


@dataclass(frozen=True)
class Benchmark:
    """A loss to be measured.

    name: as typed.
    problem: makes the tensors of a size by name; those that require gradients are differentiated.
    baselines: what dmlfast is compared with.
    dmlfast: the competitor for a backend's name.
    truth: the loss in float64, which every competitor is checked against; memory linear in rows.
    product_flops: of the one matrix product that scores all pairs, the unit of `gemm_ratio`.
    memory: predicts the bytes of a problem and its truth, without which nothing is measured.
    """

    name: str
    problem: Callable[[Size], Problem]
    baselines: tuple[Competitor, ...]
    dmlfast: Callable[[str], Competitor]
    truth: Loss
    product_flops: Callable[[Size], float]
    memory: Callable[[Size], float] = linear_memory

    def competitor(self, provider: str) -> Competitor:
        """A baseline by its name, or dmlfast on a backend by "dmlfast-<backend>"."""
        named = {competitor.name: competitor for competitor in self.baselines}
        return named.get(provider) or self.dmlfast(provider.removeprefix("dmlfast-"))


def leaves(problem: Problem) -> list[torch.Tensor]:
    """The tensors that are differentiated."""
    return [tensor for tensor in problem.values() if tensor.requires_grad]


def step(loss: Loss, problem: Problem) -> torch.Tensor:
    """The loss, once forward and once backward; gradients are left in the problem's tensors."""
    for tensor in problem.values():
        tensor.grad = None
    value = loss(**problem)
    value.backward()
    return value.detach()


def double(problem: Problem) -> Problem:
    """The same problem in float64."""
    return {
        name: tensor.detach().double().requires_grad_() if tensor.requires_grad else tensor
        for name, tensor in problem.items()
    }
