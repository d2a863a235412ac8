"""A mixture of experts is an MLP of mostly silent neurons: reads, edits, gradients, graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import interp
from interp import edits, metrics
from interp.core.config import TransformerConfig
from interp.model import HookedTransformer

from .strategies import random_model, small_config

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
N, SIZE = 4, 16


def of(**changes) -> HookedTransformer:
    values = {"n_experts": N, "experts_per_token": 2, "mlp_gated": True, "attn_sinks": True}
    return random_model(small_config(**{**values, "d_mlp": N * SIZE, **changes}))


def set_to(value: Tensor):
    return lambda x, hook: value.expand_as(x)


def test_what_is_computed_does_not_depend_on_who_looks() -> None:
    model = of()
    seen, cache = model.run_with_cache(IDS)
    assert torch.allclose(model(IDS), seen, rtol=0, atol=1e-12)
    weights, post = cache["expert_weights", 1], cache["post", 1]
    assert torch.equal((weights > 0).sum(-1), torch.full(IDS.shape, 2))
    assert torch.allclose(weights.sum(-1), torch.ones(IDS.shape, dtype=torch.float64))
    silent = (weights == 0).repeat_interleave(SIZE, -1)
    assert (post[silent] == 0).all() and (post[~silent] != 0).all()


@pytest.mark.parametrize("name", ["hook_pre", "hook_post", "hook_expert_weights", "hook_router"])
def test_an_edit_that_changes_nothing_changes_nothing(name: str) -> None:
    model = of()
    same = model.run_with_hooks(IDS, [(f"mlp.{name}", lambda x, hook: x)])
    assert torch.allclose(same, model(IDS), rtol=0, atol=1e-12)


def test_an_expert_that_an_edit_chooses_is_computed() -> None:
    """By its weight or by its logit, and then it writes what its matrices say."""
    model, one = of(), torch.tensor([0.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    _, cache = model.run_with_cache(IDS, ["mlp_out", "ln2.hook_normalized"])
    hooks = [(("expert_weights", 1), set_to(one))]
    edited, after = model.with_hooks(hooks).run_with_cache(IDS, ["mlp_out"])
    mlp, own = model.blocks[1].mlp, slice(2 * SIZE, 3 * SIZE)
    read = cache["ln2.hook_normalized", 1] * model.blocks[1].ln2.w + model.blocks[1].ln2.b
    gate, linear = read @ mlp.W_gate + mlp.b_gate, read @ mlp.W_in + mlp.b_in
    post = torch.nn.functional.gelu(gate[..., own]) * linear[..., own]
    by_hand = 0.5 * (post @ mlp.W_out[own] + mlp.b_out[2])
    assert torch.allclose(after["mlp_out", 1], by_hand, rtol=0, atol=1e-10)

    logits = torch.tensor([-90.0, -90.0, 90.0, -90.0], dtype=torch.float64)
    routed = model.run_with_hooks(IDS, [(("router", 1), set_to(logits))])
    alone = model.run_with_hooks(IDS, [(("expert_weights", 1), set_to(2 * one))])
    assert torch.allclose(routed, alone, rtol=0, atol=1e-10)
    assert (routed - edited).abs().max() > 1e-3


def test_a_neuron_of_an_expert_is_a_neuron() -> None:
    """Zeroing neuron e · d_expert + i takes post · its row of W_out away, where e is chosen."""
    model = of()
    _, cache = model.run_with_cache(IDS, ["post", "mlp_out"])
    neuron = 3 * SIZE + 5

    def zero(x: Tensor, hook: object) -> None:
        x[..., neuron] = 0

    _, after = model.with_hooks([(("post", 0), zero)]).run_with_cache(IDS, ["mlp_out"])
    lost = cache["post", 0][..., neuron, None] * model.blocks[0].mlp.W_out[neuron]
    assert torch.allclose(cache["mlp_out", 0] - after["mlp_out", 0], lost, rtol=0, atol=1e-12)
    assert lost.abs().max() > 1e-3


def test_gradients_reach_experts_that_are_not_chosen() -> None:
    """The gradient by a weight is the difference that the weight makes, also where it is 0."""
    model, step = of(), 1e-6
    logits, cache = model.run_with_cache(IDS, [("expert_weights", 1)], grad=True)
    (gradient,) = torch.autograd.grad(logits[0, -1, 0], list(cache.values()))
    weights = cache["expert_weights", 1].detach()
    for e in range(N):
        moved = weights.clone()
        moved[0, 2, e] += step
        changed = model.run_with_hooks(IDS, [(("expert_weights", 1), set_to(moved))])
        slope = (changed[0, -1, 0] - logits[0, -1, 0].detach()) / step
        assert torch.isclose(gradient[0, 2, e], slope, rtol=1e-3, atol=1e-6)
    assert (weights[0, 2] == 0).any() and (gradient[0, 2] != 0).all()


def test_experts_are_nodes() -> None:
    model = of()
    options = {"metric": metrics.loss(), "edit": edits.zero(), "progress": False}
    nodes = interp.nodes(model, "mlp.hook_expert_weights", by=("layer", "expert"))
    assert len(nodes) == 3 * N
    rerun = interp.sweep(model, IDS, nodes, engine="rerun", **options)
    naive = interp.sweep(model, IDS, nodes, engine="naive", **options)
    assert (rerun["value"] - naive["value"]).abs().max() < 1e-10
    assert naive["effect"].abs().max() > 1e-3
    with pytest.raises(ValueError, match="experts=4: expected 0 to 3"):
        interp.nodes(model, "mlp.hook_router", by=("expert",), experts=[4])


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "sliding_window": (None, 3, 2)},
                                     {"mlp_bias": False, "mlp_gated": False}])  # fmt: skip
def test_generation_on_the_cache_is_generation_without(changes) -> None:
    model, ids = of(positions="rotary", **changes), IDS
    ours = model.generate(IDS, 6).tokens.ids
    for _ in range(6):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, ids)


COMPILE = """
import torch
from tests.test_experts import IDS, of

