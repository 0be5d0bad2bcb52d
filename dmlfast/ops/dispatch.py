"""Which backend serves a call, and why another does not.

An explicit ``impl=`` wins over the environment variable ``DMLFAST_IMPL``, which wins over
``"auto"``. A backend that was asked for by name and cannot serve the call raises; nothing falls
back in silence.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from dmlfast.errors import unknown_name
from dmlfast.ops import fastest, gpu, native


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    why_not: why this machine or this installation lacks it, or None.
    declines: why it cannot serve tensors of a device type and a dtype, or None.
    by_name_only: whether "auto" passes it over.
    """

    name: str
    why_not: Callable[[], str | None]
    declines: Callable[[str, torch.dtype], str | None]
    by_name_only: Callable[[], bool] = lambda: False


def _cpu_declines(device: str, dtype: torch.dtype) -> str | None:
    if device != "cpu":
        return f"it serves CPU tensors, and these are on '{device}'"
    if dtype == torch.float64:
        return "it computes in float32, and these are float64"
    return None


# In the order in which "auto" prefers them.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpu", native.why_no_cpu, _cpu_declines),
        Backend("triton", gpu.why_no_triton, gpu.triton_declines, gpu.interpreted),
        Backend("cuda", gpu.why_no_cuda, gpu.cuda_declines, gpu.emulated),
        Backend("reference", lambda: None, lambda device, dtype: None),
    )
}

FASTEST = "fastest"  # of several that serve a call, chosen by the size of its rows


def available() -> tuple[str, ...]:
    """Names of the backends usable here, for example ``("reference", "cpu")``."""
    return tuple(name for name in reversed(BACKENDS) if why_not(name) is None)


def why_not(name: str) -> str | None:
    """None where backend ``name`` is usable, else the reason; ValueError for an unknown name."""
    if name not in BACKENDS:
        raise _unknown("impl", name, BACKENDS)
    return BACKENDS[name].why_not()


def checked_impl(impl: str) -> str:
    """The name of a backend, usable here or not, or "auto"; ValueError for an unknown one."""
    if impl not in ("auto", *BACKENDS):
        raise _unknown("impl", impl, ("auto", *BACKENDS))
    return impl


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    return ValueError(str(unknown_name(kind, name, known)))


Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_traced(function: Function) -> Function:
    """Has ``torch.compile`` take the result for a constant: ``assume_constant_result``, without the
    import of all of the compiler, a second, that torch's own takes.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def _choose(
    op: str, impl: str, device: str, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> str:
    source, wanted = "impl", impl
    if impl == "auto":
        source, wanted = "DMLFAST_IMPL", os.environ.get("DMLFAST_IMPL") or "auto"
    if wanted not in ("auto", *BACKENDS):
        raise _unknown(source, wanted, ("auto", *BACKENDS))
    if wanted != "auto":
        reason = why_not(wanted) or BACKENDS[wanted].declines(device, dtype)
        if not reason and wanted in without:
            reason = "it has no kernels for it"
        if reason:
            raise RuntimeError(f"{op}: {source}='{wanted}' cannot serve this call: {reason}")
        return wanted
    able = _able(device, dtype, gpu.interpreted(), gpu.emulated())
    able = tuple(name for name in able if name not in without)
    return FASTEST if len(able) > 2 else able[0]


@functools.cache
def _able(device: str, dtype: torch.dtype, interpreted: bool, emulated: bool) -> tuple[str, ...]:
    """The backends of which "auto" may choose; the reference, which serves every call, is last.

    What decides is asked once: a call of a small batch takes no longer than asking does.
    """
    return tuple(
        backend.name
        for backend in BACKENDS.values()
        if backend.declines(device, dtype) is None
        and not backend.by_name_only()
        and backend.why_not() is None
    )


def call(
    op: str,
    impl: str,
    embeddings: torch.Tensor,
    *,
    plain: Callable[..., torch.Tensor],
    fused: Callable[..., torch.Tensor],
    args: tuple[Any, ...],
    without: tuple[str, ...] = (),
) -> torch.Tensor:
    """Serves a call of ``op``.

    The reference is ``plain(*args)``, which autograd differentiates; a backend with kernels is
    ``fused(*args, name)``, behind a registered op. ``without``: the backends that have none for it.
    """
    name = _choose(op, impl, embeddings.device.type, embeddings.dtype, without)
    return plain(*args) if name == "reference" else fused(*args, name)


def module(package: str, impl: str, op: str, rows: torch.Tensor) -> ModuleType:
    """The module with the kernels of one op and backend, for example ``dmlfast.ops.lifted.cpu``."""
    if impl == FASTEST:
        able = _able(rows.device.type, rows.dtype, gpu.interpreted(), gpu.emulated())
        impl = fastest.choose(op, rows, able[:-1])
    return importlib.import_module(f"{package}.{impl}")
