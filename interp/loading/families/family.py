"""What a family of published models is: how its config reads, and what its tensors are called.

A family is data. Its rename table maps each tensor of a checkpoint to a parameter of
`HookedTransformer`, or to the rows of one; `{}` stands for the layer. Every tensor is renamed,
dropped by name, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from interp.core.config import ConfigError, TransformerConfig

from .fields import REQUIRED, Fields


class Target(NamedTuple):
    """Where a tensor of a checkpoint goes."""

    name: str
    part: str | None = None
    """Rows of a fused parameter: q, k or v of qkv; gate or in of a gated MLP's in. heads: all of
    qkv, stored by key-value head: its query heads, its key, its value. first row added: to what
    another tensor fills, the first row of a table is added. Or a name out of `loading.parts`."""
    transposed: bool = False
    """Stored [in, out]. It stays so in memory, and our parameter is a transposed view of it."""
    index: int = 0
    """Which expert's, where each has tensors of its own; or which head's."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture as it is published."""

    name: str
    """`model_type` in its config.json."""
    config: Callable[[Fields], TransformerConfig]
    rename: Mapping[str, Target] | None
    """Key template to target; None: the file uses our own names. Of several templates with one
    target a file has exactly one, and a target that the config leaves out has none. `{expert}`
    and `{head}` stand for one of several that have tensors of their own."""
    quantized: Mapping[str, Mapping[str, Target]] = field(default_factory=dict)
    """The same for files of quantized weights that are read, by their `quant_method`."""
    prefixes: tuple[str, ...] = ()
    """What the keys may begin with."""
    dropped: tuple[str, ...] = ()
    """Keys deliberately not read; `{}` is a layer, `*` anything."""
    optional_bias: str | None = None
    """The key of a bias of the logits that a file may lack: then there is none."""
    absent: tuple[str, ...] = ()
    """Keys of biases that the files do not have, and that are zero."""


def rotary_config(
    f: Fields,
    *,
    n_ctx: int,
    n_kv_heads: int | None,
    biases: dict[str, bool],
    d_head: int | None = None,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    d_mlp: tuple[str, Any] = ("intermediate_size", REQUIRED),
    tied: bool = False,
    rotary: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What Llama and its kin share; `n_ctx`, `n_kv_heads`, `d_head` and `tied` are their defaults.

    `activation`, `norm_eps` and `d_mlp` are the name of a field and its default; `rotary` goes to
    `Fields.rotary`.
    """
    n_ctx = f.size("max_position_embeddings", "n_ctx", n_ctx)
    d_model = f.size("hidden_size", "d_model")
    n_heads = f.size("num_attention_heads", "n_heads")
    d_head = f.optional_size("head_dim", "d_head", d_head)
    fields = {
        "n_layers": f.size("num_hidden_layers", "n_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": f.optional_size("num_key_value_heads", "n_kv_heads", n_kv_heads),
        "d_head": d_head,
        "d_vocab": f.size("vocab_size", "d_vocab"),
        "n_ctx": n_ctx,
        "d_mlp": f.size(d_mlp[0], "d_mlp", d_mlp[1]),
        "mlp_gated": True,
        "activation": f.activation(*activation),
        "norm": "rmsnorm",
        "norm_eps": f.number(*norm_eps),
        "positions": "rotary",
        "tied": f.flag("tie_word_embeddings", tied),
        **biases,
        **f.rotary(n_ctx, d_head=d_head or d_model // n_heads, **(rotary or {})),
    }
    return {name: value for name, value in fields.items() if value is not None}


def windows(
    f: Fields, n_layers: int, window: int | None, slides: Sequence[bool]
) -> tuple[int | None, ...] | None:
    """Per layer its window, or None; `layer_types` says which layers slide, by default `slides`."""
    types = f.choices("layer_types", ("full_attention", "sliding_attention"), n_layers)
    if types is not None:
        slides = [kind == "sliding_attention" for kind in types]
    if any(slides) and window is None:
        raise ConfigError(
            f"{f.where}: layer_types has 'sliding_attention', but sliding_window is null or "
            "use_sliding_window is false; expected a window in tokens, or 'full_attention' alone"
        )
    return tuple(window if slide else None for slide in slides) if any(slides) else None


def masked_lm_head(f: Fields, untied: bool = False) -> dict[str, Any]:
    """The head of an encoder: a masked-LM head where `architectures` names a model with one.

    An untied head is refused unless `untied`: which of its two stored biases is meant has changed
    with the versions of transformers.
    """
    heads = ("ForMaskedLM", "ForPreTraining")
    tied = f.flag("tie_word_embeddings", True)
    if not any(name.endswith(heads) for name in f.words("architectures")):
        return {"head": "none"}
    if not (tied or untied):
        f.only("tie_word_embeddings", True)
    return {"head": "mlm", "tied": tied, "unembed_bias": True}


def norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.weight": Target(f"{ours}.w"), f"{theirs}.bias": Target(f"{ours}.b")}


def linear(
    theirs: str, ours: str, part: str | None = None, transposed: bool = False
) -> dict[str, Target]:
    return {
        f"{theirs}.weight": Target(f"{ours}_weight", part, transposed),
        f"{theirs}.bias": Target(f"{ours}_bias", part),
    }


def qkv(theirs: str, names: str = "{}_proj", ours: str = "blocks.{}.attn") -> dict[str, Target]:
    """Queries, keys and values apart; `names` says how, for each of q, k and v."""
    parts = (linear(theirs + names.format(p), f"{ours}.qkv", p) for p in "qkv")
    return {key: target for part in parts for key, target in part.items()}
