"""Architectures on the pretend accelerator, tiny and random: forward, sites, gradients, generation,
and a sweep by both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.config import RotaryScaling
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from tests.device.bench import check_same
from tests.strategies import random_model, small_config
from tests.test_inputs import decision, listener, pixels, steps, vit

BOTH_WAYS = {"causal": False, "head": "none"}
FAMILIES = {
    "gpt2": {},
    "neox": {"positions": "rotary", "rotary_dim": 4, "parallel": True, "unembed_bias": True},
    "llama": {
        "positions": "rotary", "norm": "rmsnorm", "mlp_gated": True, "activation": "silu",
        "n_kv_heads": 2, "mlp_bias": False, "qkv_bias": False,
    },
    "gemma": {
        "positions": "rotary", "norm": "rmsnorm_plus1", "norm_position": "both", "mlp_gated": True,
        "n_kv_heads": 1, "sliding_window": (None, 2, 3), "attn_softcap": 2.0, "qk_norm": "head",
        "final_softcap": 3.0, "embed_scale": 1.5, "rotary_base": (100.0, 5000.0, 50.0),
    },
    "olmo2": {"positions": "rotary", "norm": "rmsnorm", "norm_position": "output",
              "qk_norm": "all"},
    "bloom": {"positions": "alibi", "alibi_bfloat16": True, "embed_norm": True},
    "phi3, long": {
        "positions": "rotary", "rotary_dim": 4,
        "rotary_scaling": RotaryScaling(
            kind="longrope", factor=4.0, original_n_ctx=3, short_factors=(1.5, 1.0),
            long_factors=(1.0, 3.0),
        ),
    },
    "mixtral": {
        "positions": "rotary", "norm": "rmsnorm", "mlp_gated": True, "n_kv_heads": 2,
        "n_experts": 4, "experts_per_token": 2, "d_mlp": 64,
    },
    "gpt-oss": {
        "positions": "rotary", "attn_sinks": True, "n_experts": 4, "experts_per_token": 2,
        "router_bias": True, "mlp_gated": True, "mlp_clamp": 0.8, "mlp_linear_offset": 1.0,
    },
    "bert": {"causal": False, "norm_position": "post", "head": "mlm", "embed_norm": True,
             "n_token_types": 2},
    "esm": {"causal": False, "positions": "rotary", "head": "none", "position_offset": 2},
    "attention only": {"d_mlp": 0, "norm": "none", "positions": "sinusoidal"},
    "t5": {
        "positions": "relative", "norm": "rmsnorm", "decoder_start_token_id": 1,
        "encoder": small_config(**BOTH_WAYS, positions="relative", norm="rmsnorm"),
    },
    "bart": {
        "norm_position": "post", "embed_norm": True, "decoder_start_token_id": 1,
        "encoder": small_config(**BOTH_WAYS, norm_position="post", embed_norm=True),
    },
}  # fmt: skip
ROWS = [[3, 5, 7, 5, 2, 11], [4, 6, 8]]


def made(family: str, device: str) -> HookedTransformer:
    return random_model(small_config(**FAMILIES[family])).to(device)


def given(model: HookedTransformer) -> Tokens:
    """Rows of unequal length, on the CPU; of an encoder–decoder the source, and what it writes."""
    tokens = Tokens.from_rows(ROWS)
    if model.encoder is None:
        return tokens
    return Tokens(torch.tensor([[1, 3, 4], [1, 9, 2]]), source=tokens)


def everything(model: HookedTransformer) -> tuple:
    tokens = given(model)
    out, cache = model.run_with_cache(tokens)
    assert out.device == model.device
    assert {x.device for x in cache.values()} == {model.device}
    graded, kept = model.run_with_cache(tokens, "mlp_out" if model.cfg.d_mlp else "z", grad=True)
    gradients = torch.autograd.grad(graded.square().mean(), [*kept.values()])
    said = None
    if model.cfg.causal and model.cfg.head == "unembed":
        said = model.generate(tokens, 4, temperature=1.0, seed=2).tokens.ids
    return out, dict(cache), gradients, said, model.check_identities(tokens), model.num_params()


def swept(model: HookedTransformer) -> list:
    tokens, frames = given(model), []
    goal = torch.ones(model.cfg.d_model, dtype=torch.float64)
    metric = metrics.cosine(goal) if model.cfg.head == "none" else metrics.loss()
    if model.cfg.head == "mlm":
        metric = metrics.kl("all")
    stacks = ("",) if model.encoder is None else ("encoder_blocks.", "decoder_blocks.")
    for site, edit in (
        *((f"{stack}attn.hook_z", edits.zero()) for stack in stacks),
        *((f"{stack}hook_resid_pre", edits.noise(0.3, seed=1)) for stack in stacks),
    ):
        nodes = interp.nodes(model, site, by=("layer",))
        for engine in ("rerun", "naive"):
            frames.append(
                interp.sweep(
                    model, tokens, nodes, edit=edit, metric=metric, engine=engine, progress=False
                )
            )
        assert np.allclose(frames[-2]["value"], frames[-1]["value"], 1e-9, 1e-11)
    return frames


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_the_cpu(family):
    ours, theirs = (everything(made(family, device)) for device in ("pretend", "cpu"))
    check_same(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_are_those_of_the_cpu(family):
    ours, theirs = (swept(made(family, device)) for device in ("pretend", "cpu"))
    check_same(ours, theirs)


TIMES = torch.arange(12).view(3, 4)
SENSES = {
    "images": lambda there: (vit(), {"value": there(pixels().double())}),
    "trajectories": lambda there: (
        decision(),
        {name: there(x) for name, x in steps().items()}
        | {"mask": torch.tensor([[0, 1, 1, 1]] * 3), "timesteps": there(TIMES)},
    ),
    "spectrograms": lambda there: (listener(), {"value": there(torch.full((1, 4, 100), 0.5))}),
    "sound": lambda there: (
        listener(), {"audio": there(torch.linspace(-1, 1, 8_000)), "rate": 16_000},
    ),
}  # fmt: skip


@pytest.mark.parametrize("lies", ["pretend", "cpu"])
@pytest.mark.parametrize("kind", SENSES)
def test_what_reads_no_words(kind, lies):
    results = []
    for device in ("pretend", "cpu"):
        model, value = SENSES[kind](lambda x, d=device: x.to(lies if d == "pretend" else d))
        model = model.to(device)
        tokens = model.to_tokens(**value)
        results.append((tokens, *model.run_with_cache(tokens, "resid_post")[1].values()))
    check_same(*results)
