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
import dataclasses
import importlib
import importlib.util
import itertools
import pkgutil
import shlex
import sys
import typing
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import interp
from interp.core.console import guarded
from interp.core.options import check_options
from interp.core.progress import Steps
from interp.core.visible import one_line
from interp.report import check_destination

if TYPE_CHECKING:
    from interp.loading.needs import Abilities

NEXT = {
    "embedding-arithmetic": "embedding-geometry",
    "embedding-geometry": "probe-layers",
    "probe-layers": "concept-direction",
    "concept-direction": "steering",
    "steering": "logit-lens",
    "logit-lens": "causal-tracing",
    "causal-tracing": "activation-patching",
    "activation-patching": "head-ablation",
    "head-ablation": "attention-heads",
    "attention-heads": "attention-patterns",
    "attention-patterns": "neurons",
    "neurons": "embedding-arithmetic",
}
"""Which analysis to try after which, in a circle: one that a model cannot do is passed over."""


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

    Prints the warnings and findings; the last lines are the answer, where the report is, and a
    command worth trying next.
    """
    config, ending = parse(module, arguments, prog)
    check_destination(config.out)  # before the work, not after it
    check_options(config)
    known = able_model(module, config)
    with Steps(3) as steps:
        steps.begin(f"opens {config.model}")
        model = interp.load(config.model, device=config.device, dtype=config.dtype)
        steps.begin("measures")
        report = module.run(model, config)
        steps.begin("draws and writes")
        page = report.write(config.out, figures=ending.figures)
    findings = [text for text in report.findings if text != report.headline]
    lines = [*(f"warning: {text}" for text in report.warnings), *findings, report.headline]
    sys.stdout.write("".join(f"{one_line(text)}\n" for text in lines))
    sys.stdout.write(f"{page}\n")
    command = next_command(module, config, known)
    sys.stdout.write(f"next: {command}\n" if command else "")
    if ending.opens and not webbrowser.open(page.absolute().as_uri()):
        raise OSError(f"no browser could be started; open {page} in one")
    return 0


@dataclass(frozen=True)
class Ending:
    """What a command does with a report."""

    opens: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(name="open")] = False
    """Open the page in the browser when it is there."""
    figures: Literal["page", "paper"] = "page"
    """paper: write the figures alone, for print (SVG, PDF, PNG at 300 dpi), and no page."""


def parse(module: ModuleType, arguments: Sequence[str], prog: str) -> tuple[Any, Ending]:
    """The config that the arguments ask for, and what is done with the report."""
    parts = {"config": module.Config, "ending": Ending}
    fields = [(name, tyro.conf.OmitArgPrefixes[kind]) for name, kind in parts.items()]
    command = dataclasses.make_dataclass("Command", fields, frozen=True)
    parsed = tyro.cli(command, args=list(arguments), prog=prog, description=module.__doc__ or "")
    return parsed.config, parsed.ending


def next_command(module: ModuleType, config: Any, known: Abilities) -> str:
    """A command that goes on from an analysis, on the same model and task; "" where no other can
    run on it."""
    start = name = module.__name__.rpartition(".")[2].replace("_", "-")
    while (name := NEXT.get(name, start)) != start:
        there = load(name)
        options = _same_options(config, there.Config)
        if there.NEEDS.lacking(known, there.Config(**options)) is None:
            words = [(f"--{option.replace('_', '-')}", str(v)) for option, v in options.items()]
            return shlex.join(["interp", "run", name, *itertools.chain.from_iterable(words)])
    return ""


def _same_options(config: Any, other: type) -> dict[str, Any]:
    """What two analyses mean alike and what is not at the other's default: model, task, prompts."""
    mine, theirs = ({one.name for one in dataclasses.fields(c)} for c in (config, other))
    shared = {name for name in ("model", "task", "prompts") if name in mine & theirs}
    if ("prompt" in mine) != ("prompt" in theirs):  # a file of texts there, of pairs here
        shared -= {"prompts"}
    if getattr(config, "task", None) not in _words(typing.get_type_hints(other).get("task")):
        shared -= {"task"}
    return {
        name: getattr(config, name)
        for name in ("model", "task", "prompts")
        if name in shared and getattr(config, name) not in (None, getattr(other, name))
    }


def _words(hint: Any) -> set[str]:
    """The words that a type allows: those of its literals."""
    parts = typing.get_args(hint)
    return {part for part in parts if isinstance(part, str)}.union(*map(_words, parts), set())


def able_model(module: ModuleType, config: Any) -> Abilities:
    """What the model, which is not loaded yet, can be asked. Raises ValueError where it lacks what
    the analysis needs."""
    needs = importlib.import_module("interp.loading.needs")  # with torch
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    known = needs.stored_abilities(config.model)
    module.NEEDS.check(known, name, config)
    return known


def main(module: ModuleType) -> int:
    """The command `python -m analyses.<name>`."""
    spec = module.__spec__
    prog = f"python -m {spec.name}" if spec else str(module.__file__)
    return guarded(lambda arguments: perform(module, arguments, prog))


def _module_name(name: str) -> str:
    if name.replace("_", "-") not in names():
        raise ValueError(f"unknown analysis {name!r}; there are: {', '.join(names())}")
    return name.replace("-", "_")
