"""What a partial rerun has to do: what the base run keeps, where rows enter, what runs together.

A row is one example under one node. It enters a block at one of four stages — resid_pre, z,
resid_mid, post — the last that lies before its first edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.core.finite import check_edit
from interp.core.sites import Site
from interp.core.tap import Tap
from interp.core.tokens import Tokens
from interp.model import Encoded

from ..edits import Replace, Rows
from ..metrics import Bound
from ..nodes import Node, Part, Selection
from .stages import KEPT, MID, POST, PRE, Row, Z, is_of, node_entry

TOKENS_PER_PASS = 2048
"""Lines (a row at a position) of one matrix product: efficient, and small enough in memory. A GPU,
which a longer product keeps busy, takes four times as many."""
VALUES_AT_ONCE = 2**22
"""Numbers of a site, of keys or of the logits that are looked at together."""


@dataclass(frozen=True, eq=False)
class Base:
    """What the unedited run keeps for those that enter it."""

    values: dict[str, Tensor]
    """Sites: those that are edited, and the stages at which rows enter."""
    placed: dict[int, tuple[Tensor, Tensor, Tensor]]
    """Queries, keys and values per layer, normed and rotated."""
    residual: Float[Tensor, "batch pos d_model"]
    """Behind the last block."""
    source: Base | None = None
    """The same of the encoder."""
    encoded: Encoded | None = None
    """What the decoder reads of it."""


def base_run(model: Any, tokens: Tokens, nodes: Sequence[Node]) -> Base:
    """Run once and keep what the nodes' entries need, and their sites' own values."""
    source = encoded = None
    if model.encoder is not None:
        source = base_run(model.encoder, tokens.source, nodes)
        encoded = Encoded(model.encoder.to_logits(source.residual), tokens.source.mask)
    first, keep = _kept(model, nodes)
    tap, layout = Tap(model.sites, reads=keep), model.layout(tokens)
    layout.check_context()
    placed: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    residual = model.embedded(tokens, layout, tap)
    for layer, block in enumerate(model.blocks):
        x, normed, (q, k, v) = block.to_qkv(residual, layout, tap)
        if layer >= first:
            # A view keeps all that was projected with it: where q and k are copies, v shall be one.
            together = v.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()
            placed[layer] = (q, k, v if together else v.clone())
        z = block.attn.attend(q, k, v, layout, tap)
        residual = block.from_z(x, normed, z, tap, encoded)
    late = [name for name in keep if name not in tap.values]
    if late:
        behind = Tap(model.sites, reads=late)
        model.to_logits(residual, behind)
        tap.values |= behind.values
    return Base(tap.values, placed, residual, source, encoded)


def _kept(model: Any, nodes: Iterable[Node]) -> tuple[int, set[str]]:
    """The first layer that a row enters, and the sites of a stack that the base run keeps."""
    blocks, first = model.blocks, model.cfg.n_layers
    keep = {blocks[-1].hook_resid_post}
    for node in nodes:
        at = node_entry(node, model)
        if at is None:
            continue
        first = min(first, max(at.layer, 0))
        if 0 <= at.layer < model.cfg.n_layers and at.stage != PRE:
            block = blocks[at.layer]
            mid = (block.mid,) if at.stage >= MID else ()
            post = (block.mlp.hook_post,) if at.stage == POST else ()
            named = KEPT.get(at.stage, ())
            keep |= {*mid, *post, *(f"{block.name}.{site}" for site in named)}
        keep |= {part.site for part in node.parts if is_of(part.site, model)}
    # At its first attention a row is filled up with what it did not change.
    return first, keep | {block.hook_resid_pre for block in blocks[first:]}


def base_bytes(model: Any, tokens: Tokens, nodes: Sequence[Node]) -> int:
    """What the base run keeps."""
    cfg, (batch, width) = model.cfg, tokens.shape
    first, keep = _kept(model, nodes)
    sizes = {"batch": batch, "one": 1, "head": cfg.n_heads, "kv_head": cfg.n_kv_heads,
             "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp,
             "d_vocab": cfg.d_vocab,
              "expert": cfg.n_experts}  # fmt: skip
    source = 0 if tokens.source is None else tokens.source.shape[1]

    def size(site: Site) -> int:
        of = dict.fromkeys(("pos", "q_pos", "k_pos"), width)
        own = sizes | of | (dict.fromkeys(site.source, source) if source else {})
        return math.prod(own[axis] for axis in site.axes)

    values = sum(size(model.sites[name]) for name in keep)
    placed = (cfg.n_layers - first) * batch * width * (cfg.n_heads + 2 * cfg.n_kv_heads)
    placed += cfg.n_layers * batch * source * 2 * cfg.n_kv_heads
    values += batch * source * cfg.d_model  # what the decoder reads
    own = (values + placed * cfg.d_head) * model.dtype.itemsize
    return own + (base_bytes(model.encoder, tokens.source, nodes) if source else 0)


def pass_bytes(model: Any, lines: int) -> int:
    """What a pass takes besides, at most: its widest layer, and the values looked at together."""
    stacks = [model.cfg] if model.cfg.encoder is None else [model.cfg, model.cfg.encoder]
    widest = 0
    for cfg in stacks:
        attention = 3 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
        neurons = (4 if cfg.mlp_gated else 2) * cfg.d_mlp
        widest = max(widest, attention, neurons)
    per_line = (2 + len(stacks)) * model.cfg.d_model + widest
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
    changed = {False: torch.zeros(len(pairs), width, dtype=torch.bool)}
    if tokens.source is not None:
        changed[True] = torch.zeros(len(pairs), tokens.source.shape[1], dtype=torch.bool)
    by_site: dict[str, list[tuple[int, Part]]] = {}
    for i, (node, _) in enumerate(pairs):
        for part in node.parts:
            by_site.setdefault(part.site, []).append((i, part))
    for name, lines in by_site.items():
        site, of_source = model.sites[name], not is_of(name, model)
        values = (base.source if of_source else base).values[name]
        step = max(1, VALUES_AT_ONCE // values[0].numel())
        for at in range(0, len(lines), step):
            some = lines[at : at + step]
            rows = [(*pairs[i], part) for i, part in some]
            where = _changes(site, rows, tokens, replace, values).cpu()
            if not of_source:
                where = _reached(site, where, width)
            changed[of_source].index_put_(
                (torch.tensor([i for i, _ in some]),), where, accumulate=True
            )  # accumulate: a node may have two parts at a site
    own = _stack_rows(model, pairs, changed[False])
    if tokens.source is None:
        return [row for row in own if row is not None]
    found = []
    sources = _stack_rows(model.encoder, pairs, changed[True])
    for (node, example), row, source in zip(pairs, own, sources, strict=True):
        if source is not None:  # the decoder reads it from its first position on
            at = node_entry(node, model)
            row = Row(node, example, 0, at, tuple(range(width)), source)
        found += [] if row is None else [row]
    return found


def _reached(site: Site, where: Bool[Tensor, "rows pos"], width: int) -> Bool[Tensor, "rows width"]:
    """Where a decoder changes, from where a site of it does."""
    if site.in_encoder or "pos" not in site.source:
        return where
    # Keys and values of the source are read from everywhere.
    return where.any(1, keepdim=True).expand(-1, width)


def _edited(node: Node, model: Any) -> list[Site]:
    """The sites of cross-attention among those that a node edits."""
    sites = (model.sites[part.site] for part in node.parts if is_of(part.site, model))
    return [site for site in sites if site.source and not site.in_encoder]


def _stack_rows(
    model: Any, pairs: Sequence[tuple[Node, int]], changed: Bool[Tensor, "pairs pos"]
) -> list[Row | None]:
    """The row of each pair on its way through a stack; None: nothing changes."""
    entries = {node.row: node_entry(node, model) for node, _ in pairs}
    rows: list[Row | None] = []
    for (node, example), own in zip(pairs, changed.numpy(), strict=True):
        where = own.nonzero()[0].tolist()
        start = where[0] if where and model.cfg.causal else 0
        # What a parallel MLP reads of a position is not kept: it is computed anew. The queries of
        # an edited square are those from the row's start on.
        whole = model.cfg.parallel or any("k_pos" in s.source for s in _edited(node, model))
        own = range(start, len(own)) if whole else where
        at = entries[node.row]
        rows.append(Row(node, example, start, at, tuple(own)) if where else None)
    return rows


def _changes(
    site: Site,
    rows: list[tuple[Node, int, Part]],
    tokens: Tokens,
    replace: Replace,
    values: Tensor,
) -> Bool[Tensor, "rows pos"]:
    """Where the edited value differs bitwise from the base run's."""
    line = edited_rows(site, [(node, example) for node, example, _ in rows], tokens)
    selection = Selection.of(site, [row[1:] for row in rows], tokens)
    x = values[line.examples]
    new = torch.where(selection.mask(site, x), replace(x, line), x)
    check_edit(new, site.name, [f"node {node}" for node, _, _ in rows])
    differs = new != x
    return differs.movedim(site.pos_axis, 1).flatten(2).any(-1)


