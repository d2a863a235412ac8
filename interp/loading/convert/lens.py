"""State dicts of the `HookedTransformer` of TransformerLens 1–3, which version 4 deleted.

Its config comes from JSON under the names of TransformerLens; sizes are read off the tensors and
must agree with it. What TransformerLens kept beside the parameters (causal masks, rotary tables) is
not used, but compared with the config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.core.config import ConfigError, TransformerConfig
from interp.model import HookedTransformer
from interp.model.rotary import rotary_frequencies

from .lay import Recipe, Slot
from .lens_config import ASSUMED, FOLDED, read_fields


def _qkv(part: str, head: str, stored: str) -> dict[str, Slot]:
    attn, lower = "blocks.{}.attn", part.lower()
    return {
        f"{attn}.{stored.format('W')}": Slot(
            f"{head} d_model d_head", f"{attn}.qkv_weight", lower, (0, 2, 1)
        ),
        f"{attn}.{stored.format('b')}": Slot(f"{head} d_head", f"{attn}.qkv_bias", lower),
    }


def _norm(theirs: str, ours: str, axes: str = "d_model") -> dict[str, Slot]:
    return {f"{theirs}.{part}": Slot(axes, f"{ours}.{part}") for part in "wb"}


SLOTS = {
    "embed.W_E": Slot("d_vocab d_model", "embed.W_E"),
    "pos_embed.W_pos": Slot("n_ctx d_model", "embed.W_pos"),
    **_norm("embed.ln", "embed_ln"),
    **_norm("blocks.{}.ln1", "blocks.{}.ln1"),
    **_qkv("Q", "head", "{}_Q"),
    **_qkv("K", "kv_head", "{}_K"),
    **_qkv("V", "kv_head", "{}_V"),
    **_qkv("K", "kv_head", "_{}_K"),  # as grouped-query attention names them
    **_qkv("V", "kv_head", "_{}_V"),
    **_norm("blocks.{}.attn.q_norm", "blocks.{}.attn.q_norm", "d_head"),
    **_norm("blocks.{}.attn.k_norm", "blocks.{}.attn.k_norm", "d_head"),
    "blocks.{}.attn.W_O": Slot("head d_head d_model", "blocks.{}.attn.out_weight", order=(2, 0, 1)),
    "blocks.{}.attn.b_O": Slot("d_model", "blocks.{}.attn.out_bias"),
    **_norm("blocks.{}.ln1_post", "blocks.{}.ln1_post"),
    **_norm("blocks.{}.ln2", "blocks.{}.ln2"),
    "blocks.{}.mlp.W_in": Slot("d_model d_mlp", "blocks.{}.mlp.in_weight", "in", (1, 0)),
    "blocks.{}.mlp.b_in": Slot("d_mlp", "blocks.{}.mlp.in_bias", "in"),
    "blocks.{}.mlp.W_out": Slot("d_mlp d_model", "blocks.{}.mlp.out_weight", order=(1, 0)),
    "blocks.{}.mlp.b_out": Slot("d_model", "blocks.{}.mlp.out_bias"),
    **_norm("blocks.{}.ln2_post", "blocks.{}.ln2_post"),
    **_norm("ln_final", "ln_final"),
    "unembed.W_U": Slot("d_model d_vocab", "unembed.weight", order=(1, 0)),
    "unembed.b_U": Slot("d_vocab", "unembed.bias"),
}
GATED = {
    "blocks.{}.mlp.W_gate": Slot("d_model d_mlp", "blocks.{}.mlp.in_weight", "gate", (1, 0)),
    "blocks.{}.mlp.b_gate": Slot("d_mlp", "blocks.{}.mlp.in_bias", "gate"),  # never stored
}
BUFFERS = tuple(
    f"blocks.{{}}.attn.{kept}" for kept in ("mask", "IGNORE", "rotary_sin", "rotary_cos")
)

NORM = re.compile(r"(?:blocks\.\d+\.)?ln\w*\.[wb]")


def lens(tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a HookedTransformer's state dict, from config fields as TransformerLens names
    them; what is not given is read off the tensors.

    Raises ValueError where fields and tensors contradict each other (norms that were folded
    among them), and on what our forward pass does not compute.
    """
    cfg, norm_type = read_fields(tensors, given, where)
    _check_buffers(cfg, tensors, where)
    folded = norm_type in FOLDED.values()
    norms = ("blocks.{}.ln1", "blocks.{}.ln2", "ln_final") if folded else ()
    gains = {f"{norm}.{part}": one for norm in norms for part, one in (("w", True), ("b", False))}
    return Recipe(
        kind="TransformerLens HookedTransformer",
        cfg=cfg,
        slots=SLOTS | (GATED if cfg.mlp_gated else {}),
        sizes={
            "head": cfg.n_heads,
            "kv_head": cfg.n_kv_heads,
            **{name: getattr(cfg, name) for name in ("d_model", "d_head", "d_mlp", "d_vocab")},
            "n_ctx": cfg.n_ctx,
        },
        constants={**gains, "blocks.{}.mlp.b_gate": False},
        dropped=BUFFERS,
        notes=_notes(tensors, given, norm_type, cfg),
        finish=_move_b_in if cfg.mlp_gated and cfg.mlp_bias else None,
    )


