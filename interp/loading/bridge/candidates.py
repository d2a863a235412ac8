"""The sites that a bridge may have under our names, and what each must be.

TransformerLens has a hook point for each of these names, or an alias to one; whether the tensor
there means the same is not asked here (see `checks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from interp.core.sites import (
    HEADS,
    KV_HEADS,
    NEURONS,
    PER_HEAD,
    PER_KV_HEAD,
    RESIDUAL,
    SCALE,
    SCORES,
    Site,
)

LOGITS = Site("hook_logits", None, ("batch", "pos", "d_vocab"))
"""Tapped on the output itself, so that it means what it says everywhere."""


def _norm(name: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.hook_scale": SCALE, f"{name}.hook_normalized": RESIDUAL}


OUTSIDE = {
    "hook_embed": RESIDUAL,
    "hook_pos_embed": RESIDUAL,
    "hook_token_type_embed": RESIDUAL,
    **_norm("embed_ln"),
    **_norm("ln_final"),
}
GATED = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}
"""Sites that TransformerLens computes only where a flag of its model is set."""
IN_BLOCK = {
    "hook_resid_pre": RESIDUAL,
    "hook_q_input": PER_HEAD,
    "hook_k_input": PER_KV_HEAD,
    "hook_v_input": PER_KV_HEAD,
    **_norm("ln1"),
    "attn.hook_q": HEADS,
    "attn.hook_k": KV_HEADS,
    "attn.hook_v": KV_HEADS,
    "attn.q_norm.hook_scale": ("batch", "pos", "head", "one"),
    "attn.k_norm.hook_scale": ("batch", "pos", "kv_head", "one"),
    "attn.hook_rot_q": HEADS,
    "attn.hook_rot_k": KV_HEADS,
    "attn.hook_attn_scores": SCORES,
    "attn.hook_pattern": SCORES,
    "attn.hook_z": HEADS,
    "attn.hook_result": PER_HEAD,
    **_norm("ln1_post"),
    "hook_attn_out": RESIDUAL,
    "hook_resid_mid": RESIDUAL,
    **_norm("ln2"),
    "mlp.hook_pre": NEURONS,
    "mlp.hook_pre_linear": NEURONS,
    "mlp.hook_post": NEURONS,
    **_norm("ln2_post"),
    "hook_mlp_out": RESIDUAL,
    "hook_resid_post": RESIDUAL,
}


def candidates(points: Mapping[str, Any], n_layers: int) -> Iterator[Site]:
    """Every site of ours for which the bridge has a hook point, roughly in forward order."""
    before = [name for name in OUTSIDE if not name.startswith("ln_final")]
    for name in (*before, *_block_names(n_layers), *OUTSIDE):
        if name in points:
            layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
            local = name if layer is None else name.split(".", 2)[2]
            yield Site(name, layer, OUTSIDE[name] if layer is None else IN_BLOCK[local])


def _block_names(n_layers: int) -> Iterator[str]:
    for layer in range(n_layers):
        yield from (f"blocks.{layer}.{local}" for local in IN_BLOCK)
