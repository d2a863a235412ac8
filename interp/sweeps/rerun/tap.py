"""The taps of a pass: each row is edited as its node says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.core.tap import Tap
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.model.attention import Attention

from ..edits import Replace, Rows
from ..nodes import Part, Selections
from .base import Base
from .plan import edited_rows
from .rows import Group, Lines
from .stages import Row, is_of


class RowEdit(NamedTuple):
    """What is done at one site to rows that start alike."""

    row: np.ndarray
    selections: Selections
    rows: Rows
    start: int
    """Of the rows. A tensor that counts the source's positions begins at 0 nevertheless."""

    def only(self, chosen: np.ndarray) -> RowEdit:
        """What is done to some of them."""
        return RowEdit(
            self.row[chosen],
            self.selections.only(chosen),
            self.rows.of(chosen.tolist()),
            self.start,
        )


class PassEdits:
    """What is done to the rows of a pass at each site of a stack. `tokens` are those of the whole
    run: which of them a site's positions count, it says itself."""

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Tokens,
        base: Base,
        replace: Replace,
        rows: Sequence[Row],
    ) -> None:
        self.base, self.replace = base, replace
        self.n_rows, self.device = len(rows), tokens.device
        chosen: dict[tuple[str, int], dict[int, list[Part]]] = {}
        for i, row in enumerate(rows):
            for part in row.node.parts:
                if is_of(part.site, model):
                    by_row = chosen.setdefault((part.site, row.start), {})
                    by_row.setdefault(i, []).append(part)
        self.by_site: dict[str, list[RowEdit]] = {}
        for name, start in sorted(chosen):
            by_row = chosen[name, start]
            site = model.sites[name]
            edited = edited_rows(site, [rows[i].pair for i in by_row], tokens)
            if "pos" not in site.source:
                edited = edited._replace(start=start)
            lines = [(rows[i].example, parts) for i, parts in by_row.items()]
            selections = Selections.of(site, lines, tokens)
            edit = RowEdit(np.array(list(by_row)), selections, edited, start)
            self.by_site.setdefault(name, []).append(edit)

    def replaced(self, x: Tensor, edit: RowEdit) -> Tensor:
        """x [rows of the edit, *site axes] with what the edit puts there."""
        mask = edit.selections.mask(edit.rows.site, x, edit.rows.start)
        return torch.where(mask, self.replace(x, edit.rows), x)

    def stepwise(self, attn: Attention) -> bool:
        """Whether attention makes scores that somebody may edit."""
        sites = (attn.hook_attn_scores, attn.hook_pattern)
        return bool(attn.softcap) or any(site in self.by_site for site in sites)

    def index(self, numbers: np.ndarray) -> Tensor:
        """Numbers to index a tensor with."""
        return torch.as_tensor(numbers, device=self.device)


class PassTap(Tap):
    """A tap that edits the rows of a pass and reads nothing."""

    def __init__(self, edits: PassEdits) -> None:
        self.edits = edits

    def wants(self, site: str) -> bool:
        return site in self.edits.by_site

    def changes(self, site: str) -> bool:
        return site in self.edits.by_site


class LineTap(PassTap):
    """For sites of one tensor per position, which come as the lines of all rows: [1 lines …]."""

    def __init__(self, edits: PassEdits, lines: Lines) -> None:
        super().__init__(edits)
        self.lines = lines

    def __call__(self, site: str, x: Tensor) -> Tensor:
        edits = self.edits.by_site.get(site)
        return x if edits is None else self._edited(site, x[0], edits)[None]

    def _edited(self, site: str, x: Tensor, row_edits: list[RowEdit]) -> Tensor:
        """x [lines, *site axes behind pos]. What a row's lines lack is as in the base run."""
        where, values, index = [], [], self.edits.index
        for edit in row_edits:
            number = np.full(self.edits.n_rows, -1)
            number[edit.row] = np.arange(len(edit.row))
            of_line = number[self.lines.row]  # which of the edited rows it belongs to
            lines = np.flatnonzero(of_line >= 0)
            if not len(lines):
                continue  # the rows have not joined yet
            start = edit.rows.start
            at = index(of_line[lines]), index(self.lines.pos[lines] - start)
            whole = self.edits.base.values[site][edit.rows.examples, start:]
            whole[at] = x[index(lines)]
            where.append(lines)
            values.append(self.edits.replaced(whole, edit)[at])
        if not where:
            return x
        return x.index_copy(0, index(np.concatenate(where)), torch.cat(values))


class GroupTap(PassTap):
    """For sites of attention, and behind the blocks, which come as whole rows from the start of
    their group on: [rows …]."""

    def __init__(self, edits: PassEdits, group: Group) -> None:
        super().__init__(edits)
        self.group = group

    def __call__(self, site: str, x: Tensor) -> Tensor:
        group = self.group
        for edit in self.edits.by_site.get(site, ()):
            here = np.flatnonzero((edit.row >= group.first) & (edit.row < group.last))
            if len(here) and edit.start == group.start:
                at = self.edits.index(edit.row[here] - group.first)
                x = x.index_copy(0, at, self.edits.replaced(x[at], edit.only(here)))
        return x
