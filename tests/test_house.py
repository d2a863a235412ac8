"""The house of the code: imports go downward only, public names are what they say."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import interp

ROOT = Path(interp.__file__).parents[1]

# Lowest first. A module may import from its own floor's package and from floors below it.
FLOORS = (
    {"files", "visible"},
    {"config", "chance", "devices", "indices", "untrusted", "writing", "memory"}
    | {"stats", "moments", "occurrence", "precision"}
    | {"calls", "hashing", "vectors"},
    {"sites", "tokens", "tokenizer", "basis"},
    {"tap", "analogies", "axes", "unknown"},
    {"finite"},
    {"model"},
    {"loading", "selection", "fingerprint"},
    {"edits", "metrics", "provenance", "tasks", "training", "windows", "shards"},
    {"rerun", "naive", "journal", "reading"},
    {"engine"},
    {
        "geometry",
        "heads",
        "lens",
        "attribution",
        "removal",
        "neurons",
        "paths",
        "probes",
        "directions",
        "steering",
        "erasure",
        "harvesting",
        "tracing",
    },
    {"zoo"},
    {"report"},
    {"console", "checkup"},
    {"analyses"},
    {"cli"},
    {"__main__"},
)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "analyses" else parts[1]


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(path: Path) -> set[str]:
    """The rooms that a file imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # relative: one dot is the file's own package
                up = path.relative_to(ROOT).parts[: depth - node.level + 1]
                module = ".".join([*up, *([module] if module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "analyses":
                found.add("analyses")
            elif parts[0] == "interp" and len(parts) > 1:
                found.add(parts[1])
    return {name for name in found if any(name in names for names in FLOORS)}


FILES = [p for d in ("interp", "analyses") for p in sorted((ROOT / d).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward_only(path):
    own = room(path)
    if own == "__init__":
        return
    for other in imports(path) - {own}:
        assert floor(other) < floor(own), f"{own} imports {other}"


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
