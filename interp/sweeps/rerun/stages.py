"""Where a run may enter a stack of blocks: six stages, and the last of them at each site.

A row is one example under one node. It enters a block at the last stage that lies at or before its
first edit: resid_pre, z, mid, post; with cross-attention its own stream and z besides.
"""

from __future__ import annotations

from typing import NamedTuple

from interp.core.config import TransformerConfig
from interp.core.sites import SiteTable
from interp.model import HookedTransformer
from interp.model.block import Block

from ..nodes import Node

PRE, Z, CROSS, CROSS_Z, MID, POST = range(6)
"""The stages of a block. CROSS and CROSS_Z, the residual stream that cross-attention reads and its
z, are of blocks that have one; MID is the residual stream that the MLP reads."""


def stage_sites(cfg: TransformerConfig) -> dict[str, int]:
    """The sites of a block at which a run may enter it, each with its stage."""
    stages = {"hook_resid_pre": PRE}
    if cfg.parallel:  # what its MLP reads is not kept
        return stages
    stages |= {"attn.hook_z": Z, "cross_attn.hook_z": CROSS_Z, "hook_resid_mid_cross": MID}
    stages["hook_resid_mid"] = MID if cfg.encoder is None else CROSS
    if not cfg.n_experts:  # what experts write is more than their neurons': each has a bias
        stages["mlp.hook_post"] = POST
    return stages


def carried_sites(block: Block, stage: int) -> tuple[str, ...]:
    """The sites of a block that hold all that goes on from a stage."""
    if stage in (PRE, Z):
        return (block.hook_resid_pre, block.attn.hook_z)[: 1 + (stage == Z)]
    if stage in (CROSS, CROSS_Z):
        return (block.hook_resid_mid, block.cross_attn.hook_z)[: 1 + (stage == CROSS_Z)]
    return (block.mid,) if stage == MID else (block.mid, block.mlp.hook_post)


class Entry(NamedTuple):
    """Where a row joins the batch; (−1, 0): before the blocks, (n_layers, 0): behind them."""

    layer: int
    stage: int


def entries(sites: SiteTable, cfg: TransformerConfig) -> dict[str, Entry]:
    """Where a run enters the stack of this config to be edited at each site: the last stage at or
    before it in the table. What is edited in an encoder enters its decoder at the first
    cross-attention."""
    stages, at, by_site = stage_sites(cfg), Entry(-1, 0), {}
    for site in sites:
        if cfg.encoder is not None and site.in_encoder:
            by_site[site.name] = Entry(0, CROSS)
            continue
        if site.layer is None:
            at = Entry(cfg.n_layers, 0) if at.layer >= 0 else at
        elif site.inner_name in stages:
            at = Entry(site.layer, stages[site.inner_name])
        by_site[site.name] = at
    return by_site


def node_entry(node: Node, by_site: dict[str, Entry]) -> Entry | None:
    """The last stage of a stack before all that the node edits there, from the entries of its
    sites; None: nothing."""
    met = [by_site[part.site] for part in node.parts if part.site in by_site]
    return min(met, default=None)


def is_of(site: str, model: HookedTransformer) -> bool:
    """Whether a site is one of this model's own stack, and not of its encoder."""
    return site in model.sites and (model.encoder is None or site not in model.encoder.sites)


class Row(NamedTuple):
    """One example under one node, on its way through a stack."""

    node: Node
    example: int
    start: int
    """The first position that it computes."""
    entry: Entry
    changed: tuple[int, ...]
    """The positions that its edits change: up to the next attention it computes no others."""
    source: Row | None = None
    """The same on its way through the encoder, where something changes there."""

    @property
    def pair(self) -> tuple[Node, int]:
        """What it is a row of."""
        return self.node, self.example

    def lines(self, width: int, source: int = 0) -> int:
        """Positions that it computes of a run and its source, so wide."""
        return width - self.start + (0 if self.source is None else source)
