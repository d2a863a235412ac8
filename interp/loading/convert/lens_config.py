"""The config of TransformerLens' `HookedTransformer`, read as data and held against its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interp.core.config import ConfigError, RotaryScaling, TransformerConfig

from ..assemble import WeightsError
from ..families.fields import Fields

NORMS = {"LN": "layernorm", "LNPre": "layernorm", "RMS": "rmsnorm", "RMSPre": "rmsnorm"}
FOLDED = {"LN": "LNPre", "RMS": "RMSPre"}
POSITIONS = {"standard": "learned", "rotary": "rotary", "alibi": "alibi"}
UNSET = -1
"""What TransformerLens writes into some fields for “by default”."""
NO_EFFECT = (
    # about hooks, training, the tokenizer, or the machine
    *("model_name", "original_architecture", "from_checkpoint", "checkpoint_index", "n_params"),
    *("checkpoint_label_type", "checkpoint_value", "tokenizer_name", "init_mode", "init_weights"),
    *("initializer_range", "seed", "device", "n_devices", "use_attn_result", "use_attn_in"),
    *("use_split_qkv_input", "use_hook_mlp_in", "use_hook_tokens", "default_prepend_bos", "dtype"),
    *("tokenizer_prepends_bos", "ungroup_grouped_query_attention", "weight_init_mode"),
    *("decoder_start_token_id", "relative_attention_max_distance", "experts_per_token"),
    *("relative_attention_num_buckets", "norm_topk_prob", "tie_word_embeddings"),
)
FIELDS = (
    *("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "n_key_value_heads", "d_mlp", "d_vocab"),
    *("d_vocab_out", "attn_only", "gated_mlp", "act_fn", "normalization_type", "eps", "final_rms"),
    *("use_normalization_before_and_after", "use_qk_norm", "post_embedding_ln", "attention_dir"),
    *("parallel_attn_mlp", "use_attn_scale", "attn_scale", "scale_attn_by_inverse_layer_idx"),
    *("use_local_attn", "window_size", "attn_types", "attn_scores_soft_cap"),
    *("output_logits_soft_cap", "positional_embedding_type", "rotary_dim", "rotary_base"),
    *("rotary_base_local", "rotary_adjacent_pairs", "use_NTK_by_parts_rope"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor"),
    "NTK_original_ctx_len",
)
"""What is read of a config."""
NEUTRAL: dict[str, Any] = {"num_experts": None, "load_in_4bit": False, "qk_norm_after_rope": False}
"""Fields that would change the forward pass in a way that is not computed here, and when not."""
ASSUMED = {
    "eps": 1e-5,
    "attention_dir": "causal",
    "use_attn_scale": True,
    "parallel_attn_mlp": False,
}
"""What no tensor shows: said aloud where nobody gave it."""


def read_fields(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str
) -> tuple[TransformerConfig, str | None]:
    """The architecture, and the kind of norm in the words of TransformerLens.

    What is not given is read off the tensors; both must agree. Raises ValueError.
    """
    fields = {
        name: value
        for name, value in given.items()
        if (value is not None or name == "normalization_type")
        and (value != UNSET or isinstance(value, bool))
        and name != "trust_remote_code"  # nothing of it is run here
    }
    kind = fields.get("positional_embedding_type", "standard")
    if kind not in (*POSITIONS,):
        allowed = ", ".join(POSITIONS)
        raise ConfigError(f"{where}: positional_embedding_type={kind!r:.40}: expected {allowed}")
    facts = _facts(tensors)
    for name, fact in facts.items():
        if fields.get(name, fact) != fact:
            raise ConfigError(f"{where}: {name}={fields[name]!r:.40}, but the tensors say {fact!r}")
    norm_type = _norm_type(tensors, fields, where)
    f = Fields({**facts, **fields}, where)
    cfg = _config(f, norm_type, tensors)
    for name in NO_EFFECT:
        f.get(name, None)
    f.finish()
    return cfg, norm_type


def _facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config fields that the tensors alone decide."""
    d_vocab, d_model = _shape(tensors, "embed.W_E", 2)
    n_heads, _, d_head = _shape(tensors, "blocks.0.attn.W_Q", 3)
    grouped = "blocks.0.attn._W_K" in tensors
    n_kv_heads, *_ = _shape(tensors, f"blocks.0.attn.{'_' * grouped}W_K", 3)
    layers = [key.split(".")[1] for key in tensors if key.startswith("blocks.")]
    attn_only = "blocks.0.mlp.W_in" not in tensors
    facts = {
        "n_layers": 1 + max(int(one) for one in layers if one.isdecimal() and len(one) < 10),
        "d_model": d_model,
        "d_vocab": d_vocab,
        "d_vocab_out": _shape(tensors, "unembed.W_U", 2)[1],
        "n_heads": n_heads,
        "n_key_value_heads": n_kv_heads,
        "d_head": d_head,
        "attn_only": attn_only,
    }
    if not attn_only:
        facts["d_mlp"] = _shape(tensors, "blocks.0.mlp.W_in", 2)[1]
        facts["gated_mlp"] = "blocks.0.mlp.W_gate" in tensors
    if "blocks.0.attn.mask" in tensors:
        facts["n_ctx"] = _shape(tensors, "blocks.0.attn.mask", 2)[0]
    if "pos_embed.W_pos" in tensors:
        facts["n_ctx"] = _shape(tensors, "pos_embed.W_pos", 2)[0]
        facts["positional_embedding_type"] = "standard"
    elif "blocks.0.attn.rotary_sin" in tensors:
        facts["rotary_dim"] = _shape(tensors, "blocks.0.attn.rotary_sin", 2)[1]
        facts["positional_embedding_type"] = "rotary"
    return facts


