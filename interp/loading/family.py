"""What a family of published models is: how its config reads, and what its tensors are called.

A family is data. Its rename table maps each tensor of a checkpoint to a parameter of
`HookedTransformer`, or to the rows of one; `{}` stands for the layer. Every tensor is renamed,
dropped by name, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..config import TransformerConfig
from .fields import Fields


class Target(NamedTuple):
    """Where a tensor of a checkpoint goes."""

    name: str
    part: str | None = None
    """Rows of a fused parameter: q, k or v of qkv; gate or in of a gated MLP's in."""
    transposed: bool = False
    """Stored [in, out]. It stays so in memory, and our parameter is a transposed view of it."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture as it is published."""

    name: str
    """`model_type` in its config.json."""
    config: Callable[[Fields], TransformerConfig]
    rename: Mapping[str, Target] | None
    """Key template to target; None: the file uses our own names. Of several templates with one
    target a file has exactly one, and a target that the config leaves out has none."""
    prefixes: tuple[str, ...] = ()
    """What the keys may begin with."""
    dropped: tuple[str, ...] = ()
    """Keys deliberately not read; `{}` is a layer, `*` anything."""


def rotary_config(
    f: Fields, *, n_ctx: int, n_kv_heads: int | None, biases: dict[str, bool]
) -> dict[str, Any]:
    """What Llama and its kin share; `n_ctx` and `n_kv_heads` are their defaults."""
    n_ctx = f.size("max_position_embeddings", "n_ctx", n_ctx)
    fields = {
        "n_layers": f.size("num_hidden_layers", "n_layers"),
        "d_model": f.size("hidden_size", "d_model"),
        "n_heads": f.size("num_attention_heads", "n_heads"),
        "n_kv_heads": f.optional_size("num_key_value_heads", "n_kv_heads", n_kv_heads),
        "d_head": f.optional_size("head_dim", "d_head"),
        "d_vocab": f.size("vocab_size", "d_vocab"),
        "n_ctx": n_ctx,
        "d_mlp": f.size("intermediate_size", "d_mlp"),
        "mlp_gated": True,
        "activation": f.activation("hidden_act", "silu"),
        "norm": "rmsnorm",
        "norm_eps": f.number("rms_norm_eps", 1e-6),
        "positions": "rotary",
        "tied": f.flag("tie_word_embeddings", False),
        **biases,
        **f.rotary(n_ctx),
    }
    return {name: value for name, value in fields.items() if value is not None}


def norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.weight": Target(f"{ours}.w"), f"{theirs}.bias": Target(f"{ours}.b")}


def linear(
    theirs: str, ours: str, part: str | None = None, transposed: bool = False
) -> dict[str, Target]:
    return {
        f"{theirs}.weight": Target(f"{ours}_weight", part, transposed),
        f"{theirs}.bias": Target(f"{ours}_bias", part),
    }
