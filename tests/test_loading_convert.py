"""Old checkpoints become folders that load, with the same numbers; bad ones are one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import interp
from interp.cli import main as cli

from . import plain
from .old_checkpoints import CASES, NanoGPT, lens_config, lens_forward, lens_state

IDS = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(0))
ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 64}
FLAGS = {"normalization_type": "LN", "act_fn": "gelu_new"}


def write_lens(folder: Path, case: str, **changes: Any) -> tuple[Path, Path]:
    """A state dict and its config."""
    folder.mkdir(exist_ok=True)
    file, config = folder / "old.pt", folder / "config.json"
    torch.save(lens_state(lens_config(case)), file)
    config.write_text(json.dumps(lens_config(case) | changes))
    return file, config


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.dtype == expected.dtype
    worst = ((found - expected).abs().max() / expected.abs().max()).item()
    assert worst < tolerance, worst


# --- TransformerLens -------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_lens_logits_are_those_of_transformer_lens(tmp_path, case):
    write_lens(tmp_path / "old", case)
    done = interp.convert(tmp_path / "old", tmp_path / "new")
    model = interp.load(tmp_path / "new")
    c = lens_config(case)
    assert_same(model(IDS), lens_forward(lens_state(c), c, IDS), 1e-10)
    assert model.cfg == done.cfg
    assert model.num_params() == done.n_params
    assert "blocks.{}.attn.mask" in done.dropped
    assert model.check_identities(IDS)["holds"].all()


def test_sizes_come_from_the_tensors(tmp_path):
    file, _ = write_lens(tmp_path / "old", "gpt2")
    done = interp.convert(file, tmp_path / "new", act_fn="gelu_new")
    assert done.cfg == interp.convert(tmp_path / "old", tmp_path / "newer").cfg
    assert "taken for: eps=1e-05, attention_dir=causal" in str(done)
    file, _ = write_lens(tmp_path / "old", "llama")
    done = interp.convert(file, tmp_path / "llama", act_fn="silu", rotary_base=50.0, eps=1e-5)
    assert (done.cfg.n_kv_heads, done.cfg.rotary_dim, done.cfg.norm) == (2, 6, "rmsnorm")
    assert done.cfg == interp.convert(tmp_path / "old", tmp_path / "llama2").cfg


@pytest.mark.parametrize("name", ["a.pth", "pytorch_model.bin", "a.ckpt", "a.safetensors"])
def test_the_kind_is_in_the_contents_not_in_the_name(tmp_path, name):
    state = lens_state(lens_config("gpt2"))
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        content = {f"_orig_mod.{key}": value.half() for key, value in state.items()}
        torch.save({"state_dict": content, "step": 3}, tmp_path / name)
    done = interp.convert(tmp_path / name, tmp_path / "new", act_fn="relu")
    assert done.cfg.activation == "relu"
    assert done.dtype == ("float64" if "safe" in name else "float16")
    assert ("step" in done.dropped) == ("safe" not in name)
    assert interp.load(tmp_path / "new")(IDS).shape == (3, 12, 11)


@pytest.mark.parametrize("case", ["llama", "gemma2 folded"])
def test_the_dtype_is_kept(tmp_path, case):
    c = lens_config(case)
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in lens_state(c).items()}
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "old.pt")
    (tmp_path / "old" / "config.json").write_text(json.dumps(c))
    assert interp.convert(tmp_path / "old", tmp_path / "new").dtype == "bfloat16"
    assert interp.load(tmp_path / "new").W_E.dtype == torch.bfloat16


def by_hand(theirs: dict[str, torch.Tensor]) -> interp.HookedTransformer:
    """induction-small laid into our parameters, one by one."""
    cfg = interp.TransformerConfig(
        n_layers=2, d_model=64, n_heads=1, d_vocab=26, n_ctx=8, norm="none", final_norm=False,
        unembed_bias=True,
    )  # fmt: skip
    state = {
        "embed.W_E": theirs["embed.W_E"],
        "embed.W_pos": theirs["pos_embed.W_pos"],
        "unembed.weight": theirs["unembed.W_U"].T,
        "unembed.bias": theirs["unembed.b_U"],
    }
    for layer in range(2):
        attn = f"blocks.{layer}.attn"
        W = [theirs[f"{attn}.W_{part}"].transpose(1, 2).flatten(0, 1) for part in "QKV"]
        b = [theirs[f"{attn}.b_{part}"].flatten() for part in "QKV"]
        state[f"{attn}.qkv_weight"], state[f"{attn}.qkv_bias"] = torch.cat(W), torch.cat(b)
        state[f"{attn}.out_weight"] = theirs[f"{attn}.W_O"].flatten(0, 1).T
        state[f"{attn}.out_bias"] = theirs[f"{attn}.b_O"]
    model = interp.HookedTransformer(cfg)
    model.load_state_dict(state)
    return model


def test_induction_small_opens(shared_data, tmp_path, capsys):
    folder = shared_data / "models" / "induction-small"
    assert cli.main(["convert", str(folder), str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "TransformerLens HookedTransformer, 2 layers × 1 heads, 37,146 parameters" in out
    assert out.splitlines()[-1] == f"look at it: interp info {tmp_path / 'new'}"
    model = interp.load(tmp_path / "new")
    recorded = dict(np.load(folder / "eval.npz"))
    ids = torch.from_numpy(recorded["tokens"]).long()
    found = model(ids)
    laid = by_hand(safetensors.torch.load_file(folder / "model.safetensors"))
    assert (found - laid(ids)).abs().max() < 1e-5
    assert_same(found[:, -1], torch.from_numpy(recorded["logits"]), 1e-5)
    exact = interp.load(tmp_path / "new", dtype="float64")
    numbers = {name: value.numpy() for name, value in exact.state_dict().items()}
    for row in ids[:3]:
        expected = plain.run(exact.cfg, numbers, row.tolist())["output"]
        assert_same(exact(row[None])[0], torch.from_numpy(expected), 1e-12)


# --- what contradicts itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "said", "message"),
    [
        ("gpt2 folded", "LN", r"folded into the weights.*pass --normalization-type LNPre"),
        ("llama folded, stretched", "RMS", r"folded.*pass --normalization-type RMSPre"),
        ("gpt2", "LNPre", r"a gain and a bias, not folded.*pass --normalization-type LN$"),
        ("llama", "RMSPre", r"has a gain, not folded.*pass --normalization-type RMS$"),
        ("llama", "LN", "pass --normalization-type RMS$"),
        ("gpt2", "RMS", "pass --normalization-type LN$"),
        ("gpt2", None, "normalization_type=None, but .*pass --normalization-type LN$"),
        ("gpt2", "BatchNorm", "expected one of LN, LNPre, RMS, RMSPre, none"),
    ],
)
def test_folded_norms_are_not_taken_for_unfolded_ones(tmp_path, case, said, message):
    file, config = write_lens(tmp_path / "old", case, normalization_type=said)
    with pytest.raises(ValueError, match=message):
        interp.convert(file, tmp_path / "new", config=config)
    assert not (tmp_path / "new").exists()


def test_norms_without_a_gain_need_a_word(tmp_path):
    file, _ = write_lens(tmp_path / "old", "gpt2 folded")
    with pytest.raises(ValueError, match=r"give --normalization-type LNPre or RMSPre .* or none"):
        interp.convert(file, tmp_path / "new", act_fn="gelu_new")
    done = interp.convert(file, tmp_path / "new", act_fn="gelu_new", normalization_type="LNPre")
    assert not done.cfg.norm_affine
    assert "norms are folded (LNPre)" in str(done)


def test_unfolded_norms_that_only_normalise_are_reported(tmp_path):
    state = lens_state(lens_config("gpt2"))
    for key in state:
        if ".ln" in key or key.startswith("ln_"):
            state[key] = torch.full_like(state[key], float(key.endswith(".w")))
    torch.save(state, tmp_path / "old.pt")
    assert "folded before" not in str(interp.convert(tmp_path / "old.pt", tmp_path / "a", **FLAGS))
    for key in state:
        if key.endswith((".W_O", ".W_out")):
            state[key] = state[key] - state[key].mean(-1, keepdim=True)
    torch.save(state, tmp_path / "old.pt")
    assert "folded before" in str(interp.convert(tmp_path / "old.pt", tmp_path / "b", **FLAGS))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gpt2", {"n_layers": 3}, "n_layers=3, but the tensors say 2"),
        ("gpt2", {"n_heads": 2}, "n_heads=2, but the tensors say 4"),
        ("gpt2", {"n_ctx": 64}, "n_ctx=64, but the tensors say 12"),
        ("gpt2", {"d_vocab_out": 7}, "d_vocab_out=7, but the tensors say 11"),
        ("gpt2", {"attn_only": True}, "attn_only=True, but the tensors say False"),
        ("gpt2", {"gated_mlp": True}, "gated_mlp=True, but the tensors say False"),
        ("gpt2", {"n_key_value_heads": 2}, "n_key_value_heads=2, but the tensors say 4"),
        ("gpt2", {"d_model": 10**30}, "d_model=1000"),
        ("gpt2", {"act_fn": None}, "no tensor shows the MLP's activation: give --act-fn"),
        ("gpt2", {"act_fn": "solu_ln"}, "act_fn='solu_ln': expected one of gelu"),
        ("gpt2", {"attention_dir": "left"}, "attention_dir is 'left': expected one of causal, bid"),
        ("gpt2", {"attention_dir": ["left"]}, "attention_dir is .'left'.: expected one of"),
        ("gpt2", {"positional_embedding_type": "shortformer"}, "expected standard, rotary, alibi"),
        ("gpt2", {"positional_embedding_type": "rotary"}, "but the tensors say 'standard'"),
        ("gpt2", {"final_rms": True}, "final_rms=True after LayerNorm is not supported"),
        ("gpt2", {"num_experts": 4}, "num_experts is not supported"),
        ("gpt2", {"load_in_4bit": True}, "load_in_4bit is not supported"),
        ("gpt2", {"use_qk_norm": True}, "use_qk_norm goes with RMS"),
        ("gpt2", {"post_embedding_ln": True}, "post_embedding_ln before learned positions"),
        ("gpt2", {"use_local_attn": True}, "needs window_size and attn_types"),
        ("gpt2", {"attn_scale": 0.0}, "attn_scale=0: scores cannot be divided by it"),
        ("gpt2", {"eps": "small"}, "eps='small': expected a number"),
        ("neo", {"window_size": 4}, r"blocks\.1\.attn\.mask sees 3 tokens back, but .* says 4"),
        ("llama", {"rotary_base": 10_000}, r"rotary_sin is not the table of rotary_base=10000"),
        ("llama", {"rotary_dim": 4}, "rotary_dim=4, but the tensors say 6"),
        ("gptj", {"rotary_adjacent_pairs": False}, "is not the table .*rotary_adjacent_pairs=Fal"),
        ("gemma3", {"rotary_base_local": None}, r"blocks\.1\.attn\.rotary_sin is not the table"),
        ("llama folded, stretched", {"use_NTK_by_parts_rope": False}, "or of use_NTK_by_parts"),
        ("bloom folded", {"attention_dir": "bidirectional"}, "only for causal attention"),
    ],
)
def test_config_that_contradicts_its_tensors(tmp_path, case, changes, message):
    file, config = write_lens(tmp_path / "old", case, **changes)
    with pytest.raises(ValueError, match=message):
        interp.convert(file, tmp_path / "new", config=config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.W_Q"), r"1 missing: blocks\.1\.attn\.W_Q"),
        (lambda s: s.update({"mlm_head.W": s["embed.W_E"]}), r"1 unexpected: mlm_head\.W"),
        (
            lambda s: s.update({"blocks.1.ln1.w": torch.ones(7)}),
            r"1 wrongly shaped: blocks\.1\.ln1\.w \[7\], expected \[16\]",
        ),
        (lambda s: s.update({"unembed.W_U": torch.ones(16, 5)}), "d_vocab_out=5 differs from"),
        (lambda s: s.update({"ln_final.w": torch.ones(16).long()}), r"not of floats: ln_final\.w"),
        (lambda s: s.update({"ln_final.w": 3}), "'ln_final.w' is not a plain tensor"),
        (lambda s: s.update({"ln_final.w": torch.ones(16).to_sparse()}), "is not a plain tensor"),
        (lambda s: s.update({5: torch.ones(16)}), "5 is not a plain tensor"),
        (lambda s: s.pop("unembed.W_U"), "not the state dict .*unembed.W_U is missing"),
        (lambda s: s.update({"embed.W_E": torch.ones(3)}), r"shape \[3\], expected 2 axes"),
        (lambda s: s.update({"blocks.9.ln1.w": torch.ones(16)}), "n_layers=10, and they are of 3"),
        (lambda s: s.update({"_orig_mod.embed.W_E": s["embed.W_E"]}), "both 'embed.W_E' and '_o"),
    ],
)
def test_every_tensor_is_used_dropped_or_an_error(tmp_path, change, message):
    state = lens_state(lens_config("gpt2"))
    change(state)
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=message):
        interp.convert(tmp_path / "old.pt", tmp_path / "new", **FLAGS)
    assert not (tmp_path / "new").exists()


def test_unknown_fields_are_named(tmp_path, caplog):
    file, config = write_lens(tmp_path / "old", "gpt2", use_new_thing=True)
    interp.convert(file, tmp_path / "new", config=config)
    assert "1 unknown field(s) are not read: use_new_thing" in caplog.text
    with pytest.raises(ValueError, match=r"unknown flag 'act_fun'.*did you mean 'act_fn'"):
        interp.convert(file, tmp_path / "new2", act_fun="relu")


# --- nanoGPT ---------------------------------------------------------------------------------


def write_nanogpt(file: Path, bias: bool, prefix: str = "", **changes: Any) -> NanoGPT:
    model = NanoGPT(**ARGS, bias=bias)
    content = {
        "model": {prefix + key: value for key, value in model.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95)}]},
        "model_args": {**ARGS, "bias": bias, "dropout": 0.1},
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save(content | changes, file)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_logits(tmp_path, bias, prefix):
    theirs = write_nanogpt(tmp_path / "ckpt.pt", bias, prefix)
    done = interp.convert(tmp_path / "ckpt.pt", tmp_path / "new")
    model = interp.load(tmp_path / "new")
    assert model.cfg.d_vocab == 64  # its padding is kept
    assert model.cfg.tied
    assert_same(model(IDS), theirs(IDS), 1e-10)
    assert set(done.dropped) == {
        "lm_head.weight", "optimizer", "iter_num", "best_val_loss", "config",
    }  # fmt: skip
    assert "taken for gelu" in str(done)


def test_nanogpt_untied_and_of_early_2023(tmp_path):
    file = tmp_path / "ckpt.pt"
    model = write_nanogpt(file, True)
    state = model.state_dict() | {"lm_head.weight": torch.randn(64, 8).double()}
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12)
    args = {name: ARGS[name] for name in ARGS}  # bias was not an argument then
    write_nanogpt(file, True, model=state, model_args=args)
    done = interp.convert(file, tmp_path / "new", act_fn="gelu_new")
    assert (done.cfg.tied, done.cfg.activation, done.cfg.qkv_bias) == (False, "gelu_tanh", True)
    assert "transformer.h.{}.attn.bias" in done.dropped


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"use_rmsnorm": True}, "use_rmsnorm: not an argument of nanoGPT"),
        ({"n_layer": 500}, "n_layers=500, and they are of 2 layers, the last 1"),
        ({"n_layer": 9_999}, r"n_layer=9999: expected a whole number in \[1, 512\]"),
        ({"n_layer": "2"}, "n_layer='2': expected a whole number"),
        ({"block_size": 13}, r"wpe\.weight \[12, 8\], expected \[13, 8\]"),
        ({"bias": False}, r"unexpected: transformer\.h\.0\.ln_1\.bias"),
        ({"n_head": 3}, "d_model=8 is not a multiple of n_heads=3"),
        ({"vocab_size": 65}, r"wrongly shaped: transformer\.wte\.weight"),
    ],
)
def test_nanogpt_that_contradicts_itself(tmp_path, args, message):
    model_args = {**ARGS, "bias": True, **args}
    write_nanogpt(tmp_path / "ckpt.pt", True, model_args=model_args)
    with pytest.raises(ValueError, match=message):
        interp.convert(tmp_path / "ckpt.pt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nanogpt_takes_no_other_config(tmp_path):
    write_nanogpt(tmp_path / "ckpt.pt", True)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="leave out --config"):
        interp.convert(tmp_path / "ckpt.pt", tmp_path / "new", config=tmp_path / "c.json")
    with pytest.raises(ValueError, match="own arguments say n_heads; give --act-fn"):
        interp.convert(tmp_path / "ckpt.pt", tmp_path / "new", n_heads=2)
