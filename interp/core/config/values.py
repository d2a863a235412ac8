"""The values that the fields of a config may have, and how one that has none of them is refused."""

from __future__ import annotations

from typing import Any, Literal, get_args

Norm = Literal["layernorm", "rmsnorm", "rmsnorm_plus1", "none"]
NormPosition = Literal["pre", "post", "output", "both"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu"]
Head = Literal["unembed", "mlm", "none"]
Inputs = Literal["tokens", "patches", "frames", "trajectory"]
QKNorm = Literal["none", "head", "each", "all"]
ExpertWeights = Literal["chosen", "all"]
RotaryKind = Literal["linear", "ntk", "yarn", "llama3", "longrope"]

# No model of 2026 comes near these; a number past them is a broken or hostile file.
BOUNDS = {
    "n_layers": (1, 512),
    "d_model": (1, 1_000_000),
    "n_heads": (1, 100_000),
    "n_kv_heads": (1, 100_000),
    "d_head": (1, 100_000),
    "d_mlp": (0, 10_000_000),
    "n_experts": (0, 10_000),
    "experts_per_token": (0, 10_000),
    "d_vocab": (1, 10_000_000),
    "n_ctx": (1, 100_000_000),
    "position_offset": (0, 1_000),
    "rotary_dim": (2, 100_000),
    "n_token_types": (0, 1_000),
    "n_channels": (0, 1_000),
    "n_mels": (0, 10_000),
    "d_state": (0, 1_000_000),
    "decoder_start_token_id": (0, 9_999_999),
    "relative_buckets": (4, 10_000),
    "relative_max_distance": (2, 100_000_000),
}
MAX_EXPERTS = 50_000
"""In all layers together; the largest model of 2026 has 23,424."""
MAX_PIXELS = 100_000
"""Of a side of an image or patch."""


class ConfigError(ValueError):
    """A config that contradicts itself or holds a value that no model has."""


def check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        allowed = ", ".join(map(repr, get_args(choices)))
        raise ConfigError(f"{name}={value!r}: expected one of {allowed}")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_size(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return all(is_int(side) and 0 < side <= MAX_PIXELS for side in value)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
