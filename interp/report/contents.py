"""What a report says and shows, before it becomes a page or a text.

A report answers first: one sentence and the exhibit that shows it, then at most three findings,
each of which leads to the exhibit behind it. All else are sections, in the order in which they were
added.
"""

from __future__ import annotations

import base64
import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from interp.core.files.untrusted import check_distinct, safe_path
from interp.core.visible import one_line

from .attention import Attention, check_patterns, check_prompt, encode, heads_table
from .table import SHOWN_ROWS, Schema, Table, blank_columns, check_frame
from .text import MAX_CELL, in_house_style, shorten, slug
from .tokens import TokenText, check_tokens, tokens_table

if TYPE_CHECKING:
    from .figures import Figure

INDEX = "index.html"
FIRST_FINDINGS = 3
"""Findings that stand on the first screen."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure, its caption, and the numbers behind it."""

    figure: Figure
    table: Table
    name: str

    @property
    def source(self) -> str:
        """The SVG as a data: address, so that the page needs no other file."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.figure.svg).decode()


@dataclass(frozen=True)
class Texts:
    """Texts side by side, each below its heading."""

    columns: Mapping[str, str]
    caption: str
    name: str


@dataclass(frozen=True)
class Note:
    """A remark between the evidence."""

    text: str


Exhibit = Table | Picture | Attention | TokenText | Texts
"""What a sentence can lead to: it has a name, which is its anchor on the page."""


class Sentence(str):
    """A sentence of a report, and where it leads.

    `at` is the exhibit or page that shows the whole of it, `links` maps words of it to those that
    show these. Raises ValueError on words that are not in the sentence.
    """

    at: str | None
    links: dict[str, str]

    def __new__(
        cls, text: str, at: str | None = None, links: Mapping[str, str] | None = None
    ) -> Sentence:
        sentence = super().__new__(cls, in_house_style(text))
        sentence.at = at
        sentence.links = {in_house_style(words): to for words, to in (links or {}).items()}
        for words in sentence.links:
            if not whole_words([words]).search(sentence):
                raise ValueError(f"links={words!r}: these words do not stand in {shorten(text)!r}")
        return sentence


def whole_words(phrases: Sequence[str]) -> re.Pattern[str]:
    """Finds phrases that do not go on: "L1 H1" is not found in "L1 H12"."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)")


