"""The families that came after Llama, and GPT-NeoX and Phi, which turn queries and keys as well."""

from __future__ import annotations

from typing import Any

from tests.parity.layout import D_VOCAB, N_CTX, Family, Layout

Sites = dict[str, tuple[str, Any]]


def _sites(layer: str, attn: str, out: str, down: str, **more: Any) -> Sites:
    """`attn` is the module of attention, `out` and `down` what the heads and the neurons enter."""
    named = {name.replace("__", "."): place for name, place in more.items()}
    found = {
        "hook_resid_pre": ("", "in"),
        "attn.hook_z": (f".{attn}.{out}", "in"),
        "hook_attn_out": (f".{attn}", "out"),
        "mlp.hook_post": (f".mlp.{down}", "in"),
        "hook_mlp_out": (".mlp", "out"),
        "hook_resid_post": ("", "out"),
        **named,
    }
    return {site: (f"{layer}{path}", side) for site, (path, side) in found.items()}


_GATED: dict[str, Any] = {
    "mlp__hook_pre": (".mlp.gate_proj", "out"),
    "mlp__hook_pre_linear": (".mlp.up_proj", "out"),
}
_SERIAL: dict[str, Any] = {"hook_resid_mid": (".post_attention_layernorm", "in")}
_NORMED: dict[str, Any] = {
    "hook_attn_out": (".post_attention_layernorm", "out"),
    "hook_mlp_out": (".post_feedforward_layernorm", "out"),
}


def _llama(model: str, *, out: str = "o_proj", down: str = "down_proj", **more: Any) -> Layout:
    return Layout(model, _sites("model.layers.{}", "self_attn", out, down, **more))


QWEN3 = _llama("Qwen3ForCausalLM", **_GATED, **_SERIAL)
GEMMA = _llama("GemmaForCausalLM", **_GATED, **_SERIAL)
_SANDWICH = {**_GATED, **_NORMED, "hook_resid_mid": (".pre_feedforward_layernorm", "in")}
# Its fused attention refuses the soft-cap.
GEMMA2 = _llama("Gemma2ForCausalLM", **_SANDWICH)._replace(attention=("eager", "eager"))
GEMMA3 = _llama("Gemma3ForCausalLM", **_SANDWICH)
OLMO = _llama("OlmoForCausalLM", **_GATED, **_SERIAL)
OLMO2 = _llama("Olmo2ForCausalLM", **_GATED, **_NORMED, hook_resid_mid=(".mlp", "in"))
PHI3 = _llama("Phi3ForCausalLM", **_SERIAL)
# What it adds is scaled outside of its modules.
_INSIDE = {site: place for site, place in QWEN3.sites.items() if not site.endswith("_out")}
GRANITE = Layout("GraniteForCausalLM", _INSIDE)
SMOLLM3 = _llama("SmolLM3ForCausalLM", **_GATED, **_SERIAL)
STABLELM = _llama("StableLmForCausalLM", **_GATED, **_SERIAL)
STABLELM_PARALLEL = _llama("StableLmForCausalLM", **_GATED)
PHI = _llama("PhiForCausalLM", out="dense", down="fc2", mlp__hook_pre=(".mlp.fc1", "out"))


def _neox(**more: Any) -> Layout:
    pre: dict[str, Any] = {"mlp__hook_pre": (".mlp.dense_h_to_4h", "out")}
    names = ("gpt_neox.layers.{}", "attention", "dense", "dense_4h_to_h")
    return Layout("GPTNeoXForCausalLM", _sites(*names, **pre, **more))


NEOX, NEOX_SERIAL = _neox(), _neox(**_SERIAL)

_SIZES = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_RMS = {**_SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}
_LAYERNORM = {**_SIZES, "layer_norm_eps": 1e-3}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 100.0}


def _of(layout: Layout, config: str, base: dict[str, Any], **values: Any) -> Family:
    return Family(layout, f"{config}Config", {**base, **values})


NEWER = {
    "qwen3": _of(QWEN3, "Qwen3", _RMS, head_dim=12),
    "qwen3-windows-biases-tied": _of(
        QWEN3,
        "Qwen3",
        _RMS,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "gemma": _of(GEMMA, "Gemma", _RMS, head_dim=12),
    "gemma-biases-untied": _of(
        GEMMA, "Gemma", _RMS, head_dim=8, attention_bias=True, tie_word_embeddings=False
    ),
    "gemma2": _of(
        GEMMA2,
        "Gemma2",
        _RMS,
        head_dim=8,
        query_pre_attn_scalar=20,
        sliding_window=4,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    ),
    "gemma2-uncapped-untied": _of(
        GEMMA2,
        "Gemma2",
        _RMS,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    "gemma3": _of(
        GEMMA3,
        "Gemma3Text",
        _RMS,
        head_dim=8,
        query_pre_attn_scalar=20,
        sliding_window=4,
        layer_types=_WINDOWS,
        final_logit_softcapping=4.0,
        rope_parameters={
            "full_attention": {**_ROPE, "rope_theta": 500.0},
            "sliding_attention": {**_ROPE, "rope_theta": 20.0},
        },
    ),
    "olmo": _of(OLMO, "Olmo", _SIZES, num_key_value_heads=2),
    "olmo-biases-tied": _of(OLMO, "Olmo", _SIZES, attention_bias=True, tie_word_embeddings=True),
    "olmo2": _of(OLMO2, "Olmo2", _RMS),
    "olmo2-biases-tied": _of(
        OLMO2, "Olmo2", _RMS, attention_bias=True, tie_word_embeddings=True, rope_parameters=_ROPE
    ),
    "phi3": _of(PHI3, "Phi3", _RMS),
    "phi3-partial-windows-tied": _of(
        PHI3,
        "Phi3",
        _RMS,
        sliding_window=4,
        rope_parameters={**_ROPE, "partial_rotary_factor": 0.5},
        tie_word_embeddings=True,
    ),
    "granite": _of(
        GRANITE,
        "Granite",
        _RMS,
        embedding_multiplier=12.0,
        attention_multiplier=0.1,
        residual_multiplier=0.3,
        logits_scaling=6.0,
    ),
    "granite-biases-tied": _of(
        GRANITE,
        "Granite",
        _RMS,
        attention_bias=True,
        mlp_bias=True,
        residual_multiplier=0.3,
        tie_word_embeddings=True,
    ),
    "smollm3": _of(SMOLLM3, "SmolLM3", _RMS, no_rope_layer_interval=2),
    "smollm3-windows-biases-untied": _of(
        SMOLLM3,
        "SmolLM3",
        _RMS,
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "stablelm": _of(STABLELM, "StableLm", _LAYERNORM, num_key_value_heads=2, use_qkv_bias=True),
    "stablelm-parallel-tied": _of(
        STABLELM_PARALLEL,
        "StableLm",
        _LAYERNORM,
        num_key_value_heads=4,
        use_parallel_residual=True,
        rope_parameters={**_ROPE, "partial_rotary_factor": 0.5},
        tie_word_embeddings=True,
    ),
    "gpt_neox": _of(NEOX, "GPTNeoX", _LAYERNORM),
    "gpt_neox-serial-scaled-tied": _of(
        NEOX_SERIAL,
        "GPTNeoX",
        _LAYERNORM,
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_new",
        rope_parameters={
            "rope_type": "linear",
            "factor": 4.0,
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
        tie_word_embeddings=True,
    ),
    "phi": _of(PHI, "Phi", _LAYERNORM),
    "phi-qk-norm-grouped": _of(
        PHI, "Phi", _LAYERNORM, num_key_value_heads=2, qk_layernorm=True, hidden_act="gelu"
    ),
}
