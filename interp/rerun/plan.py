"""What a partial rerun has to do: what the base run keeps, where rows enter, what runs together.

A row is one example under one node. It enters a block at one of four stages — resid_pre, z,
resid_mid, post — the last that lies before its first edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..edits import Replace, Rows
from ..metrics import Bound
from ..model import Layout
from ..selection import Node, Part, Selection
from ..sites import Site
from ..tap import Silent, Tap
from ..tokens import Tokens

TOKENS_PER_PASS = 2048
"""Lines (a row at a position) of one matrix product: efficient, and small enough in memory. A GPU,
which a longer product keeps busy, takes four times as many."""
VALUES_AT_ONCE = 2**22
"""Numbers of a site, of keys or of the logits that are looked at together."""

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
        # What experts write is more than their neurons' (each has a bias): they run from the start.
        return Entry(site.layer, MID if cfg.n_experts else POST if cfg.d_mlp else Z)
    if name.startswith(("hook_resid_mid", "ln2", "mlp.")):
        return Entry(site.layer, MID)
    if name.startswith(behind_z) or (post_norm and name.startswith("ln1.")):
        return Entry(site.layer, Z)
    return Entry(site.layer, PRE)


def node_entry(node: Node, model: Any) -> Entry:
    """The last stage before all that the node edits."""
    return min(entry(model.sites[part.site], model.cfg) for part in node.parts)


class Row(NamedTuple):
    """One example under one node."""

    node: Node
    example: int
    start: int
    """The first position that it computes."""
    entry: Entry
    changed: tuple[int, ...]
    """The positions that its edits change: up to the next attention it computes no others."""


@dataclass(frozen=True, eq=False)
class Base:
    """What the unedited run keeps for those that enter it."""

    values: dict[str, Tensor]
    """Sites: those that are edited, and the stages at which rows enter."""
    placed: dict[int, tuple[Tensor, Tensor, Tensor]]
    """Queries, keys and values per layer, normed and rotated."""
    residual: Float[Tensor, "batch pos d_model"]
    """Behind the last block."""


class Recorded(Layout):
    """A run that keeps the queries, keys and values of its layers from `first` on."""

    def __init__(
        self, cfg: Any, tokens: Tokens, like: Tensor, relative: Tensor | None, first: int
    ) -> None:
        super().__init__(cfg, tokens, None, like, relative)
        self.first = first
        self.placed: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def attend(self, attn: Any, q: Tensor, k: Tensor, v: Tensor, tap: Silent | Tap) -> Tensor:
        if attn.layer >= self.first:
            # A view keeps all that was projected with it: where q and k are copies, v shall be one.
            together = v.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()
            self.placed[attn.layer] = (q, k, v if together else v.clone())
        return super().attend(attn, q, k, v, tap)


def base_run(model: Any, tokens: Tokens, nodes: Sequence[Node]) -> Base:
    """Run once and keep what the nodes' entries need, and their sites' own values."""
    first, keep = _kept(model, nodes)
    tap = Tap(model.sites, reads=keep)
    layout = Recorded(model.cfg, tokens, model.like, model.embed.W_rel, first)
    residual = model._run(tokens, tap, None, model.cfg.n_layers, layout)
    late = [name for name in keep if name not in tap.values]
    if late:
        behind = Tap(model.sites, reads=late)
        model.to_logits(residual, behind)
        tap.values |= behind.values
    return Base(tap.values, layout.placed, residual)


def _kept(model: Any, nodes: Iterable[Node]) -> tuple[int, set[str]]:
    """The first layer that a row enters, and the sites that the base run keeps."""
    keep = {f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"}
    first = model.cfg.n_layers
    for node in nodes:
        layer, stage = node_entry(node, model)
        first = min(first, max(layer, 0))
        if 0 <= layer < model.cfg.n_layers and stage != PRE:
            behind = {Z: ("hook_resid_pre", "attn.hook_z"), MID: ("hook_resid_mid",),
                      POST: ("hook_resid_mid", "mlp.hook_post")}[stage]  # fmt: skip
            keep |= {f"blocks.{layer}.{site}" for site in behind}
        keep |= {part.site for part in node.parts}
    # At its first attention a row is filled up with what it did not change.
    entered = range(first, model.cfg.n_layers)
    return first, keep | {f"blocks.{layer}.hook_resid_pre" for layer in entered}


def base_bytes(model: Any, tokens: Tokens, nodes: Sequence[Node]) -> int:
    """What the base run keeps."""
    cfg, (batch, width) = model.cfg, tokens.shape
    first, keep = _kept(model, nodes)
    sizes = {"batch": batch, "pos": width, "q_pos": width, "k_pos": width, "one": 1,
             "head": cfg.n_heads, "kv_head": cfg.n_kv_heads, "d_head": cfg.d_head,
             "d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "d_vocab": cfg.d_vocab,
             "expert": cfg.n_experts}  # fmt: skip
    values = sum(math.prod(sizes[axis] for axis in model.sites[name].axes) for name in keep)
    placed = (cfg.n_layers - first) * batch * width * (cfg.n_heads + 2 * cfg.n_kv_heads)
    return (values + placed * cfg.d_head) * model.dtype.itemsize


def pass_bytes(model: Any, lines: int) -> int:
    """What a pass takes besides, at most: its widest layer, and the values looked at together."""
    cfg = model.cfg
    attention = 3 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
    neurons = (4 if cfg.mlp_gated else 2) * cfg.d_mlp
    per_line = 3 * cfg.d_model + max(attention, neurons)
    return (lines * per_line + 4 * VALUES_AT_ONCE) * model.dtype.itemsize


def lines_that_fit(model: Any, width: int, free: int | None) -> int | None:
    """Lines per pass, halved until a pass fits into so many bytes; None: not even a row does."""
    lines = TOKENS_PER_PASS * (4 if model.device.type == "cuda" else 1)
    while free is not None and pass_bytes(model, lines) > free:
        if lines <= width:
            return None
        lines //= 2
    return lines


def plan_rows(
    model: Any, tokens: Tokens, nodes: Sequence[Node], replace: Replace, base: Base
) -> list[Row]:
    """Every (node, example) whose edit changes something, and what it changes."""
    batch, width = tokens.shape
    pairs = [(node, example) for node in nodes for example in range(batch)]
    changed = torch.zeros(len(pairs), width, dtype=torch.bool)
    by_site: dict[str, list[tuple[int, Part]]] = {}
    for i, (node, _) in enumerate(pairs):
        for part in node.parts:
            by_site.setdefault(part.site, []).append((i, part))
    for name, lines in by_site.items():
        site = model.sites[name]
        step = max(1, VALUES_AT_ONCE // base.values[name][0].numel())
        for at in range(0, len(lines), step):
            some = lines[at : at + step]
            rows = [(*pairs[i], part) for i, part in some]
            where = _changes(site, rows, tokens, replace, base).cpu()
            changed.index_put_(
                (torch.tensor([i for i, _ in some]),), where, accumulate=True
            )  # accumulate: a node may have two parts at a site
    entries = {node.row: node_entry(node, model) for node in nodes}
    rows = []
    for (node, example), own in zip(pairs, changed.numpy(), strict=True):
        where = own.nonzero()[0].tolist()
        if where:
            start = where[0] if model.cfg.causal else 0
            # What a parallel MLP reads of a position is not kept: it is computed anew.
            own = range(start, width) if model.cfg.parallel else where
            rows.append(Row(node, example, start, entries[node.row], tuple(own)))
    return rows


def _changes(
    site: Site, rows: list[tuple[Node, int, Part]], tokens: Tokens, replace: Replace, base: Base
) -> Bool[Tensor, "rows pos"]:
    """Where the edited value differs bitwise from the base run's."""
    line = edited_rows(site, rows, tokens)
    selection = Selection.of(site, [row[1:] for row in rows], tokens)
    x = base.values[site.name][line.examples]
    # A NaN differs from itself, so an edit to NaN counts as a change.
    differs = torch.where(selection.mask(site, x), replace(x, line), x) != x
    return differs.movedim(site.pos_axis, 1).flatten(2).any(-1)


