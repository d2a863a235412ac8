"""The unedited run: what it keeps for those that enter it, and how many bytes that takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp.core.sites import Site
from interp.core.tap import Tap
from interp.core.tokens import Tokens
from interp.model import Encoded, HookedTransformer

from ..nodes import Node
from .stages import carried_sites, entries, is_of, node_entry


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


def base_run(model: HookedTransformer, tokens: Tokens, nodes: Sequence[Node]) -> Base:
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


def _kept(model: HookedTransformer, nodes: Iterable[Node]) -> tuple[int, set[str]]:
    """The first layer that a row enters, and the sites of a stack that the base run keeps."""
    blocks, first = model.blocks, model.cfg.n_layers
    keep, by_site = {blocks[-1].hook_resid_post}, entries(model.sites, model.cfg)
    for node in nodes:
        at = node_entry(node, by_site)
        if at is None:
            continue
        first = min(first, max(at.layer, 0))
        if 0 <= at.layer < model.cfg.n_layers:
            keep |= set(carried_sites(blocks[at.layer], at.stage))
        keep |= {part.site for part in node.parts if is_of(part.site, model)}
    # At its first attention a row is filled up with what it did not change.
    return first, keep | {block.hook_resid_pre for block in blocks[first:]}


def base_bytes(model: HookedTransformer, tokens: Tokens, nodes: Sequence[Node]) -> int:
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
