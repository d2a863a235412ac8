"""The families whose MLP is a mixture of experts.

Where a field is absent, its default is that of the family's config class in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.core.config import TransformerConfig

from .family import Family, Target, linear, norm, qkv, rotary_config, windows
from .fields import Fields

NO_BIASES = {"qkv_bias": False, "attn_out_bias": False, "mlp_bias": False}


def _experts(f: Fields, shared: dict[str, Any], n_experts: int, n_chosen: int) -> dict[str, Any]:
    """`shared` with experts; what configs call the size of an MLP is that of one expert.

    Their number has two names in the library, and either in its files.
    """
    n_experts = f.size("num_experts", "n_experts", n_experts)
    n_experts = f.size("num_local_experts", "n_experts", n_experts)
    for other in ("router_aux_loss_coef", "output_router_logits", "router_jitter_noise"):
        f.get(other, None)  # about training
    return shared | {
        "d_mlp": n_experts * shared["d_mlp"],
        "n_experts": n_experts,
        "experts_per_token": f.size("num_experts_per_tok", "experts_per_token", n_chosen),
    }


def _mixtral_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(
        f, n_ctx=131_072, n_kv_heads=8, biases=NO_BIASES, norm_eps=("rms_norm_eps", 1e-5),
        rotary={"base": 1e6},
    )  # fmt: skip
    window = f.optional_size("sliding_window", "n_ctx", None)
    sliding_window = (window,) * shared["n_layers"] if window else None
    shared = _experts(f, shared, 8, 2)
    return TransformerConfig(**shared, sliding_window=sliding_window)


def _gpt_oss_config(f: Fields) -> TransformerConfig:
    f.only("hidden_act", "silu")  # what the gate really is has a steepness of its own
    f.only("swiglu_alpha", 1.702)  # the one of our quick_gelu
    attention = f.flag("attention_bias", True)
    rope = {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    rope = f.get("rope_scaling", None) or f.get("rope_parameters", None) or rope
    for name in ("initial_context_length", "experts_per_token"):
        f.get(name, None)  # the same once more, in published configs
    shared = rotary_config(
        f, n_ctx=131_072, n_kv_heads=8, d_head=64, norm_eps=("rms_norm_eps", 1e-5),
        biases={"qkv_bias": attention, "attn_out_bias": attention, "mlp_bias": True},
        rotary={"base": 150_000.0, "rope": rope},
    )  # fmt: skip
    n_layers = shared["n_layers"]
    window = f.optional_size("sliding_window", "n_ctx", 128)
    limit = f.positive("swiglu_limit", 7.0)
    shared = _experts(f, shared, 128, 4)
    return TransformerConfig(
        **shared | {"activation": "quick_gelu"},
        sliding_window=windows(f, n_layers, window, [i % 2 == 0 for i in range(n_layers)]),
        attn_sinks=True,
        mlp_clamp=limit,
        mlp_linear_offset=1.0,
        router_bias=True,
    )


def _qwen3_moe_config(f: Fields) -> TransformerConfig:
    f.only("decoder_sparse_step", 1)  # every layer has experts
    f.only("mlp_only_layers", [])
    f.get("intermediate_size", None)  # that of layers without
    window = f.optional_size("sliding_window", "n_ctx", 4096)
    attention = f.flag("attention_bias", False)
    biases = NO_BIASES | {"qkv_bias": attention, "attn_out_bias": attention}
    shared = rotary_config(
        f, n_ctx=32_768, n_kv_heads=4, biases=biases, d_mlp=("moe_intermediate_size", 768)
    )
    slides = f.flag("use_sliding_window", False) and window is not None
    shared = _experts(f, shared, 128, 8)
    return TransformerConfig(
        **shared,
        qk_norm="head",
        expert_weights="chosen" if f.flag("norm_topk_prob", False) else "all",
        sliding_window=(window,) * shared["n_layers"] if slides else None,
    )


def _olmoe_config(f: Fields) -> TransformerConfig:
    f.only("clip_qkv")
    attention = f.flag("attention_bias", False)
    biases = NO_BIASES | {"qkv_bias": attention, "attn_out_bias": attention}
    shared = rotary_config(
        f, n_ctx=4096, n_kv_heads=None, biases=biases, norm_eps=("rms_norm_eps", 1e-5)
    )
    return TransformerConfig(
        **_experts(f, shared, 64, 8),
        qk_norm="all",
        expert_weights="chosen" if f.flag("norm_topk_prob", False) else "all",
    )


_SHARED = {
    "embed_tokens.weight": Target("embed.W_E"),
    **norm("layers.{}.input_layernorm", "blocks.{}.ln1"),
    **norm("layers.{}.post_attention_layernorm", "blocks.{}.ln2"),
    **qkv("layers.{}.self_attn."),
    **linear("layers.{}.self_attn.o_proj", "blocks.{}.attn.out"),
    **norm("norm", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
}


def _apart(module: str, gate: str, into: str, out: str) -> dict[str, Target]:
    """Router and experts where every expert's maps are tensors of their own."""
    expert = f"layers.{{}}.{module}.experts.{{expert}}."
    return {
        **linear(f"layers.{{}}.{module}.gate", "blocks.{}.mlp.router"),
        f"{expert}{gate}.weight": Target("blocks.{}.mlp.in_weight", "expert gate"),
        f"{expert}{into}.weight": Target("blocks.{}.mlp.in_weight", "expert in"),
        f"{expert}{out}.weight": Target("blocks.{}.mlp.out_weight", "expert out"),
    }


