"""The compiled libraries, called through ctypes. csrc/dmlfast.h is the interface."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

CPU_LIBRARY = Path(__file__).parent / "libdmlfast_cpu.so"
INTERFACE = 0xE23D287C  # the CRC-32 of csrc/dmlfast.h

SCORES = {"dot": 0, "distance": 1}
SELECTIONS = {"negative": 0, "positive": 1, "other": 2, "all": 3}
REDUCTIONS = {"logsumexp": 0, "sum": 1, "hinge": 2, "squared_hinge": 3, "softplus": 4, "max": 5}
MININGS = {"all": 0, "semihard": 1, "hardest": 2}
BASES = {"deviance": 0, "contrastive": 1}
BOOSTINGS = {"eta": 0, "additive": 1, "derivative": 2, "none": 3}
UNIT_TENSORS = tuple(
    f"{layer}_{part}"
    for layer in ("difference", "mean", "joint", "score")
    for part in ("weight", "bias")
)
LOSS_REDUCTIONS = {"nonzero": 0, "mean": 1, "sum": 2}


class Pairs(ctypes.Structure):
    """``dml_pairs``, with the tensors whose addresses it holds."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("row_labels", ctypes.c_void_p),
        ("column_labels", ctypes.c_void_p),
        ("self_index", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )

    def __init__(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor | None,
        row_labels: torch.Tensor | None,
        column_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> None:
        floats = float_rows(rows), float_rows(columns)
        integers = int_labels(row_labels), int_labels(column_labels), int_labels(self_index)
        self.tensors = floats, integers
        n, d = rows.shape
        super().__init__(
            *map(address, floats),
            n,
            n if columns is None else columns.shape[0],
            d,
            *map(address, integers),
            torch.get_num_threads(),
        )


class Classes(ctypes.Structure):
    """``dml_classes``, with the tensors whose addresses it holds."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("c", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("labels", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )

    def __init__(self, rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> None:
        self.tensors = float_rows(rows), float_rows(weight), int_labels(labels)
        x, w, own = map(address, self.tensors)
        super().__init__(x, w, len(rows), *weight.shape, own, torch.get_num_threads())


class Own(ctypes.Structure):
    """``dml_own``, with the tensors whose addresses it holds. ``logit``: the fields from ``scale``
    to ``smoothing``.
    """

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("c", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("ignore_index", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("cosine_margin", ctypes.c_float),
        ("margin_cosine", ctypes.c_float),
        ("margin_sine", ctypes.c_float),
        ("smoothing", ctypes.c_float),
        ("gathered", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )

    def __init__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
        logit: Sequence[float],
    ) -> None:
        (n, d), c = rows.shape, len(weight)
        gathered = not _are_float_rows(weight)
        if gathered:  # of all classes those of the rows alone are copied
            weight = weight.index_select(0, labels.long().clamp(0, c - 1))
        self.tensors = float_rows(rows), float_rows(weight), int_labels(labels)
        sizes = n, c, d, ignore_index
        super().__init__(
            *map(address, self.tensors), *sizes, *logit, gathered, torch.get_num_threads()
        )


class Boosting(ctypes.Structure):
    """``dml_boosting``."""

    _fields_ = (
        ("base", ctypes.c_int32),
        ("boosting", ctypes.c_int32),
        ("beta1", ctypes.c_float),
        ("beta2", ctypes.c_float),
        ("negative_cost", ctypes.c_float),
        ("margin", ctypes.c_float),
        ("groups", ctypes.POINTER(ctypes.c_int64)),
        ("learners", ctypes.c_int64),
    )


class MetricUnit(ctypes.Structure):
    """``dml_unit``, with the tensors whose addresses it holds: those of
    :class:`dmlfast.ops.pddm.unit.Weights`.
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in UNIT_TENSORS),
        ("difference_dim", ctypes.c_int64),
        ("mean_dim", ctypes.c_int64),
        ("joint_dim", ctypes.c_int64),
        ("normalize_inputs", ctypes.c_int32),
    )

    def __init__(self, weights: Sequence[torch.Tensor], normalize_inputs: bool) -> None:
        self.tensors = tuple(map(float_rows, weights))
        widths = (len(weights[k]) for k in (0, 2, 4))
        super().__init__(*map(address, self.tensors), *widths, normalize_inputs)


