"""Which backend serves a call: impl= before DMLFAST_IMPL before auto, and no silent falls."""

import pytest
import torch

from dmlfast import ops
from dmlfast.ops import dispatch, native
from dmlfast.ops.lifted import cpu, reference

CALLS = {
    "pair_reduce": lambda x, **options: ops.pair_reduce(x, torch.arange(4), **options),
    "lifted_structured_loss": lambda x, **options: ops.lifted_structured_loss(
        x, torch.arange(4), **options
    ),
}
EVERY_OP = pytest.mark.parametrize("op", CALLS)


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


def lifted(**options) -> torch.Tensor:
    return ops.lifted_structured_loss(torch.randn(4, 3), torch.arange(4) // 2, **options)


def test_auto_prefers_the_kernels(served):
    lifted()
    assert served == ["cpu"]


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
        message = r"unknown impl 'cp': did you mean 'cpu'\?.*known:.*reference"
        with pytest.raises(ValueError, match=message):
            self.call(op, through, "cp", monkeypatch)

    @pytest.mark.parametrize("name", ["cuda", "triton"])
    def test_kernels_that_do_not_exist_yet(self, op, through, name, monkeypatch):
        with pytest.raises(RuntimeError, match=rf"{op}: {through}='{name}' cannot serve.*kernels"):
            self.call(op, through, name, monkeypatch)

    def test_float64_on_float32_kernels(self, op, through, monkeypatch):
        with pytest.raises(RuntimeError, match=rf"{op}: {through}='cpu' cannot serve.*float64"):
            self.call(op, through, "cpu", monkeypatch, torch.float64)

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


def test_available_names_and_reasons():
    assert ops.available() == ("reference", "cpu")
    assert ops.why_not("cpu") is None
    assert ops.why_not("reference") is None
    assert "kernels" in ops.why_not("cuda")
    with pytest.raises(ValueError, match=r"unknown impl 'tpu'"):
        ops.why_not("tpu")


def test_kernels_that_were_not_built_are_not_available(without_kernels):
    assert ops.available() == ("reference",)
    assert "not built" in ops.why_not("cpu")


def test_a_library_that_does_not_load_says_why(without_kernels):
    native.CPU_LIBRARY.write_bytes(b"not a library")
    native.cpu_library.cache_clear()
    try:
        assert "do not load" in ops.why_not("cpu")
    finally:
        native.cpu_library.cache_clear()


def test_every_backend_has_a_module_for_every_op():
    for package in ("dmlfast.ops.pairs", "dmlfast.ops.lifted"):
        for name in dispatch.BACKENDS:
            assert dispatch.module(package, name).__name__ == f"{package}.{name}"
