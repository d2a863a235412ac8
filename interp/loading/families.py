"""The families that load, by the `model_type` of their config.json."""

from __future__ import annotations

from typing import Any

from ..config import ConfigError, TransformerConfig
from .family import Family, Target, linear, masked_lm_head, norm
from .fields import Fields
from .older_families import OLDER_FAMILIES
from .rotary_families import ROTARY_FAMILIES


def read_config(values: dict[str, Any], where: str) -> tuple[Family, TransformerConfig]:
    """The family and architecture that a config.json describes. Raises ConfigError.

    Unknown fields are reported in one logged warning.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"{where}: model_type={kind!r:.80} is not supported; supported: {known}")
    family, fields = FAMILIES[kind], Fields(values, where)
    try:
        cfg = family.config(fields)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
    fields.finish()
    return family, cfg


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


def _bert_config(f: Fields) -> TransformerConfig:
    return TransformerConfig(
        n_layers=f.size("num_hidden_layers", "n_layers"),
        d_model=f.size("hidden_size", "d_model"),
        n_heads=f.size("num_attention_heads", "n_heads"),
        d_vocab=f.size("vocab_size", "d_vocab"),
        n_ctx=f.size("max_position_embeddings", "n_ctx", 512),
        d_mlp=f.size("intermediate_size", "d_mlp"),
        activation=f.activation("hidden_act", "gelu"),
        norm_eps=f.number("layer_norm_eps", 1e-12),
        norm_position="post",
        embed_norm=True,
        final_norm=False,
        causal=False,
        n_token_types=f.size("type_vocab_size", "n_token_types", 2),
        **masked_lm_head(f),
    )


def _interp_config(f: Fields) -> TransformerConfig:
    values = f.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"{f.where}: config is a {type(values).__name__}: expected an object")
    return TransformerConfig.from_dict(values)


def _old_norm(theirs: str, ours: str) -> dict[str, Target]:
    """The names of TensorFlow, which the first BERT checkpoints still bear."""
    return {f"{theirs}.gamma": Target(f"{ours}.w"), f"{theirs}.beta": Target(f"{ours}.b")}


_GPT2 = {
    "wte.weight": Target("embed.W_E"),
    "wpe.weight": Target("embed.W_pos"),
    **norm("h.{}.ln_1", "blocks.{}.ln1"),
    **linear("h.{}.attn.c_attn", "blocks.{}.attn.qkv", transposed=True),
    **linear("h.{}.attn.c_proj", "blocks.{}.attn.out", transposed=True),
    **norm("h.{}.ln_2", "blocks.{}.ln2"),
    **linear("h.{}.mlp.c_fc", "blocks.{}.mlp.in", transposed=True),
    **linear("h.{}.mlp.c_proj", "blocks.{}.mlp.out", transposed=True),
    **norm("ln_f", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
}

_BERT = {
    "embeddings.word_embeddings.weight": Target("embed.W_E"),
    "embeddings.position_embeddings.weight": Target("embed.W_pos"),
    "embeddings.token_type_embeddings.weight": Target("embed.W_token_type"),
    **norm("embeddings.LayerNorm", "embed_ln"),
    **linear("encoder.layer.{}.attention.self.query", "blocks.{}.attn.qkv", "q"),
    **linear("encoder.layer.{}.attention.self.key", "blocks.{}.attn.qkv", "k"),
    **linear("encoder.layer.{}.attention.self.value", "blocks.{}.attn.qkv", "v"),
    **linear("encoder.layer.{}.attention.output.dense", "blocks.{}.attn.out"),
    **norm("encoder.layer.{}.attention.output.LayerNorm", "blocks.{}.ln1"),
    **linear("encoder.layer.{}.intermediate.dense", "blocks.{}.mlp.in"),
    **linear("encoder.layer.{}.output.dense", "blocks.{}.mlp.out"),
    **norm("encoder.layer.{}.output.LayerNorm", "blocks.{}.ln2"),
    **linear("cls.predictions.transform.dense", "mlm_head.dense"),
    **norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
    "cls.predictions.decoder.weight": Target("unembed.weight"),
    "cls.predictions.bias": Target("unembed.bias"),
    **_old_norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
    **_old_norm("embeddings.LayerNorm", "embed_ln"),
    **_old_norm("encoder.layer.{}.attention.output.LayerNorm", "blocks.{}.ln1"),
    **_old_norm("encoder.layer.{}.output.LayerNorm", "blocks.{}.ln2"),
}


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="gpt2",
            config=_gpt2_config,
            rename=_GPT2,
            prefixes=("transformer.",),
            dropped=("h.{}.attn.bias", "h.{}.attn.masked_bias"),  # the causal mask
        ),
        *ROTARY_FAMILIES,
        Family(
            name="bert",
            config=_bert_config,
            rename=_BERT,
            prefixes=("bert.",),
            # the pooler, the other pre-training head, the masked-LM head where it is not read and
            # its bias a second time; a range that old versions stored
            dropped=("pooler.*", "cls.*", "embeddings.position_ids"),
        ),
        *OLDER_FAMILIES,
        Family(name="interp", config=_interp_config, rename=None),
    )
}
"""By the `model_type` of config.json."""
