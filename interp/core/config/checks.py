"""What contradicts itself in a config: every check names the fields and the values they have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .fields import Architecture
from .rotary_scaling import RotaryScaling
from .values import (
    BOUNDS,
    MAX_EXPERTS,
    MAX_PIXELS,
    Activation,
    ConfigError,
    ExpertWeights,
    Head,
    Inputs,
    Norm,
    NormPosition,
    Positions,
    QKNorm,
    check_choice,
    is_int,
    is_number,
    is_size,
)

SIZES_OF_INPUTS = {
    **dict.fromkeys(("image_size", "patch_size", "n_channels"), "patches"),
    "n_mels": "frames",
    "d_state": "trajectory",
}
"""Which inputs need, and alone have, a size."""

CHOICES: dict[str, Any] = {
    "norm": Norm,
    "norm_position": NormPosition,
    "positions": Positions,
    "activation": Activation,
    "head": Head,
    "inputs": Inputs,
    "qk_norm": QKNorm,
    "expert_weights": ExpertWeights,
}


def check_values(cfg: Architecture) -> None:
    for name, (low, high) in BOUNDS.items():
        value = getattr(cfg, name)
        if name == "rotary_dim" and cfg.positions != "rotary":
            continue
        if name == "decoder_start_token_id" and value is None:
            continue
        if not is_int(value) or not low <= value <= high:
            raise ConfigError(f"{name}={value!r:.80}: expected a whole number in [{low}, {high}]")
    for name, choices in CHOICES.items():
        check_choice(name, getattr(cfg, name), choices)
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{field.name}={value!r}: expected true or false")
    numbers = ("norm_eps", "attn_scale", "attn_softcap", "final_softcap", "embed_scale")
    more = ("alibi_scale", "residual_scale", "logit_scale", "mlp_clamp", "mlp_linear_offset")
    for name in (*numbers, *more):
        value = getattr(cfg, name)
        if value is not None and not (is_number(value) and 0 <= value < 1e9):
            raise ConfigError(f"{name}={value!r}: expected a number in [0, 1e9)")
    check_layer_lists(cfg)
    for name in ("image_size", "patch_size"):
        value = getattr(cfg, name)
        if value is not None and not is_size(value):
            raise ConfigError(
                f"{name}={value!r}: expected a pair (height, width) in pixels, each in "
                f"[1, {MAX_PIXELS}]"
            )


def check_layer_lists(cfg: Architecture) -> None:
    layers = cfg.rotary_layers
    for scaling in cfg.rotary_scalings:
        if scaling is not None and not isinstance(scaling, RotaryScaling):
            raise ConfigError(f"rotary_scaling={scaling!r}: expected a RotaryScaling")
    if layers is not None and not (
        isinstance(layers, tuple) and all(isinstance(on, bool) for on in layers)
    ):
        raise ConfigError(f"rotary_layers={layers!r}: expected one true or false per layer")
    if cfg.encoder is not None and not isinstance(cfg.encoder, type(cfg)):
        raise ConfigError(f"encoder={cfg.encoder!r}: expected a TransformerConfig")
    start = cfg.decoder_start_token_id
    if start is not None and start >= cfg.d_vocab:
        raise ConfigError(
            f"decoder_start_token_id={start!r}: expected an id below d_vocab={cfg.d_vocab}"
        )
    forced = cfg.decoder_forced_ids
    if not (isinstance(forced, tuple) and all(map(is_int, forced))) or any(
        not 0 <= i < cfg.d_vocab for i in forced
    ):
        raise ConfigError(
            f"decoder_forced_ids={forced!r}: expected ids below d_vocab={cfg.d_vocab}"
        )
    if forced and start is None:
        raise ConfigError(f"decoder_forced_ids={forced} needs decoder_start_token_id")
    if cfg.sliding_window is not None and not isinstance(cfg.sliding_window, tuple):
        raise ConfigError(f"sliding_window={cfg.sliding_window!r}: expected one per layer")
    for base in cfg.rotary_bases:
        if not (is_number(base) and 1 < base < 1e15):
            raise ConfigError(f"rotary_base={base!r}: expected a number in (1, 1e15)")


def check_contradictions(cfg: Architecture) -> None:
    if cfg.n_heads % cfg.n_kv_heads:
        raise ConfigError(f"n_heads={cfg.n_heads} is not a multiple of n_kv_heads={cfg.n_kv_heads}")
    if cfg.positions == "rotary":
        if cfg.rotary_dim > cfg.d_head or cfg.rotary_dim % 2:
            raise ConfigError(
                f"rotary_dim={cfg.rotary_dim} must be even and at most d_head={cfg.d_head}"
            )
    elif any(cfg.rotary_scalings):
        raise ConfigError(f"rotary_scaling is given but positions={cfg.positions!r}")
    if cfg.positions != "alibi" and (cfg.alibi_scale is not None or cfg.alibi_bfloat16):
        raise ConfigError(
            f"alibi_scale and alibi_bfloat16 go with positions='alibi', not {cfg.positions!r}"
        )
    for name in ("rotary_layers", "sliding_window", "rotary_base", "rotary_scaling"):
        value = getattr(cfg, name)
        if isinstance(value, tuple) and len(value) != cfg.n_layers:
            raise ConfigError(f"{name} has {len(value)} entries but n_layers={cfg.n_layers}")
    for window in cfg.sliding_window or ():
        if window is not None and not (is_int(window) and window > 0):
            raise ConfigError(f"sliding_window holds {window!r}: expected positive numbers or None")
    check_scalings(cfg)
    check_mlp(cfg)
    if cfg.attn_sinks and cfg.attn_scale == 0:
        raise ConfigError("attn_sinks=True needs scores, but attn_scale=0")
    if cfg.attn_sinks and cfg.positions == "alibi":
        raise ConfigError(
            "attn_sinks=True goes with other positions than 'alibi', whose bias on scores is "
            "known up to a constant that a sink would see"
        )
    if cfg.parallel and cfg.norm_position != "pre":
        raise ConfigError(f"parallel=True goes with norm_position='pre', not {cfg.norm_position!r}")
    if cfg.parallel and cfg.d_mlp == 0:
        raise ConfigError("parallel=True needs an MLP, but d_mlp=0")
    if cfg.parallel_shared_norm and not cfg.parallel:
        raise ConfigError("parallel_shared_norm=True needs parallel=True")
    if cfg.head == "none" and (cfg.tied or cfg.unembed_bias):
        raise ConfigError("head='none' has no unembedding: tied and unembed_bias must be false")
    if cfg.head == "none" and cfg.logit_scale is not None:
        raise ConfigError(f"head='none' has no logits, but logit_scale={cfg.logit_scale}")
    if cfg.head == "none" and cfg.final_softcap is not None:
        raise ConfigError(f"head='none' has no logits, but final_softcap={cfg.final_softcap}")
    if cfg.norm == "none" and (cfg.embed_norm or cfg.qk_norm != "none"):
        raise ConfigError("norm='none' goes with embed_norm=False and qk_norm='none'")
    if cfg.norm == "none" and cfg.head == "mlm":
        raise ConfigError("head='mlm' norms what it transforms, but norm='none'")
    if cfg.positions == "relative":
        exact = cfg.relative_buckets // (2 if cfg.causal else 4)
        if cfg.relative_buckets % (2 if cfg.causal else 4) or (cfg.relative_max_distance <= exact):
            raise ConfigError(
                f"relative_buckets={cfg.relative_buckets} and relative_max_distance="
                f"{cfg.relative_max_distance}: expected a multiple of 2 (4 with causal=False) "
                f"and a distance above the {exact} exact ones"
            )
    check_inputs(cfg)
    check_encoder(cfg)


def check_encoder(cfg: Architecture) -> None:
    encoder = cfg.encoder
    if encoder is None:
        if cfg.decoder_start_token_id is not None:
            raise ConfigError(
                f"decoder_start_token_id={cfg.decoder_start_token_id} needs an encoder"
            )
        return
    for name in ("d_model", "d_vocab"):  # the decoder reads its output, and shares W_E
        own, other = getattr(cfg, name), getattr(encoder, name)
        if own != other:
            raise ConfigError(f"encoder.{name}={other} must be the decoder's {name}={own}")
    expected = {"causal": False, "head": "none", "encoder": None}
    for name, value in expected.items():
        if getattr(encoder, name) != value:
            raise ConfigError(f"encoder.{name} must be {value!r}")
    # What has no meaning where a block has two attentions that read different streams.
    expected = {"causal": True, "parallel": False, "qk_norm": "none"}
    for name, value in expected.items():
        if getattr(cfg, name) != value:
            raise ConfigError(
                f"{name}={getattr(cfg, name)!r} does not go with an encoder: expected {value!r}"
            )
    if cfg.inputs != "tokens":
        raise ConfigError(f"inputs={cfg.inputs!r} beside an encoder: set encoder.inputs")


def check_inputs(cfg: Architecture) -> None:
    for name, inputs in SIZES_OF_INPUTS.items():
        given = bool(getattr(cfg, name))
        if given != (inputs == cfg.inputs):
            fault = f"inputs={cfg.inputs!r} needs {name}"
            if given:
                fault = f"{name} goes with inputs={inputs!r}, not {cfg.inputs!r}"
            raise ConfigError(fault)
    if cfg.inputs == "tokens":
        return
    for name, plain in (("tied", False), ("embed_scale", None)):
        if getattr(cfg, name) != plain:
            raise ConfigError(
                f"inputs={cfg.inputs!r} has no token embedding: {name} must be {plain}"
            )
    if cfg.inputs == "patches":
        sides = zip(cfg.image_size or (), cfg.patch_size or (), strict=True)
        if any(side % patch for side, patch in sides):
            raise ConfigError(
                f"image_size={cfg.image_size} is not a multiple of patch_size={cfg.patch_size}"
            )
        n_patches = math.prod(cfg.patch_grid)
        if cfg.n_ctx != 1 + n_patches:
            raise ConfigError(
                f"n_ctx={cfg.n_ctx}: expected {1 + n_patches}, the class vector and the "
                f"{n_patches} patches that image_size and patch_size make"
            )


def check_scalings(cfg: Architecture) -> None:
    for scaling in cfg.rotary_scalings:
        if scaling is None:
            continue
        if scaling.kind == "ntk" and cfg.rotary_dim == 2:
            raise ConfigError(
                "rotary_scaling.kind='ntk' divides the slowest of several frequencies, but "
                "rotary_dim=2 has only one"
            )
        for name in ("short_factors", "long_factors"):
            factors = getattr(scaling, name)
            if factors is not None and len(factors) != cfg.rotary_dim // 2:
                raise ConfigError(
                    f"rotary_scaling.{name} has {len(factors)} entries, but "
                    f"rotary_dim={cfg.rotary_dim} has {cfg.rotary_dim // 2} frequencies"
                )


def check_mlp(cfg: Architecture) -> None:
    if cfg.mlp_gated and cfg.d_mlp == 0:
        raise ConfigError("mlp_gated=True needs an MLP, but d_mlp=0")
    for name, neutral in (("mlp_clamp", None), ("mlp_linear_offset", 0.0)):
        value = getattr(cfg, name)
        if value != neutral and not cfg.mlp_gated:
            raise ConfigError(f"{name}={value} needs mlp_gated=True")
    if not cfg.n_experts:
        absent = {"experts_per_token": 0, "expert_weights": "chosen", "router_bias": False}
        for name, value in absent.items():
            if getattr(cfg, name) != value:
                raise ConfigError(f"{name}={getattr(cfg, name)!r} is given but n_experts=0")
    elif cfg.d_mlp == 0 or cfg.d_mlp % cfg.n_experts:
        raise ConfigError(
            f"d_mlp={cfg.d_mlp} is not a multiple of n_experts={cfg.n_experts}; d_mlp counts "
            "the neurons of all experts"
        )
    elif cfg.n_layers * cfg.n_experts > MAX_EXPERTS:
        raise ConfigError(
            f"n_layers={cfg.n_layers} of n_experts={cfg.n_experts}: expected at most "
            f"{MAX_EXPERTS:,} experts in all"
        )
    elif not 1 <= cfg.experts_per_token <= cfg.n_experts:
        raise ConfigError(
            f"experts_per_token={cfg.experts_per_token}: expected 1 to n_experts={cfg.n_experts}"
        )