class Section:
    """A heading, a paragraph, and what stands below them in the order in which it was added."""

    def __init__(
        self, title: str, text: str, taken: set[str] | None, schema: Schema | None = None
    ) -> None:
        self.title = title
        self.text = text if isinstance(text, Sentence) else in_house_style(text)
        self._schema = schema
        self.items: list[Exhibit | Note] = []
        self._taken = taken

    def table(
        self,
        frame: pd.DataFrame,
        caption: str,
        *,
        name: str | None = None,
        formats: Mapping[str, str] | None = None,
        missing: Sequence[str] | None = None,
        rows: int = SHOWN_ROWS,
    ) -> None:
        """Add a table: `rows` of it on the page, all of it in <name>.csv. Named levels of its index
        become columns.

        `formats` maps a column to a format spec ({"accuracy": ".0%"}). A numeric column with NaN or
        an infinity raises ValueError unless `missing` names it; by default the report's `tables`
        say which columns may be blank, and that this table has the columns that they name.
        """
        if any(level is not None for level in frame.index.names):
            frame = frame.reset_index()
        if missing is None and self._schema is not None:
            missing = blank_columns(self._schema, slug(name or caption), frame)
        check_frame(frame, missing or ())
        unique = self._unique(name, caption)
        self.items.append(Table(frame.reset_index(drop=True), caption, unique, formats or {}, rows))

    def figure(self, figure: Figure, caption: str, *, name: str | None = None) -> None:
        """Add a figure; the frame that it was drawn from stands behind it as a table."""
        check_frame(figure.data, ())
        unique = self._unique(name, caption)
        table = Table(figure.data.reset_index(drop=True), caption, unique)
        self.items.append(Picture(figure, table, unique))

    def attention(
        self,
        patterns: np.ndarray | Sequence[np.ndarray],
        tokens: Sequence[str] | Sequence[Sequence[str]],
        caption: str,
        *,
        scores: pd.DataFrame | None = None,
        prompt: int = 1,
        name: str | None = None,
    ) -> Attention:
        """Add the viewer of all heads: per prompt an array [layer head q_pos k_pos] and its tokens.

        `scores` has one row per `layer` and `head`; its numeric columns sort and filter the heads,
        a text column `label` names them. `prompt`, from 1, is shown first. Behind it stands a table
        of the heads (`heads_table`). The page shows weights rounded to 1/255. Returns what
        `one_head` takes. Raises ValueError on what are no patterns.
        """
        arrays, words = check_patterns(patterns, tokens)
        frame = heads_table(arrays, scores)
        prompt, layers = check_prompt(prompt, len(arrays)), tuple(range(len(arrays[0])))
        table = Table(frame, caption, self._unique(name, caption))
        viewer = Attention(encode(arrays, words), table, layers, prompt=prompt)
        self.items.append(viewer)
        return viewer

    def one_head(
        self, attention: Attention, layer: int, head: int, caption: str, prompt: int | None = None
    ) -> None:
        """Add one head of a viewer that stands in the report; for a page of its own. It opens at
        `prompt`, from 1, by default where the viewer does."""
        self.items.append(attention.one(layer, head, caption, prompt))

    def tokens(
        self,
        tokens: Sequence[str] | Sequence[Sequence[str]],
        values: Sequence,
        caption: str,
        *,
        name: str | None = None,
        unit: str = "nats",
        diverging: bool = False,
    ) -> None:
        """Add text with a value for each token, shaded: one or more rows of tokens and values.

        None stands for no value (the first token has no loss). `diverging` shades values below 0 in
        a second colour; without it they raise ValueError.
        """
        words, numbers = check_tokens(tokens, values, diverging)
        table = Table(tokens_table(words, numbers, unit), caption, self._unique(name, caption))
        self.items.append(TokenText(words, numbers, table, unit, diverging))

    def texts(self, columns: Mapping[str, str], caption: str, *, name: str | None = None) -> None:
        """Add texts side by side, each below its heading: `{"as it is": …, "steered": …}`.

        They have no file of their own. Raises ValueError where there is no text.
        """
        if not columns:
            raise ValueError("texts need a mapping of at least one heading to its text, got none")
        shown = {str(heading): str(text) for heading, text in columns.items()}
        self.items.append(Texts(shown, caption, self._unique(name, caption)))

    def note(self, text: str) -> None:
        """Add a remark."""
        self.items.append(Note(in_house_style(text)))

    def _unique(self, name: str | None, caption: str) -> str:
        """The name of an exhibit and its files: the one given, else one made of the caption. Raises
        ValueError on a given one that another exhibit has."""
        base = unique = slug(name or caption)
        if self._taken is None:  # a page of its own: its tables are those of the report
            return unique
        if name and base in self._taken:
            raise ValueError(
                f"name={name!r}: the report has a table of that name ({base}.csv) already"
            )
        for count in itertools.count(2):
            if unique not in self._taken:
                break
            unique = f"{base}-{count}"
        self._taken.add(unique)
        return unique


class FirstScreen(NamedTuple):
    """What a reader sees first, and what is left for the sections after it."""

    answer: Sentence | None
    items: list[Exhibit | Note]
    findings: list[Sentence]
    further: list[Sentence]
    sections: list[Section]


