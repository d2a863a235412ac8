"""Rows of a CSV file with a header. Cells are text; a column that is numbers is asked for as such.

No word is taken for a missing value ("null", "NA" and "None" are words), and nothing is guessed
from cells: the header alone says whether a comma, a semicolon or a tab parts them. Blank lines are
left out, and every fault is named with the file and the line.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from .text import MAX_BYTES, decode, read_bytes

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
TABS = (".tsv", ".tab")
"""Endings of files whose cells are parted by tabs, whatever their header holds."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')
HEADER = re.compile(r'(?:[ \t]*(?:\r\n?|\n))*((?:"(?:[^"]|"")*"|[^"\r\n])*)')
"""The first line that is not blank; a line end in quotes does not end it."""
LINE_END = re.compile(r"\r\n?|\n")
QUOTE_BEHIND_SPACE = re.compile(r'[,;\t] +"')
GUARDED = re.compile(r"'+[=+\-@]")
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0+)?")
NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")
MAX_WHOLE = 2**63
Number = TypeVar("Number", int, float)
HOW_TO_QUOTE = (
    "a cell with a comma, a quote or a line break stands in quotes, and a quote inside it is "
    'written ""'
)


class Row(NamedTuple):
    """One row of a file: its cells by column."""

    path: Path
    line: int
    """The line of the file at which the row begins, from 1."""
    cells: dict[str, str]

    @property
    def where(self) -> str:
        """File and line, as errors name them."""
        return f"{self.path}, line {self.line}"

    def whole_number(self, column: str) -> int | None:
        """The cell as `whole_number` reads it; None where it is blank."""
        return self._converted(column, whole_number)

    def number(self, column: str) -> float | None:
        """The cell as `number` reads it; None where it is blank."""
        return self._converted(column, number)

    def _converted(self, column: str, convert: Callable[[str], Number]) -> Number | None:
        if not self.cells[column].strip():
            return None
        try:
            return convert(self.cells[column])
        except ValueError as error:
            raise ValueError(f"{self.where}, column {column!r}: {error}") from None


def read_csv(
    path: str | Path, columns: Sequence[str] = (), *, max_bytes: int = MAX_BYTES
) -> list[Row]:
    """The rows of a CSV file whose header names at least these columns.

    Column names are stripped, cells are as they stand there; a line break in quotes that is the
    file's own is "\\n". Raises ValueError, naming file and line, on a file that is no UTF-8 text,
    has no header or no rows, lacks a column or repeats one, has a row of more or fewer cells than
    columns, or broken quotes; and where more than one kind of delimiter stands in the header.
    """
    path = Path(path)
    text = decode(read_bytes(path, max_bytes), path)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; expected a header{_such_as(columns)}")
    delimiter = _delimiter(path, text)
    records = _records(path, text, delimiter)
    _refuse_quotes_behind_spaces(path, text, delimiter, records)
    ends = LINE_END.search(text)
    rows = list(_rows(path, records, ends[0] if ends else "\n", columns))
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    return rows


def whole_number(cell: str) -> int:
    """A whole number as people and pandas write it: "12", "-1", " 5 ", "12.0".

    Raises ValueError on anything else: "007" may be a code, "1e3" and "1.5" are no index.
    """
    text = cell.strip()
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{cell!r} is no whole number; expected digits alone, such as 12 or -1")
    value = int(text.partition(".")[0]) if len(text) < 40 else MAX_WHOLE
    if abs(value) >= MAX_WHOLE:
        raise ValueError(f"{cell[:40]!r} is past the whole numbers of 64 bits")
    return value


def number(cell: str) -> float:
    """A finite number with a decimal point: "12", "-0.5", "1e3", " 5 ".

    Raises ValueError on anything else: "007" may be a code, "1,5" has no decimal point, "nan" and
    "1e999" are no finite numbers.
    """
    text = cell.strip()
    match = NUMBER.fullmatch(text)
    if match is None or not any(c.isdigit() for c in f"{match[1] or ''}{match[2] or ''}"):
        raise ValueError(f"{cell!r} is no number; expected one such as 12, -0.5 or 1e3")
    value = float(text)
    if abs(value) == float("inf"):
        raise ValueError(f"{cell!r} is too large for a number")
    return value


def unguarded(cell: str) -> str:
    """A name as it was before a report wrote it: one apostrophe less before = + - or @, which
    reports put there so that no spreadsheet runs the cell."""
    return cell[1:] if GUARDED.match(cell) else cell


def _delimiter(path: Path, text: str) -> str:
    if path.suffix.lower() in TABS:
        return "\t"
    match = HEADER.match(text)
    header = QUOTED.sub("", match[1] if match else "")
    present = [one for one in DELIMITERS if one in header]
    if len(present) > 1:
        kinds = " and ".join(DELIMITERS[one] for one in present)
        raise ValueError(
            f"{path}: the header holds {kinds}, and one of them must part the columns; put the "
            f"names that hold another in quotes: {header.strip()[:200]!r}"
        )
    return present[0] if present else ","


def _rows(
    path: Path, records: list[tuple[int, list[str]]], own_end: str, columns: Sequence[str]
) -> Iterator[Row]:
    header: list[str] | None = None
    for line, cells in records:
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(path, line, header, columns)
        elif len(cells) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(cells)} cells for {len(header)} columns "
                f"({', '.join(header)}); {HOW_TO_QUOTE}"
            )
        else:
            plain = (cell.replace(own_end, "\n") for cell in cells)
            yield Row(path, line, dict(zip(header, plain, strict=True)))


def _records(
    path: Path, text: str, delimiter: str, skip_spaces: bool = False
) -> list[tuple[int, list[str]]]:
    """Every record that is not blank, with the line at which it begins."""
    records, begins = [], 1
    usual = csv.field_size_limit(len(text) + 1)  # of the process; the file's own size is the limit
    try:
        lines = csv.reader(
            io.StringIO(text, newline=""),
            strict=True,
            delimiter=delimiter,
            skipinitialspace=skip_spaces,
        )
        for cells in lines:
            if any(cell.strip() for cell in cells):
                records.append((begins, cells))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {begins}: {error}; {HOW_TO_QUOTE}") from None
    finally:
        csv.field_size_limit(usual)
    return records


def _check_header(path: Path, line: int, header: list[str], columns: Sequence[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{path}, line {line}: the column {', '.join(map(repr, repeated))} stands there twice"
        )
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{path}, line {line}: no column {', '.join(map(repr, missing))}; there are: "
            f"{', '.join(header)}"
        )


def _refuse_quotes_behind_spaces(
    path: Path, text: str, delimiter: str, records: list[tuple[int, list[str]]]
) -> None:
    """In `a, "b"` the quotes are part of the cell; who writes that means that they are not."""
    if not QUOTE_BEHIND_SPACE.search(text):
        return
    spaced = _records(path, text, delimiter, skip_spaces=True)
    for (line, cells), (_, others) in itertools.zip_longest(records, spaced, fillvalue=(0, [])):
        if [cell.lstrip(" ") for cell in cells] != [cell.lstrip(" ") for cell in others]:
            raise ValueError(
                f"{path}, line {line}: a cell begins with a space and a quote; quotes begin a cell "
                "directly behind the delimiter, so take the space away"
            )


def _such_as(columns: Sequence[str]) -> str:
    return f" such as {','.join(columns)}" if columns else ""
