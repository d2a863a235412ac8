"""Small random models as others publish them: folders of transformers, and one written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 32}
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32}
BERT = {**SMALL, "intermediate_size": 40, "max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 16, "rope_theta": 100.0}

# name: class of transformers, its config, and how exact its float64 is (rotary tables and RMSNorm
# are computed in float32 there)
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2, 1e-9),
    "gpt2 untied": (
        "GPT2LMHeadModel",
        {
            **GPT2,
            "n_inner": 30,
            "tie_word_embeddings": False,
            "scale_attn_by_inverse_layer_idx": True,
            "activation_function": "relu",
        },
        1e-9,
    ),
    "gpt2 unscaled": ("GPT2LMHeadModel", {**GPT2, "scale_attn_weights": False}, 1e-9),
    "llama": ("LlamaForCausalLM", LLAMA, 1e-5),
    "llama biases": (
        "LlamaForCausalLM",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        1e-5,
    ),
    "llama wide heads": ("LlamaForCausalLM", {**LLAMA, "head_dim": 10}, 1e-5),
    "llama linear": (
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
        1e-5,
    ),
    "llama llama3": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "rope_parameters": {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 16},
        },
        1e-5,
    ),
    "llama yarn": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": {**YARN, "factor": 4.0}}, 1e-5),
    "llama yarn mscale": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "rope_parameters": {
                **YARN,
                "factor": 4.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.3,
                "beta_fast": 4,
                "truncate": False,
            },
        },
        1e-5,
    ),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 4}, 1e-5),
    "mistral full": ("MistralForCausalLM", {**LLAMA, "sliding_window": None}, 1e-5),
    "qwen2": ("Qwen2ForCausalLM", LLAMA, 1e-5),
    "qwen2 sliding": (
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        1e-5,
    ),
    "bert": ("BertModel", BERT, 1e-9),
    "bert tanh": ("BertModel", {**BERT, "hidden_act": "gelu_new", "type_vocab_size": 3}, 1e-9),
    "bert mlm": ("BertForMaskedLM", BERT, 1e-9),
}


def published(case: str, folder: Path, **save_options: Any) -> torch.nn.Module:
    """A random float64 model of transformers, saved as its own folder."""
    import transformers

    name, values, _ = CASES[case]
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**values)).double().eval()
    generator = torch.Generator().manual_seed(len(case))
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = noise / 3 + (parameter.ndim == 1)
    model.save_pretrained(folder, **save_options)
    return model


def edit_json(file: Path, *absent: str, **values: Any) -> None:
    content = json.loads(file.read_text()) | values
    for name in absent:
        content.pop(name, None)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


IDS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def outputs(theirs: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        out = theirs(ids)
    return out.logits if "logits" in out else out.last_hidden_state


def assert_same_model(theirs: torch.nn.Module, ours, tolerance: float) -> None:
    expected, found = outputs(theirs), ours(IDS)
    assert found.dtype == torch.float64
    worst = ((found - expected).abs().max() / expected.abs().max()).item()
    assert worst < tolerance, worst


CONFIG = {
    "model_type": "gpt2",
    "n_embd": 4,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 8,
    "vocab_size": 5,
    "n_inner": 6,
}
SHAPES = {
    "wte.weight": (5, 4),
    "wpe.weight": (8, 4),
    **{f"h.0.{norm}.{part}": (4,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
    "h.0.attn.c_attn.weight": (4, 12),
    "h.0.attn.c_attn.bias": (12,),
    "h.0.attn.c_proj.weight": (4, 4),
    "h.0.attn.c_proj.bias": (4,),
    "h.0.mlp.c_fc.weight": (4, 6),
    "h.0.mlp.c_fc.bias": (6,),
    "h.0.mlp.c_proj.weight": (6, 4),
    "h.0.mlp.c_proj.bias": (4,),
    "ln_f.weight": (4,),
    "ln_f.bias": (4,),
}


def weights() -> dict[str, torch.Tensor]:
    return {key: torch.randn(shape) for key, shape in SHAPES.items()}


def tiny(folder: Path) -> Path:
    """A small model that loads."""
    path = folder / "tiny"
    path.mkdir()
    write_config(path)
    save_file(weights(), path / "model.safetensors")
    return path


def write_config(path: Path, **changes: Any) -> None:
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