def _shape(tensors: Mapping[str, Tensor], key: str, n_axes: int) -> tuple[int, ...]:
    if key not in tensors:
        raise WeightsError(f"not the state dict of a HookedTransformer: {key} is missing")
    if tensors[key].ndim != n_axes:
        raise WeightsError(f"{key} has shape {list(tensors[key].shape)}, expected {n_axes} axes")
    return tuple(tensors[key].shape)


def _norm_type(tensors: Mapping[str, Tensor], fields: Mapping[str, Any], where: str) -> str | None:
    """The kind of norm, where what is said and what is stored agree."""
    has_gain, has_bias = (f"blocks.0.ln1.{part}" in tensors for part in "wb")
    stored = "LN" if has_bias else "RMS" if has_gain else None
    if "normalization_type" not in fields:
        if stored is None:
            raise ConfigError(
                f"{where}: no norm has a gain (blocks.0.ln1.w): give --normalization-type LNPre or "
                "RMSPre where they were folded into the weights, or none"
            )
        return stored
    said = fields["normalization_type"]
    said = None if said == "none" else said
    if said is not None and said not in (*NORMS,):
        allowed = ", ".join(NORMS)
        raise ConfigError(
            f"{where}: normalization_type={said!r:.40}: expected one of {allowed}, none"
        )
    if said == stored or (stored is None and said in FOLDED.values()):
        return said
    if stored is None:
        raise ConfigError(
            f"{where}: normalization_type={said!r}, but no norm has a gain (blocks.0.ln1.w): its "
            "norms are folded into the weights, as from_pretrained does by default; "
            f"pass --normalization-type {FOLDED[str(said)]}"
        )
    raise ConfigError(
        f"{where}: normalization_type={said!r}, but blocks.0.ln1 has "
        f"{'a gain and a bias' if has_bias else 'a gain'}, not folded into the weights; "
        f"pass --normalization-type {stored}"
    )


def _config(f: Fields, norm_type: str | None, tensors: Mapping[str, Tensor]) -> TransformerConfig:
    f.get("normalization_type", None)
    for name, neutral in NEUTRAL.items():
        if f.get(name, neutral) != neutral:
            raise ConfigError(f"{f.where}: {name} is not supported")
    n_layers, d_vocab = f.size("n_layers", "n_layers"), f.size("d_vocab", "d_vocab")
    if f.size("d_vocab_out", "d_vocab") != d_vocab:
        raise ConfigError(
            f"{f.where}: d_vocab_out={f.get('d_vocab_out')} differs from d_vocab={d_vocab}; "
            "logits over another vocabulary are not supported"
        )
    norm: Any = NORMS[norm_type] if norm_type else "none"
    if f.flag("final_rms", False) and norm == "layernorm":
        raise ConfigError(f"{f.where}: final_rms=True after LayerNorm is not supported")
    both = f.flag("use_normalization_before_and_after", False)
    qk_norm, embed_norm = f.flag("use_qk_norm", False), f.flag("post_embedding_ln", False)
    if (qk_norm and norm != "rmsnorm") or (embed_norm and norm != "layernorm"):
        raise ConfigError(
            f"{f.where}: use_qk_norm goes with RMS and post_embedding_ln with LN, "
            f"not with normalization_type={norm_type!r}"
        )
    attn_only, biased = f.flag("attn_only", False), lambda key: key in tensors
    windows = _windows(f, n_layers)
    return TransformerConfig(
        n_layers=n_layers,
        d_model=f.size("d_model", "d_model"),
        n_heads=f.size("n_heads", "n_heads"),
        n_kv_heads=f.size("n_key_value_heads", "n_kv_heads"),
        d_head=f.size("d_head", "d_head"),
        d_vocab=d_vocab,
        n_ctx=f.size("n_ctx", "n_ctx"),
        norm=norm,
        norm_eps=f.number("eps", ASSUMED["eps"]),
        norm_position="both" if both else "pre",
        norm_affine=norm_type not in FOLDED.values() or both or qk_norm or embed_norm,
        embed_norm=embed_norm,
        final_norm=norm != "none",
        parallel=f.flag("parallel_attn_mlp", ASSUMED["parallel_attn_mlp"]),
        causal=_choice(f, "attention_dir", {"causal": True, "bidirectional": False}, "causal"),
        sliding_window=windows,
        attn_scale=_attn_scale(f),
        attn_scale_by_layer=f.flag("scale_attn_by_inverse_layer_idx", False),
        attn_softcap=f.number("attn_scores_soft_cap", None),
        final_softcap=f.number("output_logits_soft_cap", None),
        qk_norm="head" if qk_norm else "none",
        qkv_bias=biased("blocks.0.attn.b_Q"),
        attn_out_bias=biased("blocks.0.attn.b_O"),
        unembed_bias=biased("unembed.b_U"),
        **_mlp(f, attn_only, tensors),
        **_positions(f, windows),
    )


