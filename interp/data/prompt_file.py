"""Prompts of the user's own that are texts alone, without answers."""

from __future__ import annotations

from pathlib import Path

from interp.core.files import read_csv, read_text

TABLES = (".csv", ".tsv", ".tab")
"""Endings of files that are tables."""
COLUMNS = ("clean", "text")
"""Columns that hold prompts: those of a file of pairs, which has corrupted ones beside them, and
those of a file of texts."""

BOTH = "--prompt takes texts and --prompts a file of them: give one of the two"


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts of a UTF-8 file: one per line, or, of a CSV file, one per row.

    A CSV file has them in the column clean (as pairs of prompts do) or text. Blank lines are left
    out. Raises ValueError, naming the file, where there is no prompt, no such column, a blank
    cell, or what `files.read_text` and `files.read_csv` refuse.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        lines = tuple(line for line in read_text(path).split("\n") if line.strip())
        if not lines:
            raise ValueError(f"{path}: no line holds a prompt")
        return lines
    rows = read_csv(path)
    column = next((name for name in COLUMNS if name in rows[0].cells), None)
    if column is None:
        raise ValueError(
            f"{path}: no column {' or '.join(COLUMNS)}; there are: {', '.join(rows[0].cells)}"
        )
    for row in rows:
        if not row.cells[column].strip():
            raise ValueError(f"{row.where}: {column} is empty")
    return tuple(row.cells[column] for row in rows)