for changes in ({}, {"positions": "rotary", "n_kv_heads": 2, "sliding_window": (None, 3, 2)}):
    model = of(**changes)
    compiled = torch.compile(model, fullgraph=True)
    assert torch.allclose(compiled(IDS), model(IDS), rtol=0, atol=1e-10)
"""


def test_compiles_without_a_graph_break() -> None:
    """In a process of its own: the shape checks of the test run are not traceable."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_folding_keeps_the_routing() -> None:
    model = of(norm="layernorm", experts_per_token=1)
    folded, (logits, cache) = model.folded(), model.run_with_cache(IDS, ["expert_weights"])
    ours, after = folded.run_with_cache(IDS, ["expert_weights"])
    assert torch.allclose(ours.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-9)
    assert torch.allclose(after["expert_weights", 2], cache["expert_weights", 2], atol=1e-10)
    assert folded.check_identities(IDS)["holds"].all()


def test_parameters_are_counted() -> None:
    model = of(mlp_bias=False)
    counts = model.num_params(by="component")
    assert counts["router"] == 3 * N * 32
    assert counts["W_in"] == counts["W_gate"] == counts["W_out"] == 3 * N * SIZE * 32
    assert counts.sum() == sum(p.numel() for p in model.parameters())


def test_published_sizes() -> None:
    """Mixtral 8x7B and gpt-oss-20b, as their weights are counted."""
    shared = {"norm": "rmsnorm", "positions": "rotary", "mlp_gated": True, "n_ctx": 131_072}
    mixtral = small_config(
        **shared, n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_mlp=8 * 14_336,
        n_experts=8, experts_per_token=2, d_vocab=32_000, qkv_bias=False, attn_out_bias=False,
        mlp_bias=False,
    )  # fmt: skip
    assert interp.num_params(mixtral) == 46_702_792_704
    gpt_oss = small_config(
        **shared, n_layers=24, d_model=2880, n_heads=64, n_kv_heads=8, d_head=64, d_mlp=32 * 2880,
        n_experts=32, experts_per_token=4, d_vocab=201_088, attn_sinks=True, router_bias=True,
    )  # fmt: skip
    assert interp.num_params(gpt_oss) == 20_914_757_184


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_experts": 3}, "d_mlp=64 is not a multiple of n_experts=3"),
        ({"experts_per_token": 5}, "experts_per_token=5: expected 1 to n_experts=4"),
        ({"experts_per_token": 0}, "experts_per_token=0: expected 1 to n_experts=4"),
        ({"n_experts": 0}, "experts_per_token=2 is given but n_experts=0"),
        ({"n_experts": 0, "experts_per_token": 0, "router_bias": True}, "router_bias=True is giv"),
        ({"expert_weights": "top"}, "expert_weights='top'"),
        ({"mlp_clamp": 1.0, "mlp_gated": False}, "mlp_clamp=1.0 needs mlp_gated=True"),
        ({"positions": "alibi"}, "attn_sinks=True goes with other positions than 'alibi'"),
        ({"attn_scale": 0.0}, "attn_sinks=True needs scores, but attn_scale=0"),
    ],
)
def test_contradictions_are_named(unchecked, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        of(**changes)


def test_a_config_with_experts_survives_json() -> None:
    cfg = of(router_bias=True, mlp_clamp=2.0).cfg
    assert TransformerConfig.from_dict(cfg.to_dict()) == cfg
