"""The families whose inputs are not words: ViT, Whisper and the decision transformer."""

from __future__ import annotations

from typing import Any

from interp.core.config import ConfigError, TransformerConfig

from .family import Family, Target, linear, norm, qkv
from .fields import Fields
from .gpt import GPT2_BLOCKS
from .pairs import bart_stack


def _vit_config(f: Fields) -> TransformerConfig:
    image, patch = _sides(f, "image_size", 224), _sides(f, "patch_size", 16)
    f.get("encoder_stride", None)  # of a decoder that draws masked patches
    return TransformerConfig(
        n_layers=f.size("num_hidden_layers", "n_layers", 12),
        d_model=f.size("hidden_size", "d_model", 768),
        n_heads=f.size("num_attention_heads", "n_heads", 12),
        d_mlp=f.size("intermediate_size", "d_mlp", 3072),
        activation=f.activation("hidden_act", "gelu"),
        norm_eps=f.number("layer_norm_eps", 1e-12),
        n_ctx=1 + (image[0] // patch[0]) * (image[1] // patch[1]),
        causal=False,
        qkv_bias=f.flag("qkv_bias", True),
        inputs="patches",
        image_size=image,
        patch_size=patch,
        n_channels=f.size("num_channels", "n_channels", 3),
        **_classifier(f),
    )


def _sides(f: Fields, name: str, default: int) -> tuple[int, int]:
    """Height and width; one number stands for both."""
    value = f.get(name, default)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        f.fail(name, "a whole number of pixels, or a list of two (height, width)")
    return pair[0], pair[1]


def labels(f: Fields) -> tuple[str, ...]:
    """What each logit of a classifier stands for; empty where the config does not say."""
    named = f.get("id2label", {})
    numbers = [str(i) for i in range(len(named))] if isinstance(named, dict) else None
    if numbers is None or set(named) != set(numbers):
        f.fail("id2label", 'an object {"0": "name", …} that numbers the labels from 0')
    if not all(isinstance(name, str) for name in named.values()):
        f.fail("id2label", "names that are text")
    return tuple(named[i] for i in numbers)


def _classifier(f: Fields) -> dict[str, Any]:
    """Logits of an image's labels, where `architectures` names a classifier."""
    n_labels = len(labels(f)) or f.size("num_labels", "d_vocab", 2)
    if any(name.endswith("ForImageClassification") for name in f.words("architectures")):
        return {"d_vocab": n_labels, "unembed_bias": True}
    return {"d_vocab": n_labels, "head": "none"}


def _decision_config(f: Fields) -> TransformerConfig:
    """What is common to all positions in time is in the bias of the embedding's norm.

    The norm of the embedding has PyTorch's epsilon, whatever the others have.
    """
    f.only("layer_norm_epsilon", 1e-5)
    for unused in ("vocab_size", "n_positions"):  # of a GPT-2 without words and positions
        f.get(unused, None)
    d_model = f.size("hidden_size", "d_model", 128)
    return TransformerConfig(
        n_layers=f.size("n_layer", "n_layers", 3),
        d_model=d_model,
        n_heads=f.size("n_head", "n_heads", 1),
        d_mlp=f.optional_size("n_inner", "d_mlp") or 4 * d_model,
        activation=f.activation("activation_function", "relu"),
        norm_eps=1e-5,
        embed_norm=True,
        attn_scale=None if f.flag("scale_attn_weights", True) else 1.0,
        attn_scale_by_layer=f.flag("scale_attn_by_inverse_layer_idx", False),
        n_ctx=f.size("max_ep_len", "n_ctx", 4096),
        inputs="trajectory",
        d_state=f.size("state_dim", "d_state", 17),
        d_vocab=f.size("act_dim", "d_vocab", 4),
        unembed_bias=True,
        final_softcap=1.0 if f.flag("action_tanh", True) else None,
    )


# Of a classifier, of training with noise on the input, and of finding when a word was said.
_NOT_READ = (
    *("use_weighted_layer_sum", "classifier_proj_size", "apply_spec_augment", "mask_time_prob"),
    *("mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length"),
    *("mask_feature_min_masks", "median_filter_width"),
    "scale_embedding",  # which nothing reads
)


def _whisper_config(f: Fields) -> TransformerConfig:
    """Radford et al. 2022: an encoder of sound, and a decoder that writes."""
    for name in f.words("architectures"):
        if name not in ("WhisperForConditionalGeneration", "WhisperModel"):
            raise ConfigError(
                f"{f.where}: architectures={name!r}: expected WhisperForConditionalGeneration"
            )
    f.only("is_encoder_decoder", True)
    for unused in _NOT_READ:
        f.get(unused, None)
    both = {
        "d_model": f.size("d_model", "d_model", 384),
        "d_vocab": f.size("vocab_size", "d_vocab", 51865),
        "activation": f.activation("activation_function", "gelu"),
    }

    def stack(name: str, n_ctx: str, default: int) -> dict[str, Any]:
        return {
            "n_layers": f.size(f"{name}_layers", "n_layers", 4),
            "n_heads": f.size(f"{name}_attention_heads", "n_heads", 6),
            "d_mlp": f.size(f"{name}_ffn_dim", "d_mlp", 1536),
            "n_ctx": f.size(n_ctx, "n_ctx", default),
            **both,
        }

    encoder = stack("encoder", "max_source_positions", 1500)
    f.only("num_hidden_layers", encoder["n_layers"])
    return TransformerConfig(
        **stack("decoder", "max_target_positions", 448),
        encoder=TransformerConfig(
            causal=False,
            head="none",
            inputs="frames",
            n_mels=f.size("num_mel_bins", "n_mels", 80),
            **encoder,
        ),
        decoder_start_token_id=f.size("decoder_start_token_id", "decoder_start_token_id", 50257),
        decoder_forced_ids=_forced(f),
        tied=f.flag("tie_word_embeddings", True),
    )


def _forced(f: Fields) -> tuple[int, ...]:
    """The ids that follow the start token: language, task, no timestamps.

    What comes after a null, an id that is left open, is left out.
    """
    pairs = f.get("forced_decoder_ids", [])
    ids = []
    for i, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
        if not (isinstance(pair, list) and len(pair) == 2 and pair[0] == i + 1):
            f.fail("forced_decoder_ids", "a list [[1, id], [2, id], …]")
        ids.append(pair[1])
    return tuple(ids[: ids.index(None)] if None in ids else ids)


_VIT = {
    "embeddings.cls_token": Target("inputs.class_vector"),
    "embeddings.patch_embeddings.projection.weight": Target("inputs.weight"),
    "embeddings.patch_embeddings.projection.bias": Target("inputs.bias"),
    "embeddings.position_embeddings": Target("embed.W_pos"),
    **norm("encoder.layer.{}.layernorm_before", "blocks.{}.ln1"),
    **linear("encoder.layer.{}.attention.attention.query", "blocks.{}.attn.qkv", "q"),
    **linear("encoder.layer.{}.attention.attention.key", "blocks.{}.attn.qkv", "k"),
    **linear("encoder.layer.{}.attention.attention.value", "blocks.{}.attn.qkv", "v"),
    **linear("encoder.layer.{}.attention.output.dense", "blocks.{}.attn.out"),
    **norm("encoder.layer.{}.layernorm_after", "blocks.{}.ln2"),
    **linear("encoder.layer.{}.intermediate.dense", "blocks.{}.mlp.in"),
    **linear("encoder.layer.{}.output.dense", "blocks.{}.mlp.out"),
    **norm("layernorm", "ln_final"),
    "classifier.weight": Target("unembed.weight"),
    "classifier.bias": Target("unembed.bias"),
}

_DECISION = {
    **{f"encoder.{key}": target for key, target in GPT2_BLOCKS.items()},
    **linear("embed_return", "inputs.return"),
    **linear("embed_state", "inputs.state"),
    **linear("embed_action", "inputs.action"),
    "embed_timestep.weight": Target("embed.W_pos"),
    **norm("embed_ln", "embed_ln"),
    # Every position is given GPT-2's first position vector, behind the norm.
    "encoder.wpe.weight": Target("embed_ln.b", "first row added"),
    "predict_action.0.weight": Target("unembed.weight"),
    "predict_action.0.bias": Target("unembed.bias"),
}

_WHISPER = {
    **linear("encoder.conv1", "encoder.inputs.first"),
    **linear("encoder.conv2", "encoder.inputs.second"),
    **bart_stack("encoder", "encoder."),
    "decoder.embed_tokens.weight": Target("embed.W_E"),
    **bart_stack("decoder", ""),
    **qkv("decoder.layers.{}.encoder_attn.", ours="blocks.{}.cross_attn"),
    **linear("decoder.layers.{}.encoder_attn.out_proj", "blocks.{}.cross_attn.out"),
    **norm("decoder.layers.{}.encoder_attn_layer_norm", "blocks.{}.ln_cross"),
    "proj_out.weight": Target("unembed.weight"),
}

SENSE_FAMILIES = (
    Family(
        name="vit",
        config=_vit_config,
        rename=_VIT,
        prefixes=("vit.",),
        # the pooler, the classifier where the config names a model without one, and what stands
        # in for masked patches in training
        dropped=("pooler.*", "classifier.*", "embeddings.mask_token"),
    ),
    Family(
        name="decision_transformer",
        config=_decision_config,
        rename=_DECISION,
        # words that it does not have; the predictions of states and returns, which the paper does
        # not use; the causal mask
        dropped=(
            "encoder.wte.weight",
            "predict_state.*",
            "predict_return.*",
            "encoder.h.{}.attn.bias",
            "encoder.h.{}.attn.masked_bias",
        ),
    ),
    Family(
        name="whisper",
        config=_whisper_config,
        rename=_WHISPER,
        prefixes=("model.",),
        absent=("*.k_proj.bias",),
    ),
)
