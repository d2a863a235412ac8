"""The tap of a pass: each row is edited as its node says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.core.tap import Tap
from interp.core.tokens import Tokens

from ..edits import Replace, Rows
from ..nodes import Part, Selections
from .plan import Base, edited_rows
from .stages import Row, is_of


class Lines(NamedTuple):
    """Which row (of the pass) and which position each line is."""

    row: np.ndarray
    pos: np.ndarray

    def then(self, other: Lines) -> Lines:
        return Lines(np.append(self.row, other.row), np.append(self.pos, other.pos))


class Group(NamedTuple):
    """Rows first … last − 1 of a pass, which start alike."""

    first: int
    last: int
    start: int


class RowEdit(NamedTuple):
    """What is done at one site to rows that start alike."""

    row: np.ndarray
    selections: Selections
    rows: Rows
    start: int
    """Of the rows. A tensor that counts the source's positions begins at 0 nevertheless."""


class RowTap(Tap):
    """Edits each row of a pass as its node says.

    Sites of one tensor per position come as lines; those of attention, and whatever lies behind
    the blocks where it is edited, as rows from their start on.
    """

    def __init__(
        self, model: Any, tokens: Tokens, base: Base, replace: Replace, rows: Sequence[Row]
    ) -> None:
        self.sites, self.base, self.replace = model.sites, base, replace
        self.device = tokens.device
        self.examples = np.array([row.example for row in rows])
        self.lines = Lines(*np.zeros((2, 0), dtype=np.int64))
        self.group: Group | None = None
        edited: dict[tuple[str, int], list[int]] = {}
        chosen: dict[tuple[str, int], list[list[Part]]] = {}
        for i, row in enumerate(rows):
            parts: dict[str, list[Part]] = {}
            for part in row.node.parts:
                if is_of(part.site, model):
                    parts.setdefault(part.site, []).append(part)
            for site, some in parts.items():
                edited.setdefault((site, row.start), []).append(i)
                chosen.setdefault((site, row.start), []).append(some)
        self.edits: dict[str, list[RowEdit]] = {}
        for site, start in sorted(edited):
            at = edited[site, start]
            lines = [
                (rows[i].example, some) for i, some in zip(at, chosen[site, start], strict=True)
            ]
            told = edited_rows(self.sites[site], [rows[i].pair for i in at], tokens)
            if "pos" not in told.site.source:
                told = told._replace(start=start)
            selections = Selections.of(told.site, lines, tokens)
            edit = RowEdit(np.array(at), selections, told, start)
            self.edits.setdefault(site, []).append(edit)

    def wants(self, site: str) -> bool:
        return site in self.edits

    def changes(self, site: str) -> bool:
        return site in self.edits

    def __call__(self, site: str, x: Tensor) -> Tensor:
        edits = self.edits.get(site)
        if edits is None:
            return x
        if self.group is None:
            return self._on_lines(site, x[0], edits)[None]
        return self._on_rows(x, edits, self.group)

    def _on_rows(self, x: Tensor, edits: list[RowEdit], group: Group) -> Tensor:
        """x [rows, *site axes] from the group's start on."""
        for edit in edits:
            here = np.flatnonzero((edit.row >= group.first) & (edit.row < group.last))
            if len(here) and edit.start == group.start:
                at = self._index(edit.row[here] - group.first)
                x = x.index_copy(0, at, self._replaced(x[at], _some(edit, here)))
        return x

    def _on_lines(self, site: str, x: Tensor, edits: list[RowEdit]) -> Tensor:
        """x [lines, *site axes behind pos]. What a row's lines lack is as in the base run."""
        where, values = [], []
        for edit in edits:
            here = np.full(len(self.examples), -1)
            here[edit.row] = np.arange(len(edit.row))
            own = here[self.lines.row]  # per line: which of the edited rows it belongs to
            lines = np.flatnonzero(own >= 0)
            if not len(lines):
                continue  # the rows have not joined yet
            start = edit.rows.start
            at = self._index(own[lines]), self._index(self.lines.pos[lines] - start)
            whole = self.base.values[site][edit.rows.examples, start:]
            whole[at] = x[self._index(lines)]
            where.append(lines)
            values.append(self._replaced(whole, edit)[at])
        if not where:
            return x
        return x.index_copy(0, self._index(np.concatenate(where)), torch.cat(values))

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.as_tensor(numbers, device=self.device)

    def _replaced(self, x: Tensor, edit: RowEdit) -> Tensor:
        mask = edit.selections.mask(edit.rows.site, x, edit.rows.start)
        return torch.where(mask, self.replace(x, edit.rows), x)


def _some(edit: RowEdit, here: np.ndarray) -> RowEdit:
    return RowEdit(
        edit.row[here], edit.selections.only(here), edit.rows.of(here.tolist()), edit.start
    )
