"""Which backend serves a call: impl= before DMLFAST_IMPL before auto, and no silent falls."""

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest
import torch
from dmlfast.bench import BENCHMARKS

from dmlfast import ops
from dmlfast.ops import dispatch, fastest, gpu, native
from dmlfast.ops.cuda import library
from dmlfast.ops.lifted import cpu, reference
from dmlfast.ops.lifted import op as lifted_op
from dmlfast.ops.norm_softmax import op as softmax_op

CALLS = {
    "pair_reduce": lambda x, **options: ops.pair_reduce(x, torch.arange(4), **options),
    "lifted_structured_loss": lambda x, **options: ops.lifted_structured_loss(
        x, torch.arange(4), **options
    ),
}
EVERY_OP = pytest.mark.parametrize("op", CALLS)


@pytest.fixture(autouse=True)
def forget():
    dispatch._able.cache_clear()
    yield
    dispatch._able.cache_clear()


@pytest.fixture
def served(monkeypatch):
    """The backends that served the lifted loss, in order."""
    calls = []

    def spy(name, function):
        def call(*args):
            calls.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(cpu, "forward", spy("cpu", cpu.forward))
    plain = spy("reference", reference.lifted_structured_loss)
    monkeypatch.setattr(reference, "lifted_structured_loss", plain)
    monkeypatch.delenv("DMLFAST_IMPL", raising=False)
    return calls


@pytest.fixture
def without_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "CPU_LIBRARY", tmp_path / "libdmlfast_cpu.so")
    native.why_no_cpu.cache_clear()
    yield
    native.why_no_cpu.cache_clear()


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Kernels for GPUs are neither interpreted nor emulated."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.delenv("DMLFAST_CUDA_EMULATED", raising=False)
    library.library.cache_clear()
    yield
    library.library.cache_clear()


