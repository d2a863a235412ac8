"""Tiny random Hugging Face models, one per architecture that the loader knows.

Weights are ten times the usual size and norms' gains and biases are random too: at the default
initialisation a model without rotary embedding, or with its norms swapped, passes for the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.parity.experts import EXPERTS
from tests.parity.layout import D_VOCAB, N_CTX, Family, Layout
from tests.parity.newer import NEWER
from tests.parity.older import OLDER

GPT2 = Layout(
    "GPT2LMHeadModel",
    {
        "hook_resid_pre": ("transformer.h.{}", "in"),
        "attn.hook_z": ("transformer.h.{}.attn.c_proj", "in"),
        "hook_attn_out": ("transformer.h.{}.attn", "out"),
        "hook_resid_mid": ("transformer.h.{}.ln_2", "in"),
        "mlp.hook_pre": ("transformer.h.{}.mlp.c_fc", "out"),
        "mlp.hook_post": ("transformer.h.{}.mlp.c_proj", "in"),
        "hook_mlp_out": ("transformer.h.{}.mlp", "out"),
        "hook_resid_post": ("transformer.h.{}", "out"),
    },
)


def _llama_layout(model: str) -> Layout:
    return Layout(
        model,
        {
            "hook_resid_pre": ("model.layers.{}", "in"),
            "attn.hook_z": ("model.layers.{}.self_attn.o_proj", "in"),
            "hook_attn_out": ("model.layers.{}.self_attn", "out"),
            "hook_resid_mid": ("model.layers.{}.post_attention_layernorm", "in"),
            "mlp.hook_pre": ("model.layers.{}.mlp.gate_proj", "out"),
            "mlp.hook_pre_linear": ("model.layers.{}.mlp.up_proj", "out"),
            "mlp.hook_post": ("model.layers.{}.mlp.down_proj", "in"),
            "hook_mlp_out": ("model.layers.{}.mlp", "out"),
            "hook_resid_post": ("model.layers.{}", "out"),
        },
    )


LLAMA = _llama_layout("LlamaForCausalLM")
MISTRAL = _llama_layout("MistralForCausalLM")
QWEN2 = _llama_layout("Qwen2ForCausalLM")
BERT = Layout(
    "BertModel",
    {
        "hook_resid_pre": ("encoder.layer.{}", "in"),
        "attn.hook_z": ("encoder.layer.{}.attention.output.dense", "in"),
        "hook_attn_out": ("encoder.layer.{}.attention.output.dense", "out"),
        "hook_resid_mid": ("encoder.layer.{}.attention", "out"),
        "mlp.hook_pre": ("encoder.layer.{}.intermediate.dense", "out"),
        "mlp.hook_post": ("encoder.layer.{}.output.dense", "in"),
        "hook_mlp_out": ("encoder.layer.{}.output.dense", "out"),
        "hook_resid_post": ("encoder.layer.{}", "out"),
    },
)

_LLAMA = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
}


def _scaled(**rope: Any) -> Family:
    values = {**_LLAMA, "rope_parameters": {"rope_theta": 100.0, **rope}}
    return Family(LLAMA, "LlamaConfig", values)


FAMILIES = {
    "gpt2": Family(
        GPT2,
        "GPT2Config",
        {
            "vocab_size": D_VOCAB,
            "n_positions": N_CTX,
            "n_layer": 3,
            "n_embd": 24,
            "n_head": 3,
            "layer_norm_epsilon": 1e-3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        exact=True,
    ),
    "llama": Family(LLAMA, "LlamaConfig", _LLAMA),
    "llama-wide-heads": Family(LLAMA, "LlamaConfig", {**_LLAMA, "head_dim": 12}),
    "llama-biases-tied": Family(
        LLAMA,
        "LlamaConfig",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-linear": _scaled(rope_type="linear", factor=4.0),
    "llama-yarn": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=N_CTX // 4,
        beta_fast=4.0,
        beta_slow=0.5,
    ),
    "llama-yarn-smooth": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=N_CTX // 4,
        beta_fast=1.0,
        beta_slow=0.1,
        attention_factor=0.8,
        truncate=False,
    ),
    "llama-llama3": _scaled(
        rope_type="llama3",
        factor=4.0,
        original_max_position_embeddings=N_CTX // 2,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
    "mistral": Family(MISTRAL, "MistralConfig", {**_LLAMA, "sliding_window": 4}),
    "qwen2": Family(QWEN2, "Qwen2Config", _LLAMA),
    "qwen2-windows-tied": Family(
        QWEN2,
        "Qwen2Config",
        {
            **_LLAMA,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "bert": Family(
        BERT,
        "BertConfig",
        {
            "vocab_size": D_VOCAB,
            "max_position_embeddings": N_CTX,
            "num_hidden_layers": 3,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "layer_norm_eps": 1e-3,
        },
        exact=True,
    ),
    **OLDER,
    **NEWER,
    **EXPERTS,
}


def build(family: Family, seed: int = 0) -> PreTrainedModel:
    """The random model in float64, in inference mode."""
    config = getattr(transformers, family.config)(**family.values)
    config._experts_implementation = "eager"  # the default, a grouped product, refuses float64
    model = getattr(transformers, family.layout.model)(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_gain = parameter.ndim == 1 and bool((parameter == 1).all())
        parameter.copy_(1 + 0.3 * noise if is_gain else 0.2 * noise)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Writes config and safetensors as Hugging Face does."""
    model.save_pretrained(folder, safe_serialization=True)
    return folder
