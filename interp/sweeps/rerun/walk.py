"""The rows of a pass on their way through the layers of one stack.

All lines of a pass lie behind one another on one axis, whatever the rows' starts, so that every
projection is one long matrix product; only attention goes by rows that start alike. What lies left
of a row's start, and what it did not change before its first attention, is the base run's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.tokens import Tokens
from interp.model import HookedTransformer, Layout, Places, Prefix
from interp.model.block import Block

from . import cost
from .base import Base
from .cross import CrossReader
from .rows import NO_LINES, Group, Lines, PassRows
from .stages import CROSS, CROSS_Z, MID, POST, PRE, Entry, Z, carried_sites
from .tap import GroupTap, LineTap, PassEdits

Fill = Callable[[Tensor, Tensor], Tensor]
"""(lines [n, …], the base run's [batch, pos, …]) → the lines wanted, from one or the other."""


class Stack:
    """A stack of blocks, what it reads, and its base run."""

    def __init__(self, model: HookedTransformer, tokens: Tokens, base: Base) -> None:
        self.model, self.tokens, self.base = model, tokens, base
        layout = model.layout(tokens)
        self.positions = layout.positions.expand(tokens.shape)
        self.lengths = layout.lengths.expand(len(tokens), 1)


class BasePrefix(Prefix):
    """The base run's keys and values left of `start`, one row per row of the batch."""

    def __init__(self, base: Base, tokens: Tokens, examples: Tensor, start: int) -> None:
        self.base, self.examples, self.start = base, examples, start
        self.mask = None if tokens.mask is None else tokens.mask[examples, :start]

    @property
    def length(self) -> int:
        return self.start

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        _, keys, values = self.base.placed[layer]
        return (
            torch.cat([keys[self.examples, : self.start], k], dim=1),
            torch.cat([values[self.examples, : self.start], v], dim=1),
        )


class Walk:
    """Rows join where they enter, and all go on together.

    `read_at` [example n]: past the keys and values of the last block, only these positions are
    computed; None: all. `cross` is what a decoder reads its source by.
    """

    def __init__(
        self,
        stack: Stack,
        rows: PassRows,
        edits: PassEdits,
        read_at: np.ndarray | None = None,
        cross: CrossReader | None = None,
    ) -> None:
        self.stack, self.model, self.base = stack, stack.model, stack.base
        self.rows, self.edits, self.read_at, self.cross = rows, edits, read_at, cross
        self.examples = edits.index(rows.examples)
        self.last = self.model.cfg.n_layers - 1
        self.lines = NO_LINES
        """Those that are being carried."""

    def through(self) -> Float[Tensor, "lines d_model"]:
        """The last residual stream: all lines of all rows, or those of `read_at`, row by row."""
        x = self._embedded()
        for layer, block in enumerate(self.model.blocks):
            x = self._layer(layer, block, x)
        # Rows that enter behind the blocks have no lines yet.
        behind = (self.model.blocks[-1].hook_resid_post,)
        (x,) = self._join(Entry(self.last + 1, 0), [x], behind)
        return self._filling(self._wanted(self.rows.all))(x, self.base.residual)

    def _wanted(self, rows: np.ndarray) -> Lines:
        """What of these rows is computed in the end."""
        if self.read_at is None:
            return self.rows.from_start(rows)
        return self.rows.read(rows, self.read_at)

    def _embedded(self) -> Float[Tensor, "lines d_model"]:
        tokens = self.stack.tokens
        self.lines = self.rows.changed(Entry(-1, 0))
        if not len(self.lines.row):
            return self.model.like.new_empty(0, self.model.cfg.d_model)
        at = self._at(self.lines)

        def of_lines(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[at][None]

        lines = Tokens(
            of_lines(tokens.ids),
            of_lines(tokens.vectors),
            token_types=of_lines(tokens.token_types),
        )
        return self.model.embedded(lines, self._places(), self._tap())[0]

    def _layer(self, layer: int, block: Block, x: Tensor) -> Float[Tensor, "lines d_model"]:
        (x,) = self._enter(layer, PRE, x)
        z = x.new_empty(0, block.attn.n_heads, block.attn.d_head)
        if len(x):
            before, normed, qkv = block.to_qkv(x[None], self._places(), self._tap())
            z, fill = self._attend(layer, block, *(t[0] for t in qkv))
            # Attention changes which lines are carried: `fill` brings the stream along.
            x = fill(before[0], self.base.values[block.hook_resid_pre])
            if block.parallel:
                normed = x if normed is before else fill(normed[0], normed[0])
                return block.from_z_parallel(x[None], normed[None], z[None], self._tap())[0]
        x, z = self._enter(layer, Z, x, z)
        if len(x):
            x = block.to_resid_mid(x[None], z[None], self._tap())[0]
        del z
        if block.cross_attn is not None:
            x = self._crossed(layer, block, x)
        if block.mlp is None:
            return self._tap()(block.hook_resid_post, x[None])[0] if len(x) else x
        return self._past_mlp(layer, block, x)

    def _crossed(self, layer: int, block: Block, x: Tensor) -> Float[Tensor, "lines d_model"]:
        """With what is read of the source added."""
        attn = block.cross_attn
        (x,) = self._enter(layer, CROSS, x)
        z = x.new_empty(0, attn.n_heads, attn.d_head)
        if len(x):
            x, q = (t[0] for t in block.to_cross_q(x[None], self._tap()))
            z = self.cross.read(attn, q, self.lines)
        x, z = self._enter(layer, CROSS_Z, x, z)
        return block.to_resid_mid_cross(x[None], z[None], self._tap())[0] if len(x) else x

    def _past_mlp(self, layer: int, block: Block, x: Tensor) -> Float[Tensor, "lines d_model"]:
        (x,) = self._enter(layer, MID, x)
        if self.model.cfg.n_experts:  # no row enters at post
            state = block.to_post(x[None], self._tap()) if len(x) else None
            return x if state is None else block.from_post(*state, self._tap())[0]
        post = x.new_empty(0, block.mlp.d_mlp)
        if len(x):
            x, post = (t[0] for t in block.to_post(x[None], self._tap()))
        x, post = self._enter(layer, POST, x, post)
        return block.from_post(x[None], post[None], self._tap())[0] if len(x) else x

    def _enter(self, layer: int, stage: int, *carried: Tensor) -> list[Tensor]:
        """What is carried at a stage of a block, with the rows that enter there."""
        sites = carried_sites(self.model.blocks[layer], stage)
        return self._join(Entry(layer, stage), list(carried), sites)

    def _join(self, at: Entry, carried: list[Tensor], sites: Sequence[str]) -> list[Tensor]:
        """The lines carried, and behind them the base run's for the rows that enter here."""
        new = self.rows.changed(at)
        if self.read_at is not None and at.layer == self.last and at.stage != PRE:
            new = self.rows.only_read(new, self.read_at)
        if not len(new.row):
            return carried
        where = self._at(new)
        self.lines = self.lines.then(new)
        return [
            torch.cat([x, self.base.values[site][where]])
            for x, site in zip(carried, sites, strict=True)
        ]

    def _attend(
        self, layer: int, block: Block, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Float[Tensor, "lines head d_head"], Fill]:
        """z of all positions of the rows present, of those read in the last block; and how what is
        carried becomes these lines."""
        rows, base = self.rows.entered(Entry(layer, PRE)), self.base.placed[layer]
        fill = self._filling(self.rows.from_start(rows))
        k, v = fill(k, base[1]), fill(v, base[2])
        cut = self.read_at is not None and layer == self.last
        queries = self._wanted(rows) if cut else self.rows.from_start(rows)
        fill = self._filling(queries) if cut else fill
        q = fill(q, base[0])
        self.lines = queries
        attn, z, done, asked = block.attn, [], 0, 0
        width = self.rows.width
        at_once = cost.rows_at_once(attn, width, width, self.edits.stepwise(attn))
        for group in self.rows.groups(rows, at_once):
            n_k = group.n * (width - group.start)
            n_q = group.n * self.read_at.shape[1] if cut else n_k
            at = queries.pos[asked : asked + n_q].reshape(group.n, -1) if cut else None
            of_group = [
                t[first : first + n].unflatten(0, (group.n, -1))
                for t, first, n in ((q, asked, n_q), (k, done, n_k), (v, done, n_k))
            ]
            z.append(self._attend_group(layer, block, group, *of_group, at).flatten(0, 1))
            done, asked = done + n_k, asked + n_q
        return torch.cat(z), fill

    def _attend_group(
        self,
        layer: int,
        block: Block,
        group: Group,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        at: np.ndarray | None,
    ) -> Float[Tensor, "rows q_pos head d_head"]:
        """z of rows that start alike; `at` [row q_pos] are the positions of the queries, where they
        are not all from the start on."""
        t, start = self.stack.tokens, group.start
        examples = self.examples[group.first : group.last]

        def of_rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[examples, start:]

        tokens = Tokens(of_rows(t.ids), of_rows(t.vectors), of_rows(t.mask), of_rows(t.positions))
        prefix = BasePrefix(self.base, t, examples, start) if start else None
        layout: Layout = self.model.layout(tokens, prefix)
        if at is not None:
            layout = layout.only(self.edits.index(at))
        if prefix is not None:
            k, v = prefix.extend(layer, k, v)
        return block.attn.attend(q, k, v, layout, GroupTap(self.edits, group))

    def _filling(self, wanted: Lines) -> Fill:
        """How to get the lines wanted from those carried."""
        source = self.rows.numbers(self.lines)[wanted.row, wanted.pos]
        if len(source) == len(self.lines.row) and bool((source == np.arange(len(source))).all()):
            return lambda x, base: x
        lacking = np.flatnonzero(source < 0)
        index = self.edits.index
        carried, missing = index(source.clip(min=0)), index(lacking)
        where = self._at(wanted.only(lacking))

        def fill(x: Tensor, base: Tensor) -> Tensor:
            out = x[carried] if len(x) else x.new_empty(len(carried), *x.shape[1:])
            if len(missing):
                out[missing] = base[where]
            return out

        return fill

    def _tap(self) -> LineTap:
        return LineTap(self.edits, self.lines)

    def _at(self, lines: Lines) -> tuple[Tensor, Tensor]:
        """Where lines lie in a tensor of the base run: their examples and positions."""
        return self.edits.index(self.rows.examples[lines.row]), self.edits.index(lines.pos)

    def _places(self) -> Places:
        """Where the lines that are carried stand, as one row."""
        stack, at = self.stack, self._at(self.lines)
        lengths = stack.lengths[at[0]][None, :, 0]
        return Places(self.model.cfg, stack.positions[at][None], self.model.like, lengths)
