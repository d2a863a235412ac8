"""Report: what was asked, what was found, how sure, what would make it wrong; then the evidence.

report = Report("Title", "Question?", provenance=provenance(config, model))
report.finding("In words, filled from the numbers.")
section = report.section("Heading", "A paragraph.")
section.table(frame, "Caption")
report.write("reports/title")      # index.html, *.csv, figures/*.svg|png, manifest.json
report.show()                      # in a notebook;  report.to_markdown() for a text
"""

from __future__ import annotations

import base64
import datetime
import html
import importlib
import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.core.files.untrusted import check_distinct
from interp.core.visible import one_line

from .attention import Attention, check_patterns, encode, heads_table
from .folder import KIND, MANIFEST, replacing, write_below
from .markdown import markdown
from .markup import page
from .pages import INDEX, check_page, pages
from .table import SHOWN_ROWS, Table, check_frame
from .text import MAX_CELL, shorten, slug
from .tokens import TokenText, check_tokens, tokens_table

if TYPE_CHECKING:
    from .figures import Figure

FACTS = (
    *("command", "config", "seed", "model", "device", "dtype", "precision", "threads", "git"),
    *("packages", "python", "platform"),
)
"""What every manifest says of its origin; null where nobody told."""


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
class Note:
    """A remark between the evidence."""

    text: str


class Section:
    """A heading, a paragraph, and what stands below them in the order in which it was added."""

    def __init__(self, title: str, text: str, taken: set[str] | None) -> None:
        self.title = title
        self.text = text
        self.items: list[Table | Picture | Note | Attention | TokenText] = []
        self._taken = taken

    def table(
        self,
        frame: pd.DataFrame,
        caption: str,
        *,
        name: str | None = None,
        formats: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
        rows: int = SHOWN_ROWS,
    ) -> None:
        """Add a table: `rows` of it on the page, all of it in <name>.csv. Named levels of its index
        become columns.

        `formats` maps a column to a format spec ({"accuracy": ".0%"}). A numeric column with NaN or
        an infinity raises ValueError unless `missing` names it.
        """
        if any(level is not None for level in frame.index.names):
            frame = frame.reset_index()
        check_frame(frame, missing)
        own = self._unique(name, caption)
        self.items.append(Table(frame.reset_index(drop=True), caption, own, formats or {}, rows))

    def figure(self, figure: Figure, caption: str, *, name: str | None = None) -> None:
        """Add a figure; the frame that it was drawn from stands behind it as a table."""
        check_frame(figure.data, ())
        own = self._unique(name, caption)
        table = Table(figure.data.reset_index(drop=True), caption, own)
        self.items.append(Picture(figure, table, own))

    def attention(
        self,
        patterns: np.ndarray | Sequence[np.ndarray],
        tokens: Sequence[str] | Sequence[Sequence[str]],
        caption: str,
        *,
        scores: pd.DataFrame | None = None,
        name: str | None = None,
    ) -> Attention:
        """Add the viewer of all heads: per prompt an array [layer head q_pos k_pos] and its tokens.

        `scores` has one row per `layer` and `head`; its numeric columns sort and filter the heads,
        a text column `label` names them. Behind it stands a table of the heads (`heads_table`).
        The page shows weights rounded to 1/255. Returns what `one_head` takes. Raises ValueError
        on what are no patterns.
        """
        arrays, words = check_patterns(patterns, tokens)
        frame = heads_table(arrays, scores)
        table = Table(frame, caption, self._unique(name, caption))
        made = Attention(encode(arrays, words), table, tuple(range(len(arrays[0]))))
        self.items.append(made)
        return made

    def one_head(self, attention: Attention, layer: int, head: int, caption: str) -> None:
        """Add one head of a viewer that stands in the report; for a page of its own."""
        self.items.append(attention.one(layer, head, caption))

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

    def note(self, text: str) -> None:
        """Add a remark."""
        self.items.append(Note(text))

    def _unique(self, name: str | None, caption: str) -> str:
        """The name of a table's files: the one given, else one made of the caption. Raises
        ValueError on a given one that another table has."""
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