class Term(ctypes.Structure):
    """``dml_term``."""

    _fields_ = (
        ("score", ctypes.c_int32),
        ("select", ctypes.c_int32),
        ("reduce", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("column_bias", ctypes.c_void_p),
        ("row_floor", ctypes.c_void_p),
    )


@cache
def why_no_cpu() -> str | None:
    """None where the CPU library loads, else the reason."""
    if not CPU_LIBRARY.exists():
        return f"{CPU_LIBRARY.name} was not built; reinstall with a C++ compiler at hand"
    try:
        cpu_library()
    except AttributeError as error:
        return f"the CPU kernels are of another version, install dmlfast again: {error}"
    except OSError as error:
        return f"the CPU kernels do not load: {error}"
    return None


def check_interface(found: int, expected: int) -> None:
    """Raises AttributeError where a library was compiled with another header than this Python was
    written for, as after an update without an installation: its structures may differ.
    """
    if found != expected:
        raise AttributeError(f"their interface is {found:#010x}, not {expected:#010x}")


@cache
def cpu_library() -> ctypes.CDLL:
    """The CPU library with its signatures. It shares the OpenMP runtime that torch has loaded."""
    library = ctypes.CDLL(str(CPU_LIBRARY))
    pairs, term, pointer = ctypes.POINTER(Pairs), ctypes.POINTER(Term), ctypes.c_void_p
    library.dml_cpu_pair_reduce.argtypes = [pairs, term, pointer, pointer]
    library.dml_cpu_pair_grad.argtypes = [pairs, term, *[pointer] * 7]
    library.dml_cpu_lifted.argtypes = [pairs, ctypes.c_float, *[pointer] * 3]
    library.dml_cpu_triplet.argtypes = [
        pairs,
        ctypes.c_float,
        *[ctypes.c_int32] * 2,
        *[pointer] * 3,
    ]
    library.dml_cpu_softmax.argtypes = [
        ctypes.POINTER(Classes),
        ctypes.c_float,
        ctypes.c_int64,
        *[pointer] * 5,
    ]
    own = ctypes.POINTER(Own)
    library.dml_cpu_own_pairs.argtypes = [own, *[pointer] * 2, ctypes.POINTER(ctypes.c_int64)]
    library.dml_cpu_own_losses.argtypes = [own, *[pointer] * 7]
    library.dml_cpu_boosted.argtypes = [pairs, ctypes.POINTER(Boosting), pointer, pointer]
    sizes = [ctypes.c_int64] * 2 + [ctypes.c_int32]
    library.dml_cpu_normalize.argtypes = [pointer, *sizes, pointer]
    library.dml_cpu_normalize_grad.argtypes = [pointer, pointer, *sizes, pointer]
    unit = ctypes.POINTER(MetricUnit)
    library.dml_cpu_pddm_matrix.argtypes = [pairs, unit, pointer]
    library.dml_cpu_pddm_pairs.argtypes = [pairs, unit, pointer, pointer, ctypes.c_int64, pointer]
    library.dml_cpu_interface.restype = ctypes.c_uint32
    check_interface(library.dml_cpu_interface(), INTERFACE)
    library.dml_cpu_isa.restype = ctypes.c_char_p
    library.dml_cpu_set_isa.argtypes = [ctypes.c_char_p]
    return library


def address(tensor: torch.Tensor | None) -> int | None:
    """Where the data lies. A tensor without elements is not NULL, which stands for none at all."""
    return None if tensor is None else tensor.data_ptr() or ctypes.alignment(ctypes.c_double)


def _are_float_rows(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()


def float_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same values as contiguous float32, without a copy where they are."""
    if tensor is None or _are_float_rows(tensor):
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


def int_labels(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same identifiers as contiguous int64, without a copy where they are."""
    if tensor is None or (tensor.dtype == torch.int64 and tensor.is_contiguous()):
        return tensor
    return tensor.to(torch.int64).contiguous()


def empty(*shape: int) -> torch.Tensor:
    """Memory for a result, float32 on the CPU whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def check(status: int, op: str) -> None:
    """Raises the one error that the kernels report, that they found no memory."""
    if status:
        raise MemoryError(f"{op}: out of memory in the CPU kernels")
