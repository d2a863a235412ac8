"""The families whose inputs are not words: ViT and the decision transformer."""

from __future__ import annotations

from typing import Any

from ...config import TransformerConfig
from .family import Family, Target, linear, norm
from .fields import Fields
from .gpt import GPT2_BLOCKS


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
)
