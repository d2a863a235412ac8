"""What the rows of a pass read of their source: the base run's memory, or one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import SourceLayout

from .rows import Group

if TYPE_CHECKING:
    from .carry import Pass


class Block(NamedTuple):
    """Rows whose lines lie behind one another, as many of each."""

    group: Group
    lines: int
    """Of each row."""
    own: bool
    """Whether their memory is their own."""


class MemoryReader:
    """Cross-attention of the rows of a pass through a decoder."""

    def __init__(self, carried: Pass) -> None:
        self.carried, work = carried, carried.work
        own = [i for i, row in enumerate(carried.rows) if row.source is not None]
        self.number = np.full(len(carried.rows), -1)
        """Of each row, which of the memories of their own is its."""
        self.number[own] = np.arange(len(own))
        if own:
            rows = [row.source for row in carried.rows if row.source is not None]
            self.resid = type(carried)(work, rows, work.source).remembered()

    def read(
        self, attn: Any, q: Float[Tensor, "lines head d_head"]
    ) -> Float[Tensor, "lines head d_head"]:
        """z of the lines that are carried."""
        tap, mask = self.carried.tap, self.carried.work.base.encoded.mask
        z, done = [], 0
        for block in self._blocks(attn):
            n = block.group.last - block.group.first
            some = q[done : done + n * block.lines].unflatten(0, (n, -1))
            done += n * block.lines
            tap.group = block.group
            k, v = self._keys_values(attn, block)
            own_mask = None if mask is None else mask[self._examples(block.group)]
            read = attn.attend(some, k, v, SourceLayout(own_mask), tap)
            tap.group = None
            z.append(read.flatten(0, 1))
        return torch.cat(z)

    def _keys_values(self, attn: Any, block: Block) -> tuple[Tensor, Tensor]:
        """Keys and values of each row of a block, edited."""
        tap, group = self.carried.tap, block.group
        if block.own:
            at = self.carried.work.index(self.number[group.first : group.last])
            return attn.project_source(self.resid[at], tap)
        examples = self._examples(group)
        k, v = self.carried.work.base.encoded.keys_values[attn.layer]
        return tap(attn.hook_k, k[examples]), tap(attn.hook_v, v[examples])

    def _examples(self, group: Group) -> Tensor:
        return self.carried.examples[group.first : group.last]

    def _blocks(self, attn: Any) -> Iterator[Block]:
        """The lines that are carried, by rows that follow one another and are alike."""
        carried, row = self.carried, self.carried.lines.row
        first = np.append(0, np.flatnonzero(np.diff(row)) + 1)
        rows, counts = row[first], np.diff(np.append(first, len(row)))
        own = self.number[rows] >= 0
        starts = carried.starts[rows]
        alike = (np.diff(rows) == 1) & (np.diff(counts) == 0) & (np.diff(starts) == 0)
        alike &= own[1:] == own[:-1]
        at_once = carried.rows_at_once(attn, carried.work.base.encoded.resid.shape[1])
        for some in np.split(np.arange(len(rows)), np.flatnonzero(~alike) + 1):
            for i in range(0, len(some), at_once):
                part = some[i : i + at_once]
                group = Group(int(rows[part[0]]), int(rows[part[-1]]) + 1, int(starts[part[0]]))
                yield Block(group, int(counts[part[0]]), bool(own[part[0]]))