def passes(rows: Iterable[Row], width: int, lines: int | None = None) -> list[list[Row]]:
    """Rows that run together: alike in entry, about so many lines (default TOKENS_PER_PASS)."""
    lines = TOKENS_PER_PASS if lines is None else lines
    # Sites that exist per head at d_model take many times the memory of others.
    wide, square = ("_input", "hook_result"), ("hook_attn_scores", "hook_pattern")
    groups: dict[tuple[bool, ...], list[Row]] = {}
    for row in rows:
        sites = [part.site for part in row.node.parts]
        ends = [any(site.endswith(kind) for site in sites) for kind in (wide, square)]
        groups.setdefault((*ends, is_late([row])), []).append(row)
    packed = []
    for (heavy, _, _), some in sorted(groups.items()):
        limit = lines // 4 if heavy else lines
        room = 0
        for row in sorted(some, key=lambda row: (row.entry, row.start)):
            if room < width - row.start:
                packed.append([])
                room = max(limit, width - row.start)
            packed[-1].append(row)
            room -= width - row.start
    return packed


def is_late(rows: Sequence[Row]) -> bool:
    """Whether any row is edited behind the last block."""
    late = ("ln_final", "hook_logits")
    return any(part.site.startswith(late) for row in rows for part in row.node.parts)


