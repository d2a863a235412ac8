"""Mixtures of experts, and what else came with the last fields: sinks, longrope, gains per head."""

from __future__ import annotations

from typing import Any

from tests.parity.layout import D_VOCAB, N_CTX, Family, Layout
from tests.parity.newer import GEMMA3, PHI3, STABLELM, STABLELM_PARALLEL

_SITES: dict[str, Any] = {
    "hook_resid_pre": ("model.layers.{}", "in"),
    "attn.hook_z": ("model.layers.{}.self_attn.o_proj", "in"),
    "hook_attn_out": ("model.layers.{}.self_attn", "out"),
    "hook_resid_mid": ("model.layers.{}.post_attention_layernorm", "in"),
    "hook_mlp_out": ("model.layers.{}.mlp", "out"),
    "hook_resid_post": ("model.layers.{}", "out"),
}


def _layout(model: str, router: str = "gate") -> Layout:
    logits = {"mlp.hook_router": ("model.layers.{}.mlp." + router, "out")}
    return Layout(model, {**_SITES, **logits})


MIXTRAL = _layout("MixtralForCausalLM")
# It knows no fused attention.
GPT_OSS = _layout("GptOssForCausalLM", "router")._replace(attention=("eager", "eager"))
QWEN3_MOE = _layout("Qwen3MoeForCausalLM")
OLMOE = _layout("OlmoeForCausalLM")

_SIZES = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "rms_norm_eps": 1e-3,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2, **_SIZES}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, **_SIZES}
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "truncate": False,
    "original_max_position_embeddings": N_CTX // 4,
}


def longrope(original: int, half: int, **more: Any) -> dict[str, Any]:
    """Where the field outside is absent, Phi-3's config class puts 4096 into both places."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0 + 0.25 * i for i in range(half)],
        "long_factor": [1.5 + 2.0 * i for i in range(half)],
        "original_max_position_embeddings": original,
        **more,
    }
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


def _of(layout: Layout, config: str, base: dict[str, Any], **values: Any) -> Family:
    return Family(layout, f"{config}Config", {**base, **values})


_LAYERNORM = {**_SIZES, "intermediate_size": 40, "layer_norm_eps": 1e-3}
_LAYERNORM.pop("rms_norm_eps")
_GEMMA = {**_SIZES, "intermediate_size": 40, "head_dim": 8, "query_pre_attn_scalar": 20}

EXPERTS = {
    "mixtral": _of(MIXTRAL, "Mixtral", _LOCAL, rope_parameters=_ROPE),
    "mixtral-windows-tied": _of(
        MIXTRAL, "Mixtral", _LOCAL, head_dim=12, sliding_window=4, tie_word_embeddings=True,
        num_experts_per_tok=3,
    ),
    "gpt_oss": _of(
        GPT_OSS, "GptOss", _LOCAL, head_dim=8, sliding_window=4, rope_parameters=_YARN,
        swiglu_limit=0.7,
    ),
    "gpt_oss-wide-unlimited": _of(
        GPT_OSS, "GptOss", _LOCAL, head_dim=12, sliding_window=4, rope_parameters=_ROPE,
        num_experts_per_tok=1, attention_bias=False,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3_moe": _of(
        QWEN3_MOE, "Qwen3Moe", _EXPERTS, head_dim=12, moe_intermediate_size=16, norm_topk_prob=True
    ),
    "qwen3_moe-unnormed": _of(
        QWEN3_MOE, "Qwen3Moe", _EXPERTS, head_dim=8, moe_intermediate_size=8,
        attention_bias=True, use_sliding_window=True, sliding_window=4,
    ),
    "olmoe": _of(OLMOE, "Olmoe", _EXPERTS),
    "phi3-longrope-long": _of(PHI3, "Phi3", _SIZES, **longrope(4, 4)),
    "phi3-longrope-short": _of(
        PHI3, "Phi3", _SIZES, **longrope(24, 2, partial_rotary_factor=0.5)
    ),
    "gemma3-scaled": _of(
        GEMMA3, "Gemma3Text", _GEMMA, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    ),
    "stablelm-qk-norm": _of(STABLELM, "StableLm", _LAYERNORM, qk_layernorm=True),
    "stablelm-parallel-qk-norm": _of(
        STABLELM_PARALLEL, "StableLm", _LAYERNORM, qk_layernorm=True, use_parallel_residual=True
    ),
}  # fmt: skip
