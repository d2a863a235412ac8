"""The families of before Llama, and the encoders after BERT."""

from __future__ import annotations

from typing import Any

from tests.parity.layout import D_VOCAB, N_CTX, Family, Layout

EAGER = ("eager", "eager")  # these classes know no other attention


def _gpt_layout(model: str, attn: str, up: str, down: str, **how: Any) -> Layout:
    """`attn` is the map behind the heads, `up` and `down` those of the MLP."""
    return Layout(
        model,
        {
            "hook_resid_pre": ("transformer.h.{}", "in"),
            "attn.hook_z": (f"transformer.h.{{}}.{attn}", "in"),
            "hook_attn_out": (f"transformer.h.{{}}.{attn}", "out"),
            "mlp.hook_pre": (f"transformer.h.{{}}.mlp.{up}", "out"),
            "mlp.hook_post": (f"transformer.h.{{}}.mlp.{down}", "in"),
            "hook_mlp_out": (f"transformer.h.{{}}.mlp.{down}", "out"),
            "hook_resid_post": ("transformer.h.{}", "out"),
        },
        **how,
    )


def _between(layout: Layout, **sites: Any) -> Layout:
    """A layout of blocks that have something between attention and MLP, or end in a norm."""
    named = {name.replace("__", "."): place for name, place in sites.items()}
    return layout._replace(sites={**layout.sites, **named})


OPENAI_GPT = _between(
    _gpt_layout("OpenAIGPTLMHeadModel", "attn.c_proj", "c_fc", "c_proj", attention=EAGER),
    hook_resid_mid=("transformer.h.{}.ln_1", "out"),
    hook_resid_post=("transformer.h.{}.ln_2", "out"),
)
GPT_NEO = _between(
    _gpt_layout("GPTNeoForCausalLM", "attn.attention.out_proj", "c_fc", "c_proj", attention=EAGER),
    hook_resid_mid=("transformer.h.{}.ln_2", "in"),
)
GPTJ = _gpt_layout("GPTJForCausalLM", "attn.out_proj", "fc_in", "fc_out", attention=EAGER)
_DENSE = ("self_attention.dense", "dense_h_to_4h", "dense_4h_to_h")
BLOOM = _between(
    _gpt_layout("BloomForCausalLM", *_DENSE, attention=EAGER, position_offset=None),
    hook_resid_mid=("transformer.h.{}.post_attention_layernorm", "in"),
)
FALCON = _gpt_layout("FalconForCausalLM", *_DENSE)
# Its eager attention adds ALiBi's bias twice; its fused one rounds nothing.
FALCON_ALIBI = FALCON._replace(attention=("sdpa", "sdpa"))
FALCON_SERIAL = _between(
    FALCON_ALIBI, hook_resid_mid=("transformer.h.{}.post_attention_layernorm", "in")
)


def _opt_layout(*mid: str) -> Layout:
    return Layout(
        "OPTForCausalLM",
        {
            "hook_resid_pre": ("model.decoder.layers.{}", "in"),
            "attn.hook_z": ("model.decoder.layers.{}.self_attn.out_proj", "in"),
            "hook_attn_out": ("model.decoder.layers.{}.self_attn.out_proj", "out"),
            "hook_resid_mid": (f"model.decoder.layers.{{}}.{mid[0]}", mid[1]),
            "mlp.hook_pre": ("model.decoder.layers.{}.fc1", "out"),
            "mlp.hook_post": ("model.decoder.layers.{}.fc2", "in"),
            "hook_mlp_out": ("model.decoder.layers.{}.fc2", "out"),
            "hook_resid_post": ("model.decoder.layers.{}", "out"),
        },
    )


OPT = _opt_layout("final_layer_norm", "in")
OPT_POST = _opt_layout("self_attn_layer_norm", "out")


def _bert_layout(model: str, body: str, **how: Any) -> Layout:
    layer = f"{body}.encoder.layer.{{}}"
    return Layout(
        model,
        {
            "hook_resid_pre": (layer, "in"),
            "attn.hook_z": (f"{layer}.attention.output.dense", "in"),
            "hook_attn_out": (f"{layer}.attention.output.dense", "out"),
            "hook_resid_mid": (f"{layer}.attention", "out"),
            "mlp.hook_pre": (f"{layer}.intermediate.dense", "out"),
            "mlp.hook_post": (f"{layer}.output.dense", "in"),
            "hook_mlp_out": (f"{layer}.output.dense", "out"),
            "hook_resid_post": (layer, "out"),
        },
        **how,
    )


