"""The harness can fail: our model with one thing broken misses the reference by far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from tests.parity.inputs import LENGTH, batch
from tests.parity.reference import relative_error, run

MISS = 1e-3
FAINT = 1e-4  # the two gelus are never further apart than 5e-4 themselves

Weights = dict[str, Tensor]
Mutation = Callable[[Any], Any]


def rebuilt(model: Any, cfg: Any, weights: Weights) -> Any:
    """A model of this config with these weights."""
    mutant = interp.HookedTransformer(cfg, dtype=torch.float64)
    mutant.load_state_dict({name: weights[name] for name in mutant.state_dict()})
    return mutant


def config(**changes: Any) -> Mutation:
    """Another architecture over the same weights."""
    return lambda model: rebuilt(model, model.cfg.replace(**changes), model.state_dict())


def scaling(**changes: Any) -> Mutation:
    """Another stretching of the rotary frequencies."""
    return lambda model: config(
        rotary_scaling=dataclasses.replace(model.cfg.rotary_scaling, **changes)
    )(model)


def weights(change: Callable[[Any, Weights], None]) -> Mutation:
    """The same architecture over changed copies of the weights."""

    def mutate(model: Any) -> Any:
        copies = {name: value.clone() for name, value in model.state_dict().items()}
        change(model.cfg, copies)
        return rebuilt(model, model.cfg, copies)

    return mutate


def zeroed(*endings: str) -> Mutation:
    """Every weight whose name ends so is zero."""

    def change(_: Any, copies: Weights) -> None:
        named = [name for name in copies if name.endswith(endings)]
        assert named, f"no weight ends with {endings}"
        for name in named:
            copies[name].zero_()

    return weights(change)


def swap_norms(_: Any, copies: Weights) -> None:
    for name in [name for name in copies if ".ln1." in name]:
        other = name.replace(".ln1.", ".ln2.")
        copies[name], copies[other] = copies[other], copies[name]


def shift_positions(_: Any, copies: Weights) -> None:
    copies["embed.W_pos"] = copies["embed.W_pos"].roll(1, dims=0)


def interleave_query_heads(cfg: Any, copies: Weights) -> None:
    """Query head h reads key-value head h % n_kv_heads in place of h // (n_heads / n_kv_heads)."""
    heads = range(cfg.n_heads)
    order = torch.tensor(sorted(heads, key=lambda head: (head % cfg.n_kv_heads, head)))
    n_rows = cfg.n_heads * cfg.d_head
    for layer in range(cfg.n_layers):
        into, out = f"blocks.{layer}.attn.qkv_weight", f"blocks.{layer}.attn.out_weight"
        queries = copies[into][:n_rows].unflatten(0, (cfg.n_heads, cfg.d_head))[order]
        copies[into][:n_rows] = queries.flatten(0, 1)
        results = copies[out].unflatten(1, (cfg.n_heads, cfg.d_head))[:, order]
        copies[out] = results.flatten(1, 2)


def swap_gate(cfg: Any, copies: Weights) -> None:
    for layer in range(cfg.n_layers):
        name = f"blocks.{layer}.mlp.in_weight"
        copies[name] = copies[name].roll(cfg.d_mlp, dims=0)


def swap_keys_and_values(cfg: Any, copies: Weights) -> None:
    width = cfg.n_kv_heads * cfg.d_head
    for layer in range(cfg.n_layers):
        keys_values = copies[f"blocks.{layer}.attn.qkv_weight"][-2 * width :]
        keys_values.copy_(keys_values.roll(width, dims=0))


def heads_as_stored(cfg: Any, copies: Weights) -> None:
    """Rows of q, k and v in the order of a file that sorts them by key-value head."""
    n_kv, n_queries = cfg.n_kv_heads, cfg.n_heads // cfg.n_kv_heads
    sizes = [n * n_kv * cfg.d_head for n in (n_queries, 1, 1)]
    for name in [name for name in copies if ".qkv_" in name]:
        parts = [rows.unflatten(0, (n_kv, -1, cfg.d_head)) for rows in copies[name].split(sizes)]
        copies[name] = torch.cat(parts, 1).flatten(0, 2)


NO_ALIBI = {"positions": "none", "alibi_scale": None, "alibi_bfloat16": False}

