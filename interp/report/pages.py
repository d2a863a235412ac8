"""The pages of a report: one, those that it was given (`Report.page`), and where the one would be
too large for a browser, one more per layer.

A page opened from disk cannot fetch files, so every page holds all that it shows.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from .attention import Attention

if TYPE_CHECKING:
    from .report import Report

INDEX = "index.html"
PAGE_BYTES = 20_000_000
"""A page past this has its attention patterns on pages of their own."""


def pages(report: Report) -> dict[str, str]:
    """The text of each page by file name."""
    return _own(report) | {name: page.html() for name, page in report.pages.items()}


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
