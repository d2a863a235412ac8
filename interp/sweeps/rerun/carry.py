"""The rows of one pass on their way through the layers.

A line is one row at one position. All lines of a pass lie behind one another on one axis, whatever
the rows' starts, so that every projection is one long matrix product; only attention goes by rows
that start alike. What lies left of a row's start, and what it did not change before its first
attention, is the base run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.tokens import Tokens
from interp.model import Layout, Places, Prefix

from ..edits import Replace
from ..metrics import Bound, measured
from . import plan
from .memory import MemoryReader
from .plan import Base
from .rows import Group, Lines, RowTap
from .stages import CROSS, CROSS_Z, MID, POST, PRE, Entry, Row, Z

Fill = Callable[[Tensor, Tensor], Tensor]
"""(lines [n, …], the base run's [batch, pos, …]) → the lines wanted, from one or the other."""


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


class Side:
    """One stack of the run."""

    def __init__(self, model: Any, tokens: Tokens, base: Base) -> None:
        self.model, self.tokens, self.base = model, tokens, base
        layout = Layout(model.cfg, tokens, None, model.like)
        self.positions = layout.positions.expand(tokens.shape)
        self.lengths = layout.lengths.expand(len(tokens), 1)


class Rerun:
    """Runs passes over one base run."""

    def __init__(
        self, model: Any, tokens: Tokens, base: Base, replace: Replace, bound: Bound
    ) -> None:
        self.model, self.tokens, self.base = model, tokens, base
        self.replace, self.bound = replace, bound
        self.own, self.source = Side(model, tokens, base), None
        if base.source is not None:
            self.source = Side(model.encoder, tokens.source, base.source)
        self.halved = 0
        """Passes that did not fit into the device's memory and went in two."""
        resid = base.residual
        if bound.positions is not None:
            resid = resid.gather(1, bound.positions[..., None].expand(-1, -1, resid.shape[-1]))
        self.seen = self.read(resid, bound.ids)
        """What the metric reads of the base run."""

    def baseline(self, where: str) -> Float[Tensor, " batch"]:
        """The metric of the base run, which `where` names."""
        every = torch.arange(len(self.tokens), device=self.tokens.device)
        return measured(self.bound, self.seen, every, [where] * len(every))

    def measure(self, rows: Sequence[Row]) -> Float[Tensor, " rows"]:
        """The metric of each row of one pass, in float64 on the CPU."""
        try:
            return Pass(self, rows).measure()
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        self.halved += 1
        half = len(rows) // 2
        return torch.cat([self.measure(rows[:half]), self.measure(rows[half:])])

    def read(self, resid: Tensor, ids: Tensor | None) -> Tensor:
        """What the metric reads of last residual streams [rows n d_model]: [rows n k]."""
        bound, model = self.bound, self.model
        if bound.reads == "residual":
            return resid
        k = model.cfg.d_vocab if ids is None else ids.shape[2] * model.cfg.d_model
        step = max(1, plan.VALUES_AT_ONCE // max(1, resid.shape[1] * k))
        parts = []
        for i in range(0, max(1, len(resid)), step):
            some = resid[i : i + step]
            if ids is None:
                parts.append(model.to_logits(some))
            else:
                parts.append(model.logits_of(some, ids[i : i + step], bound.log_probs))
        return torch.cat(parts)

    def index(self, numbers: np.ndarray) -> Tensor:
        """Numbers to index a tensor with, on the model's device."""
        return torch.as_tensor(numbers, device=self.tokens.device)


class Pass:
    """One pass through a stack: rows join where they enter, and all go on together.

    Those that an encoder's edits change go through the encoder first, in a pass of their own.
    """

    def __init__(self, work: Rerun, rows: Sequence[Row], side: Side | None = None) -> None:
        self.work, self.side = work, side or work.own
        order = sorted(range(len(rows)), key=lambda i: (rows[i].start, rows[i].entry))
        self.order, self.rows = order, [rows[i] for i in order]
        self.width = self.side.tokens.shape[1]
        self.starts = np.array([row.start for row in self.rows])
        self.example = np.array([row.example for row in self.rows])
        self.examples = work.index(self.example)
        self.trimmed = side is None and plan.is_trimmed(work.model, rows, work.bound)
        # All tokens: what a site's positions are, it says itself.
        self.tap = RowTap(self.side.model, work.tokens, self.side.base, work.replace, self.rows)
        self.fill: Fill = lambda x, base: x

    @property
    def lines(self) -> Lines:
        """The lines that are being carried."""
        return self.tap.lines

    def at(self, lines: Lines) -> tuple[Tensor, Tensor]:
        """Where lines lie in a tensor of the base run: their examples and positions."""
        return self.work.index(self.example[lines.row]), self.work.index(lines.pos)

    def measure(self) -> Float[Tensor, " rows"]:
        """The metric of each row, in the order in which they were given."""
        self.read_source = MemoryReader(self).read
        return self._back(self._read(self._through()))

    def remembered(self) -> Float[Tensor, "rows pos d_model"]:
        """What a decoder reads of each row of its source, in the order in which they were given."""
        rows, model = np.arange(len(self.rows)), self.side.model
        x = self._behind(self._through(), self._from_start(rows))
        self.tap.group = Group(0, len(rows), 0)
        out = model.to_logits(x.unflatten(0, (len(rows), -1)), self.tap)
        self.tap.group = None
        return self._back(out)

    def _back(self, values: Tensor) -> Tensor:
        back = torch.empty_like(values)
        back[torch.tensor(self.order, device=values.device)] = values
        return back

    def _through(self) -> Float[Tensor, "lines d_model"]:
        x = self._embedded()
        for layer in range(self.side.model.cfg.n_layers):
            x = self._layer(layer, x)
        return x

    def _behind(self, x: Float[Tensor, "lines d_model"], wanted: Lines) -> Tensor:
        """Lines of the last residual stream, of all rows."""
        blocks = self.side.model.blocks  # rows that enter behind them have no lines yet
        (x,) = self._join((len(blocks), 0), [x], [blocks[-1].hook_resid_post])
        return self._filling(wanted)(x, self.side.base.residual)

    def _embedded(self) -> Float[Tensor, "lines d_model"]:
        model, tokens = self.side.model, self.side.tokens
        self.tap.lines = self._changed([row.entry.layer < 0 for row in self.rows])
        if not len(self.lines.row):
            return model.like.new_empty(0, model.cfg.d_model)
        at = self.at(self.lines)

        def own(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[at][None]

        lines = Tokens(own(tokens.ids), own(tokens.vectors), token_types=own(tokens.token_types))
        return model.embedded(lines, self._places(), self.tap)[0]

    def _places(self) -> Places:
        """Where the lines that are carried stand, as one row."""
        side, at = self.side, self.at(self.lines)
        lengths = side.lengths[at[0]][None, :, 0]
        return Places(side.model.cfg, side.positions[at][None], side.model.like, lengths)

    def _layer(self, layer: int, x: Tensor) -> Float[Tensor, "lines d_model"]:
        block, tap, base = self.side.model.blocks[layer], self.tap, self.side.base
        pre = block.hook_resid_pre
        (x,) = self._join((layer, PRE), [x], [pre])
        z = x.new_empty(0, block.attn.n_heads, block.attn.d_head)
        if len(x):
            # Attention changes which lines are carried: `fill` brings the stream along.
            before, normed, (q, k, v) = block.to_qkv(x[None], self._places(), tap)
            z = self.attend(block.attn, q[0], k[0], v[0])
            x = self.fill(before[0], base.values[pre])
            if block.parallel:
                normed = x if normed is before else self.fill(normed[0], normed[0])
                return block.from_z_parallel(x[None], normed[None], z[None], tap)[0]
        x, z = self._join((layer, Z), [x, z], [pre, block.attn.hook_z])
        if len(x):
            x = block.to_resid_mid(x[None], z[None], tap)[0]
        del z
        if block.cross_attn is not None:
            x = self._crossed(layer, block, x)
        if block.mlp is None:
            return tap(block.hook_resid_post, x[None])[0] if len(x) else x
        (x,) = self._join((layer, MID), [x], [block.mid])
        if self.side.model.cfg.n_experts:  # no row enters at post
            return block.from_post(*block.to_post(x[None], tap), tap)[0] if len(x) else x
        post = x.new_empty(0, block.mlp.d_mlp)
        if len(x):
            x, post = (t[0] for t in block.to_post(x[None], tap))
        x, post = self._join((layer, POST), [x, post], [block.mid, block.mlp.hook_post])
        return block.from_post(x[None], post[None], tap)[0] if len(x) else x

    def _crossed(self, layer: int, block: Any, x: Tensor) -> Float[Tensor, "lines d_model"]:
        """With what is read of the source added."""
        mid, attn = block.hook_resid_mid, block.cross_attn
        (x,) = self._join((layer, CROSS), [x], [mid])
        z = x.new_empty(0, attn.n_heads, attn.d_head)
        if len(x):
            x, q = (t[0] for t in block.to_cross_q(x[None], self.tap))
            z = self.read_source(attn, q)
        x, z = self._join((layer, CROSS_Z), [x, z], [mid, attn.hook_z])
        return block.to_resid_mid_cross(x[None], z[None], self.tap)[0] if len(x) else x

    def _join(self, at: tuple[int, int], carried: list[Tensor], sites: list[str]) -> list[Tensor]:
        """The lines carried, and behind them the base run's for the rows that enter here."""
        new = self._changed([row.entry == at for row in self.rows])
        if self.trimmed and at[0] == self.side.model.cfg.n_layers - 1 and at[1] != PRE:
            new = self._only_read(new)
        if not len(new.row):
            return carried
        where = self.at(new)
        self.tap.lines = self.lines.then(new)
        return [
            torch.cat([x, self.side.base.values[site][where]])
            for x, site in zip(carried, sites, strict=True)
        ]

    def attend(self, attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z [lines head d_head] of all positions of the rows present; of those read, at last."""
        layer, model, work = attn.layer, self.side.model, self.work
        present = np.array([row.entry <= Entry(layer, PRE) for row in self.rows])
        rows = np.flatnonzero(present)
        base_q, base_k, base_v = self.side.base.placed[layer]
        fill = self._filling(self._from_start(rows))
        k, v = fill(k, base_k), fill(v, base_v)
        cut = self.trimmed and layer == model.cfg.n_layers - 1
        queries = self._read_lines(rows) if cut else self._from_start(rows)
        self.fill = self._filling(queries) if cut else fill
        q = self.fill(q, base_q)
        self.tap.lines = queries
        z, done, asked = [], 0, 0
        for group in self._groups(rows, self.rows_at_once(attn, self.width)):
            n = group.last - group.first
            n_k = n * (self.width - group.start)
            n_q = n * work.bound.positions.shape[1] if cut else n_k
            own = [t[a : a + m].unflatten(0, (n, -1))
                   for t, a, m in ((q, asked, n_q), (k, done, n_k), (v, done, n_k))]  # fmt: skip
            prefix = self._prefix(group)
            layout = self._layout(group, prefix)
            if prefix is not None:
                own[1:] = prefix.extend(layer, *own[1:])
            if cut:
                at = self.lines.pos[asked : asked + n_q].reshape(n, -1)
                layout = layout.only(work.index(at))
            self.tap.group = group
            z.append(attn.attend(*own, layout, self.tap).flatten(0, 1))
            self.tap.group = None
            done, asked = done + n_k, asked + n_q
        return torch.cat(z)

    def _read(self, x: Float[Tensor, "lines d_model"]) -> Float[Tensor, " rows"]:
        bound, rows = self.work.bound, np.arange(len(self.rows))
        if self.trimmed:
            x = self._behind(x, self._read_lines(rows))
            return self._measured(x.unflatten(0, (len(rows), -1)), Group(0, len(rows), -1))
        x = self._behind(x, self._from_start(rows))
        late, values, done = plan.is_late(self.rows), [], 0
        step = plan.VALUES_AT_ONCE // (self.width * self._values_per_position(late))
        for group in self._groups(rows, max(1, step)):
            n = (group.last - group.first) * (self.width - group.start)
            own = x[done : done + n].unflatten(0, (group.last - group.first, -1))
            done += n
            measure = self._late if late and bound.reads == "logits" else self._whole
            values.append(measure(own, group))
        return torch.cat(values)

    def _whole(self, x: Tensor, group: Group) -> Float[Tensor, " rows"]:
        """Measured on what is read of all positions, or of a few."""
        bound, start, examples = self.work.bound, group.start, self._examples(group)
        if bound.positions is not None:
            at = (bound.positions[examples] - start).clamp(min=0)
            return self._measured(x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])), group)
        ids = None if bound.ids is None else bound.ids[examples, start:]
        out = self.work.read(x, ids)
        return self._value(torch.cat([self.work.seen[examples, :start], out], 1), group)

    def _late(self, x: Tensor, group: Group) -> Float[Tensor, " rows"]:
        """Measured on the logits of all positions, which the tap may edit."""
        self.tap.group = group
        out = self.work.model.to_logits(x, self.tap)
        self.tap.group = None
        missing = out.new_zeros(len(out), group.start, out.shape[-1])  # not read: see `_mixed`
        out = self.work.bound.pick(torch.cat([missing, out], 1), self._examples(group))
        return self._mixed(out, group)

    def _measured(self, x: Tensor, group: Group) -> Float[Tensor, " rows"]:
        """Measured on the residual stream at the positions read."""
        ids = self.work.bound.ids
        own = None if ids is None else ids[self._examples(group)]
        return self._mixed(self.work.read(x, own), group)

    def _mixed(self, out: Tensor, group: Group) -> Float[Tensor, " rows"]:
        """Left of a row's start, the base run's."""
        bound, examples = self.work.bound, self._examples(group)
        start = self.work.index(self.starts[group.first : group.last])[:, None]
        if bound.positions is None:
            at = torch.arange(out.shape[1], device=out.device)[None]
        else:
            at = bound.positions[examples]
        own = torch.where((at < start)[..., None], self.work.seen[examples], out)
        return self._value(own, group)

    def _value(self, read: Tensor, group: Group) -> Float[Tensor, " rows"]:
        where = [f"node {row.node}" for row in self.rows[group.first : group.last]]
        return measured(self.work.bound, read, self._examples(group), where)

    def _examples(self, group: Group) -> Tensor:
        return self.examples[group.first : group.last]

    def _values_per_position(self, late: bool) -> int:
        bound, cfg = self.work.bound, self.work.model.cfg
        return (
            cfg.d_vocab if bound.reads == "logits" and (late or bound.ids is None) else cfg.d_model
        )

    def rows_at_once(self, attn: Any, n_keys: int) -> int:
        """Rows whose keys, and whose scores where somebody edits them, are made together."""
        stepwise = attn.softcap or any(map(self.tap.wants, (attn.hook_attn_scores,
                                                            attn.hook_pattern)))  # fmt: skip
        per_key = attn.n_heads * (2 * attn.d_head + (2 * self.width if stepwise else 0))
        return max(1, plan.VALUES_AT_ONCE // (n_keys * per_key))

    def _groups(self, rows: np.ndarray, at_once: int) -> Iterator[Group]:
        """Consecutive rows that start alike, at most so many together."""
        starts = self.starts[rows]
        edges = np.flatnonzero(np.diff(starts)) + 1
        for some in np.split(rows, edges):
            for i in range(0, len(some), at_once):
                part = some[i : i + at_once]
                yield Group(int(part[0]), int(part[-1]) + 1, int(self.starts[part[0]]))

    def _prefix(self, group: Group) -> BasePrefix | None:
        if not group.start:
            return None
        side = self.side
        return BasePrefix(side.base, side.tokens, self._examples(group), group.start)

    def _layout(self, group: Group, prefix: BasePrefix | None) -> Layout:
        side, examples = self.side, self._examples(group)
        t, start = side.tokens, group.start

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[examples, start:]

        own = Tokens(cut(t.ids), cut(t.vectors), cut(t.mask), cut(t.positions))
        model = side.model
        return Layout(model.cfg, own, prefix, model.like, model.embed.W_rel)

    def _changed(self, chosen: Sequence[bool]) -> Lines:
        """The lines that these rows change of the base run."""
        some = [i for i, is_one in enumerate(chosen) if is_one]
        row = np.repeat(some, [len(self.rows[i].changed) for i in some]).astype(np.int64)
        pos = [p for i in some for p in self.rows[i].changed]
        return Lines(row, np.array(pos, dtype=np.int64))

    def _from_start(self, rows: np.ndarray) -> Lines:
        """All lines of these rows."""
        counts = self.width - self.starts[rows]
        row = np.repeat(rows, counts)
        first = np.repeat(counts.cumsum() - counts, counts)
        return Lines(row, np.arange(len(row)) - first + self.starts[row])

    def _read_lines(self, rows: np.ndarray) -> Lines:
        """The lines that the metric reads; one that lies left of a row's start counts as there."""
        at = self.work.bound.positions.cpu().numpy()[self.example[rows]]
        pos = np.maximum(at, self.starts[rows][:, None])
        return Lines(np.repeat(rows, at.shape[1]), pos.reshape(-1))

    def _only_read(self, lines: Lines) -> Lines:
        at = self.work.bound.positions.cpu().numpy()[self.example[lines.row]]
        read = (at == lines.pos[:, None]).any(1)
        return Lines(lines.row[read], lines.pos[read])

    def _filling(self, wanted: Lines) -> Fill:
        """How to get the lines wanted from those carried."""
        number = np.full((len(self.rows), self.width), -1)
        number[self.lines.row, self.lines.pos] = np.arange(len(self.lines.row))
        source = number[wanted.row, wanted.pos]
        if len(source) == len(self.lines.row) and bool((source == np.arange(len(source))).all()):
            return lambda x, base: x
        lacking = np.flatnonzero(source < 0)
        carried, missing = self.work.index(source.clip(min=0)), self.work.index(lacking)
        where = self.at(Lines(wanted.row[lacking], wanted.pos[lacking]))

        def fill(x: Tensor, base: Tensor) -> Tensor:
            out = x[carried] if len(x) else x.new_empty(len(carried), *x.shape[1:])
            if len(missing):
                out[missing] = base[where]
            return out

        return fill
