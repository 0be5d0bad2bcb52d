"""The reference lists every public name, as it is called, and nothing that does not exist."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from dmlfast.bench import BENCHMARKS, get_benchmark

import dmlfast

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `([\w. ]+)`\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
MODULES = [name for name in SECTIONS if name != "dmlfast bench"]


def rows(section: str) -> list[list[str]]:
    """The cells of the section's table, without its heading and rule."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def listed(section: str) -> dict[str, str]:
    """What stands between the parentheses of each name in the section's table."""
    cells = [cell for cell, *_ in rows(section)]
    return dict(re.fullmatch(r"`([\w.]+)(?:\((.*)\))?`", cell).groups("") for cell in cells)


def found(module: str, name: str) -> object:
    """What a name stands for; one with a dot is in a submodule."""
    *within, last = f"{module}.{name}".split(".")
    return getattr(importlib.import_module(".".join(within)), last)


def public_names(module: str) -> set[str]:
    """`__all__`, or without one the classes and functions that a module defines."""
    of = importlib.import_module(module)
    own = {name for name, value in vars(of).items() if getattr(value, "__module__", "") == module}
    return set(getattr(of, "__all__", {name for name in own if not name.startswith("_")}))


def public_packages() -> set[str]:
    """The packages within dmlfast that say what is public in them."""
    within = pkgutil.iter_modules(dmlfast.__path__, "dmlfast.")
    packages = {module.name for module in within if module.ispkg}
    return {name for name in packages if hasattr(importlib.import_module(name), "__all__")}


def anchors(path: Path) -> set[str]:
    """What links may say behind a # for the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_public_package_has_a_section():
    assert public_packages() <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_listed(module):
    parent = module.rpartition(".")[0]
    of_parent = listed(parent) if parent in MODULES else {}
    named = set(re.findall(r"`(\w+)`", re.sub(r"^\|.*", "", SECTIONS[module], flags=re.M)))
    missing = public_names(module) - set(listed(module)) - (of_parent.keys() & named)
    assert missing == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_listed_name_exists(module):
    for name in listed(module):
        assert "." in name or name in public_names(module)
        found(module, name)


@pytest.mark.parametrize("module", MODULES)
def test_names_are_called_as_listed(module):
    for name, arguments in listed(module).items():
        shown = [argument for argument in arguments.split(", ") if argument not in ("", "…")]
        known = inspect.signature(found(module, name)).parameters if shown else {}
        for argument in shown:
            option, _, default = argument.lstrip("*").partition("=")
            assert option in known, f"{name} takes no {option}"
            if default:
                assert known[option].default == ast.literal_eval(default), f"{option} of {name}"


def test_what_documents_import_is_listed():
    names = {f"{module}.{name}" for module in MODULES for name in listed(module)}
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = path.read_text(encoding="utf-8")
        for module, imported in re.findall(r"from (dmlfast\.[\w.]+) import ([\w, ]+)", text):
            for name in imported.split(","):
                assert f"{module}.{name.strip()}" in names, path.name


def test_every_benchmark_stands_with_its_competitors():
    shown = {
        name.strip("`"): re.findall("`(.+?)`", last) for name, _, last in rows("dmlfast bench")
    }
    assert shown == {
        name: [each.name for each in get_benchmark(name).baselines] for name in BENCHMARKS
    }


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition("#")
    target = PAGE.parent / path
    assert target.is_file()
    assert not anchor or anchor in anchors(target)
