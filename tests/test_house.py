"""The house of the code: imports go downward only, public names are what they say."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import interp

ROOT = Path(interp.__file__).parents[1]

# Lowest first. A module may import from its own room and from the rooms below it.
ROOMS = (
    *("core", "model", "loading", "sweeps", "data", "methods", "training", "zoo", "report"),
    *("analyses", "cli"),
)


def modules() -> dict[str, Path]:
    """Every module of the library and of the analyses by its dotted name."""
    named = {}
    for folder in ("interp", "analyses"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()


def room(name: str) -> str:
    """The room of a module."""
    if name.startswith("analyses"):
        return "analyses"
    return name.split(".")[1]


@functools.cache
def imports(name: str) -> set[str]:
    """The modules of this project that a module imports, for types included."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: one dot is the module's own package
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets |= {full if full in MODULES else base for full in names}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target for target in targets if target in MODULES} - {name}


INSIDE = [name for name in MODULES if name not in ("interp", "interp.__main__")]


@pytest.mark.parametrize("name", INSIDE)
def test_imports_go_downward_only(name):
    for target in imports(name):
        if target == "interp":
            assert room(name) in ("analyses", "cli"), f"{name} imports interp itself"
        elif room(target) != room(name):
            assert ROOMS.index(room(target)) < ROOMS.index(room(name)), f"{name} imports {target}"


def test_no_modules_import_each_other_in_a_circle():
    graph = graphlib.TopologicalSorter()
    for name in INSIDE:
        graph.add(name, *(target for target in imports(name) if target != "interp"))
    graph.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", interp._MODULES)
def test_public_modules_are_attributes(name):
    assert isinstance(getattr(interp, name), ModuleType)
    assert name in dir(interp)


@pytest.mark.parametrize("name", interp._GONE)
def test_a_name_that_is_gone_names_its_successor(name):
    assert name not in dir(interp)
    with pytest.raises(AttributeError, match=re.escape(interp._GONE[name])):
        getattr(interp, name)
    if interp._GONE[name].startswith("from "):
        exec(interp._GONE[name])
    else:
        for successor in re.findall(r"interp\.(\w+)", interp._GONE[name]):
            assert successor in interp.__all__ or successor in interp._MODULES


def test_no_public_name_is_hidden_by_a_module():
    for package in (interp, importlib.import_module("analyses")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in interp.__all__:
        assert not isinstance(getattr(interp, name), ModuleType), name
    assert set(interp.__all__) <= set(dir(interp))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        interp.lod  # noqa: B018


def test_importing_interp_imports_nothing_heavy():
    code = (
        "import sys, interp; print(*(m for m in ('torch', 'pandas', 'numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "", done.stderr


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_large_pages_are_asked_for_unless_somebody_said_otherwise(before, after):
    given = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    given |= {"THP_MEM_ALLOC_ENABLE": before} if before else {}
    code = "import interp, os; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=given)
    assert done.stdout.strip() == after, done.stderr