_MIXTRAL = {**_SHARED, **_apart("block_sparse_moe", "w1", "w3", "w2")}
_QWEN3_MOE = {
    **_SHARED,
    **_apart("mlp", "gate_proj", "up_proj", "down_proj"),
    **norm("layers.{}.self_attn.q_norm", "blocks.{}.attn.q_norm"),
    **norm("layers.{}.self_attn.k_norm", "blocks.{}.attn.k_norm"),
}
_ALL_EXPERTS = "layers.{}.mlp.experts."
_GPT_OSS_SHARED = {
    **_SHARED,
    "layers.{}.self_attn.sinks": Target("blocks.{}.attn.sinks"),
    **linear("layers.{}.mlp.router", "blocks.{}.mlp.router"),
    _ALL_EXPERTS + "gate_up_proj_bias": Target("blocks.{}.mlp.in_bias", "gate and in bias"),
    _ALL_EXPERTS + "down_proj_bias": Target("blocks.{}.mlp.out_bias"),
}
_GPT_OSS = {
    **_GPT_OSS_SHARED,
    _ALL_EXPERTS + "gate_up_proj": Target("blocks.{}.mlp.in_weight", "gate and in"),
    _ALL_EXPERTS + "down_proj": Target("blocks.{}.mlp.out_weight", "all out"),
}
# Blocks come before their scales, which multiply them.
_GPT_OSS_MXFP4 = {
    **_GPT_OSS_SHARED,
    _ALL_EXPERTS + "gate_up_proj_blocks": Target("blocks.{}.mlp.in_weight", "blocks in"),
    _ALL_EXPERTS + "gate_up_proj_scales": Target("blocks.{}.mlp.in_weight", "scales in"),
    _ALL_EXPERTS + "down_proj_blocks": Target("blocks.{}.mlp.out_weight", "blocks out"),
    _ALL_EXPERTS + "down_proj_scales": Target("blocks.{}.mlp.out_weight", "scales out"),
}


def _family(name: str, config: Any, rename: Mapping[str, Target], **more: Any) -> Family:
    return Family(name=name, config=config, rename=rename, prefixes=("model.",), **more)


EXPERT_FAMILIES = (
    _family("mixtral", _mixtral_config, _MIXTRAL),
    _family("gpt_oss", _gpt_oss_config, _GPT_OSS, quantized={"mxfp4": _GPT_OSS_MXFP4}),
    _family("qwen3_moe", _qwen3_moe_config, _QWEN3_MOE),
    _family("olmoe", _olmoe_config, _QWEN3_MOE),
)
