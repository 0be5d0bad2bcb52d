"""A step as a CUDA graph: what a small batch takes where nothing waits for launches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from dmlfast.bench.benchmark import LeftOutError, Loss, Problem, leaves, step


class CapturedStep:
    """A loss, once forward and once backward, captured in a CUDA graph and replayed at every call.

    Gradients are left in the problem's tensors, as by `step`. Raises `LeftOutError` where the step
    cannot be captured.
    """

    def __init__(self, loss: Loss, problem: Problem, scale: float = 1.0) -> None:
        # the same memory, with gradients that no other competitor replaces
        own = {
            name: tensor.detach().requires_grad_(tensor.requires_grad)
            for name, tensor in problem.items()
        }
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            value = step(loss, own, scale)  # compiles what has to be compiled
            upstream = torch.full_like(value, scale)  # which is no part of the loss
            with _waiting_forbidden():
                step(loss, own, upstream)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.value = step(loss, own, upstream)
        self.problem, self.upstream = problem, upstream  # whose memory every replay reads
        gradients = [leaf.grad for leaf in leaves(own)]
        self.filled = list(zip(leaves(problem), gradients, strict=True))

    def __call__(self) -> torch.Tensor:
        self.graph.replay()
        for leaf, gradient in self.filled:
            leaf.grad = gradient
        return self.value


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    """Finds what waits for the GPU before it is captured: a broken capture stays with torch."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise LeftOutError("cannot be a CUDA graph: the host waits for the GPU in it") from None
    finally:
        torch.cuda.set_sync_debug_mode("default")
