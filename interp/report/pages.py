"""The pages of a report: one, those that it was given (`Report.page`), and where the one would be
too large for a browser, one more per layer.

A page opened from disk cannot fetch files, so every page holds all that it shows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from interp.core.files.untrusted import check_distinct, safe_path

from .attention import Attention

if TYPE_CHECKING:
    from .report import Report

INDEX = "index.html"
PAGE_BYTES = 20_000_000
"""A page past this has its attention patterns on pages of their own."""


def pages(report: Report) -> dict[str, str]:
    """The text of each page by file name. Raises ValueError where two would be one file,
    or one would lie elsewhere."""
    for path in report.pages:
        check_page(path)
    own = _own(report)
    check_distinct([*own, *report.pages])
    return own | {name: page.html() for name, page in report.pages.items()}


def check_page(path: str) -> None:
    """Raises ValueError on what is no address of a page beside a report."""
    if not (isinstance(path, str) and path.endswith(".html")):
        raise ValueError(f"page {path!r}: expected a path that ends in '.html'")
    safe_path(Path("the report"), path)


def _own(report: Report) -> dict[str, str]:
    whole = report.html()
    items = [item for section in report.sections for item in section.items]
    if len(whole) <= PAGE_BYTES or not any(isinstance(item, Attention) for item in items):
        return {INDEX: whole}
    del whole
    return {name: page.html() for name, page in _split(report).items()}


def _split(report: Report) -> dict[str, Report]:
    """The report with small pictures for patterns, and a short report per layer."""
    index, layers = copy.copy(report), {}
    index.sections = []
    for section in report.sections:
        short = copy.copy(section)
        short.items = list(section.items)
        for at, item in enumerate(section.items):
            if not isinstance(item, Attention):
                continue
            parts = item.split(INDEX)
            short.items[at] = parts.pop(INDEX)
            layers |= {name: _page(report, part) for name, part in parts.items()}
        index.sections.append(short)
    return {INDEX: index} | layers


def _page(report: Report, part: Attention) -> Report:
    page = copy.copy(report)
    page.pages = {}
    page.title = f"{report.title}: layer {part.layers[0]}"
    page.warnings, page.findings, page.certainty, page.doubts, page.skipped = [], [], [], [], []
    page.sections = []
    page.section(f"Layer {part.layers[0]}").items.append(part)
    return page
