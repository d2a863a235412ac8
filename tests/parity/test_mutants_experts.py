"""What is particular to experts, sinks and the last fields: without it, ours misses by far."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from tests.parity.inputs import batch
from tests.parity.reference import relative_error, run
from tests.parity.test_mutants import (
    MISS,
    Mutation,
    Weights,
    config,
    scaling,
    swap_gate,
    weights,
    zeroed,
)


def hooked(*hooks: Any) -> Mutation:
    return lambda model: model.with_hooks(list(hooks))


def least(x: Tensor, hook: object) -> Tensor:
    """The router turned over: the experts that are wanted least."""
    return -x


def equal(x: Tensor, hook: object) -> Tensor:
    """Every chosen expert weighs as much."""
    return (x > 0).to(x) / (x > 0).sum(-1, keepdim=True)


def next_expert(cfg: Any, copies: Weights) -> None:
    """The maps out of the experts, of the next one each."""
    for name in copies:
        if name.endswith("mlp.out_weight"):
            copies[name] = copies[name].roll(cfg.d_mlp // cfg.n_experts, 1)


def gates_first(cfg: Any, copies: Weights) -> None:
    """As if the file had all gates of an expert before all its inputs."""
    for name in copies:
        if ".mlp.in_" in name:
            apart = copies[name].unflatten(0, (2, cfg.n_experts, -1))
            pairs = apart.movedim(0, 2).flatten(1, 2)  # [expert, neuron · 2, …], as in the file
            copies[name] = pairs.unflatten(1, (2, -1)).movedim(1, 0).flatten(0, 2)


MUTANTS: dict[tuple[str, str], Mutation] = {
    ("mixtral", "weights over all experts"): config(expert_weights="all"),
    ("mixtral", "one expert"): config(experts_per_token=1),
    ("mixtral", "all experts"): config(experts_per_token=4),
    ("mixtral", "equal weights"): hooked(("expert_weights", equal)),
    ("mixtral", "the experts wanted least"): hooked(("router", least)),
    ("mixtral", "gate and input swapped"): weights(swap_gate),
    ("mixtral", "another expert's map out"): weights(next_expert),
    ("mixtral-windows-tied", "no window"): config(sliding_window=None),
    ("mixtral-windows-tied", "two experts"): config(experts_per_token=2),
    ("gpt_oss", "no sinks"): config(attn_sinks=False),
    ("gpt_oss", "sinks of 0"): zeroed("sinks"),
    ("gpt_oss", "not clamped"): config(mlp_clamp=None),
    ("gpt_oss", "nothing added to x W_in"): config(mlp_linear_offset=0.0),
    ("gpt_oss", "silu"): config(activation="silu"),
    ("gpt_oss", "gate and input swapped"): weights(swap_gate),
    ("gpt_oss", "gates before inputs"): weights(gates_first),
    ("gpt_oss", "no bias of the router"): zeroed("router_bias"),
    ("gpt_oss", "no bias of experts' outputs"): zeroed("mlp.out_bias"),
    ("gpt_oss", "no bias of experts' inputs"): zeroed("mlp.in_bias"),
    ("gpt_oss", "weights over all experts"): config(expert_weights="all"),
    ("gpt_oss", "windows in the other layers"): config(sliding_window=(None, 4, None)),
    ("gpt_oss", "no window"): config(sliding_window=None),
    ("gpt_oss", "ramp rounded to whole frequencies"): scaling(truncate=True),
    ("gpt_oss", "not stretched"): config(rotary_scaling=None),
    ("gpt_oss-wide-unlimited", "two experts"): config(experts_per_token=2),
    ("qwen3_moe", "weights over all experts"): config(expert_weights="all"),
    ("qwen3_moe", "queries and keys not normed"): config(qk_norm="none"),
    ("qwen3_moe-unnormed", "weights over the chosen"): config(expert_weights="chosen"),
    ("olmoe", "weights over the chosen"): config(expert_weights="chosen"),
    ("phi3-longrope-long", "short factors"): scaling(original_n_ctx=40),
    ("phi3-longrope-long", "not stretched"): config(rotary_scaling=None),
    ("phi3-longrope-long", "no factor on cosine and sine"): scaling(attention_factor=1.0),
    ("phi3-longrope-short", "long factors"): scaling(original_n_ctx=12),
    ("phi3-longrope-short", "not stretched"): config(rotary_scaling=None),
    ("gemma3-scaled", "layers that slide stretched too"): lambda model: config(
        rotary_scaling=model.cfg.rotary_scaling[1]
    )(model),
    ("gemma3-scaled", "not stretched"): config(rotary_scaling=None),
    ("stablelm-qk-norm", "queries and keys not normed"): config(qk_norm="none"),
    ("stablelm-qk-norm", "one gain for all heads"): weights(
        lambda _, copies: [x[1:].copy_(x[:1]) for n, x in copies.items() if n.endswith("q_norm.w")]
    ),
}


@pytest.mark.parametrize(
    ("name", "broken"), MUTANTS, ids=[f"{name}: {broken}" for name, broken in MUTANTS]
)
def test_mutant_misses(pair, name: str, broken: str) -> None:
    this, inputs = pair(name), batch()
    reference = run(this.reference, this.family.layout, inputs.for_reference(), lifted=False)
    mutant = MUTANTS[name, broken](this.ours)
    assert relative_error(mutant(inputs.ids), reference.output) >= MISS


def test_longrope_goes_by_the_length_of_each_row(pair) -> None:
    """The library turns a whole batch by its longest row; here a row gives the same alone."""
    model, inputs = scaling(original_n_ctx=12)(pair("phi3-longrope-long").ours), batch("right")
    together = model(interp.Tokens(inputs.ids, mask=inputs.mask))
    for row, length in enumerate(inputs.mask.sum(1).tolist()):
        alone = model(inputs.ids[row : row + 1, :length])
        assert relative_error(together[row : row + 1, :length], alone) < 1e-12
    assert sorted((inputs.mask.sum(1) > 12).tolist()) == [False, False, True]  # both kinds


def test_longrope_turns_all_positions_anew_when_generation_passes_its_context(pair) -> None:
    this, ids = pair("phi3-longrope-short"), batch().ids[:2]
    for _ in range(8):  # from 20 tokens past 24, each from the whole text so far
        with torch.no_grad():
            logits = this.reference(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    ours = this.ours.generate(batch().ids[:2], 8)
    assert torch.equal(ours.tokens.ids, ids)
