"""The compiled library: its instruction sets, and the interface as Python declares it."""

import ctypes
import re
import zlib
from pathlib import Path

import pytest

from dmlfast.ops import native
from dmlfast.ops.cuda.library import Rows

from .helpers import ISAS, instruction_sets

HEADER = Path(__file__).parents[2] / "csrc" / "dmlfast.h"
SIZES = {"float": 4, "int32_t": 4, "int64_t": 8, "dml_rows": ctypes.sizeof(Rows)}


def fields_of_header(header: Path, name: str) -> list[tuple[str, int]]:
    """The members of a structure and their sizes."""
    body = re.search(rf"^struct {name} {{(.*?)^}};", header.read_text(), re.DOTALL | re.M).group(1)
    fields = []
    for declaration in re.sub(r"//.*|\bconst\b", "", body).split(";")[:-1]:
        kind, *names = declaration.replace("*", " * ").replace(",", " ").split()
        if kind == "struct":
            kind = names.pop(0)
        size = 8 if "*" in names else SIZES[kind]
        fields += [(field, size) for field in names if field != "*"]
    return fields


def fields_of(structure: type[ctypes.Structure]) -> list[tuple[str, int]]:
    return [(field, ctypes.sizeof(kind)) for field, kind in structure._fields_]


@pytest.mark.parametrize("name", ISAS)
def test_the_kernels_of_an_instruction_set_can_be_chosen(name):
    library = native.cpu_library()
    best = library.dml_cpu_isa()
    if library.dml_cpu_set_isa(name.encode()):
        pytest.skip(f"this machine or build lacks {name}")
    try:
        assert library.dml_cpu_isa() == name.encode()
    finally:
        library.dml_cpu_set_isa(best)


def test_the_best_instruction_set_is_chosen_first():
    assert native.cpu_library().dml_cpu_isa().decode() == next(instruction_sets())


def test_an_unknown_instruction_set_is_refused_and_changes_nothing():
    library = native.cpu_library()
    before = library.dml_cpu_isa()
    assert library.dml_cpu_set_isa(b"avx1024") == 1
    assert library.dml_cpu_isa() == before


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("dml_pairs", native.Pairs),
        ("dml_term", native.Term),
        ("dml_classes", native.Classes),
        ("dml_own", native.Own),
        ("dml_boosting", native.Boosting),
        ("dml_unit", native.MetricUnit),
    ],
)
def test_structures_are_declared_as_in_the_header(name, structure):
    assert fields_of_header(HEADER, name) == fields_of(structure)


def test_the_interface_is_that_of_the_header():
    """What fails here is the number to be written there, once the structures are as they should."""
    assert f"{native.INTERFACE:#010x}" == f"{zlib.crc32(HEADER.read_bytes()):#010x}"


def test_a_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "INTERFACE", 1)
    for known in (native.cpu_library, native.why_no_cpu):
        monkeypatch.setattr(native, known.__name__, known.__wrapped__)
    assert re.match(
        r"the CPU kernels are of another version, install dmlfast again: .* not 0x00000001$",
        native.why_no_cpu(),
    )


@pytest.mark.parametrize("names", [native.SCORES, native.SELECTIONS, native.REDUCTIONS])
def test_names_are_numbered_as_in_the_header(names):
    numbers = dict(re.findall(r"DML_(\w+) = (\d+)", HEADER.read_text()))
    assert {name: int(numbers[name.upper()]) for name in names} == names
