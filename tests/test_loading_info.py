"""`interp.info`: sizes from a config alone, for models that no machine here could hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import interp

LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "max_position_embeddings": 131072,
    "num_attention_heads": 128,
    "num_hidden_layers": 126,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_405B))
    return file


def test_llama_405b(config_file: Path):
    info = interp.info(config_file)
    assert info.n_params == 405_853_388_800  # as its authors state
    assert info.params.sum() == info.n_params
    assert info.params["W_K"] == info.params["W_V"] == 126 * 8 * 128 * 16384
    assert info.weight_bytes("bfloat16") == 2 * info.n_params
    assert info.kv_bytes(1, "bfloat16") == 2 * 126 * 8 * 128 * 2
    assert len(info.sites) == 28
    text = str(info)
    for part in ("405,853,388,800", "W_gate", "attn.hook_pattern", "0–125", "812 GB", "llama3"):
        assert part in text
    assert interp.info(config_file.parent).n_params == info.n_params
    assert max(map(len, text.splitlines())) <= 100


def test_cache_bytes_are_those_of_a_cache(shared_data: Path):
    folder = shared_data / "models" / "stories260K"
    model = interp.load(folder)
    _, cache = model.run_with_cache(torch.arange(7)[None])
    size = sum(value.nbytes for value in cache.values())
    assert interp.info(folder).cache_bytes(7) == size


def test_a_model_without_generation_has_no_key_value_cache(config_file: Path):
    assert "keys and values" in str(interp.info(config_file))
    bert = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 5}
    bert |= {"num_attention_heads": 2, "intermediate_size": 4}
    config_file.write_text(json.dumps(bert))
    assert "keys and values" not in str(interp.info(config_file))


def test_bad_config(config_file: Path):
    config_file.write_text(json.dumps(LLAMA_405B | {"num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match="num_hidden_layers=1000000000"):
        interp.info(config_file)