def is_trimmed(model: Any, rows: Sequence[Row], bound: Bound) -> bool:
    """Whether the last block computes, past its keys and values, only the positions read."""
    last = f"blocks.{model.cfg.n_layers - 1}.attn."
    whole = (last + "hook_attn_scores", last + "hook_pattern")
    square = any(part.site in whole for row in rows for part in row.node.parts)
    return bound.positions is not None and not square and not is_late(rows)


def multiplies(model: Any, tokens: Tokens, rows: Sequence[Row], bound: Bound) -> float:
    """Multiply-adds with weights that one pass takes (attention's own are not counted)."""
    cfg, width = model.cfg, tokens.shape[1]
    qkv, out, mlp_in, mlp_out = _sizes(model)
    trimmed, late = is_trimmed(model, rows, bound), is_late(rows)
    read = None if bound.positions is None else bound.positions.tolist()
    total = 0.0
    for row in rows:
        full, own = width - row.start, len(row.changed)
        n = full if read is None or late else len(read[row.example])
        last_full = n if trimmed else full
        last_own = len(set(row.changed).intersection(read[row.example])) if trimmed else own
        for layer in range(max(row.entry.layer, 0), cfg.n_layers):
            last = layer == cfg.n_layers - 1
            if row.entry <= (layer, PRE):
                first = row.entry > (layer - 1, PRE) or layer == 0
                total += qkv * (own if first else full)
                total += (out + mlp_in + mlp_out) * (last_full if last else full)
            else:
                lines, stage = last_own if last else own, row.entry.stage
                total += lines * (out * (stage == Z) + mlp_in * (stage <= MID) + mlp_out)
        total += n * _reading(model, bound, late)
    return total


def forward_multiplies(model: Any, tokens: Tokens, bound: Bound) -> float:
    """Multiply-adds with weights of one whole forward, as far as the metric needs one."""
    per_token = sum(_sizes(model)) * model.cfg.n_layers
    if bound.reads == "logits":
        per_token += (model.cfg.d_vocab + _transform(model)) * model.cfg.d_model
    return float(per_token * tokens.shape.numel())


def _sizes(model: Any) -> tuple[int, int, int, int]:
    """Of the weights of a block behind each of its stages."""
    block = model.blocks[0]
    rest = (0, 0) if block.mlp is None else block.mlp.multiplies
    return block.attn.qkv_weight.numel(), block.attn.out_weight.numel(), *rest


def _reading(model: Any, bound: Bound, late: bool) -> int:
    """Multiply-adds of reading one position of the last residual stream."""
    if bound.reads == "residual":
        return 0
    everything = late or bound.ids is None
    columns = model.cfg.d_vocab if everything else bound.ids.shape[2]
    if bound.log_probs and not everything:
        columns += model.cfg.d_vocab
    return (columns + _transform(model)) * model.cfg.d_model


def _transform(model: Any) -> int:
    """Columns of the transform that a masked-LM head puts before its unembedding."""
    return 0 if model.mlm_head is None else model.cfg.d_model


def edited_rows(site: Site, rows: Sequence[tuple[Node, int, Part]], tokens: Tokens) -> Rows:
    """What an edit is told of these rows."""
    examples = torch.tensor([example for _, example, _ in rows], device=tokens.device)
    keys = {node.row: node.key for node in {id(node): node for node, _, _ in rows}.values()}
    return Rows(site, examples, [keys[node.row] for node, _, _ in rows])
