"""The CUDA kernels: what the compiler made of them, and the emulated ones under a sanitizer."""

import os
import re
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmlfast.ops import gpu
from dmlfast.ops.cuda import blocks, library, side, stats
from dmlfast.ops.lifted import cuda as lifted_cuda
from dmlfast.ops.norm_softmax import cuda as norm_softmax_cuda

from . import ahead, emulated, helpers, sanitize
from .helpers import (
    CAPABILITY,
    assert_kernels_accurate,
    careful_distances,
    direct_distances,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
    problem,
    results,
    with_duplicates,
)
from .test_native import fields_of, fields_of_header

HEADER = Path(__file__).parents[2] / "csrc" / "dmlfast_cuda.h"
ARCHITECTURES = os.environ.get("DMLFAST_CUDA_ARCHITECTURES") or "80,90a,100"
DEVICE = "cpu" if library.emulated() else "cuda"
EMULATED = pytest.mark.skipif(library.emulated() is None, reason="the kernels run on a GPU")
EVERY_KERNEL_OF_ROWS = pytest.mark.parametrize(  # of bfloat16 alone a GPU of sm_90 has its own
    ("capability", "dtype"),
    [
        ("8", torch.float32),
        ("8", torch.float16),
        ("8", torch.bfloat16),
        ("9", torch.bfloat16),
        *[pytest.param("9", d, marks=pytest.mark.long) for d in (torch.float32, torch.float16)],
    ],
)
BUILT = pytest.mark.skipif(not library.LIBRARY.exists(), reason="the CUDA kernels were not built")


