"""nanoGPT's `ckpt.pt`: {"model": state dict, "model_args": {…}, optimizer and training state}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.core.config import ConfigError, TransformerConfig

from ..families.fields import Fields
from .lay import Recipe, Slot

ARGS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")

SLOTS = {
    "transformer.wte.weight": Slot("d_vocab d_model", "embed.W_E"),
    "transformer.wpe.weight": Slot("n_ctx d_model", "embed.W_pos"),
    "transformer.h.{}.ln_1.weight": Slot("d_model", "blocks.{}.ln1.w"),
    "transformer.h.{}.ln_1.bias": Slot("d_model", "blocks.{}.ln1.b"),
    "transformer.h.{}.attn.c_attn.weight": Slot("qkv d_model", "blocks.{}.attn.qkv_weight"),
    "transformer.h.{}.attn.c_attn.bias": Slot("qkv", "blocks.{}.attn.qkv_bias"),
    "transformer.h.{}.attn.c_proj.weight": Slot("d_model d_model", "blocks.{}.attn.out_weight"),
    "transformer.h.{}.attn.c_proj.bias": Slot("d_model", "blocks.{}.attn.out_bias"),
    "transformer.h.{}.ln_2.weight": Slot("d_model", "blocks.{}.ln2.w"),
    "transformer.h.{}.ln_2.bias": Slot("d_model", "blocks.{}.ln2.b"),
    "transformer.h.{}.mlp.c_fc.weight": Slot("d_mlp d_model", "blocks.{}.mlp.in_weight"),
    "transformer.h.{}.mlp.c_fc.bias": Slot("d_mlp", "blocks.{}.mlp.in_bias"),
    "transformer.h.{}.mlp.c_proj.weight": Slot("d_model d_mlp", "blocks.{}.mlp.out_weight"),
    "transformer.h.{}.mlp.c_proj.bias": Slot("d_model", "blocks.{}.mlp.out_bias"),
    "transformer.ln_f.weight": Slot("d_model", "ln_final.w"),
    "transformer.ln_f.bias": Slot("d_model", "ln_final.b"),
    "lm_head.weight": Slot("d_vocab d_model", "unembed.weight"),
}
MASK = "transformer.h.{}.attn.bias"


def nanogpt(
    tensors: Mapping[str, Tensor],
    args: dict[str, Any],
    flags: Mapping[str, Any],
    where: str,
) -> Recipe:
    """The recipe of a nanoGPT checkpoint, vocabulary padding kept.

    Of `flags` only act_fn is read. Raises ConfigError on a model argument that nanoGPT does not
    have: a fork's forward pass is another one.
    """
    strange = [name for name in args if name not in ARGS and args[name] not in (False, None)]
    if strange:
        raise ConfigError(
            f"{where}: {', '.join(map(str, strange))}: not an argument of nanoGPT "
            f"({', '.join(ARGS)}), so this is a fork whose forward pass is not known"
        )
    other = sorted(set(flags) - {"act_fn"})
    if other:
        raise ConfigError(f"{where}: nanoGPT's own arguments say {', '.join(other)}; give --act-fn")
    f = Fields({name: args[name] for name in ARGS if name in args} | dict(flags), where)
    f.get("dropout", None)
    d_model, d_mlp = f.size("n_embd", "d_model"), 4 * f.size("n_embd", "d_model")
    bias = f.flag("bias", "transformer.ln_f.bias" in tensors)
    embed, unembed = (tensors.get(f"{key}.weight") for key in ("transformer.wte", "lm_head"))
    tied = embed is not None and (unembed is None or _equal(embed, unembed))
    cfg = TransformerConfig(
        n_layers=f.size("n_layer", "n_layers"),
        d_model=d_model,
        n_heads=f.size("n_head", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("block_size", "n_ctx"),
        d_mlp=d_mlp,
        activation=f.activation("act_fn", "gelu"),
        norm_bias=bias,
        qkv_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        tied=tied,
    )
    f.finish()
    notes = []
    if "act_fn" not in flags:
        notes.append(
            "its activation is taken for gelu; early nanoGPT (2023) used gelu_new: --act-fn"
        )
    sizes = {
        "d_vocab": cfg.d_vocab,
        "d_model": d_model,
        "d_mlp": d_mlp,
        "n_ctx": cfg.n_ctx,
        "qkv": 3 * d_model,
    }
    dropped = (MASK, "lm_head.weight") if tied else (MASK,)
    return Recipe("nanoGPT", cfg, SLOTS, sizes, dropped=dropped, notes=notes)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
