"""Heads of encoders as their files have them, and configs of the older families."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.core.config import ConfigError, TransformerConfig
from interp.loading import WeightsError, save, weights_hash
from interp.loading.families import read_config

from .published import assert_same_model, edit_json, edit_weights, published

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai-gpt": {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 61},
    "gpt_neo": {"hidden_size": 24, "num_layers": 3, "num_heads": 4, "vocab_size": 61}
    | {"attention_types": [[["global", "local", "local"], 1]]},
    "gptj": {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 61, "rotary_dim": 4},
    "opt": SIZES | {"ffn_dim": 40},
    "bloom": {"n_embed": 24, "n_layer": 3, "num_attention_heads": 4, "vocab_size": 61},
    "falcon": SIZES,
    "roberta": SIZES | {"intermediate_size": 40, "max_position_embeddings": 34},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "vocab_size": 61},
}


def config(family: str, **changes: Any) -> TransformerConfig:
    return read_config({"model_type": family, **CONFIGS[family], **changes}, "config.json")[1]


# --- heads -----------------------------------------------------------------------------------


def drop_head(weights: dict[str, torch.Tensor]) -> None:
    for key in [key for key in weights if key.startswith("cls.")]:
        del weights[key]


def test_head_is_that_of_the_architecture_and_the_file(tmp_path: Path):
    theirs = published("bert mlm", tmp_path)
    model = interp.load(tmp_path)
    assert (model.cfg.head, model.cfg.tied, model.cfg.unembed_bias) == ("mlm", True, True)
    assert_same_model(theirs, model, 1e-9)
    edit_json(tmp_path / "config.json", architectures=["BertModel"])
    headless = interp.load(tmp_path)
    assert headless.cfg.head == "none"
    edit_json(tmp_path / "config.json", "architectures")
    assert weights_hash(interp.load(tmp_path)) == weights_hash(headless)
    edit_json(tmp_path / "config.json", architectures=["BertForPreTraining"])
    assert interp.load(tmp_path).cfg == model.cfg
    edit_weights(tmp_path, drop_head)
    assert weights_hash(interp.load(tmp_path)) == weights_hash(headless)


def test_half_a_head_is_missing_the_other_half(tmp_path: Path):
    published("bert mlm", tmp_path)

    def spoil(weights):
        del weights["cls.predictions.transform.dense.bias"]
        del weights["cls.predictions.bias"]

    edit_weights(tmp_path, spoil)
    with pytest.raises(WeightsError, match=r"2 missing: cls\.predictions\.transform\.dense\.bias"):
        interp.load(tmp_path)


def test_head_that_is_stored_a_second_time(tmp_path: Path):
    theirs = published("bert mlm", tmp_path)

    def add(change: float):
        def edit(weights):
            embedding = weights["bert.embeddings.word_embeddings.weight"]
            weights["cls.predictions.decoder.weight"] = embedding + change
            weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()

        return edit

    edit_weights(tmp_path, add(0.0))
    assert_same_model(theirs, interp.load(tmp_path), 1e-9)
    edit_weights(tmp_path, add(1.0))
    with pytest.raises(WeightsError, match=r"decoder\.weight differs from the embedding"):
        interp.load(tmp_path)


def test_head_with_norms_named_as_in_tensorflow(tmp_path: Path):
    theirs = published("bert mlm", tmp_path)

    def rename(weights):
        for key in [key for key in weights if "LayerNorm" in key]:
            old = key.replace(".weight", ".gamma").replace(".bias", ".beta")
            weights[old] = weights.pop(key)

    edit_weights(tmp_path, rename)
    assert_same_model(theirs, interp.load(tmp_path), 1e-9)


def test_head_is_saved_counted_and_not_folded(tmp_path: Path):
    published("bert mlm", tmp_path / "theirs")
    model = interp.load(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    again = interp.load(tmp_path / "ours")
    assert (again.cfg, weights_hash(again)) == (model.cfg, weights_hash(model))
    d, vocab = model.cfg.d_model, model.cfg.d_vocab
    assert model.num_params(by="component")["unembed"] == d * d + d + vocab
    assert interp.info(tmp_path / "theirs").n_params == model.num_params()
    assert model.sites.names[-1] == "hook_logits"
    with pytest.raises(ValueError, match="norm_position='post'"):
        model.folded()


# --- configs ---------------------------------------------------------------------------------


def test_defaults_are_those_of_each_family():
    assert config("openai-gpt").activation == "gelu_tanh"
    assert config("openai-gpt", afn="swish").activation == "silu"
    assert config("gpt_neo").sliding_window == (None, 256, 256)
    assert config("gptj").tied is False
    assert config("opt").position_offset == 2
    assert config("bloom").n_ctx == 2048
    assert (config("falcon").n_kv_heads, config("falcon").parallel_shared_norm) == (1, True)
    assert config("falcon", num_kv_heads=4).n_kv_heads == 1  # multi_query: it is not read
    new = config("falcon", new_decoder_architecture=True, num_kv_heads=2)
    assert (new.n_kv_heads, new.parallel, new.parallel_shared_norm) == (2, True, False)
    assert config("falcon", new_decoder_architecture=True).n_kv_heads == 4
    assert config("falcon", alibi=True).alibi_scale == pytest.approx(6**-0.5)
    assert (config("roberta").n_ctx, config("roberta").position_offset) == (32, 2)
    assert config("distilbert").n_token_types == 0
    layers = ["local", "global", "local"]
    assert config("gpt_neo", attention_types=None, attention_layers=layers).window(0) == 256
    alternating = config("gpt_neo", num_layers=24, attention_types=None)
    assert alternating.sliding_window == (None, 256) * 12


@pytest.mark.parametrize(
    ("family", "changes", "fault"),
    [
        ("openai-gpt", {"afn": "gelu_new"}, r"afn='gelu_new': expected one of gelu, relu"),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, r"attention_types=.* 3 layers"),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types=.* 3 layers"),
        ("gpt_neo", {"attention_types": [[[], 10**9]] * 3}, "attention_types=.* 3 layers"),
        ("gpt_neo", {"attention_types": [[["flash"], 3]]}, "attention_types="),
        ("gpt_neo", {"attention_types": "global"}, "attention_types=global"),
        ("gpt_neo", {"attention_layers": ["global"] * 3}, "as attention_layers says"),
        ("gpt_neo", {"attention_layers": ["global"]}, "a list of 3 entries"),
        ("gptj", {"rotary": False}, "rotary=False: expected true"),
        ("gptj", {"scale_attn_weights": False}, "scale_attn_weights=False: expected true"),
        ("gptj", {"rotary_dim": 64}, "rotary_dim=64 must be even and at most d_head=6"),
        ("opt", {"word_embed_proj_dim": 12}, "word_embed_proj_dim=12: expected 24"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "expected false"),
        ("bloom", {"hidden_size": 48}, "hidden_size=48, n_embed=24: expected one value"),
        ("bloom", {"n_inner": 10}, "n_inner=10: expected 96"),
        ("bloom", {"n_layer": None}, "'n_layer' is missing"),
        ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads=2: expected 4"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2: expected 1"),
        (
            "falcon",
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn=False: expected true",
        ),
        (
            "falcon",
            {"alibi": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rotary_scaling is given but positions='alibi'",
        ),
        ("falcon", {"hidden_size": 2, "alibi": True}, "not a multiple of n_heads"),
        ("roberta", {"max_position_embeddings": 2}, "expected more than pad_token_id"),
        ("roberta", {"architectures": "RobertaForMaskedLM"}, "a list of words"),
        (
            "roberta",
            {"architectures": ["RobertaForMaskedLM"], "hidden_act": "relu"},
            "hidden_act='relu': expected \"gelu\"",
        ),
        (
            "roberta",
            {"architectures": ["RobertaForMaskedLM"], "tie_word_embeddings": False},
            "tie_word_embeddings=False: expected true",
        ),
    ],
)
def test_config_that_is_refused(family: str, changes: dict[str, Any], fault: str):
    with pytest.raises(ConfigError, match=fault) as caught:
        config(family, **changes)
    assert "config.json" in str(caught.value)


PUBLISHED = {  # fields of models on the hub that say nothing new
    "openai-gpt": {"n_special": 0, "predict_special_tokens": True, "afn": "gelu", "n_ctx": 512},
    "gpt_neo": {"attention_layers": ["global", "local", "local"], "resid_dropout": 0}
    | {"embed_dropout": 0, "tokenizer_class": "GPT2Tokenizer", "gradient_checkpointing": False},
    "gptj": {"rotary": True, "scale_attn_weights": True, "tokenizer_class": "GPT2Tokenizer"},
    "opt": {
        "_remove_final_layer_norm": False,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "prefix": "</s>",
    },
    "bloom": {"attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "n_inner": None}
    | {"masked_softmax_fusion": True, "offset_alibi": 100, "seq_length": 2048, "pretraining_tp": 4}
    | {"skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact": False},
    "falcon": {"apply_residual_connection_post_layernorm": False, "alibi": False, "bias": False},
    "roberta": {"architectures": ["RobertaForMaskedLM"], "pad_token_id": 1, "bos_token_id": 0},
    "distilbert": {"sinusoidal_pos_embds": False, "tie_weights_": True, "qa_dropout": 0.1},
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_fields_are_known(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = {"model_type": family, **CONFIGS[family], **PUBLISHED[family]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        assert interp.info(tmp_path).family == family
    assert not caplog.records