def passes(
    rows: Iterable[Row], width: int, lines: int | None = None, source: int = 0
) -> list[list[Row]]:
    """Rows that run together: alike in entry, about so many lines (default TOKENS_PER_PASS), of
    runs and sources so wide."""
    lines = TOKENS_PER_PASS if lines is None else lines
    # Sites that exist per head at d_model take many times the memory of others; where inputs are
    # edited, norms cannot be.
    kinds = ("_input", "hook_result", ("hook_attn_scores", "hook_pattern"))
    groups: dict[tuple[bool, ...], list[Row]] = {}
    for row in rows:
        sites = [part.site for part in row.node.parts]
        ends = [any(site.endswith(kind) for site in sites) for kind in kinds]
        key = (*ends, is_late([row]), row.source is not None)
        groups.setdefault(key, []).append(row)
    packed = []
    for (of_inputs, of_results, *_), some in sorted(groups.items()):
        limit = lines // 4 if of_inputs or of_results else lines
        room = 0
        for row in sorted(some, key=lambda r: ((r.source or r).entry, r.entry, r.start)):
            own = row.lines(width, source)
            if room < own:
                packed.append([])
                room = max(limit, own)
            packed[-1].append(row)
            room -= own
    return packed


def is_late(rows: Sequence[Row]) -> bool:
    """Whether any row is edited behind the last block."""
    late = ("ln_final", "hook_logits")
    return any(part.site.startswith(late) for row in rows for part in row.node.parts)


