"""Texts with labels, from a user's CSV or JSON-lines file.

Every fault is named with the file and the line, and nothing is left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp.core.files import parse_json_text, read_csv, read_text

JSON_LINES = (".jsonl", ".ndjson", ".json")

Row = tuple[int, dict[str, Any]]


def read_labelled(
    path: str | Path,
    *,
    text: str = "text",
    label: str | None = "label",
    group: str | None = None,
    more: Sequence[str] = (),
) -> pd.DataFrame:
    """The rows of a CSV file with a header (see `interp.files.read_csv`), or of a file of JSON
    objects, one a line (.jsonl): line text label group, and `more` under their own names. All but
    `line` are text.

    `text`, `label` and `group` name the file's columns; a label of None leaves that column out, and
    so does a group of None. Other columns are not read. Labels are stripped; numbers and truth
    values of JSON become text as JSON writes them. Raises ValueError, naming the line, on a cell
    that is empty, and on a null of JSON; on a file without a column (naming those there are), or
    that the readers of `interp.files` refuse; and on fewer than two different labels.
    """
    path = Path(path)
    wanted = {"text": text} | {k: v for k, v in (("label", label), ("group", group)) if v}
    wanted |= {name: name for name in more}
    if path.suffix.lower() in JSON_LINES:
        rows = list(_json_rows(path))
    else:
        rows = [(row.line, row.cells) for row in read_csv(path, tuple(wanted.values()))]
    if not rows:
        raise ValueError(f"{path}: no rows; expected {', '.join(wanted.values())} and a text a row")
    found = [{"line": line, **_cells(path, line, row, wanted)} for line, row in rows]
    frame = pd.DataFrame(found, columns=["line", *wanted])
    if "label" in wanted and len(set(frame["label"])) < 2:
        raise ValueError(
            f"{path}: all {len(frame)} rows have the {label} {frame['label'].iloc[0]!r}; two "
            "different ones are needed"
        )
    return frame


def _json_rows(path: Path) -> Iterator[Row]:
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        row = parse_json_text(text, f"{path}, line {line}")
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {line}: a {type(row).__name__}, expected an object such as "
                '{"text": "…", "label": "…"}'
            )
        yield line, row


def _cells(path: Path, line: int, row: dict[str, Any], wanted: dict[str, str]) -> dict[str, str]:
    found = {}
    for name, column in wanted.items():
        if column not in row:
            raise ValueError(
                f"{path}, line {line}: no column {column!r}; there are: {', '.join(row)}"
            )
        value = row[column]
        if isinstance(value, (dict, list)):
            raise ValueError(
                f"{path}, line {line}: {column} is a {type(value).__name__}, expected text"
            )
        cell = value if isinstance(value, str) else json.dumps(value)
        stripped = cell.strip()
        if not stripped:
            raise ValueError(f"{path}, line {line}: {column} is empty")
        if value is None:
            raise ValueError(f"{path}, line {line}: {column} is null, which is no value")
        found[name] = cell if name == "text" else stripped
    return found
