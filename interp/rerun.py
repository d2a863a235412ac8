"""The exact partial rerun: an edit can only change what lies downstream of it.

One base run keeps what re-entering needs. A row is one example under one node; it enters a block at
one of four stages — resid_pre, z, resid_mid, post — the last that lies before its first edit, and
carries only the positions from the first changed one on: what lies to the left is a `Prefix` of
the base run. One pass over the layers carries a growing batch. Nothing is computed here: the
blocks compute, and a tap edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .edits import Replace, Rows
from .metrics import Bound
from .model import GrowingPrefix, Layout, Prefix
from .selection import Node, Part, Selection
from .sites import Site
from .tap import Tap
from .tokens import Tokens

TOKENS_PER_PASS = 2048
"""Rows × positions of one matrix product: efficient, and small enough to stay in memory."""
VALUES_AT_ONCE = 2**24
"""Numbers of a site or of the logits that are looked at together."""

PRE, Z, MID, POST = range(4)


class Entry(NamedTuple):
    """Where a row joins the batch; (−1, 0): before the blocks, (n_layers, 0): behind them."""

    layer: int
    stage: int


def entry(site: Site, cfg: Any) -> Entry:
    """The last stage before a site at which a run may enter."""
    if site.layer is None:
        early = site.name.startswith(("hook_embed", "hook_pos", "hook_token", "embed_ln"))
        return Entry(-1 if early else cfg.n_layers, 0)
    if cfg.parallel:
        return Entry(site.layer, PRE)
    name, post_norm = site.local_name, cfg.norm_position == "post"
    behind_z = ("attn.hook_z", "attn.hook_result", "ln1_post", "hook_attn_out")
    behind_post = ("mlp.hook_post", "ln2_post", "hook_mlp_out", "hook_resid_post")
    if name.startswith(behind_post) or (post_norm and name.startswith("ln2")):
        return Entry(site.layer, POST if cfg.d_mlp else Z)
    if name.startswith(("hook_resid_mid", "ln2", "mlp.")):
        return Entry(site.layer, MID)
    if name.startswith(behind_z) or (post_norm and name.startswith("ln1.")):
        return Entry(site.layer, Z)
    return Entry(site.layer, PRE)


@dataclass(frozen=True, eq=False)
class Base:
    """What the unedited run keeps for those that enter it."""

    values: dict[str, Tensor]
    prefix: GrowingPrefix
    outputs: dict[str, Tensor]
    """What metrics read: "residual", and "logits" where the model has them."""

    def rows(self, site: str, layer: int, examples: Tensor, start: int) -> Tensor:
        """A stage's tensor for some examples, from a position on."""
        return self.values[f"blocks.{layer}.{site}"][examples, start:]


class BasePrefix(Prefix):
    """The base run's keys and values left of `start`, one row per row of the batch."""

    def __init__(self, base: Base, tokens: Tokens, examples: Tensor, start: int) -> None:
        self.base, self.examples, self.start = base, examples, start
        self.mask = None if tokens.mask is None else tokens.mask[examples, :start]

    @property
    def length(self) -> int:
        return self.start

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.base.prefix.keys[layer], self.base.prefix.values[layer]
        return (
            torch.cat([keys[self.examples, : self.start], k], dim=1),
            torch.cat([values[self.examples, : self.start], v], dim=1),
        )


class Row(NamedTuple):
    """One example under one node."""

    node: Node
    example: int
    start: int
    entry: Entry


