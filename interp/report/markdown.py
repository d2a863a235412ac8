"""A report as Markdown: its words, its tables as pipes, its figures by their addresses.

Everything that a Markdown renderer would take for markup is escaped (CommonMark 0.31, §2.4; tables
as in GitHub's dialect), and so is everything that it would take for HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from interp.core.visible import one_line, visible

from .contents import INDEX, Contents, Exhibit, Note, Picture, Section, Sentence, Texts
from .links import pieces
from .table import Table

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")
OPENING = re.compile(r"^([-+=]|\d+(?=[.)]))")
"""What makes a list or a heading at the start of a line."""
ADDRESS = re.compile(r"(?i):(?=//)|(?<=www)\.")
"""What GitHub's dialect makes a link of, unasked."""


def markdown(report: Contents) -> str:
    """The whole report. Raises ValueError where a sentence leads to what is not there."""
    screen = report.first_screen()
    parts = [f"# {plain(report.title)}", f"*{plain(report.question)}*"]
    parts += _listed("Warning", map(plain, report.warnings))
    if screen.answer is not None:
        answer = _linked(report, screen.answer)
        parts.append(f"**{answer}**" if answer else "")
    parts += map(_item, screen.items)
    parts += _listed("What was found", (_linked(report, text) for text in screen.findings))
    parts += _listed("Further findings", (_linked(report, text) for text in screen.further))
    for section in screen.sections:
        parts += _section(section)
    for heading, sentences in (
        ("How sure", report.certainty),
        ("What would make it wrong", report.doubts),
        ("What was skipped", report.skipped),
    ):
        parts += _listed(heading, map(plain, sentences))
    facts = (f"{plain(name)}: {plain(value)}" for name, value in report.facts())
    parts += _listed("Where this comes from", facts)
    return "\n\n".join(part for part in parts if part) + "\n"


def _linked(report: Contents, sentence: Sentence) -> str:
    """A sentence with its links, as seen from the folder of the report."""
    words = []
    for text, address in pieces(report, sentence):
        lead, tail = (" " * text[at].isspace() for at in (0, -1))
        escaped = plain(text)
        if address and escaped:
            to = f"{INDEX}{address}" if address.startswith("#") else address
            escaped = f"[{escaped}]({quote(to, safe='/#')})"
        words.append(f"{lead}{escaped}{tail}")
    return "".join(words).strip()


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


def _item(item: Exhibit | Note) -> str:
    if isinstance(item, Note):
        return f"> {plain(item.text)}"
    if isinstance(item, Table):
        return f"**{plain(item.caption)}**\n\n{_table(item)}"
    if isinstance(item, Texts):
        columns = (f"*{plain(h)}*\n\n> {plain(text)}" for h, text in item.columns.items())
        return "\n\n".join([plain(item.caption), *columns])
    if isinstance(item, Picture):
        caption = plain(item.table.caption)
        return (
            f"![{plain(item.figure.alt)}](figures/{item.name}.png)\n\n"
            f"{caption} ([SVG](figures/{item.name}.svg), [numbers]({item.name}.csv))"
        )
    # What answers to mouse and keyboard is on the page alone; the table behind it is here, too.
    table = item.table
    return f"{plain(table.caption)}: on [the page]({INDEX}) ([numbers]({table.name}.csv))"


def _table(table: Table) -> str:
    rule = ["---:" if number else "---" for _, number in table.columns]
    rows = [[plain(heading) for heading, _ in table.columns], rule]
    rows += [[plain(visible(cell)) for cell in row] for row in table.cells]
    drawn = "\n".join(f"| {' | '.join(row)} |" for row in rows) if table.columns else ""
    whole = len(table.frame)
    part = f", the first {table.rows:,} of {whole:,} rows" if whole > table.rows else ""
    return f"{drawn}\n\n[{table.name}.csv]({table.name}.csv){part}"