class Report:
    """The answer to one question. Make it first: its clock starts then."""

    def __init__(
        self,
        title: str,
        question: str,
        *,
        analysis: str = "",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.title = title
        self.question = question
        self.analysis = analysis
        self.warnings: list[str] = []
        self.findings: list[str] = []
        self.certainty: list[str] = []
        self.doubts: list[str] = []
        self.skipped: list[str] = []
        self.sections: list[Section] = []
        self.pages: dict[str, Report] = {}
        self.links: list[tuple[str, str]] = []
        self.root = ""
        self.provenance = dict(provenance or {})
        precision = self.provenance.get("precision") or ""
        if "float16" in precision:  # half precision, in the file or in the computation
            self.certainty.append(precision)
        self._taken: set[str] | None = set()
        self._started = time.perf_counter()

    def warn(self, text: str) -> None:
        """What the reader must know before anything else; it stands first, in red."""
        self.warnings.append(text)

    def finding(self, text: str) -> None:
        """What was found, in a sentence filled from the numbers; the first is the headline."""
        self.findings.append(text)

    def sure(self, text: str) -> None:
        """How sure: intervals, controls, sizes."""
        self.certainty.append(text)

    def doubt(self, text: str) -> None:
        """What would make it wrong."""
        self.doubts.append(text)

    def skip(self, text: str) -> None:
        """What was left out, and why."""
        self.skipped.append(text)

    def section(self, title: str, text: str = "") -> Section:
        """Open a section at the end of the report."""
        self.sections.append(Section(title, text, self._taken))
        return self.sections[-1]

    def page(self, path: str, title: str, question: str) -> Report:
        """Open a page beside this one, linked from it and to its neighbours in the order in which
        they were opened: "heads/L0H3.html". Its tables are parts of tables of the report and bear
        their names; what it finds, skips and shows is its own. Raises ValueError on a path that is
        not plain names with "/" between, ending in ".html", and on one that a page has already, on
        any file system.
        """
        check_page(path)
        check_distinct([INDEX, *self.pages, path])
        page = Report(title, question, analysis=self.analysis)
        page.root, page._taken = "../" * path.count("/"), None
        page.links = [("The whole report", f"{page.root}index.html")]
        if self.pages:
            before, last = list(self.pages.items())[-1]
            page.links.append((f"Previous: {last.title}", f"{page.root}{before}"))
            last.links.append((f"Next: {title}", f"{last.root}{path}"))
        self.pages[path] = page
        return page

    def write(self, directory: str | Path) -> Path:
        """Write the directory, all or nothing, and return the path of its index.html.

        An older report there is replaced once the new one is whole. Raises FileExistsError where
        something else lies (`check_destination`).
        """
        files = self._files()
        with replacing(directory) as new:
            for name, data in files.items():
                write_below(new, name, data)
        return Path(directory) / "index.html"

    def show(self) -> None:
        """Show the page in a notebook, in a frame of its own; needs IPython."""
        try:
            display = importlib.import_module("IPython.display").display
        except ImportError:
            raise ImportError(
                "show() is for notebooks and needs IPython; report.write(directory) makes a page"
            ) from None
        display(self)

    def _repr_html_(self) -> str:
        """The page in a sandboxed frame; what is only on the disk is named there, not linked."""
        whole = re.sub(r'<a href="[^"#][^"]*">(.*?)</a>', r"\1", self.html())
        title = html.escape(shorten(one_line(self.title)))
        return (
            f'<iframe sandbox="allow-scripts" title="{title}" srcdoc="{html.escape(whole)}" '
            'style="width:100%;height:42rem;border:1px solid #8886;resize:vertical"></iframe>'
        )

    def to_markdown(self) -> str:
        """The report for README files and issues; addresses are relative to its folder."""
        return markdown(self, self._facts())

    def manifest(self, files: Sequence[str] = ()) -> dict[str, Any]:
        """Provenance and contents, as plain data. `packing`: of each table that a sweep made, how
        the sweep was run and what it cost."""
        now = datetime.datetime.now(datetime.UTC)
        return {
            "kind": KIND,
            "analysis": self.analysis,
            "title": self.title,
            "question": self.question,
            "warnings": self.warnings,
            "findings": self.findings,
            "created": now.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._started, 3),
            "skipped": self.skipped,
            "packing": {
                item.name: json.loads(json.dumps(item.frame.attrs, default=str))
                for section in self.sections
                for item in section.items
                if isinstance(item, Table) and "engine" in item.frame.attrs
            },
            **dict.fromkeys(FACTS),
            **self.provenance,
            "files": list(files),
        }

    def html(self) -> str:
        """The page. Same report, same text: no date in it (the manifest has that)."""
        return page(
            "report.html.j2",
            ("report.css", "viewer.css"),
            ("page.js", "graph.js", "viewer.js"),
            report=self,
            title=shorten(one_line(self.title)),
            facts=self._facts(),
            kind=_kind,
        )

    def _facts(self) -> list[tuple[str, str]]:
        return [(name, _fact(value)) for name, value in self.provenance.items()]

    def _files(self) -> dict[str, bytes]:
        files = {name: text.encode("utf-8") for name, text in pages(self).items()}
        for item in (item for section in self.sections for item in section.items):
            if isinstance(item, Table):
                files[f"{item.name}.csv"] = item.csv()
            elif isinstance(item, Picture):
                files[f"{item.name}.csv"] = item.table.csv()
                files[f"figures/{item.name}.svg"] = item.figure.svg
                files[f"figures/{item.name}.png"] = item.figure.png
            elif isinstance(item, (Attention, TokenText)):
                files[f"{item.table.name}.csv"] = item.table.csv()
        self._check_pages(files)
        check_distinct([*files, MANIFEST])
        manifest = json.dumps(self.manifest([*files]), indent=2, allow_nan=False)
        return files | {MANIFEST: manifest.encode("ascii") + b"\n"}

    def _check_pages(self, files: Mapping[str, bytes]) -> None:
        """Raise ValueError where a page of the report shows what has no file."""
        for path, own in self.pages.items():
            for item in (item for section in own.sections for item in section.items):
                table = getattr(item, "table", item)
                if isinstance(item, Picture) or (
                    isinstance(table, Table) and f"{table.name}.csv" not in files
                ):
                    raise ValueError(
                        f"{path}: {item.name!r} is not in the report itself; a page shows parts of "
                        "its tables, under their names, and no figures"
                    )


def _kind(item: object) -> str:
    return type(item).__name__


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key} {_fact(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return "–" if value is None else shorten(one_line(str(value)), 4 * MAX_CELL)
