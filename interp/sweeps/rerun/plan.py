"""What a partial rerun has to run: which rows, where they enter, and which go together.

A row is one example under one node. It enters a block at the last stage that lies before its first
edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.core.finite import check_edit
from interp.core.sites import Site
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from ..edits import Replace, Rows
from ..metrics import Bound
from ..nodes import Node, Part, Selection
from .base import Base
from .stages import Row, entries, is_of, node_entry

TOKENS_PER_PASS = 2048
"""Lines (a row at a position) of one matrix product: efficient, and small enough in memory. A GPU,
which a longer product keeps busy, takes four times as many."""
VALUES_AT_ONCE = 2**22
"""Numbers of a site, of keys or of the logits that are looked at together."""


def plan_rows(
    model: HookedTransformer, tokens: Tokens, nodes: Sequence[Node], replace: Replace, base: Base
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
    by_pair = _stack_rows(model, pairs, changed[False])
    if tokens.source is not None:
        by_site = entries(model.sites, model.cfg)
        sources = _stack_rows(model.encoder, pairs, changed[True])
        for i, ((node, example), source) in enumerate(zip(pairs, sources, strict=True)):
            if source is not None:  # the decoder reads it from its first position on
                at = node_entry(node, by_site)
                by_pair[i] = Row(node, example, 0, at, tuple(range(width)), source)
    return [row for row in by_pair if row is not None]


def _reached(site: Site, where: Bool[Tensor, "rows pos"], width: int) -> Bool[Tensor, "rows width"]:
    """Where a decoder changes, from where a site of it does."""
    if site.in_encoder or "pos" not in site.source:
        return where
    # Keys and values of the source are read from everywhere.
    return where.any(1, keepdim=True).expand(-1, width)


def _cross_sites(node: Node, model: HookedTransformer) -> list[Site]:
    """The sites of cross-attention among those that a node edits."""
    sites = (model.sites[part.site] for part in node.parts if is_of(part.site, model))
    return [site for site in sites if site.source and not site.in_encoder]


def _stack_rows(
    model: HookedTransformer, pairs: Sequence[tuple[Node, int]], changed: Bool[Tensor, "pairs pos"]
) -> list[Row | None]:
    """The row of each pair on its way through a stack; None: nothing changes."""
    by_site = entries(model.sites, model.cfg)
    by_node = {node.row: node_entry(node, by_site) for node, _ in pairs}
    rows: list[Row | None] = []
    for (node, example), differs in zip(pairs, changed.numpy(), strict=True):
        where = differs.nonzero()[0].tolist()
        start = where[0] if where and model.cfg.causal else 0
        # What a parallel MLP reads of a position is not kept: it is computed anew. The queries of
        # an edited square are those from the row's start on.
        whole = model.cfg.parallel or any("k_pos" in s.source for s in _cross_sites(node, model))
        lines = range(start, len(differs)) if whole else where
        at = by_node[node.row]
        rows.append(Row(node, example, start, at, tuple(lines)) if where else None)
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


def is_trimmed(model: HookedTransformer, rows: Sequence[Row], bound: Bound) -> bool:
    """Whether the last block computes, past its keys and values, only the positions read."""
    last = model.blocks[-1]
    attentions = [attn for attn in (last.attn, last.cross_attn) if attn is not None]
    whole = [site for attn in attentions for site in (attn.hook_attn_scores, attn.hook_pattern)]
    square = any(part.site in whole for row in rows for part in row.node.parts)
    return bound.positions is not None and not square and not is_late(rows)


def edited_rows(site: Site, rows: Sequence[tuple[Node, int]], tokens: Tokens) -> Rows:
    """What an edit is told of these rows, each a node and an example."""
    examples = torch.tensor([example for _, example in rows], device=tokens.device)
    keys = {node.row: node.key for node in {id(node): node for node, _ in rows}.values()}
    numbers = [node.row for node, _ in rows]
    return Rows(site, examples, [keys[number] for number in numbers], numbers=numbers)
