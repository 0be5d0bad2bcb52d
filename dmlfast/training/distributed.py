"""The processes of a run. One process is a world of size 1."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmlfast.errors import UserError, unknown_name
from dmlfast.losses import NormSoftmaxLoss
from dmlfast.text import counted

T = TypeVar("T")
# How long processes wait for the main one, which fills caches and evaluates meanwhile. Of one that
# has failed torchrun ends the others.
PATIENCE = timedelta(hours=24)
_parted: "list[dist.ProcessGroup | None]" = []  # left by `join_world`, for the reason given there


@dataclass(frozen=True)
class World:
    """This process's place among all: its rank, how many there are, and its device.

    The collective methods must be called by every process, and do nothing in a world of size 1.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in the order of their ranks: (B, ...) -> (size * B, ...).

        Only this process's own rows carry a gradient, so that of a loss of all rows is exact for
        them: no other process's loss adds to it. Every process must bring as many rows; on a CPU a
        ValueError says where they do not.
        """
        if self.size == 1:
            return rows
        if rows.device.type == "cpu":  # looking would make a GPU wait
            counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(counts, torch.tensor([len(rows)]))
            if len({int(count) for count in counts}) > 1:
                raise ValueError(
                    "every process must have the same number of rows of the batch, but they have "
                    + ", ".join(str(int(count)) for count in counts)
                )
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` returns; the main process calls it before all others do."""
        value = make() if self.is_main else None
        self.any(False)
        return make() if value is None else value

    def from_main(self, value: Any) -> Any:
        """The value that the main process gives."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wrap(self, module: nn.Module, compile: bool = False) -> nn.Module:
        """The module with its gradients averaged over the processes, where it has any.

        A module with sparse gradients is left as it is: they must be the same in every process, as
        those of a loss of all rows are. On GPUs its batch statistics become those of all processes;
        on CPUs, for which torch has no such layer, they stay each process's own.
        """
        if self.size > 1 and self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        wrapped = cast(nn.Module, torch.compile(module)) if compile else module
        parts = module.modules()
        sparse = any(isinstance(part, NormSoftmaxLoss) and part.samples for part in parts)
        if self.size == 1 or sparse or not any(w.requires_grad for w in module.parameters()):
            return wrapped
        return DistributedDataParallel(
            wrapped, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )


def process_rank() -> int:
    """This process's rank among those that `torchrun` started, 0 where it did not."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return process_rank() == 0


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Joins the processes that `torchrun` started, with NCCL on GPUs and Gloo on CPUs.

    `device` is "auto", "cpu", "cuda" or "cuda:N"; any other raises a `UserError`.
    """
    rank = process_rank()
    size = int(os.environ.get("WORLD_SIZE", 1))
    place = resolve_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(rank, size, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield World(rank, size, place)
    # All part together, and only when all went well: one that failed must not wait for the others.
    dist.barrier()
    # A wrapped module that is the last to let go of the group waits for its threads with Python's
    # lock held, which one of them may be waiting for. Python itself lets go without it.
    _parted.append(dist.group.WORLD)
    dist.destroy_process_group()


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one, and "cuda" this process's own.

    Raises UserError where torch sees no such device, or the name is none.
    """
    kind, colon, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and index.isdigit())):
        raise unknown_name("device", name, ["auto", "cpu", "cuda"])
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"device '{name}': torch finds no GPU here")
    number = int(index) if colon else local_rank
    if number >= torch.cuda.device_count():
        seen = counted(torch.cuda.device_count(), "GPU")
        raise UserError(f"device 'cuda:{number}': torch sees only {seen} here")
    return torch.device("cuda", number)
