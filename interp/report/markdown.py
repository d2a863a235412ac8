"""A report as Markdown: its words, its tables as pipes, its figures by their addresses.

Everything that a Markdown renderer would take for markup is escaped (CommonMark 0.31, §2.4; tables
as in GitHub's dialect), and so is everything that it would take for HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from interp.core.visible import one_line, visible

if TYPE_CHECKING:
    from .report import Report, Section
    from .table import Table

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")
OPENING = re.compile(r"^([-+=]|\d+(?=[.)]))")
"""What makes a list or a heading at the start of a line."""
ADDRESS = re.compile(r"(?i):(?=//)|(?<=www)\.")
"""What GitHub's dialect makes a link of, unasked."""


def markdown(report: Report, facts: Iterable[tuple[str, str]]) -> str:
    """The whole report; `facts` are the lines of its provenance."""
    parts = [f"# {plain(report.title)}", f"*{plain(report.question)}*"]
    for heading, sentences in (
        ("Warning", report.warnings),
        ("What was found", report.findings),
        ("How sure", report.certainty),
        ("What would make it wrong", report.doubts),
    ):
        parts += _listed(heading, map(plain, sentences))
    for section in report.sections:
        parts += _section(section)
    parts += _listed("What was skipped", map(plain, report.skipped))
    told = (f"{plain(name)}: {plain(value)}" for name, value in facts)
    parts += _listed("Where this comes from", told)
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Text on one line that no renderer takes for anything else."""
    words = MARKUP.sub(r"\\\1", one_line(text))
    words = ADDRESS.sub(lambda match: f"\\{match[0]}", words)
    return OPENING.sub(lambda m: f"\\{m[0]}" if not m[0].isdigit() else f"{m[0]}\\", words)


def _listed(heading: str, lines: Iterable[str]) -> list[str]:
    points = "\n".join(f"- {line}" for line in lines)
    return [f"## {heading}", points] if points else []


def _section(section: Section) -> Iterator[str]:
    yield f"## {plain(section.title)}"
    yield plain(section.text)
    for item in section.items:
        yield _item(item)


def _item(item: Any) -> str:
    kind = type(item).__name__
    if kind == "Note":
        return f"> {plain(item.text)}"
    if kind == "Table":
        return f"**{plain(item.caption)}**\n\n{_table(item)}"
    if kind == "Picture":
        caption = plain(item.table.caption)
        return (
            f"![{plain(item.figure.alt)}](figures/{item.name}.png)\n\n"
            f"{caption} ([SVG](figures/{item.name}.svg), [numbers]({item.name}.csv))"
        )
    # What answers to mouse and keyboard is on the page alone; the table behind it is here, too.
    table = item.table
    return f"{plain(table.caption)}: on [the page](index.html) ([numbers]({table.name}.csv))"


def _table(table: Table) -> str:
    rule = ["---:" if number else "---" for _, number in table.columns]
    rows = [[plain(heading) for heading, _ in table.columns], rule]
    rows += [[plain(visible(cell)) for cell in row] for row in table.cells]
    drawn = "\n".join(f"| {' | '.join(row)} |" for row in rows) if table.columns else ""
    whole = len(table.frame)
    part = f", the first {table.rows:,} of {whole:,} rows" if whole > table.rows else ""
    return f"{drawn}\n\n[{table.name}.csv]({table.name}.csv){part}"