def _check_buffers(cfg: TransformerConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """The masks and rotary tables that the file holds are those that the config describes."""
    for layer in range(cfg.n_layers):
        mask = tensors.get(f"blocks.{layer}.attn.mask")
        if mask is not None and cfg.causal and mask.ndim == 2 and mask.numel():
            seen, whole = int(mask[-1].sum()), mask.shape[-1]
            if seen != min(cfg.window(layer) or whole, whole):
                raise ConfigError(
                    f"{where}: blocks.{layer}.attn.mask sees {seen} tokens back, but the config "
                    f"says {cfg.window(layer) or 'all'} (use_local_attn, window_size, attn_types)"
                )
        sin = tensors.get(f"blocks.{layer}.attn.rotary_sin")
        if sin is not None and not (cfg.is_rotary(layer) and _is_table(cfg, layer, sin)):
            raise ConfigError(
                f"{where}: blocks.{layer}.attn.rotary_sin is not the table of rotary_base="
                f"{cfg.rotary_bases[layer]:g}, rotary_dim={cfg.rotary_dim}, rotary_adjacent_pairs="
                f"{cfg.rotary_interleaved} (or of use_NTK_by_parts_rope)"
            )


def _is_table(cfg: TransformerConfig, layer: int, sin: Tensor) -> bool:
    if sin.ndim != 2 or sin.shape[1] != cfg.rotary_dim:
        return False
    base, cpu = cfg.rotary_bases[layer], torch.device("cpu")
    scaling, width = cfg.rotary_scalings[layer], cfg.rotary_dim
    frequency, _ = rotary_frequencies(base, scaling, width, cpu, torch.float64)
    positions = torch.tensor([1, 4095]).clamp(max=len(sin) - 1)  # float32 angles are exact to here
    angle = positions[:, None] * frequency
    pairs = angle.repeat_interleave(2, -1) if cfg.rotary_interleaved else angle.repeat(1, 2)
    return bool((pairs.sin() - sin[positions].double()).abs().max() < 1e-2)


def _move_b_in(model: HookedTransformer) -> None:
    """A gated MLP of TransformerLens adds b_in behind the product, ours adds it to x W_in.

    There it is a constant that W_out writes, so it belongs to b_out; hook_post then lacks it.
    """
    for block in model.blocks:
        mlp = block.mlp
        written = mlp.out_weight.double() @ mlp.b_in.double()
        mlp.out_bias += written.to(mlp.out_bias)
        mlp.in_bias.zero_()


def _notes(
    tensors: Mapping[str, Tensor],
    given: Mapping[str, Any],
    norm_type: str | None,
    cfg: TransformerConfig,
) -> list[str]:
    notes = []
    assumed = [f"{name}={value}" for name, value in ASSUMED.items() if given.get(name) is None]
    if assumed:
        notes.append(f"in no tensor and not given, so taken for: {', '.join(assumed)}")
    if norm_type in FOLDED.values():
        notes.append(f"norms are folded ({norm_type}): they only normalise")
    if norm_type == "LN" and _only_normalises(tensors) and _is_centred(tensors):
        notes.append(
            "every LayerNorm has gain 1 and bias 0, and what is written is centred: folded before"
        )
    b_in = [key for key in tensors if key.endswith(".mlp.b_in")]
    if cfg.mlp_gated and any(tensors[key].any() for key in b_in):
        notes.append("b_in of the gated MLPs, added behind the product, went into b_out")
    return notes


def _only_normalises(tensors: Mapping[str, Tensor]) -> bool:
    norms = {key: value for key, value in tensors.items() if NORM.fullmatch(key)}
    return all((value == key.endswith("w")).all() for key, value in norms.items())


def _is_centred(tensors: Mapping[str, Tensor]) -> bool:
    """As center_writing_weights of TransformerLens leaves what is written to the residual."""
    written = [v.double() for k, v in tensors.items() if k.endswith((".W_O", ".W_out"))]
    return all(w.mean(-1).abs().max() <= 1e-5 * w.abs().max() for w in written)
