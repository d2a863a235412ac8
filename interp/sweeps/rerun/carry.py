"""Passes over one base run: rows go through the layers together, those of an encoder first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from ..edits import Replace
from ..metrics import Bound
from . import cost, plan
from .base import Base
from .cross import CrossReader
from .read import MetricReader, PassReader
from .rows import Group, PassRows
from .stages import Row
from .tap import GroupTap, PassEdits
from .walk import Stack, Walk


class Rerun:
    """Runs passes over one base run."""

    def __init__(
        self, model: HookedTransformer, tokens: Tokens, base: Base, replace: Replace, bound: Bound
    ) -> None:
        self.model, self.tokens, self.base = model, tokens, base
        self.replace, self.bound = replace, bound
        self.stack, self.encoder = Stack(model, tokens, base), None
        if base.source is not None:
            self.encoder = Stack(model.encoder, tokens.source, base.source)
        self.reader = MetricReader(model, bound, base.residual)
        self.halved = 0
        """Passes that did not fit into the device's memory and went in two."""

    def baseline(self, where: str) -> Float[Tensor, " batch"]:
        """The metric of the base run, which `where` names."""
        return self.reader.baseline(where)

    def measure(self, rows: Sequence[Row]) -> Float[Tensor, " rows"]:
        """The metric of each row of one pass, in float64 on the CPU."""
        try:
            return self._measured(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        self.halved += 1
        half = len(rows) // 2
        return torch.cat([self.measure(rows[:half]), self.measure(rows[half:])])

    def _measured(self, rows: Sequence[Row]) -> Float[Tensor, " rows"]:
        pass_rows, edits = self._prepared(self.stack, rows)
        cross = None
        if self.encoder is not None:
            cross = CrossReader(pass_rows, edits, self.base.encoded, self._encoded(pass_rows))
        positions = self.bound.positions
        trimmed = plan.is_trimmed(self.model, rows, self.bound)
        read_at = positions.cpu().numpy() if trimmed else None
        x = Walk(self.stack, pass_rows, edits, read_at, cross).through()
        reader = PassReader(self.reader, pass_rows, edits)
        if trimmed:
            every = Group(0, len(rows), -1)  # of several starts, which at_positions tells apart
            return _back(reader.at_positions(x.unflatten(0, (len(rows), -1)), every), pass_rows)
        late = plan.is_late(rows)
        values, done, width = [], 0, pass_rows.width
        measure = reader.from_start
        if late and self.bound.reads == "logits":
            measure = reader.behind_edits
        at_once = cost.rows_read_at_once(self.model, width, self.bound, late)
        for group in pass_rows.groups(pass_rows.all, at_once):
            n = group.n * (width - group.start)
            values.append(measure(x[done : done + n].unflatten(0, (group.n, -1)), group))
            done += n
        return _back(torch.cat(values), pass_rows)

    def _prepared(self, stack: Stack, rows: Sequence[Row]) -> tuple[PassRows, PassEdits]:
        pass_rows = PassRows(rows, stack.tokens.shape[1])
        # All tokens: what a site's positions are, it says itself.
        edits = PassEdits(stack.model, self.tokens, stack.base, self.replace, pass_rows.rows)
        return pass_rows, edits

    def _encoded(self, rows: PassRows) -> Float[Tensor, "rows pos d_model"] | None:
        """What the encoder makes of the sources of those rows that change something there."""
        sources = [row.source for row in rows.rows if row.source is not None]
        if not sources:
            return None
        pass_rows, edits = self._prepared(self.encoder, sources)
        x = Walk(self.encoder, pass_rows, edits).through().unflatten(0, (len(sources), -1))
        out = self.encoder.model.to_logits(x, GroupTap(edits, Group(0, len(sources), 0)))
        return _back(out, pass_rows)


def _back(values: Tensor, rows: PassRows) -> Tensor:
    """In the order in which the rows were given."""
    back = torch.empty_like(values)
    back[torch.tensor(rows.order, device=values.device)] = values
    return back