class Contents:
    """The words, exhibits, sections and pages of a report."""

    def __init__(
        self,
        title: str,
        question: str,
        *,
        analysis: str = "",
        provenance: Mapping[str, Any] | None = None,
        tables: Schema | None = None,
    ) -> None:
        self.title = title
        self.tables = tables
        self.question = question
        self.analysis = analysis
        self.opening: Section | None = None
        self.warnings: list[str] = []
        self.findings: list[str] = []
        self.certainty: list[str] = []
        self.doubts: list[str] = []
        self.skipped: list[str] = []
        self.sections: list[Section] = []
        self.pages: dict[str, Contents] = {}
        self.links: list[tuple[str, str]] = []
        self.home: Contents | None = None
        """The report that this is a page of."""
        self.root = ""
        self.provenance = dict(provenance or {})
        precision = self.provenance.get("precision") or ""
        if "float16" in precision:  # half precision, in the file or in the computation
            self.certainty.append(precision)
        self._taken: set[str] | None = set()

    def warn(self, text: str) -> None:
        """What the reader must know before anything else; it stands first, in red."""
        self.warnings.append(in_house_style(text))

    def answer(self, text: str, *, links: Mapping[str, str] | None = None) -> Section:
        """The answer in one sentence of plain words. Returns the opening section, without a
        heading, for the one exhibit that shows it.

        `links` as for `finding`. Raises ValueError where the report has an answer already.
        """
        if self.opening is not None:
            raise ValueError(
                f"the report has its answer already: {shorten(self.opening.text)!r}; more is a "
                "finding"
            )
        self.opening = Section("", Sentence(text, links=links), self._taken, self.tables)
        return self.opening

    def finding(
        self, text: str, at: str | None = None, *, links: Mapping[str, str] | None = None
    ) -> None:
        """What was found, in a sentence filled from the numbers; the first three stand on the first
        screen.

        `at` names what shows it: a figure, table or viewer of this report ("head-effects"), a page
        ("heads/L0H3.html"), or a head in a viewer, opened at a prompt if one is named
        ("#head-L0H3", "#head-L0H3-prompt2"). `links` does the same for words of the sentence:
        {"L0 H3": "heads/L0H3.html"}. What they name may be added later; the report is not written
        where it is missing. Raises ValueError on words that are not in the sentence.
        """
        self.findings.append(Sentence(text, at, links))

    def sure(self, text: str) -> None:
        """How sure: intervals, controls, sizes."""
        self.certainty.append(in_house_style(text))

    def doubt(self, text: str) -> None:
        """What would make it wrong."""
        self.doubts.append(in_house_style(text))

    def skip(self, text: str) -> None:
        """What was left out, and why."""
        self.skipped.append(in_house_style(text))

    def section(self, title: str, text: str = "") -> Section:
        """Open a section at the end of the report."""
        self.sections.append(Section(title, text, self._taken, self.tables))
        return self.sections[-1]

    def page(self, path: str, title: str, question: str) -> Contents:
        """Open a page beside this one, linked from it and to its neighbours in the order in which
        they were opened: "heads/L0H3.html". Its tables are parts of tables of the report and bear
        their names; what it finds, skips and shows is its own. Raises ValueError on a path that is
        not plain names with "/" between, ending in ".html", and on one that a page has already, on
        any file system.
        """
        check_page(path)
        check_distinct([INDEX, *self.pages, path])
        page = type(self)(title, question, analysis=self.analysis, tables=self.tables)
        page.home, page.root, page._taken = self, "../" * path.count("/"), None
        page.links = [("The whole report", f"{page.root}{INDEX}")]
        if self.pages:
            before, last = list(self.pages.items())[-1]
            page.links.append((f"Previous: {last.title}", f"{page.root}{before}"))
            last.links.append((f"Next: {title}", f"{last.root}{path}"))
        self.pages[path] = page
        return page

    @property
    def headline(self) -> str:
        """The answer; where none was given, the first finding; "" where there is none either."""
        return str(self.opening.text if self.opening else next(iter(self.findings), ""))

    def exhibits(self) -> Iterator[Exhibit]:
        """All that has a name, in the order of the page."""
        for section in [*([self.opening] if self.opening else []), *self.sections]:
            for item in section.items:
                if not isinstance(item, Note):
                    yield item

    def first_screen(self) -> FirstScreen:
        """The answer, what shows it, and the findings; without an answer the first finding stands
        in, without an exhibit of its own the first picture that there is."""
        findings, sections = [_sentence(text) for text in self.findings], self.sections
        if self.opening is not None:
            answer, items = _sentence(self.opening.text), self.opening.items
        else:
            answer, items = (findings.pop(0) if findings else None), []
        if not items:
            items, sections = _first_exhibit(sections)
        return FirstScreen(
            answer, items, findings[:FIRST_FINDINGS], findings[FIRST_FINDINGS:], sections
        )

    def facts(self) -> list[tuple[str, str]]:
        """The provenance, line by line."""
        return [(name, _fact(value)) for name, value in self.provenance.items()]


def check_page(path: str) -> None:
    """Raises ValueError on what is no address of a page beside a report."""
    if not (isinstance(path, str) and path.endswith(".html")):
        raise ValueError(f"page {path!r}: expected a path that ends in '.html'")
    safe_path(Path("the report"), path)


def _sentence(text: str) -> Sentence:
    return text if isinstance(text, Sentence) else Sentence(text)


def _first_exhibit(sections: list[Section]) -> tuple[list[Exhibit | Note], list[Section]]:
    """The first picture of the sections, or else the first table, and the sections without it."""
    exhibits = [
        item for section in sections for item in section.items if not isinstance(item, Note)
    ]
    pictures = [item for item in exhibits if not isinstance(item, Table)]
    for first in [*pictures, *exhibits][:1]:
        shortened = [copy.copy(section) for section in sections]
        for section in shortened:
            section.items = [item for item in section.items if item is not first]
        return [first], [section for section in shortened if section.text or section.items]
    return [], sections


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key} {_fact(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return "–" if value is None else shorten(one_line(str(value)), 4 * MAX_CELL)
