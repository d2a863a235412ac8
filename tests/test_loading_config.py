"""config.json is data: typed, bounded, read as transformers reads it, and nothing in it is run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.core.config import ConfigError, TransformerConfig
from interp.core.files.untrusted import parse_json, read_json
from interp.loading.families import read_config
from interp.model.rotary import rotary_frequencies

from .published import (
    CONFIG,
    GPT2,
    LLAMA,
    LLAMA3,
    SMALL,
    assert_same_model,
    edit_json,
    published,
    tiny,
    write_config,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that loads."""
    return tiny(tmp_path)


def old_style(folder: Path, **values: Any) -> None:
    """Write a config.json as transformers 4 did."""
    edit_json(folder / "config.json", "rope_parameters", **values)


def test_rope_of_transformers_4(tmp_path: Path):
    theirs = published("llama llama3", tmp_path)
    new = interp.load(tmp_path).cfg
    scaling = {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 16}
    old_style(tmp_path, rope_theta=10000.0, rope_scaling=scaling)
    assert interp.load(tmp_path).cfg == new
    scaling["type"] = scaling.pop("rope_type")
    old_style(tmp_path, rope_theta=10000, rope_scaling=scaling)
    assert interp.load(tmp_path).cfg == new
    assert_same_model(theirs, interp.load(tmp_path), 1e-5)
    old_style(tmp_path, rope_theta=77.0, rope_scaling=None)
    assert interp.load(tmp_path).cfg == new.replace(rotary_base=77.0, rotary_scaling=None)


ROPES = [
    {"rope_type": "linear", "factor": 2},
    {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 512},
    {**LLAMA3, "factor": 32.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 0.5, "truncate": False, "mscale": 0.5, "mscale_all_dim": 2.0},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: "-".join(map(str, rope.values())))
def test_rotary_frequencies_equal_those_of_transformers(rope: dict[str, Any]):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {**LLAMA, "hidden_size": 128, "max_position_embeddings": 4096}
    rope = {"rope_theta": 500_000.0, **rope}
    theirs = LlamaConfig(**values, rope_parameters=dict(rope))
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs)
    _, cfg = read_config({**values, "model_type": "llama", "rope_parameters": rope}, "config.json")
    width, scaling, cpu = cfg.rotary_dim, cfg.rotary_scalings[0], torch.device("cpu")
    found = rotary_frequencies(cfg.rotary_bases[0], scaling, width, cpu, torch.float32)
    torch.testing.assert_close(found[0], expected, rtol=2e-6, atol=0)
    assert found[1] == pytest.approx(factor, rel=1e-12)


def test_original_context_outside_the_rope_wins():
    rope = {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 16}
    values = {**LLAMA, "model_type": "llama", "rope_scaling": rope}
    values["original_max_position_embeddings"] = 8
    _, cfg = read_config(values, "config.json")
    assert cfg.rotary_scaling.original_n_ctx == 8


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mrope", 7])
def test_unknown_rope_names_the_known_ones(kind: Any):
    values = {**LLAMA, "model_type": "llama", "rope_scaling": {"type": kind, "factor": 2.0}}
    with pytest.raises(ConfigError, match=f"{kind!r} is not known; known are 'default', 'linear'"):
        read_config(values, "config.json")


def test_sliding_layers_of_qwen2():
    values = {**LLAMA, "model_type": "qwen2", "sliding_window": 4, "max_window_layers": 2}
    windows = lambda **more: read_config({**values, **more}, "c")[1].sliding_window  # noqa: E731
    assert windows() is None
    assert windows(use_sliding_window=True) == (None, None, 4)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(use_sliding_window=True, layer_types=types) == (4, None, 4)
    with pytest.raises(ConfigError, match="use_sliding_window is false"):
        windows(layer_types=types)
    with pytest.raises(ConfigError, match="a list of 3 entries"):
        windows(use_sliding_window=True, layer_types=types[:2])
    with pytest.raises(ConfigError, match="entries out of full_attention"):
        windows(use_sliding_window=True, layer_types=["full_attention", "linear", "linear"])


def test_defaults_are_those_of_each_family():
    gpt2 = {**GPT2, "model_type": "gpt2"}
    assert read_config(gpt2, "c")[1].tied
    assert read_config({**gpt2, "n_inner": None}, "c")[1].d_mlp == 96
    llama = {key: LLAMA[key] for key in (*SMALL, "intermediate_size")} | {"model_type": "llama"}
    cfg = read_config(llama, "c")[1]
    assert (cfg.tied, cfg.n_kv_heads, cfg.n_ctx, cfg.norm_eps) == (False, 4, 2048, 1e-6)
    cfg = read_config(
        {**llama, "model_type": "mistral", "num_attention_heads": 8, "head_dim": 4}, "c"
    )[1]
    assert (cfg.n_kv_heads, cfg.window(0), cfg.n_ctx) == (8, 4096, 131_072)
    cfg = read_config({**llama, "model_type": "mistral", "num_key_value_heads": None}, "c")[1]
    assert cfg.n_kv_heads == 4


