"""The rows of one pass through a stack, and the lines that they have: where which of them stands.

A line is one row at one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .stages import Entry, Row


class Lines(NamedTuple):
    """Which row (of the pass) and which position each line is."""

    row: np.ndarray
    pos: np.ndarray

    def then(self, other: Lines) -> Lines:
        """These, and the others behind them."""
        return Lines(np.append(self.row, other.row), np.append(self.pos, other.pos))

    def only(self, chosen: np.ndarray) -> Lines:
        """Some of them, as an index or a mask says."""
        return Lines(self.row[chosen], self.pos[chosen])


NO_LINES = Lines(*np.zeros((2, 0), dtype=np.int64))


class Group(NamedTuple):
    """Rows first … last − 1 of a pass, which start alike."""

    first: int
    last: int
    start: int

    @property
    def n(self) -> int:
        """How many rows they are."""
        return self.last - self.first


class PassRows:
    """The rows of a pass through a stack `width` positions wide, sorted by where they start."""

    def __init__(self, rows: Sequence[Row], width: int) -> None:
        self.order = sorted(range(len(rows)), key=lambda i: (rows[i].start, rows[i].entry))
        """Of each row, which of the given ones it is."""
        self.rows, self.width = [rows[i] for i in self.order], width
        self.starts = np.array([row.start for row in self.rows])
        self.examples = np.array([row.example for row in self.rows])
        self._entering: dict[Entry, list[int]] = {}
        for i, row in enumerate(self.rows):
            self._entering.setdefault(row.entry, []).append(i)

    @property
    def all(self) -> np.ndarray:
        """Every row."""
        return np.arange(len(self.rows))

    def entered(self, entry: Entry) -> np.ndarray:
        """The rows that have entered by then."""
        return np.flatnonzero(np.array([row.entry <= entry for row in self.rows]))

    def changed(self, entry: Entry) -> Lines:
        """The lines that the rows which enter here change of the base run."""
        entering = self._entering.get(entry, [])
        counts = [len(self.rows[i].changed) for i in entering]
        pos = [p for i in entering for p in self.rows[i].changed]
        row = np.repeat(entering, counts).astype(np.int64)
        return Lines(row, np.array(pos, dtype=np.int64))

    def from_start(self, rows: np.ndarray) -> Lines:
        """All lines of these rows."""
        counts = self.width - self.starts[rows]
        row = np.repeat(rows, counts)
        first = np.repeat(counts.cumsum() - counts, counts)
        return Lines(row, np.arange(len(row)) - first + self.starts[row])

    def read(self, rows: np.ndarray, positions: np.ndarray) -> Lines:
        """The lines of these rows at `positions` [example n]; one that lies left of a row's start
        counts as there."""
        at = positions[self.examples[rows]]
        pos = np.maximum(at, self.starts[rows][:, None])
        return Lines(np.repeat(rows, at.shape[1]), pos.reshape(-1))

    def only_read(self, lines: Lines, positions: np.ndarray) -> Lines:
        """Those of the lines that stand at `positions` [example n]."""
        at = positions[self.examples[lines.row]]
        return lines.only((at == lines.pos[:, None]).any(1))

    def groups(self, rows: np.ndarray, at_once: int) -> Iterator[Group]:
        """Consecutive ones of these rows that start alike, at most so many together."""
        edges = np.flatnonzero(np.diff(self.starts[rows])) + 1
        for alike in np.split(rows, edges):
            for i in range(0, len(alike), at_once):
                few = alike[i : i + at_once]
                yield Group(int(few[0]), int(few[-1]) + 1, int(self.starts[few[0]]))

    def numbers(self, lines: Lines) -> np.ndarray:
        """[row pos]: which of these lines it is, −1: none."""
        number = np.full((len(self.rows), self.width), -1)
        number[lines.row, lines.pos] = np.arange(len(lines.row))
        return number
