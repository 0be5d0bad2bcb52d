"""Compiles the Triton kernels for a GPU that need not be there, and says what they take.

    python -m tests.ops.ahead 90 bfloat16 128,200 lifted

prints a JSON line for each kernel. The launch code itself runs, on tensors in main memory: a
stand-in for Triton's driver names the GPU, and a launch compiles and does no more.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dmlfast.ops.boosted import triton as boosted
from dmlfast.ops.boosted.settings import BOOSTINGS, Settings
from dmlfast.ops.lifted import triton as lifted
from dmlfast.ops.norm_softmax import triton as norm_softmax
from dmlfast.ops.norm_softmax.settings import Settings as SoftmaxSettings
from dmlfast.ops.norm_softmax.triton import sides
from dmlfast.ops.normalize import triton as at_length_1
from dmlfast.ops.pairs import triton as pairs
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pddm import triton as pddm
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.triton import mining as pddm_mining
from dmlfast.ops.pddm.unit import Weights
from dmlfast.ops.triplet import triton as triplet
from dmlfast.ops.triton import configs, tune

from .driver import Driver

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


def lifted_loss(n: int, m: int | None, dtype: torch.dtype, d: int) -> None:
    x, labels = torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=torch.int64)
    columns = (None, None, None)
    if m:
        columns = (torch.zeros(m, d, dtype=dtype), torch.zeros(m).long(), torch.arange(n))
    lifted.forward(x, columns[0], labels, *columns[1:], 1.0, True, bool(m))


def small_and_large(dtype: torch.dtype, d: int) -> None:
    """The lifted loss of a batch in one launch, of a larger one, and against columns."""
    for n, m in ((50, None), (100, None), (6000, None), (300, 500)):
        lifted_loss(n, m, dtype, d)


def batches(dtype: torch.dtype, d: int) -> None:
    """The lifted loss of batches that differ in their size alone."""
    for n in (65, 80, 128, 129, 144, 2048, 2049):
        lifted_loss(n, None, dtype, d)


def units(dtype: torch.dtype, d: int) -> None:
    """Rows at length 1, of several numbers and strides, and their gradients."""
    across = torch.zeros(d, 300, dtype=dtype).T
    for x in (*(torch.zeros(n, d, dtype=dtype) for n in (1, 16, 300)), across):
        at_length_1.gradient(at_length_1.forward(x), x)


SIZES = ((1, 300), (16, 17), (2048, 1), (300, 2048))


def columns(dtype: torch.dtype, d: int) -> None:
    """The lifted loss of rows and columns of several numbers."""
    for n, m in SIZES:
        lifted_loss(n, m, dtype, d)


def biased(dtype: torch.dtype, d: int) -> None:
    """The pair primitive with a bias of rows and columns of several numbers."""
    term = PairTerm("distance", "other", "logsumexp", -1.0, 0.0)
    for n, m in SIZES:
        x, r, bias = torch.zeros(n, d, dtype=dtype), torch.zeros(m, d, dtype=dtype), torch.zeros(m)
        given = x, r, None, None, None, bias, None
        stat = pairs.reduce_block(*given, term)
        pairs.grad_block(*given, stat, stat, None, None, term, (True, False, True))


def reductions(dtype: torch.dtype, d: int) -> None:
    """Forms of the pair primitive that the lifted loss does not use."""
    x, labels = torch.zeros(300, d, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    r, bias = torch.zeros(500, d, dtype=dtype), torch.zeros(500)
    for term, columns, column_bias in (
        (PairTerm("dot", "all", "logsumexp", 10.0, 0.0), r, bias),
        (PairTerm("dot", "other", "logsumexp", 10.0, 0.0), None, None),
        (PairTerm("distance", "positive", "sum", 1.0, 0.0), r, None),
        (PairTerm("distance", "negative", "logsumexp", -1.0, 0.0), None, torch.zeros(300)),
    ):
        by_label = labels if term.by_label else None
        others = torch.zeros(500).long() if columns is not None and term.by_label else None
        given = x, columns, by_label, others, None, column_bias, None
        stat = pairs.reduce_block(*given, term)
        wants = True, columns is not None, column_bias is not None
        pairs.grad_block(*given, stat, stat, None, None, term, wants)


def hinges(dtype: torch.dtype, d: int) -> None:
    """The reductions of the contrastive loss, of a batch and against columns."""
    x, labels = torch.zeros(300, d, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    r, others = torch.zeros(500, d, dtype=dtype), torch.zeros(500, dtype=torch.int64)
    for select, reduce, columns, column_labels in (
        ("positive", "hinge", None, None),
        ("negative", "hinge", None, None),
        ("negative", "squared_hinge", r, others),
        ("positive", "softplus", None, None),
        ("negative", "softplus", r, others),
    ):
        term = PairTerm("distance", select, reduce, -1.0, 1.0)
        given = x, columns, labels, column_labels, None, None, None
        stat = pairs.reduce_block(*given, term)[0]
        pairs.grad_block(*given, stat, stat, None, None, term, (True, columns is not None, False))


def mined(dtype: torch.dtype, d: int) -> None:
    """Greatest terms, and reductions of those above a floor, of a batch and against columns."""
    x, labels = torch.zeros(300, d, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    r, others = torch.zeros(500, d, dtype=dtype), torch.zeros(500, dtype=torch.int64)
    floor = torch.zeros(300)
    for columns, column_labels in ((None, None), (r, others)):
        for score, select in (("dot", "negative"), ("distance", "positive")):
            given = x, columns, labels, column_labels, None, None
            pairs.reduce_block(*given, None, PairTerm(score, select, "max", 1.0, 0.0))
        for reduce, score, select in (
            ("logsumexp", "dot", "negative"),
            ("logsumexp", "distance", "positive"),
            ("softplus", "distance", "negative"),
        ):
            term = PairTerm(score, select, reduce, 2.0, 1.0)
            given = x, columns, labels, column_labels, None, None, floor
            stat = pairs.reduce_block(*given, term)
            stat = stat[0] if term.is_hinge else stat
            wants = True, columns is not None, False
            pairs.grad_block(*given, stat, stat, None, None, term, wants)


def triplets(dtype: torch.dtype, d: int) -> None:
    """The triplet loss of a batch, and against columns."""
    x, labels = torch.zeros(300, d, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    r, others = torch.zeros(500, d, dtype=dtype), torch.zeros(500, dtype=torch.int64)
    for mining in ("all", "semihard", "hardest"):
        triplet.forward(x, None, labels, None, None, 0.2, mining, "nonzero", True, False)
        triplet.forward(x, r, labels, others, torch.arange(300), 0.2, mining, "nonzero", True, True)


def softmax(dtype: torch.dtype, d: int) -> None:
    """The normalised softmax with and without kept exponentials, and with a running maximum."""
    x, w = torch.zeros(300, d, dtype=dtype), torch.zeros(500, d, dtype=dtype)
    labels, ones, everyone = torch.zeros(300, dtype=torch.int64), torch.ones(300), torch.zeros(d)
    sides.BLOCK = sides.LOW_BLOCK = 1
    for scale in (20.0, 100.0):
        for smoothing in (None, everyone):
            norm_softmax.forward(x, w, labels, ones, ones, scale, False, True, True, smoothing)
            given = x, w, labels, ones, ones, ones, scale, True, True, smoothing
            norm_softmax.gradients(*given, dtype)
    d_rows = torch.zeros(300, d)
    for others in (None, ones):
        settings = SoftmaxSettings(0.05, 0.1, 0.2, 0.0 if others is None else 0.1, -100, False)
        own = norm_softmax.own_pairs(x, w, labels, settings)
        for found, want in ((None, False), (None, True), (d_rows, False), (d_rows, True)):
            given = *own, ones, ones, others, settings
            norm_softmax.own_losses(x, w, *given, found, want)


def weights(d: int, *widths: int) -> Weights:
    """Of a unit with branches and a joint layer of three widths."""
    h_d, h_m, h = widths
    shapes = (h_d, d), (h_d,), (h_m, d), (h_m,), (h, h_d + h_m), (h,), (1, h), (1,)
    return Weights(*map(torch.zeros, shapes))


def unit(dtype: torch.dtype, d: int) -> None:
    """A unit as wide as the rows: scores of all pairs, of two sets, of lists of pairs."""
    given = weights(d, d, d, d)
    for n, m in ((300, 500), (1, 17)):
        x, y = torch.zeros(n, d, dtype=dtype), torch.zeros(m, d, dtype=dtype)
        i = torch.zeros(n, dtype=torch.int64)
        for normalize in (False, True):
            pddm.matrix(x, None, given, normalize)
            pddm.matrix(x, y, given, normalize)
            pddm.pairs(x, x, i, i, given, normalize)
            pddm.pairs(x[1:], y[1:], i[1:], i[1:], given, normalize)


def uneven_unit(dtype: torch.dtype, d: int) -> None:
    """A unit whose layers differ in their widths."""
    given = weights(d, 64, 300, 128), weights(d, 300, 30, 600)
    x, y = torch.zeros(300, d, dtype=dtype), torch.zeros(500, d, dtype=dtype)
    for each in given:
        pddm.matrix(x, y, each, True)


def quadruplets(dtype: torch.dtype, d: int) -> None:
    """Mining by a unit, in one block of scores and in several; and the loss of what is mined."""
    given = weights(d, d, d, d)
    scores = SimpleNamespace(matrix=lambda rows, columns: pddm.matrix(rows, columns, given, False))
    pddm_mining.BLOCK_ENTRIES = 300 * 300
    for n in (1, 16, 300, 500):
        x, labels = torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=torch.int64)
        for per in ("batch", "class", "anchor"):
            found = pddm.hard_quadruplets(x, labels, per, scores)
            for normalize in (False, True):
                for want in (False, True):
                    hinges = Hinges(3.0, 1.0, 0.5, False, 2)
                    pddm.quadruplet_loss(x, found, given, normalize, hinges, want)


def other_quadruplets(dtype: torch.dtype, d: int) -> None:
    """Other hinges, and a unit whose layers differ in their widths."""
    x, found = torch.zeros(300, d, dtype=dtype), torch.zeros(300, 4, dtype=torch.int64)
    for given in (weights(d, 64, 300, 128), weights(d, 300, 30, 600)):
        for squared, ends in ((True, 1), (True, 2), (False, 1)):
            hinges = Hinges(3.0, 1.0, 0.5, squared, ends)
            pddm.quadruplet_loss(x, found, given, True, hinges, True)


def boosted_losses(dtype: torch.dtype, d: int) -> None:
    """The boosted losses of learners a sixth, a third and half as wide as the rows."""
    x, labels = torch.zeros(300, d, dtype=dtype), torch.zeros(300, dtype=torch.int64)
    groups = [d // 6, d // 3, d - d // 6 - d // 3]
    kinds = [("deviance", boosting) for boosting in BOOSTINGS] + [("contrastive", "eta")]
    for base, boosting in kinds:
        given = Settings(base, boosting, 2.0, 0.5, 25.0, 0.5)
        for want in (False, True):
            boosted.forward(x, labels, groups, given, want)


def boosted_batches(dtype: torch.dtype, d: int) -> None:
    """The same loss of batches that differ in their size alone."""
    given = [d // 4, d - d // 4], Settings("deviance", "eta", 2.0, 0.5, 25.0, 0.5), True
    for n in (1, 16, 300, 600, 2048, 5000):
        x, labels = torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=torch.int64)
        boosted.forward(x, labels, *given)


def candidates(dtype: torch.dtype, d: int) -> None:
    """Every tile that `dmlfast tune` tries; a line says for each why it cannot be compiled."""
    kind = configs.kind_of(dtype)
    for kernel, (n, width) in tune.PROBLEMS[kind].items():
        for tile in tune.CANDIDATES[kind][kernel]:
            reason = ""
            with configs.trying(kind, {kernel: tile}):
                try:
                    if kernel == "scores":
                        softmax(dtype, width)
                    elif kernel == "pddm":
                        unit(dtype, width)
                    else:
                        lifted_loss(min(n, 300), None, dtype, width)
                except Exception as error:  # as tuning does
                    reason = type(error).__name__
            print(json.dumps({"candidate": kernel, "tile": tile, "reason": reason}), flush=True)


FORMS = {
    "lifted": small_and_large,
    "reductions": reductions,
    "hinges": hinges,
    "mined": mined,
    "triplets": triplets,
    "softmax": softmax,
    "units": units,
    "unit": unit,
    "uneven unit": uneven_unit,
    "quadruplets": quadruplets,
    "other quadruplets": other_quadruplets,
    "boosted": boosted_losses,
    "boosted batches": boosted_batches,
    "batches": batches,
    "columns": columns,
    "biased": biased,
    "candidates": candidates,
}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack, where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}


def main(capability: int, dtype: str, widths: list[int], form: str) -> None:
    driver.set_active(Driver(capability))
    # fresh memory is not read before a kernel has written it, and here none does
    torch.Tensor.new_empty = torch.Tensor.new_zeros
    launch = JITFunction.run
    seen = set()
    width = 0

    def compile_only(kernel: JITFunction, *args: object, **options: object) -> None:
        compiled = launch(kernel, *args, **{**options, "warmup": True})
        if compiled.hash in seen:
            return
        seen.add(compiled.hash)
        used = resources(compiled.asm["cubin"])
        found = {
            "kernel": kernel.__name__,
            "capability": capability,
            "dtype": dtype,
            "width": width,
            "registers": used["REG"],
            "stack": used["STACK"],
            "shared": compiled.metadata.shared,
            "instructions": [i for i in MATRIX_INSTRUCTIONS if i in compiled.asm["ptx"]],
        }
        print(json.dumps(found), flush=True)

    JITFunction.run = compile_only
    for width in widths:
        FORMS[form](getattr(torch, dtype), width)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3].split(",")], sys.argv[4])
