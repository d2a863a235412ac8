"""What a metric reads of the last residual streams of rows, and the metric of it.

Left of a row's start, what is read is the base run's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model import HookedTransformer

from ..metrics import Bound, measured
from . import plan
from .rows import Group, PassRows
from .tap import GroupTap, PassEdits


class MetricReader:
    """A metric, and what it reads of the base run: `seen` [batch n k], at the positions and columns
    that it declares."""

    def __init__(
        self,
        model: HookedTransformer,
        bound: Bound,
        residual: Float[Tensor, "batch pos d_model"],
    ) -> None:
        self.model, self.bound = model, bound
        at = bound.positions
        if at is not None:
            residual = residual.gather(1, at[..., None].expand(-1, -1, residual.shape[-1]))
        self.seen = self.read(residual, bound.ids)

    def baseline(self, where: str) -> Float[Tensor, " batch"]:
        """The metric of the base run, which `where` names."""
        every = torch.arange(len(self.seen), device=self.seen.device)
        return measured(self.bound, self.seen, every, [where] * len(every))

    def read(self, resid: Tensor, ids: Tensor | None) -> Tensor:
        """What the metric reads of last residual streams [rows n d_model]: [rows n k]."""
        model = self.model
        if self.bound.reads == "residual":
            return resid
        k = model.cfg.d_vocab if ids is None else ids.shape[2] * model.cfg.d_model
        step = max(1, plan.VALUES_AT_ONCE // max(1, resid.shape[1] * k))
        parts = []
        for i in range(0, max(1, len(resid)), step):
            few = resid[i : i + step]
            if ids is None:
                parts.append(model.to_logits(few))
            else:
                parts.append(model.logits_of(few, ids[i : i + step], self.bound.log_probs))
        return torch.cat(parts)


class PassReader:
    """Measures the rows of a pass, one group after the other."""

    def __init__(self, reader: MetricReader, rows: PassRows, edits: PassEdits) -> None:
        self.reader, self.bound = reader, reader.bound
        self.rows, self.edits = rows, edits
        self.examples = edits.index(rows.examples)

    def at_positions(self, x: Float[Tensor, "rows n d_model"], group: Group) -> Tensor:
        """From the residual stream at the positions that are read."""
        ids = self.bound.ids
        read = self.reader.read(x, None if ids is None else ids[self._examples(group)])
        return self._mixed(read, group)

    def from_start(self, x: Float[Tensor, "rows pos d_model"], group: Group) -> Tensor:
        """From the residual stream at all positions from the group's start on."""
        bound, start, examples = self.bound, group.start, self._examples(group)
        if bound.positions is not None:
            at = (bound.positions[examples] - start).clamp(min=0)
            read = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
            return self.at_positions(read, group)
        ids = None if bound.ids is None else bound.ids[examples, start:]
        read = self.reader.read(x, ids)
        return self._value(torch.cat([self.reader.seen[examples, :start], read], 1), group)

    def behind_edits(self, x: Float[Tensor, "rows pos d_model"], group: Group) -> Tensor:
        """From the logits of all positions from the group's start on, which the tap may edit."""
        out = self.reader.model.to_logits(x, GroupTap(self.edits, group))
        missing = out.new_zeros(len(out), group.start, out.shape[-1])  # not read: see `_mixed`
        read = self.bound.pick(torch.cat([missing, out], 1), self._examples(group))
        return self._mixed(read, group)

    def _mixed(self, read: Tensor, group: Group) -> Float[Tensor, " rows"]:
        """The metric of what is read [rows n k], left of a row's start the base run's."""
        examples = self._examples(group)
        start = self.edits.index(self.rows.starts[group.first : group.last])[:, None]
        if self.bound.positions is None:
            at = torch.arange(read.shape[1], device=read.device)[None]
        else:
            at = self.bound.positions[examples]
        return self._value(
            torch.where((at < start)[..., None], self.reader.seen[examples], read), group
        )

    def _value(self, read: Tensor, group: Group) -> Float[Tensor, " rows"]:
        where = [f"node {row.node}" for row in self.rows.rows[group.first : group.last]]
        return measured(self.bound, read, self._examples(group), where)

    def _examples(self, group: Group) -> Int[Tensor, " rows"]:
        return self.examples[group.first : group.last]
