"""The encoder–decoders: T5, BART and their kin. One file, one table, two stacks of blocks."""

from __future__ import annotations

from typing import Any

from interp.core.config import ConfigError, TransformerConfig

from .family import Family, Target, linear, norm, qkv
from .fields import ACTIVATIONS, Fields


def _t5_config(f: Fields) -> TransformerConfig:
    """Raffel et al. 2020, and version 1.1 with gated neurons (Shazeer 2020).

    Whether logits are divided by √d_model was, for long, the same field as whether they are tied.
    """
    tied = f.flag("tie_word_embeddings", True)
    return _t5_like(f, tied, f.flag("scale_decoder_outputs", tied), 6, 8, 2048, 32128, "relu")


def _mt5_config(f: Fields) -> TransformerConfig:
    """Xue et al. 2021: version 1.1 of T5 in many languages."""
    tied = f.flag("tie_word_embeddings", True)
    return _t5_like(f, tied, False, 8, 6, 1024, 250112, "gated-gelu")


def _t5_like(
    f: Fields,
    tied: bool,
    scaled: bool,
    n_layers: int,
    n_heads: int,
    d_mlp: int,
    d_vocab: int,
    neurons: str,
) -> TransformerConfig:
    """The numbers, and the kind of neurons, are what absent fields mean."""
    _is_pair(f)
    d_model = f.size("d_model", "d_model", 512)
    n_layers = f.size("num_layers", "n_layers", n_layers)
    both = {
        "d_model": d_model,
        "d_head": f.size("d_kv", "d_head", 64),
        "n_heads": f.size("num_heads", "n_heads", n_heads),
        "d_mlp": f.size("d_ff", "d_mlp", d_mlp),
        "d_vocab": f.size("vocab_size", "d_vocab", d_vocab),
        "n_ctx": f.size("n_positions", "n_ctx", 512),
        "norm": "rmsnorm",
        "norm_eps": f.number("layer_norm_epsilon", 1e-6),
        "positions": "relative",
        "relative_buckets": f.size("relative_attention_num_buckets", "relative_buckets", 32),
        "relative_max_distance": f.size(
            "relative_attention_max_distance", "relative_max_distance", 128
        ),
        "attn_scale": 1.0,
        "qkv_bias": False,
        "attn_out_bias": False,
        "mlp_bias": False,
        **_t5_neurons(f, neurons),
    }
    return TransformerConfig(
        n_layers=f.size("num_decoder_layers", "n_layers", n_layers),
        encoder=TransformerConfig(n_layers=n_layers, causal=False, head="none", **both),
        decoder_start_token_id=_start(f, f.get("pad_token_id", 0)),
        tied=tied,
        logit_scale=d_model**-0.5 if scaled else None,
        **both,
    )


def _t5_neurons(f: Fields, default: str) -> dict[str, Any]:
    """ "relu", or "gated-gelu", whose gelu is the approximation by tanh."""
    for name in ("dense_act_fn", "is_gated_act"):  # what the next field says, once more
        f.get(name, None)
    names = {**ACTIVATIONS, **{f"gated-{name}": ours for name, ours in ACTIVATIONS.items()}}
    activation = f.activation("feed_forward_proj", default, {**names, "gated-gelu": "gelu_tanh"})
    gated = str(f.get("feed_forward_proj", default)).startswith("gated-")
    return {"mlp_gated": gated, "activation": activation}


def _bart_config(f: Fields) -> TransformerConfig:
    """Lewis et al. 2020: norms on the stream."""
    return _bart_like(f, start=2, norm_position="post", final_norm=False)


def _mbart_config(f: Fields) -> TransformerConfig:
    """Liu et al. 2020: norms before the sublayers. The decoder begins with the id of a language."""
    return _bart_like(f, start=None, norm_position="pre", final_norm=True)


def _bart_like(f: Fields, start: int | None, **fields: Any) -> TransformerConfig:
    _is_pair(f)
    for name in ("add_final_layer_norm", "normalize_before"):  # of fairseq, read by nobody
        f.get(name, None)
    d_model = f.size("d_model", "d_model", 1024)
    both = {
        "d_model": d_model,
        "d_vocab": f.size("vocab_size", "d_vocab", 50265),
        "n_ctx": f.size("max_position_embeddings", "n_ctx", 1024),
        "position_offset": 2,
        "embed_norm": True,
        "embed_scale": d_model**0.5 if f.flag("scale_embedding", False) else None,
        "activation": f.activation("activation_function", "gelu"),
        **fields,
    }

    def stack(name: str) -> dict[str, int]:
        return {
            "n_layers": f.size(f"{name}_layers", "n_layers", 12),
            "n_heads": f.size(f"{name}_attention_heads", "n_heads", 16),
            "d_mlp": f.size(f"{name}_ffn_dim", "d_mlp", 4096),
        }

    encoder, decoder = stack("encoder"), stack("decoder")
    f.only("num_hidden_layers", encoder["n_layers"])
    return TransformerConfig(
        **decoder,
        **both,
        encoder=TransformerConfig(causal=False, head="none", **encoder, **both),
        decoder_start_token_id=_start(f, start),
        tied=f.flag("tie_word_embeddings", True),
        unembed_bias=True,
    )