def is_trimmed(model: Any, rows: Sequence[Row], bound: Bound) -> bool:
    """Whether the last block computes, past its keys and values, only the positions read."""
    last = model.blocks[-1]
    attentions = [attn for attn in (last.attn, last.cross_attn) if attn is not None]
    whole = [site for attn in attentions for site in (attn.hook_attn_scores, attn.hook_pattern)]
    square = any(part.site in whole for row in rows for part in row.node.parts)
    return bound.positions is not None and not square and not is_late(rows)


def multiplies(model: Any, tokens: Tokens, rows: Sequence[Row], bound: Bound) -> float:
    """Multiply-adds with weights that one pass takes (attention's own are not counted)."""
    width = tokens.shape[1]
    trimmed, late = is_trimmed(model, rows, bound), is_late(rows)
    read = None if bound.positions is None else bound.positions.tolist()
    total = 0.0
    for row in rows:
        full = width - row.start
        n = full if read is None or late else len(read[row.example])
        if trimmed:
            own = len(set(row.changed).intersection(read[row.example]))
            total += _through(model, row, full, (n, own))
        else:
            total += _through(model, row, full, (full, len(row.changed)))
        total += n * _reading(model, bound, late)
        if row.source is not None:
            source, wide = row.source, tokens.source.shape[1]
            total += _through(model.encoder, source, wide, (wide, len(source.changed)))
            total += wide * _memory_size(model)
    return total


def _through(model: Any, row: Row, full: int, last: tuple[int, int]) -> int:
    """Multiply-adds of a row's way through the blocks of a stack. `full`: the lines from its start
    on; `last`: those that the last block computes of them, and of those that are changed."""
    qkv, *behind = _sizes(model)
    total = 0
    for layer in range(max(row.entry.layer, 0), model.cfg.n_layers):
        is_last = layer == model.cfg.n_layers - 1
        if row.entry <= (layer, PRE):
            first = row.entry > (layer - 1, PRE) or layer == 0
            total += qkv * (len(row.changed) if first else full)
            total += sum(behind) * (last[0] if is_last else full)
        else:
            total += (last[1] if is_last else len(row.changed)) * sum(behind[row.entry.stage - Z :])
    return total


def forward_multiplies(model: Any, tokens: Tokens, bound: Bound) -> float:
    """Multiply-adds with weights of one whole forward, as far as the metric needs one."""
    per_token = sum(_sizes(model)) * model.cfg.n_layers
    if bound.reads == "logits":
        per_token += (model.cfg.d_vocab + _transform(model)) * model.cfg.d_model
    total = per_token * tokens.shape.numel()
    if tokens.source is not None:
        encoder = model.encoder
        per_token = sum(_sizes(encoder)) * encoder.cfg.n_layers + _memory_size(model)
        total += per_token * tokens.source.shape.numel()
    return float(total)


def _sizes(model: Any) -> tuple[int, ...]:
    """Of the weights of a block behind each of its stages."""
    block = model.blocks[0]
    mlp, cross = block.mlp, block.cross_attn
    rest = (0, 0) if mlp is None else mlp.multiplies
    between = (0, 0)
    if cross is not None:  # of which keys and values are not made of the stream
        between = (cross.qkv_weight[cross.rows(0, 1)].numel(), cross.out_weight.numel())
    return block.attn.qkv_weight.numel(), block.attn.out_weight.numel(), *between, *rest


def _memory_size(model: Any) -> int:
    """Of the weights that make keys and values of a position of the source, in all layers."""
    cross = model.blocks[0].cross_attn
    return cross.qkv_weight[cross.rows(1, 3)].numel() * model.cfg.n_layers


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


def edited_rows(site: Site, rows: Sequence[tuple[Node, int]], tokens: Tokens) -> Rows:
    """What an edit is told of these rows, each a node and an example."""
    examples = torch.tensor([example for _, example in rows], device=tokens.device)
    keys = {node.row: node.key for node in {id(node): node for node, _ in rows}.values()}
    numbers = [node.row for node, _ in rows]
    return Rows(site, examples, [keys[number] for number in numbers], numbers=numbers)