def test_unknown_fields_are_reported_once(caplog: pytest.LogCaptureFixture):
    values = {**GPT2, "model_type": "gpt2", "resid_pdrop": 0.1, "eos_token_id": 3}
    with caplog.at_level(logging.WARNING):
        read_config(values, "config.json")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        read_config({**values, "zeta": 1, "alpha": [2]}, "config.json")
    assert [r.getMessage() for r in caplog.records] == [
        "config.json: 2 unknown field(s) are not read: alpha, zeta"
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' asks for code.*is never run"),
        ({"trust_remote_code": True}, "'trust_remote_code' asks for code"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'.*bridge"),
        ({"n_layer": 10**9}, r"n_layer=1000000000: expected a whole number in \[1, 512\]"),
        ({"n_layer": -1}, "n_layer=-1: expected a whole number"),
        ({"n_layer": 0}, "n_layer=0"),
        ({"n_layer": 2.0}, r"n_layer=2\.0"),
        ({"n_layer": "12"}, "n_layer='12'"),
        ({"n_layer": True}, "n_layer=True"),
        ({"n_layer": [1] * 999}, r"n_layer=\[1, 1.*…"),
        ({"n_layer": None}, "the field 'n_layer' is missing"),
        ({"vocab_size": 10**4000}, "vocab_size=1000.*…: expected"),
        ({"n_embd": 2**63}, "n_embd"),
        ({"n_embd": 7}, "d_model=7 is not a multiple of n_heads=2"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon='1e-5': expected a number"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
        ({"activation_function": "os.system"}, "activation_function='os.system': expected one of"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': expected true or false"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported"),
        ({"model_type": "evil"}, "model_type='evil' is not supported; .*supported: gpt2, "),
        ({"model_type": None}, "model_type=None"),
        ({"model_type": ["gpt2"]}, "is not supported"),
    ],
)
def test_config_is_bounded_data(folder: Path, changes: dict[str, Any], fault: str):
    write_config(folder, **changes)
    with pytest.raises(ValueError, match=fault) as caught:
        interp.load(folder)
    assert str(folder / "config.json") in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("rope", "fault"),
    [
        ({"type": "linear"}, "'factor' is missing"),
        ({"type": "linear", "factor": -1}, "factor=-1"),
        ({"type": "linear", "factor": 10**400}, "factor=1000.*…: expected a number"),
        ({"type": "llama3", "factor": 2.0}, "'low_freq_factor' is missing"),
        ({"full_attention": {"rope_type": "default"}}, "one set for all layers"),
        ("linear", "expected an object"),
        ([], None),
        ({"rope_theta": 0}, "rotary_base"),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "whole number"),
        ({"type": "__import__", "factor": 2.0}, "is not known; known are"),
    ],
)
def test_rope_is_bounded_data(tmp_path: Path, rope: Any, fault: str | None):
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 5}
    config |= {"num_attention_heads": 2, "intermediate_size": 4, "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fault is None:
        assert interp.info(tmp_path).cfg.rotary_scaling is None
        return
    with pytest.raises(ConfigError, match=fault):
        interp.info(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "expected a JSON object, not a list"),
        (b'{"n_layer": NaN}', "NaN is not a number of JSON"),
        (b'{"n_layer": -Infinity}', "not a number of JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"n_layer": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"\xff\xfe{", "UTF-16, not UTF-8"),
    ],
)
def test_config_that_is_no_json(folder: Path, text: bytes, fault: str):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"config\.json: .*{fault}"):
        interp.load(folder)


def test_config_of_unbounded_size(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(" " * 100)
    with pytest.raises(ValueError, match=r"config\.json: more than 99 bytes"):
        read_json(file, max_bytes=99)
    with pytest.raises(ValueError, match="where: expected a JSON object"):
        parse_json(b"3", "where")


@pytest.mark.parametrize(
    "values",
    [3, None, [], {"n_layers": 1}, {"n_layers": 10**12}, {"evil": 1}, {"n_layers": "__import__"}],
)
def test_our_own_config_is_bounded_data(tmp_path: Path, values: Any):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "interp", "config": values}))
    with pytest.raises(ConfigError):
        interp.load(tmp_path)


SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 5}
FIELDS = {
    "gpt2": CONFIG | {"scale_attn_weights": True, "layer_norm_epsilon": 1e-5},
    "qwen2": SIZES
    | {"intermediate_size": 4, "num_key_value_heads": 1, "head_dim": 4, "rope_theta": 5.0}
    | {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}
    | {"layer_types": None, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    | {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    "bert": SIZES | {"intermediate_size": 4, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "gpt_neo": {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 5}
    | {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]}
    | {"window_size": 4},
    "opt": SIZES | {"ffn_dim": 4, "word_embed_proj_dim": 8, "do_layer_norm_before": True},
    "bloom": {"n_embed": 8, "n_layer": 2, "num_attention_heads": 2, "vocab_size": 5},
    "falcon": SIZES
    | {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 2}
    | {"parallel_attn": True, "num_ln_in_parallel_attn": 1, "bias": True},
    "roberta": SIZES
    | {"intermediate_size": 4, "pad_token_id": 1, "max_position_embeddings": 9}
    | {"architectures": ["RobertaForMaskedLM"], "hidden_act": "gelu"},
}
NUMBERS = st.integers() | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=9)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "rope_type", "factor", "rope_theta", "x"]), inner
        )
    ),
    max_leaves=6,
)


@given(st.data())
def test_config_with_any_value_in_any_field(data: st.DataObject):
    family = data.draw(st.sampled_from(list(FIELDS)))
    field = data.draw(st.sampled_from(list(FIELDS[family])))
    values = {**FIELDS[family], "model_type": family, field: data.draw(JSON)}
    try:
        _, cfg = read_config(values, "config.json")
    except ConfigError:
        return
    assert TransformerConfig(**vars(cfg)) == cfg