class RowTap(Tap):
    """Edits each row of the batch as its node says. Rows join at the end, so row i stays row i."""

    def __init__(
        self, model: Any, tokens: Tokens, rows: Sequence[Row], replace: Replace, start: int
    ) -> None:
        self.sites, self.replace, self.start = model.sites, replace, start
        grouped: dict[tuple[str, int], list[tuple[int, Row, Part]]] = {}
        for i, row in enumerate(rows):
            count: dict[str, int] = {}
            for part in row.node.parts:  # several parts at one site are applied one after another
                turn = count[part.site] = count.get(part.site, -1) + 1
                grouped.setdefault((part.site, turn), []).append((i, row, part))
        self.edits: dict[str, list[tuple[Tensor, Selection, Rows]]] = {}
        for (site, _), lines in sorted(grouped.items(), key=lambda item: item[0][1]):
            index = torch.tensor([i for i, *_ in lines], device=tokens.device)
            rows_here = _rows(model.sites[site], [(row, part) for _, row, part in lines], tokens)
            selection = _selections([(row, part) for _, row, part in lines], tokens)
            self.edits.setdefault(site, []).append(
                (index, selection, rows_here._replace(start=start))
            )

    def wants(self, site: str) -> bool:
        return site in self.edits

    def changes(self, site: str) -> bool:
        return site in self.edits

    def __call__(self, site: str, x: Tensor) -> Tensor:
        for index, selection, rows in self.edits.get(site, ()):
            present = int((index < len(x)).sum())  # the rest has not joined yet
            if not present:
                continue
            index, selection = index[:present], Selection(*(s[:present] for s in selection))
            rows = rows._replace(examples=rows.examples[:present], nodes=rows.nodes[:present])
            own = x[index]
            new = torch.where(selection.mask(rows.site, own, self.start),
                              self.replace(own, rows), own)  # fmt: skip
            x = x.index_copy(0, index, new)
        return x


def base_run(model: Any, tokens: Tokens, nodes: Iterable[Node]) -> Base:
    """Run once and keep what the nodes' entries need, and their sites' own values."""
    keep: set[str] = set()
    for node in nodes:
        layer, stage = min(entry(model.sites[part.site], model.cfg) for part in node.parts)
        if layer == model.cfg.n_layers:
            keep.add(f"blocks.{layer - 1}.hook_resid_post")
        elif layer >= 0:
            first, second = {
                PRE: ("hook_resid_pre",) * 2,
                Z: ("hook_resid_pre", "attn.hook_z"),
                MID: ("hook_resid_mid",) * 2,
                POST: ("hook_resid_mid", "mlp.hook_post"),
            }[stage]
            keep |= {f"blocks.{layer}.{first}", f"blocks.{layer}.{second}"}
        keep |= {part.site for part in node.parts}
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    prefix = GrowingPrefix(model.cfg, *tokens.shape, like=model.W_E)
    tap = Tap(model.sites, reads=keep | {last})
    out = model._run(tokens, tap, prefix, stop=None)
    outputs = {"residual": tap.values[last]} | ({} if model.cfg.head == "none" else {"logits": out})
    return Base(tap.values, prefix, outputs)


