"""Analyses: one module per question, each a script and a command.

An analysis is a module with a docstring whose first line says what it answers, a frozen dataclass
`Config` (the command line is made from it; it has `model`, `device`, `dtype`, `seed` and `out`, and
a sentence below every field), `run(model, config) -> Report`, `NEEDS`: what a model must have, and
`TABLES`: the CSV files that it writes and their columns. There, "loss?" is a column with holes, and
`...` stands for columns that follow from the data. `tests/test_contract.py` runs every analysis
that it finds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

import interp
from interp.cli.console import guarded
from interp.cli.options import check_options
from interp.core.visible import one_line
from interp.report import check_destination


def names() -> list[str]:
    """The analyses there are, as written on the command line."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def summary(name: str) -> str:
    """The first line of an analysis' docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{__name__}.{_module_name(name)}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def load(name: str) -> ModuleType:
    """The module of an analysis, by either spelling; raises ValueError naming those there are."""
    return importlib.import_module(f"{__name__}.{_module_name(name)}")


def perform(module: ModuleType, arguments: Sequence[str], prog: str) -> int:
    """Parse an analysis' options, run it, write its report.

    Prints the warnings and findings, and on the last line where the report is.
    """
    config = tyro.cli(
        module.Config, args=list(arguments), prog=prog, description=module.__doc__ or ""
    )
    check_destination(config.out)  # before the work, not after it
    check_options(config)
    refuse_unable(module, config)
    model = interp.load(config.model, device=config.device, dtype=config.dtype)
    report = module.run(model, config)
    page = report.write(config.out)
    sys.stdout.write("".join(f"warning: {one_line(warning)}\n" for warning in report.warnings))
    sys.stdout.write("".join(f"{one_line(finding)}\n" for finding in report.findings))
    sys.stdout.write(f"{page}\n")
    return 0


def refuse_unable(module: ModuleType, config: Any) -> None:
    """Raises ValueError where the model, not loaded yet, lacks what an analysis needs."""
    needs = importlib.import_module("interp.loading.needs")  # with torch
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    module.NEEDS.check(needs.stored_abilities(config.model), name, config)


def main(module: ModuleType) -> int:
    """The command `python -m analyses.<name>`."""
    spec = module.__spec__
    prog = f"python -m {spec.name}" if spec else str(module.__file__)
    return guarded(lambda arguments: perform(module, arguments, prog))


def _module_name(name: str) -> str:
    if name.replace("_", "-") not in names():
        raise ValueError(f"unknown analysis {name!r}; there are: {', '.join(names())}")
    return name.replace("-", "_")
