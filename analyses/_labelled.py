"""Texts with labels, from a user's CSV or JSON-lines file.

Every fault is named with the file and the line, and nothing is left out in silence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

MAX_BYTES = 64 << 20
JSON_LINES = (".jsonl", ".ndjson", ".json")
NO_VALUE = ("nan", "null", "none", "na", "n/a")
"""What writers put where there is no label; in any case."""

Row = tuple[int, dict[str, Any]]


def read_labelled(
    path: str | Path,
    *,
    text: str = "text",
    label: str | None = "label",
    group: str | None = None,
    more: Sequence[str] = (),
) -> pd.DataFrame:
    """The rows of a CSV file with a header, a .tsv, or a file of JSON objects, one a line (.jsonl):
    line text label group, and `more` under their own names. All but `line` are text.

    `text`, `label` and `group` name the file's columns; a label of None leaves that column out, and
    so does a group of None. Other columns are not read. Labels are stripped; numbers and truth
    values of JSON become text as JSON writes them. Raises ValueError, naming the line, on a cell
    that is empty or no value (NaN, null); on a file that is no UTF-8, larger than 64 MiB, without
    rows or without a column (naming those there are); and on fewer than two different labels.
    """
    path = Path(path)
    wanted = {"text": text} | {k: v for k, v in (("label", label), ("group", group)) if v}
    wanted |= {name: name for name in more}
    rows = list(_json_rows(path) if path.suffix.lower() in JSON_LINES else _csv_rows(path, wanted))
    if not rows:
        raise ValueError(f"{path}: no rows; expected {', '.join(wanted.values())} and a text a row")
    found = [{"line": line, **_cells(path, line, row, wanted)} for line, row in rows]
    frame = pd.DataFrame(found, columns=["line", *wanted])
    if "label" in wanted and frame["label"].nunique() < 2:
        raise ValueError(
            f"{path}: all {len(frame)} rows have the {label} {frame['label'].iloc[0]!r}; two "
            "different ones are needed"
        )
    return frame


def _decoded(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes; take a part of it")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None


def _csv_rows(path: Path, wanted: dict[str, str]) -> Iterator[Row]:
    tab = path.suffix.lower() == ".tsv"
    source = io.StringIO(_decoded(path), newline="")
    lines = csv.reader(source, strict=True, delimiter="\t" if tab else ",")
    header, begins = None, 1
    try:
        for cells in lines:
            line, begins = begins, lines.line_num + 1
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(path, header, wanted)
            elif any(cells):
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, line {line}: {len(cells)} cells for {len(header)} columns "
                        f"({', '.join(header)}); a cell with a comma stands in quotes"
                    )
                yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {begins}: {error}; a cell with a comma, a quote or a line break stands "
            'in quotes, and a quote inside it is written ""'
        ) from None


def _check_header(path: Path, header: list[str], wanted: dict[str, str]) -> None:
    missing = [name for name in wanted.values() if name not in header]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; there are: {', '.join(header)}"
        )
    twice = sorted({name for name in wanted.values() if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: the columns {', '.join(twice)} stand there twice")


def _json_rows(path: Path) -> Iterator[Row]:
    for line, one in enumerate(_decoded(path).split("\n"), 1):
        if not one.strip():
            continue
        try:
            row = json.loads(one)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {line}: not a JSON object ({error}); write one object a line"
            ) from None
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
        if stripped.lower() in NO_VALUE and (name != "text" or not isinstance(value, str)):
            raise ValueError(f"{path}, line {line}: {column} is {cell}, which is no value")
        found[name] = cell if name == "text" else stripped
    return found
