"""What a benchmark consists of: a problem of any size, and the competitors that solve it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from dmlfast.bench.sizes import LEAST_ROWS, PAIR_SIZES, Size, Sizes

Loss = Callable[..., torch.Tensor]
Problem = Mapping[str, torch.Tensor]

# float16 gradients of large batches underflow: its losses are scaled, as torch.amp.GradScaler does
LOSS_SCALE = {torch.float16: 2.0**15}
USEFUL_PRODUCTS = 2  # of those that score all pairs: a loss needs one, its gradient another


class LeftOutError(Exception):
    """Why a competitor is not measured, in one line."""


@dataclass(frozen=True)
class Competitor:
    """One way to compute a loss.

    name: the provider, as tables and plots show it.
    make: returns the loss, a function of the problem's tensors by name; may raise `LeftOutError`.
    memory: predicts the bytes that a call takes beyond inputs and gradients; None where that is
        linear in the rows.
    largest: the most rows that it is worth measuring at, by type of device.
    compiles: whether the first call at a size compiles, which is not measured.
    declines: why it cannot serve tensors of a device type and a dtype, or None.
    graph: whether it is captured in a CUDA graph, which is what is measured.
    truth: makes what it is checked against in the place of the benchmark's truth, where it computes
        something else, and cheaper, on purpose.
    """

    name: str
    make: Callable[[], Loss]
    memory: Callable[[Size], float] | None = None
    largest: Mapping[str, int] = field(default_factory=dict)
    compiles: bool = False
    declines: Callable[[str, torch.dtype], str | None] = lambda device, dtype: None
    graph: bool = False
    truth: Callable[[Size], Loss] | None = None


@dataclass(frozen=True)
class Case:
    """Who is measured together: at a size, in a dtype."""

    size: Size
    dtype: torch.dtype
    competitors: tuple[Competitor, ...] = ()

    def __str__(self) -> str:
        return f"{self.size} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with before its gradient is taken."""
        return LOSS_SCALE.get(self.dtype, 1.0)

    @property
    def yardstick(self) -> Competitor | None:
        """The competitor that the times of the others are divided by: dmlfast's first."""
        return next((each for each in self.competitors if each.name.startswith("dmlfast-")), None)


def linear_memory(size: Size) -> float:
    """Bytes of a problem and its solution in float64, seven matrices N x D and three buffers.

    Measured on the lifted loss; more than dmlfast takes.
    """
    return 8.0 * size.n * (7 * size.d + 3 * 256)


@dataclass(frozen=True)
class Benchmark:
    """A loss to be measured.

    name: as typed.
    problem: makes the tensors of a size by name, on the CPU and in float32, always the same; those
        that require gradients are differentiated.
    baselines: what dmlfast is compared with.
    dmlfast: the competitor for a backend's name.
    truth: makes the loss of a size that every competitor is checked against, in float64; memory
        linear in rows. Rows of the gradient that it leaves NaN are not compared.
    product_flops: of the one matrix product that scores all pairs, the unit of `gemm_ratio`.
    memory: predicts the bytes of a problem and its truth, without which nothing is measured.
    sizes: that are measured where none are given, by type of device. Theirs say whether the loss is
        over classes.
    """

    name: str
    problem: Callable[[Size], Problem]
    baselines: tuple[Competitor, ...]
    dmlfast: Callable[[str], Competitor]
    truth: Callable[[Size], Loss]
    product_flops: Callable[[Size], float]
    memory: Callable[[Size], float] = linear_memory
    sizes: Mapping[str, Sizes] = field(default_factory=lambda: PAIR_SIZES)

    def parse_sizes(self, text: str) -> list[Size]:
        """The sizes in "512x128,8192x512"; a ValueError says which is none of this loss."""
        of_classes = bool(Size.parse(self.sizes["cpu"].quick.split(",")[0]).classes)
        sizes = [Size.parse(word) for word in text.split(",")]
        for size in sizes:
            if bool(size.classes) != of_classes:
                form = "rows x width x classes" if of_classes else "rows x width"
                raise ValueError(f"sizes of {self.name} must be {form}, not {size}")
            if not of_classes and size.n < LEAST_ROWS:
                raise ValueError(f"{size}: {self.name} needs at least {LEAST_ROWS} rows")
        return sizes

    def competitor(self, provider: str) -> Competitor:
        """A baseline by its name, or dmlfast on a backend by "dmlfast-<backend>"."""
        named = {competitor.name: competitor for competitor in self.baselines}
        return named.get(provider) or self.dmlfast(provider.removeprefix("dmlfast-"))


def leaves(problem: Problem) -> list[torch.Tensor]:
    """The tensors that are differentiated."""
    return [tensor for tensor in problem.values() if tensor.requires_grad]


def step(loss: Loss, problem: Problem, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """The loss, once forward and once backward; gradients, times the scale, are left in the
    problem's tensors.
    """
    for tensor in problem.values():
        tensor.grad = None
    value = loss(**problem)
    value.backward(scale if isinstance(scale, torch.Tensor) else torch.full_like(value, scale))
    return value.detach()


def placed(problem: Problem, dtype: torch.dtype, device: torch.device | None = None) -> Problem:
    """The same problem, rounded to a dtype, on a device or where it is."""
    moved = {name: tensor.detach().to(device or tensor.device) for name, tensor in problem.items()}
    return {
        name: tensor.to(dtype).requires_grad_(problem[name].requires_grad)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in moved.items()
    }
