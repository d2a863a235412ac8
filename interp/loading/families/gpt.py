"""The families after GPT: its own, what was trained after its example, OPT, BLOOM, Falcon."""

from __future__ import annotations

from typing import Any

from interp.core.config import ConfigError, TransformerConfig

from .family import Family, Target, linear, norm, qkv
from .fields import Fields

# The `gelu` of GPT's authors is the tanh approximation.
_GPT_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def _openai_gpt_config(f: Fields) -> TransformerConfig:
    d_model = f.size("n_embd", "d_model")
    return TransformerConfig(
        n_layers=f.size("n_layer", "n_layers"),
        d_model=d_model,
        n_heads=f.size("n_head", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("n_positions", "n_ctx", 512),
        d_mlp=4 * d_model,
        activation=f.activation("afn", "gelu", _GPT_ACTIVATIONS),
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        norm_position="post",
        final_norm=False,
        tied=f.flag("tie_word_embeddings", True),
    )


def _gpt2_config(f: Fields) -> TransformerConfig:
    d_model = f.size("n_embd", "d_model")
    return TransformerConfig(
        n_layers=f.size("n_layer", "n_layers"),
        d_model=d_model,
        n_heads=f.size("n_head", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("n_positions", "n_ctx", 1024),
        d_mlp=f.optional_size("n_inner", "d_mlp") or 4 * d_model,
        activation=f.activation("activation_function", "gelu_new"),
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        attn_scale=None if f.flag("scale_attn_weights", True) else 1.0,
        attn_scale_by_layer=f.flag("scale_attn_by_inverse_layer_idx", False),
        tied=f.flag("tie_word_embeddings", True),
    )


def _gpt_neo_config(f: Fields) -> TransformerConfig:
    d_model, n_layers = f.size("hidden_size", "d_model"), f.size("num_layers", "n_layers")
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=f.size("num_heads", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("max_position_embeddings", "n_ctx", 2048),
        d_mlp=f.optional_size("intermediate_size", "d_mlp") or 4 * d_model,
        activation=f.activation("activation_function", "gelu_new"),
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        attn_scale=1.0,
        qkv_bias=False,
        sliding_window=_gpt_neo_windows(f, n_layers),
        tied=f.flag("tie_word_embeddings", True),
    )


def _gpt_neo_windows(f: Fields, n_layers: int) -> tuple[int | None, ...]:
    """`attention_types` repeats lists of kinds; `attention_layers` says the same layer by layer."""
    window, kinds = f.size("window_size", "n_ctx", 256), ("global", "local")
    layers = f.choices("attention_layers", kinds, n_layers)
    types = f.get("attention_types", None)
    if types is None and layers is None:
        types = [[["global", "local"], 12]]
    if types is not None:
        repeated = _repeated(types, kinds, n_layers)
        if repeated is None or layers not in (None, repeated):
            named = " as attention_layers says" if layers else ""
            raise ConfigError(
                f"{f.where}: attention_types={str(types)[:80]}: expected entries "
                f'[["global", "local", …], times] that make {n_layers} layers{named}'
            )
        layers = repeated
    return tuple(window if kind == "local" else None for kind in layers or ())


def _repeated(types: Any, kinds: tuple[str, ...], n_layers: int) -> list[str] | None:
    """The kind of each layer; None where that is not what `types` gives."""
    total = 0
    for item in types if isinstance(types, list) else [None]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list)):
            return None
        if any(kind not in kinds for kind in item[0]) or type(item[1]) is not int or item[1] < 0:
            return None
        total += len(item[0]) * item[1]
    if total != n_layers:  # checked before anything is made that long
        return None
    return [kind for some, times in types for _ in range(times if some else 0) for kind in some]


