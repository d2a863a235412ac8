"""The list of all reports in a folder: one page with what each asked, found and looks like.

Manifests are read as data that anybody may have written: bounded, checked for their types, shown as
text. What cannot be read is listed as such.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from interp.core.files.writing import write_file
from interp.core.visible import one_line

from .folder import KIND, MANIFEST, check_writable
from .markup import page
from .text import shorten

MARK = '<meta name="generator" content="interp reports">'
"""By this a page is known as ours, to be replaced."""
MAX_MANIFEST = 16 << 20
"""Bytes."""
MAX_PIXELS = 100_000_000
THUMBNAIL = (288, 216)
"""Pixels at most; twice what the page shows."""
FIGURE = re.compile(r"figures/[a-z0-9-]{1,80}\.png")
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Entry:
    """One report as the list shows it; `broken` says why there is no more than an address."""

    folder: str
    """Where it lies, seen from the list."""
    title: str = ""
    model: str = ""
    day: str = ""
    created: str = ""
    question: str = ""
    finding: str = ""
    thumbnail: str = ""
    """A data: address, or nothing where the report has no figure."""
    broken: str = ""

    @property
    def address(self) -> str:
        """The page, as a link."""
        return quote(f"{self.folder}/index.html", errors="surrogateescape")


def write_index(folder: str | Path) -> Path:
    """Write <folder>/index.html, a list of the reports in it and below; returns its path.

    Raises NotADirectoryError where there is no such folder, FileExistsError where an index.html
    lies that is not such a list, PermissionError where nothing may be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; name the one that your reports are in")
    file = folder / "index.html"
    check_writable(file.absolute())
    if file.exists() and MARK.encode() not in file.read_bytes()[:4096]:
        raise FileExistsError(f"{file} is not a list of reports; move it or name another folder")
    text = _html(entries(folder))
    write_file(file, text.encode("utf-8"))
    return file


def entries(folder: Path) -> list[Entry]:
    """The reports in a folder and below: the newest first, the broken ones last."""
    listed = [_entry(folder, one) for one in _report_folders(folder)]
    reports = sorted(filter(None, listed), key=lambda entry: entry.folder)
    reports.sort(key=lambda entry: entry.created, reverse=True)
    return sorted(reports, key=lambda entry: bool(entry.broken))


def _html(listed: list[Entry]) -> str:
    """The page; its policy allows its own style sheet and images as data: addresses."""
    return page("index.html.j2", ("report.css", "index.css"), entries=listed, mark=MARK)


def _report_folders(folder: Path) -> Iterator[Path]:
    """Folders with a manifest; hidden ones are at work or left over, links may lead in circles."""
    for where, below, files in os.walk(folder):
        below[:] = [] if MANIFEST in files else [one for one in below if not one.startswith(".")]
        if MANIFEST in files:
            yield Path(where)


def _entry(home: Path, folder: Path) -> Entry | None:
    """A report as the list shows it; None of figures for a paper, which have no page."""
    place = folder.relative_to(home).as_posix()
    try:
        manifest = _read(folder / MANIFEST)
        if manifest.get("figures") == "paper":
            return None
        texts = {key: _text(manifest, key) for key in ("title", "question", "answer", "created")}
        findings = manifest.get("findings")
        warnings = manifest.get("warnings", [])
        for what, texts_of in (("findings", findings), ("warnings", warnings)):
            if not (isinstance(texts_of, list) and all(isinstance(one, str) for one in texts_of)):
                raise ValueError(f"{what} are no list of texts")
        if not (folder / "index.html").is_file():
            raise ValueError("there is no index.html beside it")
    except (OSError, ValueError, RecursionError) as error:
        reason = shorten(one_line(getattr(error, "strerror", None) or str(error)))
        return Entry(folder=place, broken=reason)
    shown = [*warnings, texts["answer"], *findings]  # older reports have no answer
    model = manifest.get("model")
    named = model.get("name") if isinstance(model, dict) else None
    day = DAY.match(texts["created"])
    return Entry(
        folder=place,
        title=shorten(one_line(texts["title"])) or place,
        model=shorten(one_line(named), 80) if isinstance(named, str) else "",
        day=day[0] if day else "",
        created=texts["created"] if day else "",
        question=shorten(one_line(texts["question"]), 400),
        finding=shorten(one_line(next(filter(None, shown), "")), 400),
        thumbnail=_thumbnail(folder, manifest.get("files")),
    )


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_MANIFEST:
        raise ValueError(f"the manifest is larger than {MAX_MANIFEST >> 20} MB")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError:
        raise ValueError("the manifest is not readable as JSON") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError("the manifest is not that of a report")
    return manifest


def _text(manifest: dict[str, Any], key: str) -> str:
    value = manifest.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _thumbnail(folder: Path, files: Any) -> str:
    """The first figure, shrunk; nothing where there is none that can be read."""
    named = files if isinstance(files, list) else []
    first = next((f for f in named if isinstance(f, str) and FIGURE.fullmatch(f)), None)
    if first is None or (folder / "figures").is_symlink() or (folder / first).is_symlink():
        return ""
    small = io.BytesIO()
    try:
        with Image.open(folder / first, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return ""
            drawn = image.convert("RGB")
        drawn.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        drawn.quantize(64).save(small, "PNG", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""  # Pillow raises SyntaxError on a broken file
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