def _mlp(f: Fields, attn_only: bool, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    d_mlp, gated = f.size("d_mlp", "d_mlp", 0), f.flag("gated_mlp", False)
    name = f.get("act_fn", None)
    if attn_only:
        return {"d_mlp": 0}
    if name is None:
        raise ConfigError(f"{f.where}: no tensor shows the MLP's activation: give --act-fn")
    activation = f.activation("act_fn", "gelu")
    bias = "blocks.0.mlp.b_out" in tensors
    return {"d_mlp": d_mlp, "mlp_gated": gated, "activation": activation, "mlp_bias": bias}


def _positions(f: Fields, windows: tuple[int | None, ...] | None) -> dict[str, Any]:
    kind = _choice(f, "positional_embedding_type", POSITIONS, None)
    base, local = f.number("rotary_base", 10_000.0), f.number("rotary_base_local", None)
    dim, adjacent = (
        f.optional_size("rotary_dim", "rotary_dim"),
        f.flag("rotary_adjacent_pairs", False),
    )
    scaling = _scaling(f)
    if kind == "alibi":
        n_heads, causal = f.get("n_heads"), f.get("attention_dir", "causal") == "causal"
        if n_heads & (n_heads - 1) or not causal:
            raise ConfigError(
                f"{f.where}: the alibi slopes of TransformerLens are those of other models only "
                "for causal attention and a power of two of heads"
            )
    if kind == "learned" and f.get("post_embedding_ln", False):
        raise ConfigError(f"{f.where}: post_embedding_ln before learned positions is not supported")
    if kind != "rotary":
        return {"positions": kind}
    if local is not None and windows:
        base = tuple(base if window is None else local for window in windows)
    fields = {"rotary_base": base, "rotary_interleaved": adjacent, "rotary_scaling": scaling}
    return {"positions": kind, "rotary_dim": dim, **fields}


def _scaling(f: Fields) -> RotaryScaling | None:
    factor, low, high = (
        f.number(f"NTK_by_parts_{name}", default)
        for name, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    original = f.size("NTK_original_ctx_len", "n_ctx", 8192)
    if not f.flag("use_NTK_by_parts_rope", False):
        return None
    return RotaryScaling(
        kind="llama3",
        factor=factor,
        original_n_ctx=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _windows(f: Fields, n_layers: int) -> tuple[int | None, ...] | None:
    """TransformerLens masks, and so windows, only causal attention."""
    on, window = f.flag("use_local_attn", False), f.size("window_size", "n_ctx", None)
    types = f.choices("attn_types", ("global", "local"), n_layers)
    if not on or f.get("attention_dir", "causal") != "causal":
        return None
    if window is None or types is None:
        raise ConfigError(f"{f.where}: use_local_attn=True needs window_size and attn_types")
    return tuple(window if kind == "local" else None for kind in types)


def _attn_scale(f: Fields) -> float | None:
    """TransformerLens divides by it; by default by √d_head."""
    divisor, d_head = f.number("attn_scale", None), f.get("d_head")
    if not f.flag("use_attn_scale", ASSUMED["use_attn_scale"]):
        return 1.0
    if divisor is None or math.isclose(divisor, math.sqrt(d_head), rel_tol=1e-12):
        return None
    if divisor == 0:
        raise ConfigError(f"{f.where}: attn_scale=0: scores cannot be divided by it")
    return 1 / divisor


def _choice(f: Fields, name: str, choices: Mapping[str, Any], default: str | None) -> Any:
    value = f.get(name, default)
    if value not in (*choices,):
        said = "is in no tensor" if value is None else f"is {value!r:.40}"
        raise ConfigError(f"{f.where}: {name} {said}: expected one of {', '.join(choices)}")
    return choices[value]