BERT_MLM = _bert_layout("BertForMaskedLM", "bert")
ROBERTA = _bert_layout("RobertaForMaskedLM", "roberta", position_offset=2)
_DISTILBERT = {
    "hook_resid_pre": ("transformer.layer.{}", "in"),
    "attn.hook_z": ("transformer.layer.{}.attention.out_lin", "in"),
    "hook_attn_out": ("transformer.layer.{}.attention.out_lin", "out"),
    "hook_resid_mid": ("transformer.layer.{}.sa_layer_norm", "out"),
    "mlp.hook_pre": ("transformer.layer.{}.ffn.lin1", "out"),
    "mlp.hook_post": ("transformer.layer.{}.ffn.lin2", "in"),
    "hook_mlp_out": ("transformer.layer.{}.ffn.lin2", "out"),
    "hook_resid_post": ("transformer.layer.{}.output_layer_norm", "out"),
}
DISTILBERT = Layout("DistilBertModel", _DISTILBERT)
DISTILBERT_MLM = Layout(
    "DistilBertForMaskedLM",
    {site: (f"distilbert.{path}", side) for site, (path, side) in _DISTILBERT.items()},
)

_SIZES = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
_SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
_GPT_SIZES = {
    "vocab_size": D_VOCAB,
    "n_positions": N_CTX,
    "n_layer": 3,
    "n_embd": 24,
    "n_head": 3,
    "layer_norm_epsilon": 1e-3,
    **_SPECIAL,
}
_OPT = {**_SIZES, **_SPECIAL, "ffn_dim": 40}
_FALCON = {**_SIZES, **_SPECIAL, "num_attention_heads": 4, "hidden_size": 32}
_ENCODER = {**_SIZES, "intermediate_size": 40, "layer_norm_eps": 1e-3}
_DISTILBERT_SIZES = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 3,
    "hidden_dim": 40,
}


def _opt(layout: Layout = OPT, **values: Any) -> Family:
    return Family(layout, "OPTConfig", {**_OPT, **values}, exact=True)


def _falcon(layout: Layout = FALCON, exact: bool = False, **values: Any) -> Family:
    return Family(layout, "FalconConfig", {**_FALCON, **values}, exact=exact)


OLDER = {
    "openai-gpt": Family(OPENAI_GPT, "OpenAIGPTConfig", _GPT_SIZES, exact=True),
    "openai-gpt-relu-untied": Family(
        OPENAI_GPT,
        "OpenAIGPTConfig",
        {**_GPT_SIZES, "afn": "relu", "tie_word_embeddings": False},
        exact=True,
    ),
    "gpt_neo": Family(
        GPT_NEO,
        "GPTNeoConfig",
        {
            "vocab_size": D_VOCAB,
            "max_position_embeddings": N_CTX,
            "hidden_size": 24,
            "num_layers": 3,
            "num_heads": 3,
            "attention_types": [[["global", "local"], 1], [["local"], 1]],
            "window_size": 4,
            "layer_norm_epsilon": 1e-3,
            **_SPECIAL,
        },
    ),
    "gptj": Family(GPTJ, "GPTJConfig", {**_GPT_SIZES, "rotary_dim": 4}),
    "gptj-tied": Family(
        GPTJ,
        "GPTJConfig",
        {**_GPT_SIZES, "rotary_dim": 8, "n_inner": 40, "tie_word_embeddings": True},
    ),
    "opt": _opt(),
    "opt-post": _opt(OPT_POST, do_layer_norm_before=False),
    "opt-bare": _opt(
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        _remove_final_layer_norm=True,
        activation_function="gelu",
        tie_word_embeddings=False,
    ),
    "bloom": Family(
        BLOOM,
        "BloomConfig",
        {
            "vocab_size": D_VOCAB,
            "hidden_size": 24,
            "n_layer": 3,
            "n_head": 3,
            "layer_norm_epsilon": 1e-3,
            **_SPECIAL,
        },
    ),
    "falcon": _falcon(),
    "falcon-separate": _falcon(multi_query=False, bias=True, parallel_attn=True),
    "falcon-new": _falcon(new_decoder_architecture=True, num_kv_heads=2, bias=True),
    "falcon-new-one-norm": _falcon(
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=40,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
    ),
    "falcon-serial-alibi": _falcon(
        FALCON_SERIAL,
        exact=True,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
        num_attention_heads=16,  # whose slopes are no powers of two
        hidden_size=64,
    ),
    "falcon-alibi": _falcon(FALCON_ALIBI, exact=True, alibi=True),
    "bert-mlm": Family(BERT_MLM, "BertConfig", _ENCODER, exact=True),
    "bert-mlm-relu": Family(BERT_MLM, "BertConfig", {**_ENCODER, "hidden_act": "relu"}, exact=True),
    "roberta": Family(
        ROBERTA,
        "RobertaConfig",
        {**_ENCODER, "max_position_embeddings": N_CTX + 2, "type_vocab_size": 1},
        exact=True,
    ),
    "distilbert": Family(DISTILBERT, "DistilBertConfig", _DISTILBERT_SIZES, exact=True),
    "distilbert-mlm": Family(
        DISTILBERT_MLM,
        "DistilBertConfig",
        {**_DISTILBERT_SIZES, "activation": "relu", "tie_word_embeddings": False},
        exact=True,
    ),
}
