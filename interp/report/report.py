"""Report: what was asked, the answer and what shows it, what was found; then the evidence, how
sure, what would make it wrong.

report = Report("Title", "Question?", provenance=provenance(config, model))
report.answer("One sentence in plain words.").figure(figure, "Caption", name="effects")
report.finding("In words, filled from the numbers.", at="effects")
section = report.section("Heading", "A paragraph.")
section.table(frame, "Caption")
report.write("reports/title")      # index.html, *.csv, figures/*.svg|png, manifest.json
report.show()                      # in a notebook;  report.to_markdown() for a text
"""

from __future__ import annotations

import datetime
import html
import importlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from interp.core.files.untrusted import check_distinct
from interp.core.visible import one_line

from .attention import Attention
from .contents import Contents, Picture, Section
from .folder import KIND, MANIFEST, replacing, write_below
from .markdown import markdown
from .pages import page_files, page_html
from .table import Schema, Table
from .text import shorten
from .tokens import TokenText

__all__ = ["Report", "Section"]

FACTS = (
    *("command", "config", "seed", "model", "device", "dtype", "precision", "threads", "git"),
    *("packages", "python", "platform"),
)
"""What every manifest says of its origin; null where nobody told."""


class Report(Contents):
    """The answer to one question. Make it first: its clock starts then.

    `tables` declares the tables that it may have and their columns (see `table.Schema`), those that
    may be blank with a "?"; a table that is not as declared raises ValueError when it is added.
    """

    def __init__(
        self,
        title: str,
        question: str,
        *,
        analysis: str = "",
        provenance: Mapping[str, Any] | None = None,
        tables: Schema | None = None,
    ) -> None:
        super().__init__(title, question, analysis=analysis, provenance=provenance, tables=tables)
        self._started = time.perf_counter()

    def write(self, directory: str | Path, figures: Literal["page", "paper"] = "page") -> Path:
        """Write the directory, all or nothing, and return the path of its index.html.

        With figures="paper" it holds the figures alone, for print, as figures/*.svg, *.pdf, and
        *.png in 300 dots per inch; the path is that of their folder.

        An older report there is replaced once the new one is whole. Raises FileExistsError where
        something else lies (`check_destination`), and ValueError where a sentence leads to what is
        not there, or a paper's figures are asked for and there are none.
        """
        if figures not in ("page", "paper"):
            raise ValueError(f"figures={figures!r}: expected 'page' or 'paper'")
        files = self._files() if figures == "page" else self._print_files()
        with replacing(directory) as new:
            for name, data in files.items():
                write_below(new, name, data)
        return Path(directory) / ("index.html" if figures == "page" else "figures")

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
            f'<iframe sandbox="allow-scripts allow-downloads" title="{title}" '
            f'srcdoc="{html.escape(whole)}" '
            'style="width:100%;height:42rem;border:1px solid #8886;resize:vertical"></iframe>'
        )

    def to_markdown(self) -> str:
        """The report for README files and issues; addresses are relative to its folder."""
        return markdown(self)

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
            "answer": self.headline,
            "findings": [str(finding) for finding in self.findings],
            "created": now.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._started, 3),
            "skipped": self.skipped,
            "packing": {
                item.name: json.loads(json.dumps(item.frame.attrs, default=str))
                for item in self.exhibits()
                if isinstance(item, Table) and "engine" in item.frame.attrs
            },
            **dict.fromkeys(FACTS),
            **self.provenance,
            "files": list(files),
        }

    def html(self) -> str:
        """The page. Raises ValueError where a sentence leads to what is not there."""
        return page_html(self)

    def _files(self) -> dict[str, bytes]:
        files = {name: text.encode("utf-8") for name, text in page_files(self).items()}
        for item in self.exhibits():
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
        return files | {MANIFEST: _json(self.manifest([*files]))}

    def _print_files(self) -> dict[str, bytes]:
        pictures = [item for item in self.exhibits() if isinstance(item, Picture)]
        if not pictures:
            raise ValueError("the report has no figure to print; figures='page' writes the report")
        files = {}
        for item in pictures:
            files[f"figures/{item.name}.svg"] = item.figure.svg
            files[f"figures/{item.name}.pdf"] = item.figure.pdf
            files[f"figures/{item.name}.png"] = item.figure.print_png
        return files | {MANIFEST: _json(self.manifest([*files]) | {"figures": "paper"})}

    def _check_pages(self, files: Mapping[str, bytes]) -> None:
        """Raise ValueError where a page of the report shows what has no file."""
        for path, beside in self.pages.items():
            for item in beside.exhibits():
                table = getattr(item, "table", item)
                if isinstance(item, Picture) or (
                    isinstance(table, Table) and f"{table.name}.csv" not in files
                ):
                    raise ValueError(
                        f"{path}: {item.name!r} is not in the report itself; a page shows parts of "
                        "its tables, under their names, and no figures"
                    )


def _json(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2, allow_nan=False).encode("ascii") + b"\n"
