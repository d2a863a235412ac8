"""Whether two folders of reports hold the same numbers: every CSV, column by column, row by row.

    python benchmarks/same_csvs.py BEFORE AFTER [--only head-ablation …] [--rtol 1e-6]

Text must be equal, and numbers must be equal exactly or, with --rtol and --atol, as far as
|before − after| ≤ atol + rtol · |before|. A CSV or a column that is new is listed and allowed. One
that is gone, other rows, columns in another order and other cells are faults, each named with its
file, column, row and both values. Exit code: 0 where there is no fault, 1 where there are some,
2 where the folders cannot be compared.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
SHOWN = 5
"""Faults of one column that are printed; the others are counted."""
WIDTH = 60
"""Characters of a cell that are printed."""


class Table(NamedTuple):
    """A CSV file: its columns in order and their cells. A name that is there twice has a number."""

    names: list[str]
    columns: dict[str, list[str]]

    @property
    def n_rows(self) -> int:
        """How many rows the table has."""
        return len(next(iter(self.columns.values()), []))


class Tolerance(NamedTuple):
    """How far two numbers may lie apart."""

    relative: float = 0.0
    absolute: float = 0.0

    def holds(self, before: str, after: str) -> bool:
        """Whether two cells that are numbers are the same number."""
        if self == EXACT:
            return Decimal(before) == Decimal(after)
        limit = self.absolute + self.relative * abs(float(before))
        return abs(float(before) - float(after)) <= limit


EXACT = Tolerance()


def read_table(path: Path) -> Table:
    """Raises ValueError on a row that has more or fewer cells than the header."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = list(csv.reader(file, strict=True)) or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {number} has {len(row)} cells, the header {len(header)}")
    times: Counter[str] = Counter()
    names = []
    for name in header:
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} ({times[name]})")
    return Table(names, {name: [row[i] for row in rows] for i, name in enumerate(names)})


def csv_files(folder: Path, only: Sequence[str] | None) -> dict[str, Path]:
    """The CSV files of the folder by their path in it. Raises ValueError where there is none, and
    where a report of `only` is not there."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    absent = [name for name in only or () if not (folder / name).is_dir()]
    if absent:
        raise ValueError(f"{folder} has no report {absent[0]!r}")
    homes = [folder] if only is None else [folder / name for name in only]
    files = {
        path.relative_to(folder).as_posix(): path
        for home in homes
        for path in sorted(home.rglob("*.csv"))
    }
    if not files:
        raise ValueError(f"{folder} holds no CSV, so that nothing would be compared")
    return files


def faults_of_column(before: Sequence[str], after: Sequence[str], near: Tolerance) -> list[str]:
    """What differs, a line per cell. The cells of a column are numbers if all are that are not
    blank."""
    numbers = all(NUMBER.fullmatch(cell) for cell in (*before, *after) if cell)
    faults = []
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if old == new or (numbers and old and new and near.holds(old, new)):
            continue
        apart = f" (apart {float(new) - float(old):.3g})" if numbers and old and new else ""
        faults.append(f"row {number}: {_cell(old)} → {_cell(new)}{apart}")
    return faults


def faults_of_table(before: Table, after: Table, near: Tolerance) -> Iterator[str]:
    """What differs between two tables of one name, the new columns apart."""
    for name in before.names:
        if name not in after.columns:
            yield f"column {name!r} is gone"
    kept = [name for name in after.names if name in before.columns]
    order = [name for name in before.names if name in after.columns]
    if kept != order:
        yield f"columns in another order: {order} → {kept}"
    if before.n_rows != after.n_rows:
        yield f"{before.n_rows} rows → {after.n_rows} rows"
        return
    for name in order:
        faults = faults_of_column(before.columns[name], after.columns[name], near)
        yield from (f"column {name!r}, {fault}" for fault in faults[:SHOWN])
        if faults[SHOWN:]:
            yield f"column {name!r}: {len(faults) - SHOWN} more of {before.n_rows} rows"


def compare(
    before: Path, after: Path, only: Sequence[str] | None = None, near: Tolerance = EXACT
) -> tuple[list[str], list[str]]:
    """The faults, and what is new: a line each, which begins with the file."""
    old, new = csv_files(before, only), csv_files(after, only)
    faults = [f"{name}: the file is gone" for name in old if name not in new]
    news = [f"{name}: the file is new" for name in new if name not in old]
    for name in (name for name in old if name in new):
        tables = read_table(old[name]), read_table(new[name])
        faults += [f"{name}: {fault}" for fault in faults_of_table(*tables, near)]
        columns = [one for one in tables[1].names if one not in tables[0].columns]
        news += [f"{name}: column {one!r} is new" for one in columns]
    return faults, news


def main(words: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("after", type=Path, metavar="AFTER")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these reports (folders) alone")
    parser.add_argument("--rtol", type=float, default=0.0, help="of the number before (0)")
    parser.add_argument("--atol", type=float, default=0.0, help="in the number's own unit (0)")
    parsed = parser.parse_args(words)
    csv.field_size_limit(sys.maxsize)  # a token may be 100,000 characters long
    near = Tolerance(parsed.rtol, parsed.atol)
    try:
        faults, news = compare(parsed.before, parsed.after, parsed.only, near)
        n = len(csv_files(parsed.before, parsed.only))
    except (OSError, ValueError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in (*(f"new: {one}" for one in news), *(f"DIFFERS: {one}" for one in faults)):
        print(line.encode("utf-8", "backslashreplace").decode())
    print(f"{n} CSV files compared, {len(faults)} faults, {len(news)} new")
    return 1 if faults else 0


def _cell(text: str) -> str:
    return repr(text if len(text) <= WIDTH else f"{text[:WIDTH]}…")


if __name__ == "__main__":
    sys.exit(main())