def _is_pair(f: Fields) -> None:
    """A folder with one stack alone has the same model_type."""
    f.only("is_encoder_decoder", True)
    for name in f.words("architectures"):
        if name.endswith(("EncoderModel", "ForCausalLM", "Classification", "QuestionAnswering")):
            raise ConfigError(
                f"{f.where}: architectures={name!r}: expected an encoder–decoder with its "
                "language-model head, such as T5ForConditionalGeneration"
            )


def _start(f: Fields, default: int | None) -> int | None:
    return f.size("decoder_start_token_id", "decoder_start_token_id", default)


def _t5_stack(theirs: str, ours: str, mlp: int) -> dict[str, Target]:
    """`mlp` is the number of its sublayer: behind cross-attention, where there is one."""
    block, own = f"{theirs}.block.{{}}.layer", f"{ours}blocks.{{}}"
    return {
        f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Target(
            f"{ours}embed.W_rel"
        ),
        **norm(f"{block}.0.layer_norm", f"{own}.ln1"),
        **qkv(f"{block}.0.SelfAttention.", "{}", f"{own}.attn"),
        **linear(f"{block}.0.SelfAttention.o", f"{own}.attn.out"),
        **norm(f"{block}.{mlp}.layer_norm", f"{own}.ln2"),
        **linear(f"{block}.{mlp}.DenseReluDense.wi", f"{own}.mlp.in"),
        **linear(f"{block}.{mlp}.DenseReluDense.wi_0", f"{own}.mlp.in", "gate"),
        **linear(f"{block}.{mlp}.DenseReluDense.wi_1", f"{own}.mlp.in", "in"),
        **linear(f"{block}.{mlp}.DenseReluDense.wo", f"{own}.mlp.out"),
        **norm(f"{theirs}.final_layer_norm", f"{ours}ln_final"),
    }


_T5 = {
    "shared.weight": Target("embed.W_E"),
    **_t5_stack("encoder", "encoder.", 1),
    **_t5_stack("decoder", "", 2),
    **norm("decoder.block.{}.layer.1.layer_norm", "blocks.{}.ln_cross"),
    **qkv("decoder.block.{}.layer.1.EncDecAttention.", "{}", "blocks.{}.cross_attn"),
    **linear("decoder.block.{}.layer.1.EncDecAttention.o", "blocks.{}.cross_attn.out"),
    "lm_head.weight": Target("unembed.weight"),
}


def bart_stack(theirs: str, ours: str) -> dict[str, Target]:
    layer, own = f"{theirs}.layers.{{}}", f"{ours}blocks.{{}}"
    return {
        f"{theirs}.embed_positions.weight": Target(f"{ours}embed.W_pos"),
        **norm(f"{theirs}.layernorm_embedding", f"{ours}embed_ln"),
        **qkv(f"{layer}.self_attn.", ours=f"{own}.attn"),
        **linear(f"{layer}.self_attn.out_proj", f"{own}.attn.out"),
        **norm(f"{layer}.self_attn_layer_norm", f"{own}.ln1"),
        **linear(f"{layer}.fc1", f"{own}.mlp.in"),
        **linear(f"{layer}.fc2", f"{own}.mlp.out"),
        **norm(f"{layer}.final_layer_norm", f"{own}.ln2"),
        **norm(f"{theirs}.layer_norm", f"{ours}ln_final"),
    }


_BART = {
    "shared.weight": Target("embed.W_E"),
    **bart_stack("encoder", "encoder."),
    **bart_stack("decoder", ""),
    **qkv("decoder.layers.{}.encoder_attn.", ours="blocks.{}.cross_attn"),
    **linear("decoder.layers.{}.encoder_attn.out_proj", "blocks.{}.cross_attn.out"),
    **norm("decoder.layers.{}.encoder_attn_layer_norm", "blocks.{}.ln_cross"),
    "lm_head.weight": Target("unembed.weight"),
    "final_logits_bias": Target("unembed.bias"),
}

# The word embedding once more for each stack.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

PAIR_FAMILIES = (
    *(
        Family(
            name=name,
            config=config,
            rename=_T5,
            # a table that old versions stored and never read
            dropped=(
                *_COPIES,
                "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
            ),
        )
        for name, config in (("t5", _t5_config), ("mt5", _mt5_config))
    ),
    *(
        Family(
            name=name,
            config=config,
            rename=_BART,
            prefixes=("model.",),
            dropped=(*_COPIES, "encoder.version", "decoder.version"),
            optional_bias="final_logits_bias",
        )
        for name, config in (("bart", _bart_config), ("mbart", _mbart_config))
    ),
)
