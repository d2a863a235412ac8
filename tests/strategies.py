"""Random architectures and models for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from interp.core.config import ConfigError, RotaryScaling, TransformerConfig
from interp.model import HookedTransformer


@st.composite
def configs(draw, **fixed) -> TransformerConfig:
    """Any architecture that the forward pass computes, small."""
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    n_layers = draw(st.integers(1, 3))
    n_kv_heads = pick(1, 2)
    norm = pick("layernorm", "rmsnorm", "rmsnorm_plus1", "none")
    positions = pick("learned", "rotary", "alibi", "relative", "sinusoidal", "none")
    position = pick("pre", "post", "output", "both")
    d_mlp = pick(0, 24, 24)
    gated = d_mlp > 0 and pick(True, False)
    n_experts = pick(0, 0, 2, 4) if d_mlp else 0
    rotary_dim = pick(6, 4, 2)
    parallel = position == "pre" and d_mlp > 0 and pick(True, False)
    head = pick("unembed", "unembed", "none", "mlm" if norm != "none" else "unembed")
    values = {
        "n_layers": n_layers,
        "d_model": 16,
        "d_head": 6,
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads * pick(1, 2, 3),
        "d_mlp": d_mlp,
        "d_vocab": 11,
        "n_ctx": 16,
        "norm": norm,
        "norm_position": position,
        "norm_affine": pick(True, True, False),
        "norm_bias": pick(True, False),
        "embed_norm": norm != "none" and pick(True, False),
        "final_norm": pick(True, False),
        "parallel": parallel,
        "parallel_shared_norm": parallel and pick(True, False),
        "residual_scale": pick(None, None, 0.6),
        "positions": positions,
        "position_offset": pick(0, 2),
        "rotary_dim": rotary_dim,
        "rotary_scaling": _scaling(pick, rotary_dim, n_layers) if positions == "rotary" else None,
        "rotary_interleaved": pick(True, False),
        "rotary_base": pick(10_000.0, tuple([100.0, 5000.0, 50.0][:n_layers])),
        "rotary_layers": pick(None, tuple([True, False, True][:n_layers])),
        "alibi_scale": pick(None, 0.4) if positions == "alibi" else None,
        "alibi_bfloat16": positions == "alibi" and pick(True, False),
        "relative_buckets": pick(4, 8),
        "relative_max_distance": pick(5, 9),
        "causal": pick(True, True, False),
        "sliding_window": pick(
            None, tuple([None, 2, 3][:n_layers]), tuple([3, 1, None][:n_layers])
        ),
        "attn_scale": pick(None, 0.7),
        "attn_scale_by_layer": pick(True, False),
        "attn_softcap": pick(None, None, 2.0),
        "logit_scale": pick(None, None, 0.7) if head != "none" else None,
        "final_softcap": pick(None, 3.0) if head != "none" else None,
        "qk_norm": pick("none", "head", "each", "all") if norm != "none" else "none",
        "qk_norm_bias": pick(True, False),
        "attn_sinks": positions != "alibi" and pick(True, False, False),
        "qkv_bias": pick(True, False),
        "attn_out_bias": pick(True, False),
        "mlp_gated": gated,
        "mlp_clamp": pick(None, 0.8) if gated else None,
        "mlp_linear_offset": pick(0.0, 1.0) if gated else 0.0,
        "n_experts": n_experts,
        "experts_per_token": pick(1, 2) if n_experts else 0,
        "expert_weights": pick("chosen", "all") if n_experts else "chosen",
        "router_bias": n_experts > 0 and pick(True, False),
        "activation": pick("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu"),
        "mlp_bias": pick(True, False),
        "embed_scale": pick(None, 1.5),
        "n_token_types": pick(0, 2),
        "head": head,
        "tied": head != "none" and pick(True, False),
        "unembed_bias": head != "none" and pick(True, False),
    }
    try:
        return TransformerConfig(**(values | fixed))
    except ConfigError as error:  # a strategy that makes invalid configs hides what it skips
        raise AssertionError(f"the strategy made an invalid config: {error}") from error


def _scaling(pick, rotary_dim: int, n_layers: int):
    """No, one or every layer's own scaling; a context of 3 lies within the sequences of tests."""
    half = rotary_dim // 2
    longrope = RotaryScaling(
        kind="longrope",
        factor=4.0,
        original_n_ctx=3,
        short_factors=(1.5, 1.0, 2.0)[:half],
        long_factors=(1.0, 3.0, 8.0)[:half],
    )
    ntk = RotaryScaling(kind="ntk", factor=3.0) if rotary_dim > 2 else None
    return pick(None, None, ntk, longrope, (ntk, longrope, None)[:n_layers])


@st.composite
def pair_configs(draw) -> TransformerConfig:
    """Any encoder–decoder, small: its stacks need not be alike."""
    off = {"tied": False, "unembed_bias": False, "logit_scale": None, "final_softcap": None}
    encoder = draw(configs(causal=False, head="none", **off))
    alone = {"parallel": False, "parallel_shared_norm": False, "qk_norm": "none"}
    return draw(configs(causal=True, **alone)).replace(encoder=encoder, decoder_start_token_id=1)


def random_model(cfg: TransformerConfig, seed: int = 0, **kwargs) -> HookedTransformer:
    """Every parameter random and large, gains and biases too: nothing hides behind an init."""
    model = HookedTransformer(cfg, dtype=torch.float64, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    # Without norms the stream grows from block to block until softmaxes and caps saturate, and then
    # an edit may truly change nothing.
    std = 0.15 if cfg.norm == "none" else 0.4
    for name, parameter in model.named_parameters():
        parameter.normal_(0, std, generator=generator)
        if name.endswith(".w") and cfg.norm != "rmsnorm_plus1":
            parameter.add_(1.0)
    return model


def small_config(**changes) -> TransformerConfig:
    """A GPT-2-like architecture that runs in a millisecond."""
    values = {
        "n_layers": 3, "d_model": 32, "n_heads": 4, "d_mlp": 64, "d_vocab": 29, "n_ctx": 24,
    }  # fmt: skip
    return TransformerConfig(**(values | changes))
