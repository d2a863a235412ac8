"""The pages of a report: one, those that it was given (`Report.page`), and where the one would be
too large for a browser, one more per layer.

A page opened from disk cannot fetch files, so every page holds all that it shows.
"""

from __future__ import annotations

import copy
import textwrap
from functools import partial

from interp.core.files.untrusted import check_distinct
from interp.core.visible import one_line

from .attention import Attention
from .contents import INDEX, Contents, FirstScreen, check_page
from .links import pieces
from .markup import page
from .text import shorten

PAGE_BYTES = 20_000_000
"""A page past this has its attention patterns on pages of their own."""
BRIEF = 200
"""Characters of a warning that stand on the first screen; the rest of it is folded."""

LISTED = 60
"""Characters of a heading in the list of contents."""


def page_html(contents: Contents) -> str:
    """One page. Same contents, same text: no date in it (the manifest has that).

    Raises ValueError where a sentence leads to what is not there.
    """
    screen = contents.first_screen()
    return page(
        "report.html.j2",
        ("report.css", "viewer.css"),
        ("page.js", "drawing.js", "viewer.js"),
        report=contents,
        screen=screen,
        title=shorten(one_line(contents.title)),
        listed=_listed(contents, screen),
        facts=contents.facts(),
        pieces=partial(pieces, contents),
        brief=partial(_brief, most=BRIEF),
        most=BRIEF,
        kind=lambda item: type(item).__name__,
    )


def _listed(contents: Contents, screen: FirstScreen) -> list[tuple[str, str]]:
    """The sections of a page and their anchors, which no exhibit can have: a slug holds no "_"."""
    numbered = [
        (_brief(one_line(s.title), LISTED), f"_{n}") for n, s in enumerate(screen.sections, 1)
    ]
    return [
        *([("Further findings", "_further")] if screen.further else []),
        *numbered,
        *([("How sure", "_sure")] if contents.certainty else []),
        *([("What would make it wrong", "_wrong")] if contents.doubts else []),
        *([("Pages", "_pages")] if contents.pages else []),
        *([("What was skipped", "_skipped")] if contents.skipped else []),
        ("Where this comes from", "_origin"),
    ]


def _brief(text: str, most: int) -> str:
    """The beginning of a text, to the end of a word."""
    return textwrap.shorten(text, most, placeholder=" …")


def page_files(contents: Contents) -> dict[str, str]:
    """The text of each page by file name. Raises ValueError where two would be one file,
    or one would lie elsewhere."""
    for path in contents.pages:
        check_page(path)
    by_layer = _by_layer(contents)
    check_distinct([*by_layer, *contents.pages])
    return by_layer | {name: page_html(beside) for name, beside in contents.pages.items()}


def _by_layer(contents: Contents) -> dict[str, str]:
    whole = page_html(contents)
    fits = len(whole) <= PAGE_BYTES
    if fits or not any(isinstance(item, Attention) for item in contents.exhibits()):
        return {INDEX: whole}
    del whole
    return {name: page_html(layer) for name, layer in _split(contents).items()}


def _split(contents: Contents) -> dict[str, Contents]:
    """The report with small pictures for patterns, and a short report per layer."""
    index, layers = copy.copy(contents), {}
    sections = [*([contents.opening] if contents.opening else []), *contents.sections]
    shortened = []
    for section in sections:
        short = copy.copy(section)
        short.items = list(section.items)
        for at, item in enumerate(section.items):
            if not isinstance(item, Attention):
                continue
            parts = item.split(INDEX)
            short.items[at] = parts.pop(INDEX)
            layers |= {name: _layer(contents, part) for name, part in parts.items()}
        shortened.append(short)
    if contents.opening:
        index.opening = shortened.pop(0)
    index.sections = shortened
    return {INDEX: index} | layers


def _layer(contents: Contents, part: Attention) -> Contents:
    layer = copy.copy(contents)
    layer.pages, layer.opening = {}, None
    layer.title = f"{contents.title}: layer {part.layers[0]}"
    layer.warnings, layer.findings, layer.certainty = [], [], []
    layer.doubts, layer.skipped, layer.sections = [], [], []
    layer.section(f"Layer {part.layers[0]}").items.append(part)
    return layer
