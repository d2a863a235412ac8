"""What the rows of a pass read of their source: what the base run made of it, or the pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import Encoded, SourceLayout
from interp.model.attention import Attention

from . import cost
from .rows import Group, Lines, PassRows
from .tap import GroupTap, PassEdits


class Run(NamedTuple):
    """Rows whose lines lie behind one another, as many of each."""

    group: Group
    lines: int
    """Of each row."""
    reencoded: bool
    """Whether their source went through the encoder anew."""


class CrossReader:
    """Cross-attention of the rows of a pass through a decoder.

    `encoded` is the base run's; `resid` [row pos d_model] is what the encoder made of the sources
    of those rows that change something there, in the order of the rows.
    """

    def __init__(
        self, rows: PassRows, edits: PassEdits, encoded: Encoded, resid: Tensor | None
    ) -> None:
        self.rows, self.edits, self.encoded, self.resid = rows, edits, encoded, resid
        self.examples = edits.index(rows.examples)
        reencoded = [i for i, row in enumerate(rows.rows) if row.source is not None]
        self.number = np.full(len(rows.rows), -1)
        """Of each row, which of `resid` is what it reads; −1: none, but what the base run reads."""
        self.number[reencoded] = np.arange(len(reencoded))

    def read(
        self, attn: Attention, q: Float[Tensor, "lines head d_head"], lines: Lines
    ) -> Float[Tensor, "lines head d_head"]:
        """z of these lines."""
        mask = self.encoded.mask
        z, done = [], 0
        for run in self._runs(attn, lines):
            n = run.group.n
            queries = q[done : done + n * run.lines].unflatten(0, (n, -1))
            done += n * run.lines
            tap, examples = GroupTap(self.edits, run.group), self._examples(run.group)
            k, v = self._keys_values(attn, run, tap)
            layout = SourceLayout(None if mask is None else mask[examples])
            z.append(attn.attend(queries, k, v, layout, tap).flatten(0, 1))
        return torch.cat(z)

    def _keys_values(self, attn: Attention, run: Run, tap: GroupTap) -> tuple[Tensor, Tensor]:
        """Keys and values of each row, edited."""
        if run.reencoded:
            at = self.edits.index(self.number[run.group.first : run.group.last])
            return attn.project_source(self.resid[at], tap)
        examples = self._examples(run.group)
        k, v = self.encoded.keys_values[attn.layer]
        return tap(attn.hook_k, k[examples]), tap(attn.hook_v, v[examples])

    def _examples(self, group: Group) -> Tensor:
        return self.examples[group.first : group.last]

    def _runs(self, attn: Attention, lines: Lines) -> Iterator[Run]:
        """The lines, by rows that follow one another and are alike."""
        first = np.append(0, np.flatnonzero(np.diff(lines.row)) + 1)
        rows, counts = lines.row[first], np.diff(np.append(first, len(lines.row)))
        reencoded, starts = self.number[rows] >= 0, self.rows.starts[rows]
        alike = (np.diff(rows) == 1) & (np.diff(counts) == 0) & (np.diff(starts) == 0)
        alike &= reencoded[1:] == reencoded[:-1]
        stepwise = self.edits.stepwise(attn)
        n_keys = self.encoded.resid.shape[1]
        at_once = cost.rows_at_once(attn, self.rows.width, n_keys, stepwise)
        for span in np.split(np.arange(len(rows)), np.flatnonzero(~alike) + 1):
            for i in range(0, len(span), at_once):
                few = span[i : i + at_once]
                group = Group(int(rows[few[0]]), int(rows[few[-1]]) + 1, int(starts[few[0]]))
                yield Run(group, int(counts[few[0]]), bool(reencoded[few[0]]))