class Operations(TorchDispatchMode):
    """Those of torch that launch something; memory is filled for tests only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not function.is_view and "empty" not in name and name != "fill_":
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


@cache
def cuobjdump(*options: str) -> str:
    command = [ahead.CUOBJDUMP, *options, library.LIBRARY]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def architectures() -> set[str]:
    """Those that the library was built for."""
    return set(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("-lelf")))


@BUILT
@pytest.mark.skipif(
    "cuda" not in os.environ.get("DMLFAST_REQUIRE_NATIVE", ""), reason="some GPUs may be left out"
)
def test_there_is_code_for_every_gpu():
    assert architectures() == {f"sm_{number}" for number in ARCHITECTURES.split(",")}


@BUILT
def test_no_kernel_spills():
    parts = re.split(r"^arch = (\w+)$", cuobjdump("-res-usage"), flags=re.M)[1:]
    taken = {}
    for architecture, text in zip(parts[::2], parts[1::2], strict=True):
        pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
        for name, registers, stack, _, local in re.findall(pattern, text):
            taken[architecture, name] = int(registers), int(stack) + int(local)
    assert {architecture for architecture, _ in taken} == architectures()
    assert {kernel: numbers for kernel, numbers in taken.items() if numbers[1]} == {}


@BUILT
@pytest.mark.parametrize(
    ("architecture", "instruction", "kernel"),
    [
        ("sm_80", "HMMA", "gradient_kernel"),
        ("sm_80", "HMMA", "reduce_kernel"),
        ("sm_90a", "HGMMA", "gradient_sm90_kernel"),
        ("sm_90a", "HGMMA", "weights_sm90_kernel"),
        ("sm_90a", "HGMMA", "reduce_sm90_kernel"),
        ("sm_90a", "UBLKCP", "gradient_sm90_kernel"),
        ("sm_90a", "UBLKCP.S.G.MULTICAST", "weights_sm90_kernel"),
        ("sm_90a", "HGMMA", "exponentials_sm90_kernel"),
        ("sm_90a", "UBLKCP.S.G.MULTICAST", "exponentials_sm90_kernel"),
        ("sm_90a", "USETMAXREG", "gradient_sm90_kernel"),
        ("sm_90a", "USETMAXREG", "exponentials_sm90_kernel"),
        ("sm_100", "HMMA", "gradient_kernel"),
    ],
)
def test_kernels_use_what_their_gpu_has(architecture, instruction, kernel):
    if architecture not in architectures():
        pytest.skip(f"the library was not built for {architecture}")
    usage = cuobjdump("-res-usage", "-arch", architecture)
    names = re.findall(rf"Function (\w*{kernel}\w*):", usage)
    assert names
    code = cuobjdump("-sass", "-arch", architecture, "-fun", ",".join(names))
    functions = re.split(r"Function : ", code)[1:]
    assert len(functions) == len(names)
    assert all(re.search(rf"\b{instruction}\b", text) for text in functions)


@BUILT
def test_kernels_of_sm90_are_for_no_other_gpu():
    if "sm_90a" not in architectures():
        pytest.skip("the library was not built for sm_90a")
    kernels = "gradient", "reduce", "triangle", "weights", "near", "exponentials"
    for architecture in architectures():
        names = cuobjdump("-res-usage", "-arch", architecture)
        found = [f"{kernel}_sm90_kernel" in names for kernel in kernels]
        assert found == [architecture == "sm_90a"] * len(kernels)


@BUILT
def test_there_is_ptx_for_gpus_to_come():
    newest = max((int(name[3:]) for name in architectures() if name[3:].isdigit()), default=0)
    targets = set(re.findall(r"\.target sm_(\w+)", cuobjdump("-ptx")))
    assert targets == ({str(newest)} if newest else set())


REVERSE = {"DML_EMULATED_REVERSE": "1"}


def digest_of_all_cases(rows: int = 67, **environment: str) -> str:
    """Runs every kernel in a process of its own; what they came to."""
    script = [sys.executable, "-m", "tests.ops.sanitize", "--device", "cpu", "--impl", "cuda"]
    done = subprocess.run(
        [*script, "--rows", str(rows), "--columns", "75"],
        cwd=emulated.ROOT,
        env=os.environ | environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    cases = 31 if environment[CAPABILITY] == "8" else 34
    assert f"sanitized {cases} of {cases} cases" in done.stdout
    return re.search("digest .*", done.stdout).group()


@EMULATED
@pytest.mark.parametrize("capability", [pytest.param("8", marks=pytest.mark.long), "9"])
def test_both_orders_of_threads_come_to_the_same_bits(capability):
    given = {CAPABILITY: capability}
    assert digest_of_all_cases(**given) == digest_of_all_cases(**given, **REVERSE)


@EMULATED
@pytest.mark.parametrize(
    ("sanitizers", "capabilities", "rows"),
    [("address", "9", 35), pytest.param("address,undefined", "89", 67, marks=pytest.mark.long)],
)
def test_kernels_run_clean(sanitizers, capabilities, rows):
    """On a GPU of sm_90, which has the kernels of the other kind too, for float32 rows."""
    flags = ["-O0", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    sanitizer = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    given = {
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
        "DMLFAST_CUDA_EMULATED": str(emulated.build(*flags)),
    }
    for capability in capabilities:
        order = REVERSE if capability == "9" else {}
        digest_of_all_cases(rows, **given, **{CAPABILITY: capability}, **order)


@EMULATED
@EVERY_KERNEL_OF_ROWS
@pytest.mark.parametrize("d", [24, 65, 128, 300])
def test_more_rows_than_fit_on_chip(monkeypatch, capability, dtype, d):
    monkeypatch.setenv(CAPABILITY, capability)
    monkeypatch.setattr(library.library(), "dml_cuda_one_pass_fits", lambda n, d: 0)
    p = problem(270, d=d, per_class=40).to(dtype)
    assert_kernels_accurate(lifted, plain_lifted, p, kernels=("cuda",))


@EMULATED
@pytest.mark.parametrize("capability", ["8", "9"])
def test_a_multiprocessor_meets_a_column_with_several_bands_of_rows(monkeypatch, capability):
    monkeypatch.setenv(CAPABILITY, capability)
    monkeypatch.setattr(helpers, "EMULATED_PAIRS", 10**6)
    p = problem(700, d=8).to(torch.bfloat16)
    assert_kernels_accurate(lifted, plain_lifted, p, kernels=("cuda",))


@pytest.mark.skipif(gpu.why_no_cuda() is not None, reason=str(gpu.why_no_cuda()))
@pytest.mark.parametrize("scale", [0.02, 8.0, 30.0])
def test_statistics_of_any_span(monkeypatch, scale):
    """One exponential a pair where statistics are alike, two where they are not."""
    monkeypatch.setattr(library.library(), "dml_cuda_one_pass_fits", lambda n, d: 0)
    p = problem(200, d=16, scale=scale).on(DEVICE)
    p.rows[:20] *= 8
    options = {"kernels": ("cuda",), "distances": careful_distances}
    assert_kernels_accurate(lifted, plain_lifted, p, **options)
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, scale=-1.0, **options)
    p = problem(150, 200, 16, scale=scale, selves=True).on(DEVICE)
    assert_kernels_accurate(lifted, plain_lifted, p, **options)


@EMULATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_launches_besides_the_kernels(monkeypatch, dtype):
    monkeypatch.setattr(library.library(), "dml_cuda_one_pass_fits", lambda n, d: 0)
    names: set[str] = set()
    for name in library.KERNELS:
        called = sanitize.named(getattr(library.library(), name), names, name)
        monkeypatch.setattr(library.library(), name, called)
    p = problem(150, d=24).to(dtype)
    with Operations() as operations:
        lifted_cuda.forward(p.rows, None, p.labels, None, None, 1.0, True, False)
    passes = {"order", "prepare", "reduce", "positives", "mean", "factors", "gradient"}
    assert names == {f"dml_cuda_{name}" for name in passes}
    assert operations.seen == {"new_zeros"} | ({"mean"} if dtype == torch.float32 else set())


@EMULATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-2])
def test_near_rows_where_a_batch_does_not_fit_on_chip(monkeypatch, dtype, noise):
    monkeypatch.setattr(library.library(), "dml_cuda_one_pass_fits", lambda n, d: 0)
    p = with_duplicates(problem(150, d=24, per_class=4, seed=3), noise=noise).to(dtype)
    options = {"kernels": ("cuda",), "distances": direct_distances}
    assert_kernels_accurate(lifted, plain_lifted, p, **options)


@EMULATED
@pytest.mark.parametrize(
    ("capability", "dtype"), [("8", torch.float32), ("8", torch.bfloat16), ("9", torch.bfloat16)]
)
def test_few_rows_against_many_columns(monkeypatch, capability, dtype):
    """Sums of many weights, and rings of tiles that go round more than once."""
    monkeypatch.setenv(CAPABILITY, capability)
    p = problem(4, 20_000, 24, per_class=2000).to(dtype)
    options = {"kernels": ("cuda",), "scale": -1.0, "reduce": "logsumexp"}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, **options)


@EMULATED
def test_an_error_of_cuda_names_the_op(monkeypatch):
    p = problem(9)
    monkeypatch.setattr(library.library(), "dml_cuda_lifted_one_pass", lambda *arguments: 1)
    with pytest.raises(RuntimeError, match="lifted_structured_loss: the CUDA kernels failed: "):
        results(lifted, p, impl="cuda")


def test_the_interface_is_that_of_the_header():
    headers = HEADER.with_name("dmlfast.h").read_bytes() + HEADER.read_bytes()
    assert f"{library.INTERFACE:#010x}" == f"{zlib.crc32(headers):#010x}"


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("dml_rows", library.Rows),
        ("dml_side", side.SideStruct),
        ("dml_task", side.TaskStruct),
        ("dml_stats", stats.StatsStruct),
        ("dml_block", blocks.BlockStruct),
        ("dml_exponentials", norm_softmax_cuda.ExponentialsStruct),
    ],
)
def test_structures_are_declared_as_in_the_header(name, structure):
    assert fields_of_header(HEADER, name) == fields_of(structure)


@pytest.mark.parametrize(
    ("programs", "tiles", "part_bytes", "expected"),
    [
        (1, 3, 0, 1),  # too few tiles to share
        (8, 512, 0, 16),  # all multiprocessors at once, and not twice
        (256, 512, 16 << 20, 1),  # nearly two rounds
        (157, 313, 10 << 20, 5),  # a second round that few would have
        (157, 313, 64 << 20, 1),  # but not at any price
    ],
)
def test_columns_are_cut_so_that_no_multiprocessor_waits(programs, tiles, part_bytes, expected):
    assert side._splits_of(programs, tiles, 132, part_bytes) == expected