def plan_rows(
    model: Any, tokens: Tokens, nodes: Sequence[Node], replace: Replace, base: Base
) -> list[Row]:
    """Every (node, example) whose edit changes something, and where it must start."""
    batch, width = tokens.shape
    pairs = [(node, example) for node in nodes for example in range(batch)]
    starts = torch.full((len(pairs),), width, dtype=torch.long)
    by_site: dict[str, list[tuple[int, Part]]] = {}
    for i, (node, _) in enumerate(pairs):
        for part in node.parts:
            by_site.setdefault(part.site, []).append((i, part))
    for name, lines in by_site.items():
        site = model.sites[name]
        step = max(1, VALUES_AT_ONCE // base.values[name][0].numel())
        for at in range(0, len(lines), step):
            some = lines[at : at + step]
            rows = [(Row(*pairs[i], 0, Entry(0, 0)), part) for i, part in some]
            first = _first_change(site, rows, tokens, replace, base)
            index = torch.tensor([i for i, _ in some])
            starts.scatter_reduce_(0, index, first.cpu(), "amin")
    entries = {
        node.row: min(entry(model.sites[part.site], model.cfg) for part in node.parts)
        for node in nodes
    }
    return [
        Row(node, example, int(start) if model.cfg.causal else 0, entries[node.row])
        for (node, example), start in zip(pairs, starts, strict=True)
        if start < width
    ]


def _first_change(
    site: Site, rows: list[tuple[Row, Part]], tokens: Tokens, replace: Replace, base: Base
) -> Int[Tensor, " rows"]:
    """The first position at which the edited value differs bitwise; the width where none does."""
    selection, line = _selections(rows, tokens), _rows(site, rows, tokens)
    x = base.values[site.name][line.examples]
    # A NaN differs from itself, so an edit to NaN counts as a change.
    differs = (torch.where(selection.mask(site, x), replace(x, line), x) != x).movedim(
        site.pos_axis, 1
    )
    differs = differs.flatten(2).any(-1)
    index = torch.arange(differs.shape[1], device=x.device)
    return torch.where(differs, index, tokens.shape[1]).amin(1)


def passes(rows: Iterable[Row], width: int) -> list[list[Row]]:
    """Rows that run together: the same start, alike in entry, about TOKENS_PER_PASS tokens."""
    groups: dict[tuple[bool, int], list[Row]] = {}
    for row in rows:
        # A head with an input of its own is normed apart: such rows do not mix with others.
        apart = any(part.site.endswith("_input") for part in row.node.parts)
        groups.setdefault((apart, row.start), []).append(row)
    packed = []
    for (_, start), some in sorted(groups.items(), key=lambda item: item[0]):
        some = sorted(some, key=lambda row: row.entry)
        size = max(1, TOKENS_PER_PASS // (width - start))
        packed += [some[i : i + size] for i in range(0, len(some), size)]
    return packed


class Rerun:
    """Runs passes over one base run, and counts the work."""

    def __init__(
        self, model: Any, tokens: Tokens, base: Base, replace: Replace, bound: Bound
    ) -> None:
        self.model, self.tokens, self.base = model, tokens, base
        self.replace, self.bound, self.output = replace, bound, base.outputs[bound.reads]
        self.layer_tokens = 0.0
        """Tokens carried through a layer, summed over layers; a part of a layer counts as one."""

    def measure(self, rows: Sequence[Row]) -> Float[Tensor, " rows"]:
        """The metric of each row of one pass."""
        start = rows[0].start
        examples = torch.tensor([row.example for row in rows], device=self.tokens.device)
        tap = RowTap(self.model, self.tokens, rows, self.replace, start)
        x = self._embedded(rows, examples, start, tap)
        for layer in range(self.model.cfg.n_layers):
            x = self._layer(layer, x, rows, examples, start, tap)
        joining = examples[len(x) :]
        last = self.model.cfg.n_layers - 1
        if len(joining):
            x = torch.cat([x, self.base.rows("hook_resid_post", last, joining, start)])
        return self._read(x, examples, start, tap)

    def _embedded(
        self, rows: Sequence[Row], examples: Tensor, start: int, tap: Tap
    ) -> Float[Tensor, "rows pos d_model"]:
        count = sum(row.entry.layer < 0 for row in rows)
        own = self._suffix(examples[:count], start)
        if not count:
            return self.model.W_E.new_empty(0, self.tokens.shape[1] - start, self.model.cfg.d_model)
        x = self.model.embed(own, self._layout(examples[:count], start), tap)
        return x if self.model.embed_ln is None else self.model.embed_ln(x, tap)

    def _layer(
        self, layer: int, x: Tensor, rows: Sequence[Row], examples: Tensor, start: int, tap: Tap
    ) -> Tensor:
        block, base = self.model.blocks[layer], self.base

        def joining(stage: int, present: int) -> Tensor:
            """The examples of the rows that enter here, behind those present."""
            count = sum(row.entry <= (layer, stage) for row in rows)
            width = self.tokens.shape[1] - start
            entering = count if stage == PRE else count - present
            self.layer_tokens += entering * width * _share(block, stage)
            return examples[present:count]

        new = joining(PRE, len(x))
        if len(new):
            x = torch.cat([x, base.rows("hook_resid_pre", layer, new, start)])
        z = None
        if len(x):
            layout = self._layout(examples[: len(x)], start)
            if block.parallel:
                return block(x, layout, tap)
            x, _, z = block.to_z(x, layout, tap)
        new = joining(Z, len(x))
        if len(new):
            own = base.rows("attn.hook_z", layer, new, start)
            z = own if z is None else torch.cat([z, own])
            x = torch.cat([x, base.rows("hook_resid_pre", layer, new, start)])
        if z is not None:
            x = block.to_resid_mid(x, z, tap)
        if block.mlp is None:
            return tap(block.hook_resid_post, x) if len(x) else x
        new = joining(MID, len(x))
        if len(new):
            x = torch.cat([x, base.rows("hook_resid_mid", layer, new, start)])
        post = None
        if len(x):
            x, post = block.to_post(x, tap)
        new = joining(POST, len(x))
        if len(new):
            own = base.rows("mlp.hook_post", layer, new, start)
            post = own if post is None else torch.cat([post, own])
            x = torch.cat([x, base.rows("hook_resid_mid", layer, new, start)])
        return x if post is None else block.from_post(x, post, tap)

    def _read(
        self, x: Float[Tensor, "rows pos d_model"], examples: Tensor, start: int, tap: Tap
    ) -> Float[Tensor, " rows"]:
        """Measure a few rows at a time: a whole batch's logits may not fit."""
        bound, logits_read = self.bound, self.bound.reads == "logits"
        late = logits_read and any(
            site.startswith(("ln_final", "hook_logits")) for site in tap.edits
        )
        if logits_read and bound.positions is not None and not late:
            at = bound.positions[examples]
            own = (at - start).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
            logits = self.model.to_logits(x.gather(1, own))
            seen = bound.pick(self.output, torch.arange(len(self.output), device=x.device))[
                examples
            ]
            if bound.columns is not None:
                columns = bound.columns[examples][:, None].expand(-1, logits.shape[1], -1)
                logits = logits.gather(2, columns)
            # Causal: what lies left of the start is the base run's.
            logits = torch.where((at < start)[..., None], seen, logits)
            return bound.measure(logits, examples)
        if late:
            out = self.model.to_logits(x, tap)
            return self._whole(out, examples, start)
        width = self.model.cfg.d_vocab if logits_read else x.shape[-1]
        step = max(1, VALUES_AT_ONCE // (self.tokens.shape[1] * width))
        values = []
        for i in range(0, len(x), step):
            out = x[i : i + step]
            if logits_read:
                out = self.model.to_logits(out)
            values.append(self._whole(out, examples[i : i + step], start))
        return torch.cat(values)

    def _whole(self, out: Tensor, examples: Tensor, start: int) -> Float[Tensor, " rows"]:
        """Measure with the base run's output left of the start."""
        whole = torch.cat([self.output[examples, :start], out], dim=1)
        return self.bound.measure(self.bound.pick(whole, examples), examples)

    def _layout(self, examples: Tensor, start: int) -> Layout:
        prefix = BasePrefix(self.base, self.tokens, examples, start) if start else None
        own = self._suffix(examples, start)
        return Layout(self.model.cfg, own, prefix, like=self.model.W_E)

    def _suffix(self, examples: Tensor, start: int) -> Tokens:
        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[examples, start:]

        t = self.tokens
        return Tokens(cut(t.ids), cut(t.vectors), cut(t.mask), cut(t.positions), cut(t.token_types))


def _share(block: Any, stage: int) -> float:
    """How much of a block's matrix products lies behind a stage."""
    parts = [block.attn.qkv_weight, block.attn.out_weight]
    parts += [] if block.mlp is None else [block.mlp.in_weight, block.mlp.out_weight]
    sizes = [weight.numel() for weight in parts]
    return sum(sizes[stage:]) / sum(sizes)


def _rows(site: Site, rows: Sequence[tuple[Row, Part]], tokens: Tokens) -> Rows:
    examples = torch.tensor([row.example for row, _ in rows], device=tokens.device)
    nodes = {row.node.row: row.node for row, _ in rows}
    keys = {row: node.key for row, node in nodes.items()}
    return Rows(site, examples, [keys[row.node.row] for row, _ in rows])


def _selections(rows: Sequence[tuple[Row, Part]], tokens: Tokens) -> Selection:
    """One line per row."""
    width = tokens.shape[1]
    roles = {part.role: tokens.roles[part.role].tolist() for _, part in rows if part.role}

    def pos(row: Row, part: Part) -> int:
        if part.role is not None:
            return roles[part.role][row.example] % width
        return -1 if part.pos is None else part.pos % width

    columns = zip(*(
        (
            pos(row, part),
            -1 if part.head is None else part.head,
            -1 if part.k_pos is None else part.k_pos % width,
            -1 if part.neuron is None else part.neuron,
        )
        for row, part in rows
    ), strict=True)  # fmt: skip
    return Selection(*(torch.tensor(column, device=tokens.device) for column in columns))