def _gptj_config(f: Fields) -> TransformerConfig:
    d_model = f.size("n_embd", "d_model")
    f.only("rotary", True)
    f.only("scale_attn_weights", True)
    return TransformerConfig(
        n_layers=f.size("n_layer", "n_layers"),
        d_model=d_model,
        n_heads=f.size("n_head", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("n_positions", "n_ctx", 2048),
        d_mlp=f.optional_size("n_inner", "d_mlp") or 4 * d_model,
        activation=f.activation("activation_function", "gelu_new"),
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        parallel=True,
        parallel_shared_norm=True,
        positions="rotary",
        rotary_dim=f.size("rotary_dim", "rotary_dim", 64),
        rotary_interleaved=True,
        qkv_bias=False,
        attn_out_bias=False,
        tied=f.flag("tie_word_embeddings", False),
        unembed_bias=True,
    )


def _opt_config(f: Fields) -> TransformerConfig:
    d_model = f.size("hidden_size", "d_model")
    f.only("word_embed_proj_dim", d_model)
    pre, biased = f.flag("do_layer_norm_before", True), f.flag("enable_bias", True)
    bare = f.flag("_remove_final_layer_norm", False)
    return TransformerConfig(
        n_layers=f.size("num_hidden_layers", "n_layers"),
        d_model=d_model,
        n_heads=f.size("num_attention_heads", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("max_position_embeddings", "n_ctx", 2048),
        d_mlp=f.size("ffn_dim", "d_mlp"),
        activation=f.activation("activation_function", "relu"),
        norm_position="pre" if pre else "post",
        norm_affine=f.flag("layer_norm_elementwise_affine", True),
        final_norm=pre and not bare,
        position_offset=2,
        qkv_bias=biased,
        attn_out_bias=biased,
        mlp_bias=biased,
        tied=f.flag("tie_word_embeddings", True),
    )


def _bloom_config(f: Fields) -> TransformerConfig:
    d_model = _size(f, "d_model", "hidden_size", "n_embed")
    f.only("apply_residual_connection_post_layernorm", False)
    f.only("n_inner", 4 * d_model)
    return TransformerConfig(
        n_layers=_size(f, "n_layers", "n_layer", "num_hidden_layers"),
        d_model=d_model,
        n_heads=_size(f, "n_heads", "n_head", "num_attention_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("seq_length", "n_ctx", 2048),
        d_mlp=4 * d_model,
        activation="gelu_tanh",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        embed_norm=True,
        positions="alibi",
        tied=f.flag("tie_word_embeddings", True),
    )


def _falcon_config(f: Fields) -> TransformerConfig:
    d_model = _size(f, "d_model", "hidden_size", "n_embed")
    n_heads = f.size("num_attention_heads", "n_heads")
    n_ctx = f.size("max_position_embeddings", "n_ctx", 2048)
    alibi, biased = f.flag("alibi", False), f.flag("bias", False)
    f.only("apply_residual_connection_post_layernorm", False)
    rotary = f.rotary(n_ctx)
    if alibi:
        del rotary["rotary_base"]
        # The bias is added before scores are divided by √d_head.
        rotary |= {"alibi_scale": (d_model / n_heads) ** -0.5, "alibi_bfloat16": True}
    return TransformerConfig(
        n_layers=f.size("num_hidden_layers", "n_layers"),
        d_model=d_model,
        n_heads=n_heads,
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=n_ctx,
        d_mlp=f.optional_size("ffn_hidden_size", "d_mlp") or 4 * d_model,
        activation=f.activation("activation", "gelu"),
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        positions="alibi" if alibi else "rotary",
        qkv_bias=biased,
        attn_out_bias=biased,
        mlp_bias=biased,
        tied=f.flag("tie_word_embeddings", True),
        **_falcon_block(f, n_heads),
        **rotary,
    )


def _falcon_block(f: Fields, n_heads: int) -> dict[str, Any]:
    """Key-value heads, and whether attention and MLP read in parallel, and through one norm."""
    kv_heads = f.size("num_kv_heads", "n_kv_heads", n_heads)
    if f.flag("new_decoder_architecture", False):
        f.flag("multi_query", True)  # not read by it
        f.only("parallel_attn", True)
        f.only("num_ln_in_parallel_attn", 1, 2)
        shared = f.get("num_ln_in_parallel_attn", 2) == 1
        return {"n_kv_heads": kv_heads, "parallel": True, "parallel_shared_norm": shared}
    f.only("num_ln_in_parallel_attn", 1)
    parallel = f.flag("parallel_attn", True)
    if f.flag("multi_query", True):  # whatever num_kv_heads says
        kv_heads = 1
    else:
        f.only("num_kv_heads", n_heads)
    return {"n_kv_heads": kv_heads, "parallel": parallel, "parallel_shared_norm": parallel}


def _size(f: Fields, bound: str, *names: str) -> int:
    """A size that has had several names."""
    given = {name: value for name in names if (value := f.size(name, bound, None)) is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(f"{f.where}: {shown}: expected one value, these mean the same")
    return next(iter(given.values()), None) or f.size(names[0], bound)


_OPENAI_GPT = {
    "tokens_embed.weight": Target("embed.W_E"),
    "positions_embed.weight": Target("embed.W_pos"),
    **linear("h.{}.attn.c_attn", "blocks.{}.attn.qkv", transposed=True),
    **linear("h.{}.attn.c_proj", "blocks.{}.attn.out", transposed=True),
    **norm("h.{}.ln_1", "blocks.{}.ln1"),
    **linear("h.{}.mlp.c_fc", "blocks.{}.mlp.in", transposed=True),
    **linear("h.{}.mlp.c_proj", "blocks.{}.mlp.out", transposed=True),
    **norm("h.{}.ln_2", "blocks.{}.ln2"),
    "lm_head.weight": Target("unembed.weight"),
}

GPT2_BLOCKS = {
    **norm("h.{}.ln_1", "blocks.{}.ln1"),
    **linear("h.{}.attn.c_attn", "blocks.{}.attn.qkv", transposed=True),
    **linear("h.{}.attn.c_proj", "blocks.{}.attn.out", transposed=True),
    **norm("h.{}.ln_2", "blocks.{}.ln2"),
    **linear("h.{}.mlp.c_fc", "blocks.{}.mlp.in", transposed=True),
    **linear("h.{}.mlp.c_proj", "blocks.{}.mlp.out", transposed=True),
    **norm("ln_f", "ln_final"),
}
_GPT2 = {
    "wte.weight": Target("embed.W_E"),
    "wpe.weight": Target("embed.W_pos"),
    **GPT2_BLOCKS,
    "lm_head.weight": Target("unembed.weight"),
}

_GPT_NEO = {
    "wte.weight": Target("embed.W_E"),
    "wpe.weight": Target("embed.W_pos"),
    **norm("h.{}.ln_1", "blocks.{}.ln1"),
    **qkv("h.{}.attn.attention."),
    **linear("h.{}.attn.attention.out_proj", "blocks.{}.attn.out"),
    **norm("h.{}.ln_2", "blocks.{}.ln2"),
    **linear("h.{}.mlp.c_fc", "blocks.{}.mlp.in"),
    **linear("h.{}.mlp.c_proj", "blocks.{}.mlp.out"),
    **norm("ln_f", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
}

_GPTJ = {
    "wte.weight": Target("embed.W_E"),
    **norm("h.{}.ln_1", "blocks.{}.ln1"),
    **qkv("h.{}.attn."),
    **linear("h.{}.attn.out_proj", "blocks.{}.attn.out"),
    **linear("h.{}.mlp.fc_in", "blocks.{}.mlp.in"),
    **linear("h.{}.mlp.fc_out", "blocks.{}.mlp.out"),
    **norm("ln_f", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
    "lm_head.bias": Target("unembed.bias"),
}

_OPT = {
    "embed_tokens.weight": Target("embed.W_E"),
    "embed_positions.weight": Target("embed.W_pos"),
    **norm("layers.{}.self_attn_layer_norm", "blocks.{}.ln1"),
    **qkv("layers.{}.self_attn."),
    **linear("layers.{}.self_attn.out_proj", "blocks.{}.attn.out"),
    **norm("layers.{}.final_layer_norm", "blocks.{}.ln2"),
    **linear("layers.{}.fc1", "blocks.{}.mlp.in"),
    **linear("layers.{}.fc2", "blocks.{}.mlp.out"),
    **norm("final_layer_norm", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
}

_BLOOM = {
    "word_embeddings.weight": Target("embed.W_E"),
    **norm("word_embeddings_layernorm", "embed_ln"),
    **norm("h.{}.input_layernorm", "blocks.{}.ln1"),
    **linear("h.{}.self_attention.query_key_value", "blocks.{}.attn.qkv", "heads"),
    **linear("h.{}.self_attention.dense", "blocks.{}.attn.out"),
    **norm("h.{}.post_attention_layernorm", "blocks.{}.ln2"),
    **linear("h.{}.mlp.dense_h_to_4h", "blocks.{}.mlp.in"),
    **linear("h.{}.mlp.dense_4h_to_h", "blocks.{}.mlp.out"),
    **norm("ln_f", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
}
_FALCON = {
    **{key: target for key, target in _BLOOM.items() if target.name[:8] != "embed_ln"},
    **norm("h.{}.ln_attn", "blocks.{}.ln1"),
    **norm("h.{}.ln_mlp", "blocks.{}.ln2"),
}

_GPT = ("transformer.",)
_MASKS = ("h.{}.attn.bias", "h.{}.attn.masked_bias")  # the causal mask

GPT_FAMILIES = (
    Family(name="gpt2", config=_gpt2_config, rename=_GPT2, prefixes=_GPT, dropped=_MASKS),
    Family(
        name="openai-gpt",
        config=_openai_gpt_config,
        rename=_OPENAI_GPT,
        prefixes=_GPT,
        dropped=("h.{}.attn.bias", "position_ids"),
    ),
    Family(
        name="gpt_neo",
        config=_gpt_neo_config,
        rename=_GPT_NEO,
        prefixes=_GPT,
        dropped=("h.{}.attn.attention.bias", "h.{}.attn.attention.masked_bias"),
    ),
    Family(name="gptj", config=_gptj_config, rename=_GPTJ, prefixes=_GPT, dropped=_MASKS),
    Family(name="opt", config=_opt_config, rename=_OPT, prefixes=("model.decoder.", "decoder.")),
    Family(name="bloom", config=_bloom_config, rename=_BLOOM, prefixes=_GPT),
    Family(
        name="falcon",
        config=_falcon_config,
        rename=_FALCON,
        prefixes=_GPT,
        dropped=("h.{}.self_attention.rotary_emb.inv_freq",),
    ),
)
