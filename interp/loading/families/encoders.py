"""The encoders: BERT and those after it, with or without their masked-LM head."""

from __future__ import annotations

from typing import Any

from interp.core.config import ConfigError, TransformerConfig

from .family import Family, Target, linear, masked_lm_head, norm, qkv
from .fields import Fields


def _encoder(f: Fields, **fields: Any) -> TransformerConfig:
    """What all share: norms on the stream, and everything in sight."""
    return TransformerConfig(
        d_vocab=f.size("vocab_size", "d_vocab"),
        norm_position="post",
        embed_norm=True,
        final_norm=False,
        causal=False,
        **fields,
    )


def _bert_like(f: Fields, **fields: Any) -> TransformerConfig:
    """What BERT and RoBERTa share."""
    return _encoder(
        f,
        n_layers=f.size("num_hidden_layers", "n_layers"),
        d_model=f.size("hidden_size", "d_model"),
        n_heads=f.size("num_attention_heads", "n_heads"),
        d_mlp=f.size("intermediate_size", "d_mlp"),
        norm_eps=f.number("layer_norm_eps", 1e-12),
        n_token_types=f.size("type_vocab_size", "n_token_types", 2),
        activation=f.activation("hidden_act", "gelu"),
        **fields,
    )


def _bert_config(f: Fields) -> TransformerConfig:
    n_ctx = f.size("max_position_embeddings", "n_ctx", 512)
    return _bert_like(f, n_ctx=n_ctx, **masked_lm_head(f))


def _roberta_config(f: Fields) -> TransformerConfig:
    """Positions are counted from the row behind that of the padding token."""
    offset = 1 + f.size("pad_token_id", "position_offset", 1)
    rows = f.size("max_position_embeddings", "n_ctx", 512)
    if rows <= offset:
        raise ConfigError(
            f"{f.where}: max_position_embeddings={rows}: expected more than pad_token_id + 1, "
            f"which is {offset}"
        )
    head = masked_lm_head(f)
    cfg = _bert_like(f, n_ctx=rows - offset, position_offset=offset, **head)
    if cfg.head == "mlm":  # whose own activation is always this one
        f.only("hidden_act", "gelu", "gelu_python")
    return cfg


def _distilbert_config(f: Fields) -> TransformerConfig:
    f.flag("sinusoidal_pos_embds", False)  # how the table began; it is stored either way
    f.flag("tie_weights_", True)
    return _encoder(
        f,
        n_layers=f.size("n_layers", "n_layers"),
        d_model=f.size("dim", "d_model"),
        n_heads=f.size("n_heads", "n_heads"),
        d_mlp=f.size("hidden_dim", "d_mlp"),
        n_ctx=f.size("max_position_embeddings", "n_ctx", 512),
        activation=f.activation("activation", "gelu"),
        norm_eps=1e-12,
        **masked_lm_head(f, untied=True),
    )


def _old_norm(theirs: str, ours: str) -> dict[str, Target]:
    """The names of TensorFlow, which the first BERT checkpoints still bear."""
    return {f"{theirs}.gamma": Target(f"{ours}.w"), f"{theirs}.beta": Target(f"{ours}.b")}


_ENCODER = {
    "embeddings.word_embeddings.weight": Target("embed.W_E"),
    "embeddings.position_embeddings.weight": Target("embed.W_pos"),
    **norm("embeddings.LayerNorm", "embed_ln"),
}
_BERT_LIKE = {
    **_ENCODER,
    "embeddings.token_type_embeddings.weight": Target("embed.W_token_type"),
    **linear("encoder.layer.{}.attention.self.query", "blocks.{}.attn.qkv", "q"),
    **linear("encoder.layer.{}.attention.self.key", "blocks.{}.attn.qkv", "k"),
    **linear("encoder.layer.{}.attention.self.value", "blocks.{}.attn.qkv", "v"),
    **linear("encoder.layer.{}.attention.output.dense", "blocks.{}.attn.out"),
    **norm("encoder.layer.{}.attention.output.LayerNorm", "blocks.{}.ln1"),
    **linear("encoder.layer.{}.intermediate.dense", "blocks.{}.mlp.in"),
    **linear("encoder.layer.{}.output.dense", "blocks.{}.mlp.out"),
    **norm("encoder.layer.{}.output.LayerNorm", "blocks.{}.ln2"),
}

_BERT = {
    **_BERT_LIKE,
    **linear("cls.predictions.transform.dense", "mlm_head.dense"),
    **norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
    "cls.predictions.decoder.weight": Target("unembed.weight"),
    "cls.predictions.bias": Target("unembed.bias"),
    **_old_norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
    **_old_norm("embeddings.LayerNorm", "embed_ln"),
    **_old_norm("encoder.layer.{}.attention.output.LayerNorm", "blocks.{}.ln1"),
    **_old_norm("encoder.layer.{}.output.LayerNorm", "blocks.{}.ln2"),
}

_ROBERTA = {
    **_BERT_LIKE,
    **linear("lm_head.dense", "mlm_head.dense"),
    **norm("lm_head.layer_norm", "mlm_head.ln"),
    "lm_head.decoder.weight": Target("unembed.weight"),
    "lm_head.bias": Target("unembed.bias"),
}

_DISTILBERT = {
    **_ENCODER,
    **qkv("transformer.layer.{}.attention.", "{}_lin"),
    **linear("transformer.layer.{}.attention.out_lin", "blocks.{}.attn.out"),
    **norm("transformer.layer.{}.sa_layer_norm", "blocks.{}.ln1"),
    **linear("transformer.layer.{}.ffn.lin1", "blocks.{}.mlp.in"),
    **linear("transformer.layer.{}.ffn.lin2", "blocks.{}.mlp.out"),
    **norm("transformer.layer.{}.output_layer_norm", "blocks.{}.ln2"),
    **linear("vocab_transform", "mlm_head.dense"),
    **norm("vocab_layer_norm", "mlm_head.ln"),
    "vocab_projector.weight": Target("unembed.weight"),
    "vocab_projector.bias": Target("unembed.bias"),
}

ENCODER_FAMILIES = (
    Family(
        name="bert",
        config=_bert_config,
        rename=_BERT,
        prefixes=("bert.",),
        # the pooler, the other pre-training head, the masked-LM head where it is not read and its
        # bias a second time; a range that old versions stored
        dropped=("pooler.*", "cls.*", "embeddings.position_ids"),
    ),
    Family(
        name="roberta",
        config=_roberta_config,
        rename=_ROBERTA,
        prefixes=("roberta.",),
        # the pooler; the head where it is not read, and its bias a second time
        dropped=("pooler.*", "lm_head.*", "embeddings.position_ids"),
    ),
    Family(
        name="distilbert",
        config=_distilbert_config,
        rename=_DISTILBERT,
        prefixes=("distilbert.",),
        dropped=("vocab_*", "embeddings.position_ids"),
    ),
)
