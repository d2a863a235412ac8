"""The configs of the families that turn queries and keys: read as transformers does, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from interp.core.config import ConfigError, TransformerConfig
from interp.loading.families import read_config

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 7,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 40,
}
CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "olmo": "Olmo",
    "olmo2": "Olmo2",
    "phi3": "Phi3",
    "granite": "Granite",
    "smollm3": "SmolLM3",
    "stablelm": "StableLm",
    "gpt_neox": "GPTNeoX",
    "phi": "Phi",
}


def read(family: str, **values: Any) -> TransformerConfig:
    return read_config({"model_type": family, **SIZES, **values}, "c.json")[1]


@pytest.mark.parametrize("family", CLASSES)
def test_an_absent_field_means_what_it_means_in_transformers(family: str):
    config = getattr(transformers, f"{CLASSES[family]}Config")(**SIZES)
    theirs = json.loads(config.to_json_string(use_diff=False))  # as a file holds it
    written = {name: value for name, value in theirs.items() if name not in SIZES}
    assert read(family) == read(family, **written)


def test_old_names_of_rotary_fields():
    assert read("stablelm", partial_rotary_factor=0.5, rope_theta=50.0) == read(
        "stablelm", rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 50.0}
    )
    both = {"rotary_pct": 1.0, "partial_rotary_factor": 1.0, "rope_theta": 50}
    new = {"partial_rotary_factor": 1.0, "rope_theta": 50.0, "rope_type": "default"}
    assert read("gpt_neox", rotary_emb_base=50, **both) == read("gpt_neox", rope_parameters=new)
    assert read("gpt_neox", rotary_pct=0.5).rotary_dim == 8
    assert read("gpt_neox").rotary_dim == 4
    assert read("phi").rotary_dim == 8
    assert read("phi3", partial_rotary_factor=0.75).rotary_dim == 12


def test_rotary_bases_and_windows_of_gemma3():
    cfg = read("gemma3_text", rope_theta=500.0, rope_local_base_freq=20.0, sliding_window=4)
    assert cfg.rotary_base == (20.0,) * 5 + (500.0, 20.0)
    assert cfg.sliding_window == (4,) * 5 + (None, 4)
    nested = {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    }
    assert cfg == read("gemma3_text", rope_parameters=nested, sliding_window=4)
    every_other = read("gemma3_text", sliding_window_pattern=2, sliding_window=4)
    assert every_other.sliding_window == (4, None, 4, None, 4, None, 4)
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    everywhere = read("gemma3_text", layer_types=["full_attention"] * 7, **linear)
    assert everywhere.sliding_window is None
    assert {scaling.factor for scaling in everywhere.rotary_scaling} == {8.0}
    mixed = read("gemma3_text", sliding_window=4, **linear).rotary_scaling
    assert [scaling is None for scaling in mixed] == [True] * 5 + [False, True]


def test_longrope_under_its_three_names():
    values = {"original_max_position_embeddings": 12, "max_position_embeddings": 48}
    scalings = {
        read("phi3", rope_scaling={**LONGROPE, "type": name}, **values).rotary_scaling
        for name in ("longrope", "su", "yarn")
    }
    (scaling,) = scalings
    assert (scaling.kind, scaling.factor, scaling.original_n_ctx) == ("longrope", 4.0, 12)
    assert scaling.long_factors == (2.0,) * 8


def test_the_gelu_of_the_first_gemma():
    for values in (
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None},
    ):
        assert read("gemma", **values).activation == "gelu_tanh"


def test_layers_of_smollm3_without_rotation():
    assert read("smollm3").rotary_layers == (True, True, True, False, True, True, True)
    assert read("smollm3", no_rope_layers=[1] * 9).rotary_layers is None
    given = read("smollm3", no_rope_layers=[0, 1, 1, 1, 1, 1, 1, 0], sliding_window=4)
    assert given.rotary_layers == (False, *[True] * 6)
    assert given.sliding_window is None
    slides = read("smollm3", use_sliding_window=True, sliding_window=4)
    assert slides.sliding_window == (None, None, None, 4, None, None, None)


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "the field 'short_factor' is missing"),
        ("phi3", {"rope_scaling": LONGROPE | {"long_factor": 3}}, "=3: expected a list of numbers"),
        ("phi3", {"rope_scaling": LONGROPE | {"long_factor": [1.0]}}, "has 1 entries, but rotary"),
        ("llama", {"rope_scaling": LONGROPE}, "rope_type 'longrope' is not known"),
        ("phi3", {"rope_scaling": LINEAR}, "rope_type 'linear' is not known"),
        ("phi3", {"attention_bias": True}, "attention_bias=True: expected false or null"),
        ("phi3", {"partial_rotary_factor": 0.2}, "partial_rotary_factor=0.2: expected a share"),
        ("phi", {"partial_rotary_factor": 2}, "partial_rotary_factor=2.0: expected a share"),
        ("gpt_neox", {"rotary_pct": 0}, "rotary_pct=0.0: expected a share of the 16"),
        ("gpt_neox", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: expected 0.25"),
        ("gpt_neox", {"rope_theta": 7.0}, "rope_theta=7.0: expected 10000.0 or null"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 7}, "sliding_window is null or"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv=8.0: expected null"),
        ("gemma", {"use_bidirectional_attention": True}, "=True: expected false or null"),
        ("gemma", {"hidden_activation": "silu"}, "='silu': expected \"gelu_pytorch_tanh\""),
        ("gemma2", {"hidden_act": "relu"}, "='relu': expected \"gelu_pytorch_tanh\" or null"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "=0: expected a number above 0"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "=0.0: expected a number above 0"),
        ("gemma2", {"sliding_window": None}, "layer_types has 'sliding_attention'"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "=50.0: expected null"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1.0}}, "one set for each of full_att"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "one set for each of full_at"),
        ("gemma3_text", {"rope_scaling": 3}, "rope_scaling=3: expected an object"),
        ("gemma3_text", {"sliding_window_pattern": 0}, r"=0: expected a whole number in \[1"),
        ("granite", {"logits_scaling": 0}, "logits_scaling=0: expected a number above 0"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "expected a list of 7 or more entries"),
        ("smollm3", {"no_rope_layers": [1, 0, 2, 1, 1, 1, 1]}, "each 0 or 1"),
        ("smollm3", {"no_rope_layers": [[], 0, 2, 1, 1, 1, 1]}, "each 0 or 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refused(family: str, values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        read(family, **values)
    assert str(raised.value).startswith("c.json: ")
