"""Where a run may enter a stack of blocks: six stages, and the last of them before each site.

A row is one example under one node. It enters a block at the last stage that lies before its first
edit: resid_pre, z, mid, post; with cross-attention its own stream and z besides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from interp.core.sites import Site

from ..nodes import Node

PRE, Z, CROSS, CROSS_Z, MID, POST = range(6)
"""The stages of a block. CROSS and CROSS_Z, the residual stream that cross-attention reads and its
z, are of blocks that have one; MID is the residual stream that the MLP reads."""
KEPT = {
    Z: ("hook_resid_pre", "attn.hook_z"),
    CROSS: ("hook_resid_mid",),
    CROSS_Z: ("hook_resid_mid", "cross_attn.hook_z"),
}


class Entry(NamedTuple):
    """Where a row joins the batch; (−1, 0): before the blocks, (n_layers, 0): behind them."""

    layer: int
    stage: int


def entry(site: Site, cfg: Any) -> Entry:
    """The last stage before a site at which a run may enter its stack, which `cfg` describes."""
    name, post_norm = site.inner_name, cfg.norm_position == "post"
    if site.layer is None:
        early = name.startswith(("hook_embed", "hook_pos", "hook_token", "embed_ln"))
        return Entry(-1 if early else cfg.n_layers, 0)
    if cfg.parallel:
        return Entry(site.layer, PRE)
    crosses = cfg.encoder is not None
    behind_z = ("attn.hook_z", "attn.hook_result", "ln1_post", "hook_attn_out")
    behind_cross_z = ("cross_attn.hook_z", "cross_attn.hook_result", "ln_cross_post",
                      "hook_cross_attn_out")  # fmt: skip
    behind_post = ("mlp.hook_post", "ln2_post", "hook_mlp_out", "hook_resid_post")
    if name.startswith(behind_post) or (post_norm and name.startswith("ln2")):
        # What experts write is more than their neurons' (each has a bias): they run from the start.
        stage = MID if cfg.n_experts else POST if cfg.d_mlp else CROSS_Z if crosses else Z
        return Entry(site.layer, stage)
    if name.startswith(("ln2", "mlp.")) or name == _mlp_reads(crosses):
        return Entry(site.layer, MID)
    if name.startswith(behind_cross_z) or (post_norm and name.startswith("ln_cross.")):
        return Entry(site.layer, CROSS_Z)
    if name.startswith(("hook_resid_mid", "ln_cross.", "cross_attn.")):
        return Entry(site.layer, CROSS)
    if name.startswith(behind_z) or (post_norm and name.startswith("ln1.")):
        return Entry(site.layer, Z)
    return Entry(site.layer, PRE)


def _mlp_reads(crosses: bool) -> str:
    return "hook_resid_mid_cross" if crosses else "hook_resid_mid"


def is_of(site: str, model: Any) -> bool:
    """Whether a site is one of this model's own stack, and not of its encoder."""
    return site in model.sites and (model.encoder is None or site not in model.encoder.sites)


def node_entry(node: Node, model: Any) -> Entry | None:
    """The last stage of a stack before all that the node edits there; None: nothing.

    What is edited in an encoder enters its decoder at the first cross-attention.
    """
    own = [part for part in node.parts if is_of(part.site, model)]
    entries = [entry(model.sites[part.site], model.cfg) for part in own]
    if model.encoder is not None and len(own) < len(node.parts):
        entries.append(Entry(0, CROSS))
    return min(entries, default=None)


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