def lifted(**options) -> torch.Tensor:
    return ops.lifted_structured_loss(torch.randn(4, 3), torch.arange(4) // 2, **options)


def test_auto_prefers_the_kernels(served):
    lifted()
    assert served == ["cpu"]


def use(monkeypatch, *names):
    """Takes these backends, and no others for GPUs, to be usable."""
    monkeypatch.delenv("DMLFAST_IMPL", raising=False)
    for name in ("triton", "cuda"):
        reason = None if name in names else "not here"
        backend = dataclasses.replace(dispatch.BACKENDS[name], why_not=lambda reason=reason: reason)
        monkeypatch.setitem(dispatch.BACKENDS, name, backend)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_auto_takes_what_is_usable_on_a_gpu(on_a_gpu, monkeypatch, name):
    use(monkeypatch, name)
    assert dispatch._choose("op", "auto", "cuda", torch.bfloat16) == name
    assert dispatch._choose("op", "auto", "cuda", torch.float64) == "reference"
    assert dispatch._choose("op", "auto", "cpu", torch.float32) == "cpu"


def test_auto_takes_the_fastest_on_a_gpu_by_what_was_measured(on_a_gpu, monkeypatch, tmp_path):
    use(monkeypatch, "triton", "cuda")
    assert dispatch._choose("op", "auto", "cuda", torch.bfloat16) == dispatch.FASTEST
    table = tmp_path / "fastest.csv"
    table.write_text(
        "gpu,op,dtype,n,d,impl\n"
        ",lifted,float32,128,128,cuda\n"
        ",lifted,float32,8192,128,triton\n"
        "another,lifted,float32,900,300,triton\n"
        "another,lifted,bfloat16,128,128,cuda\n"
    )
    monkeypatch.setattr(fastest, "TABLE", table)
    able = ("triton", "cuda")
    for cached in (fastest.table, fastest._nearest):
        cached.cache_clear()
    try:
        for n, expected in ((0, "triton"), (1, "cuda"), (1000, "cuda"), (1100, "triton")):
            assert fastest.choose("lifted", torch.empty(n, 128), able) == expected
        assert fastest.choose("lifted", torch.empty(900, 300), able) == "cuda"
        assert fastest.choose("lifted", torch.empty(8192, 4), ("cuda",)) == "cuda"
        assert fastest.choose("lifted", torch.empty(9, 4).bfloat16(), able) == "cuda"
        assert fastest.choose("lifted", torch.empty(9, 4).half(), able) == "triton"
        assert fastest.choose("pair_reduce", torch.empty(9, 4), able) == "triton"
    finally:
        for cached in (fastest.table, fastest._nearest):
            cached.cache_clear()


def test_a_call_is_served_by_the_fastest(monkeypatch):
    """Both backends for GPUs on the CPU, neither of which has to be asked for by name."""
    for name in ("triton", "cuda"):
        backend = dataclasses.replace(dispatch.BACKENDS[name], by_name_only=lambda: False)
        monkeypatch.setitem(dispatch.BACKENDS, name, backend)
    monkeypatch.setattr(native, "CPU_LIBRARY", native.CPU_LIBRARY.with_name("missing.so"))
    native.why_no_cpu.cache_clear()
    x, labels = torch.randn(8, 3, requires_grad=True), torch.arange(8) // 2
    try:
        for name in ("triton", "cuda"):
            chosen = []

            def choose(op, rows, able, name=name, chosen=chosen):
                chosen.append(op)
                return name

            monkeypatch.setattr(fastest, "choose", choose)
            loss = ops.lifted_structured_loss(x, labels) + ops.pair_reduce(x, labels).sum()
            loss.backward()
            assert chosen == ["lifted", "pair_reduce", "pair_reduce"]
    finally:
        native.why_no_cpu.cache_clear()


def test_interpreted_kernels_have_to_be_asked_for(without_kernels, served, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" in ops.available()
    lifted()
    assert served == ["reference"]


def test_auto_serves_float64_by_the_reference(served):
    ops.lifted_structured_loss(torch.randn(4, 3, dtype=torch.float64), torch.arange(4) // 2)
    assert served == ["reference"]


@pytest.mark.parametrize(
    ("variable", "impl", "expected"),
    [
        ("reference", "auto", "reference"),
        ("cpu", "reference", "reference"),
        ("reference", "cpu", "cpu"),
        ("auto", "auto", "cpu"),
        ("", "auto", "cpu"),
        ("nonsense", "cpu", "cpu"),
    ],
)
def test_an_argument_wins_over_the_environment(served, monkeypatch, variable, impl, expected):
    monkeypatch.setenv("DMLFAST_IMPL", variable)
    lifted(impl=impl)
    assert served == [expected]


@EVERY_OP
@pytest.mark.parametrize("through", ["impl", "DMLFAST_IMPL"])
class TestABackendAskedForByNameServesOrSaysWhyNot:
    @staticmethod
    def call(op, through, name, monkeypatch, dtype=torch.float32):
        x = torch.randn(4, 3, dtype=dtype)
        if through == "impl":
            return CALLS[op](x, impl=name)
        monkeypatch.setenv("DMLFAST_IMPL", name)
        return CALLS[op](x)

    def test_an_unknown_name(self, op, through, monkeypatch):
        message = rf"unknown {through} 'cp': did you mean 'cpu'\?.*known: auto.*reference"
        with pytest.raises(ValueError, match=message):
            self.call(op, through, "cp", monkeypatch)

    @pytest.mark.parametrize("name", ["cpu", "triton", "cuda"])
    def test_float64_on_float32_kernels(self, op, through, name, monkeypatch):
        with pytest.raises(RuntimeError, match=rf"{op}: {through}='{name}' cannot serve.*float64"):
            self.call(op, through, name, monkeypatch, torch.float64)

    @pytest.mark.parametrize("name", ["triton", "cuda"])
    def test_cpu_tensors_on_gpu_kernels(self, op, through, name, monkeypatch):
        usable = dataclasses.replace(dispatch.BACKENDS[name], why_not=lambda: None)
        monkeypatch.setitem(dispatch.BACKENDS, name, usable)
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.delenv("DMLFAST_CUDA_EMULATED", raising=False)
        with pytest.raises(RuntimeError, match=rf"{op}: {through}='{name}' cannot serve.*'cpu'"):
            self.call(op, through, name, monkeypatch)

    def test_kernels_that_were_not_built(self, op, through, without_kernels, monkeypatch):
        with pytest.raises(RuntimeError, match=rf"{op}: {through}='cpu' cannot serve.*not built"):
            self.call(op, through, "cpu", monkeypatch)


@EVERY_OP
def test_tensors_of_another_device_are_declined_by_the_cpu(op):
    x, labels = torch.empty(4, 3, device="meta"), torch.arange(4, device="meta")
    with pytest.raises(RuntimeError, match="on 'meta'"):
        getattr(ops, op)(x, labels, impl="cpu")
    assert getattr(ops, op)(x, labels).device.type == "meta"


def test_auto_falls_back_to_the_reference_where_nothing_was_built(without_kernels, served):
    lifted()
    assert served == ["reference"]


def test_available_names_and_reasons(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.available() == ("reference", "cuda", "triton", "cpu")
    assert ops.why_not("triton") is None
    assert ops.why_not("cpu") is None
    assert ops.why_not("reference") is None
    assert ops.why_not("cuda") is None
    with pytest.raises(ValueError, match=r"unknown impl 'tpu'"):
        ops.why_not("tpu")
    with pytest.raises(ValueError, match=r"unknown impl 'auto' \(known: cpu, cuda, reference"):
        ops.why_not("auto")


def test_kernels_that_were_not_built_are_not_available(without_kernels):
    assert "cpu" not in ops.available()
    assert "not built" in ops.why_not("cpu")


def test_a_library_that_does_not_load_says_why(without_kernels):
    native.CPU_LIBRARY.write_bytes(b"not a library")
    native.cpu_library.cache_clear()
    try:
        assert "do not load" in ops.why_not("cpu")
    finally:
        native.cpu_library.cache_clear()


@pytest.mark.parametrize(
    ("capability", "reason"),
    [(None, "no NVIDIA GPU"), ((7, 5), r"capability 7\.5, and 8\.0 is needed"), ((8, 0), None)],
)
@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_why_no_kernels_for_gpus(on_a_gpu, monkeypatch, capability, reason, impl):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(library, "why_no_code", lambda: None)
    found = ops.why_not(impl)
    assert found is None if reason is None else re.search(reason, found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_driver_that_does_not_run_the_cuda_kernels(on_a_gpu, monkeypatch):
    monkeypatch.setattr(gpu, "_why_no_gpu", lambda: None)
    assert re.search("do not run on this GPU: .*driver", ops.why_not("cuda"))


def test_what_is_usable_is_asked_once(on_a_gpu, monkeypatch):
    asked = []
    backend = dataclasses.replace(dispatch.BACKENDS["cpu"], why_not=lambda: asked.append("cpu"))
    monkeypatch.setitem(dispatch.BACKENDS, "cpu", backend)
    for _ in range(3):
        assert dispatch._choose("op", "auto", "cpu", torch.float32) == "cpu"
    assert len(asked) == 1


def test_triton_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(gpu, "_has_triton", lambda: False)
    assert "not installed" in ops.why_not("triton")


def test_every_backend_has_a_module_for_every_op():
    for package in ("dmlfast.ops.pairs", "dmlfast.ops.lifted"):
        for name in dispatch.BACKENDS:
            found = dispatch.module(package, name, "op", torch.empty(1, 1))
            assert found.__name__ == f"{package}.{name}"


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_amd_gpus_are_declined(on_a_gpu, monkeypatch, impl):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "AMD" in dispatch.why_not(impl)


def test_cuda_kernels_that_were_not_built(on_a_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libdmlfast_cuda.so")
    assert "not built" in ops.why_not("cuda")


def test_a_cuda_library_that_does_not_load_says_why(on_a_gpu, monkeypatch, tmp_path):
    broken = tmp_path / "libdmlfast_cuda.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "LIBRARY", broken)
    assert "do not load" in ops.why_not("cuda")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_cuda_library_loads_without_a_gpu(on_a_gpu):
    assert library.why_no_library() is None


@pytest.mark.parametrize(("asked", "exact"), [("ieee", True), ("tf32", False)])
def test_the_precision_that_torch_was_told_in_its_newer_way(monkeypatch, asked, exact):
    configs = pytest.importorskip("dmlfast.ops.triton.configs")

    def mixed():
        raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = asked
    try:
        wide, narrow = (configs.products_of(torch.float32, d).PRECISION for d in (17, 16))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (wide, narrow) == (("tf32x3", "ieee") if exact else ("tf32", "tf32"))


def test_what_was_measured_is_looked_up_by_the_name_it_was_measured_by(monkeypatch):
    """Of ops with several backends for GPUs, which a table of results chooses from."""
    asked = []
    rows, labels = torch.randn(8, 4), torch.arange(8) // 4
    with monkeypatch.context() as patched:
        patched.setattr(fastest, "choose", lambda op, *_: asked.append(op) or "cpu")
        patched.setattr(dispatch, "_able", lambda *_: ("triton", "cuda", "reference"))
        lifted_op._forward(rows, None, labels, None, None, 1.0, False, False, dispatch.FASTEST)
        softmax_op._kernels(dispatch.FASTEST, rows)
    assert asked == ["lifted", "norm-softmax"]
    assert set(asked) < set(BENCHMARKS)


def test_the_compiler_of_torch_is_not_imported_before_it_is_needed():
    program = "import sys, dmlfast.losses; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