MUTANTS: dict[tuple[str, str], Mutation] = {
    ("openai-gpt", "norms before the sublayers"): config(norm_position="pre"),
    ("openai-gpt", "exact gelu"): config(activation="gelu"),
    ("openai-gpt", "no causal mask"): config(causal=False),
    ("gpt_neo", "1/√d_head"): config(attn_scale=None),
    ("gpt_neo", "no windows"): config(sliding_window=None),
    ("gpt_neo", "windows in other layers"): config(sliding_window=(4, 4, None)),
    ("gpt_neo", "windows one wider"): config(sliding_window=(None, 5, 5)),
    ("gptj", "rotary over halves"): config(rotary_interleaved=False),
    ("gptj", "rotary over the whole head"): config(rotary_dim=8),
    ("gptj", "no bias of the logits"): zeroed("unembed.bias"),
    ("opt", "positions one off"): weights(shift_positions),
    ("opt", "positions from the first row"): config(position_offset=0, n_ctx=50),
    ("opt-post", "norms before the sublayers"): config(norm_position="pre"),
    ("bloom", "no alibi"): config(**NO_ALIBI),
    ("bloom", "heads as they are stored"): weights(heads_as_stored),
    ("bloom", "no embedding norm"): config(embed_norm=False),
    ("falcon", "no rotary"): config(positions="none"),
    ("falcon-separate", "heads as they are stored"): weights(heads_as_stored),
    ("falcon-new", "heads as they are stored"): weights(heads_as_stored),
    ("falcon-new", "norms swapped"): weights(swap_norms),
    ("falcon-new", "one norm"): config(parallel_shared_norm=True),
    ("falcon-new-one-norm", "not stretched"): config(rotary_scaling=None),
    ("falcon-alibi", "no alibi"): config(**NO_ALIBI),
    ("falcon-alibi", "alibi behind 1/√d_head"): config(alibi_scale=None),
    ("falcon-serial-alibi", "alibi not rounded"): config(alibi_bfloat16=False),
    ("bert-mlm", "no transform"): config(head="unembed"),
    ("bert-mlm", "no bias of the logits"): zeroed("unembed.bias"),
    ("bert-mlm", "no bias of the transform"): zeroed("mlm_head.dense_bias"),
    ("bert-mlm", "no bias of the transform's norm"): zeroed("mlm_head.ln.b"),
    ("roberta", "no transform"): config(head="unembed"),
    ("roberta", "positions from the first row"): config(position_offset=0, n_ctx=50),
    ("roberta", "positions one off"): weights(shift_positions),
    ("distilbert", "norms swapped"): weights(swap_norms),
    ("distilbert-mlm", "no transform"): config(head="unembed"),
    ("gpt2", "no 1/√d_head"): config(attn_scale=1.0),
    ("gpt2", "no causal mask"): config(causal=False),
    ("gpt2", "the first token out of sight"): config(sliding_window=(LENGTH - 1,) * 3),
    ("gpt2", "norms swapped"): weights(swap_norms),
    ("gpt2", "RMSNorm"): config(norm="rmsnorm"),
    ("gpt2", "exact gelu"): config(activation="gelu"),
    ("gpt2", "no bias of q, k, v"): zeroed("qkv_bias"),
    ("gpt2", "no bias of the attention's output"): zeroed("attn.out_bias"),
    ("gpt2", "no bias of the neurons"): zeroed("mlp.in_bias"),
    ("gpt2", "no bias of norms"): zeroed("ln1.b"),
    ("gpt2", "no final norm's bias"): zeroed("ln_final.b"),
    ("gpt2", "positions one off"): weights(shift_positions),
    ("gpt2", "keys for values"): weights(swap_keys_and_values),
    ("llama", "no rotary"): config(positions="none"),
    ("llama", "rotary over neighbours"): config(rotary_interleaved=True),
    ("llama", "rotary over half a head"): config(rotary_dim=4),
    ("llama", "another rotary base"): config(rotary_base=500.0),
    ("llama", "no 1/√d_head"): config(attn_scale=1.0),
    ("llama", "no causal mask"): config(causal=False),
    ("llama", "heads grouped by turns"): weights(interleave_query_heads),
    ("llama", "norms swapped"): weights(swap_norms),
    ("llama", "gate and input swapped"): weights(swap_gate),
    ("llama", "gelu for silu"): config(activation="gelu"),
    ("llama", "gains stored from one"): config(norm="rmsnorm_plus1"),
    ("llama-wide-heads", "1/√(d_model / n_heads)"): config(attn_scale=8**-0.5),
    ("llama-biases-tied", "no bias of q, k, v"): zeroed("qkv_bias"),
    ("llama-biases-tied", "no biases of the MLP"): zeroed("mlp.in_bias"),
    ("llama-linear", "not stretched"): config(rotary_scaling=None),
    ("llama-yarn", "not stretched"): config(rotary_scaling=None),
    ("llama-yarn", "no attention factor"): scaling(attention_factor=1.0),
    ("llama-yarn", "default ramp"): scaling(beta_fast=32.0, beta_slow=1.0),
    ("llama-yarn-smooth", "ramp between whole frequencies"): scaling(truncate=True),
    ("llama-llama3", "not stretched"): config(rotary_scaling=None),
    ("llama-llama3", "stretched throughout"): scaling(kind="linear"),
    ("mistral", "no window"): config(sliding_window=None),
    ("mistral", "window one wider"): config(sliding_window=(5,) * 3),
    ("qwen2", "no bias of q, k, v"): zeroed("qkv_bias"),
    ("qwen2-windows-tied", "window in every layer"): config(sliding_window=(4,) * 3),
    ("bert", "causal"): config(causal=True),
    ("bert", "norms swapped"): weights(swap_norms),
    ("bert", "norms before the sublayers"): config(norm_position="pre"),
    ("bert", "no embedding norm's bias"): zeroed("embed_ln.b"),
    ("bert", "no token types"): zeroed("W_token_type"),
    ("bert", "tanh for exact gelu"): config(activation="gelu_tanh"),
    ("bert", "positions one off"): weights(shift_positions),
}


@pytest.mark.parametrize(
    ("name", "broken"), MUTANTS, ids=[f"{name}: {broken}" for name, broken in MUTANTS]
)
def test_mutant_misses(pair, name: str, broken: str) -> None:
    this, inputs = pair(name), batch()
    reference = run(this.reference, this.family.layout, inputs.for_reference(), lifted=False)
    mutant = MUTANTS[name, broken](this.ours)
    least = FAINT if "exact gelu" in broken else MISS
    assert relative_error(mutant(inputs.ids), reference.output) >= least


def test_rebuilding_alone_misses_nothing(pair) -> None:
    """The mutants differ by their mutation, not by how they are made."""
    this, inputs = pair("llama"), batch()
    same = weights(lambda cfg, copies: None)(this.ours)
    assert torch.equal(same(inputs.ids), this.ours(inputs.ids))
