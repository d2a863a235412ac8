"""The families that turn queries and keys: Llama, its kin, and what came before it (GPT-NeoX).

Where a field is absent, its default is that of the family's config class in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from interp.core.config import TransformerConfig

from .family import Family, Target, linear, norm, qkv, rotary_config, windows
from .fields import Fields

NO_BIASES = {"qkv_bias": False, "attn_out_bias": False, "mlp_bias": False}


def _biases(f: Fields, *, mlp: bool) -> dict[str, bool]:
    attention = f.flag("attention_bias", False)
    mlp = mlp and f.flag("mlp_bias", False)
    return {"qkv_bias": attention, "attn_out_bias": attention, "mlp_bias": mlp}


def _llama_config(f: Fields) -> TransformerConfig:
    biases = _biases(f, mlp=True)
    return TransformerConfig(**rotary_config(f, n_ctx=2048, n_kv_heads=None, biases=biases))


def _mistral_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(f, n_ctx=131_072, n_kv_heads=8, biases=NO_BIASES)
    return TransformerConfig(**shared, sliding_window=_one_window(f, shared["n_layers"], 4096))


def _one_window(f: Fields, n_layers: int, absent: int | None) -> tuple[int | None, ...] | None:
    window = f.optional_size("sliding_window", "n_ctx", absent)
    return (window,) * n_layers if window else None


def _qwen2_config(f: Fields) -> TransformerConfig:
    biases = NO_BIASES | {"qkv_bias": True}
    shared = rotary_config(f, n_ctx=32_768, n_kv_heads=32, biases=biases)
    return TransformerConfig(**shared, sliding_window=_qwen_windows(f, shared["n_layers"]))


def _qwen3_config(f: Fields) -> TransformerConfig:
    biases = _biases(f, mlp=False)
    shared = rotary_config(f, n_ctx=32_768, n_kv_heads=32, d_head=128, biases=biases)
    sliding_window = _qwen_windows(f, shared["n_layers"])
    return TransformerConfig(**shared, sliding_window=sliding_window, qk_norm="head")


def _qwen_windows(f: Fields, n_layers: int) -> tuple[int | None, ...] | None:
    """Configs without `layer_types` count the layers that see everything from the bottom."""
    window = _window_if_used(f, 4096)
    full_layers = f.number("max_window_layers", 28)
    return windows(f, n_layers, window, [window is not None and i >= full_layers
                                         for i in range(n_layers)])  # fmt: skip


def _window_if_used(f: Fields, absent: int | None) -> int | None:
    window = f.optional_size("sliding_window", "n_ctx", absent)
    return window if f.flag("use_sliding_window", False) else None


def _gemma_config(f: Fields) -> TransformerConfig:
    shared = _gemma(f, "hidden_act", n_ctx=8192, n_kv_heads=16)
    given = f.get("hidden_act", GEMMA_ACTIVATION)
    if given == "gelu":  # the first releases said so of the tanh approximation
        shared["activation"] = "gelu_tanh"
    f.only("hidden_activation", *({given, GEMMA_ACTIVATION} if given == "gelu" else {given}))
    return TransformerConfig(**shared)


def _gemma2_config(f: Fields) -> TransformerConfig:
    shared = _gemma(f, "hidden_activation", n_ctx=8192, n_kv_heads=4)
    n_layers = shared["n_layers"]
    window = f.optional_size("sliding_window", "n_ctx", 4096)
    return TransformerConfig(
        **shared,
        **_gemma2(f),
        sliding_window=windows(f, n_layers, window, [i % 2 == 0 for i in range(n_layers)]),
        attn_softcap=f.optional_positive("attn_logit_softcapping", 50.0),
        final_softcap=f.optional_positive("final_logit_softcapping", 30.0),
    )


def _gemma3_config(f: Fields) -> TransformerConfig:
    full, local = _gemma3_ropes(f)
    rotary = {"base": 1e6, "rope": full}
    shared = _gemma(f, "hidden_activation", n_ctx=131_072, n_kv_heads=4, rotary=rotary)
    n_layers = shared["n_layers"]
    pattern = f.size("sliding_window_pattern", "n_layers", 6)
    f.get("_sliding_window_pattern", None)  # what newer configs call it, beside `layer_types`
    window = f.optional_size("sliding_window", "n_ctx", 4096)
    slides = [(i + 1) % pattern != 0 for i in range(n_layers)]
    sliding_window = windows(f, n_layers, window, slides)
    f.only("attn_logit_softcapping")
    shared |= _gemma3_rotary(f, shared, local, sliding_window or (None,) * n_layers)
    return TransformerConfig(
        **shared,
        **_gemma2(f),
        sliding_window=sliding_window,
        final_softcap=f.optional_positive("final_logit_softcapping"),
        qk_norm="head",
    )


def _gemma3_ropes(f: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the config says of the layers that see everything, and of those that slide."""
    types = ("full_attention", "sliding_attention")
    nested, scaling = f.get("rope_parameters", {}), f.get("rope_scaling", {})
    if not isinstance(scaling, dict):
        f.fail("rope_scaling", "an object of numbers")
    if not isinstance(nested, dict) or set(nested) - set(types):
        f.fail("rope_parameters", f"an object with one set for each of {', '.join(types)}")
    full, local = (nested.get(kind) or {} for kind in types)
    if not (isinstance(full, dict) and isinstance(local, dict)):
        f.fail("rope_parameters", f"an object with one set for each of {', '.join(types)}")
    return {**full, **scaling}, local


def _gemma3_rotary(
    f: Fields, shared: dict[str, Any], local: dict[str, Any], sliding: tuple[int | None, ...]
) -> dict[str, Any]:
    """Layers that slide have a base and a scaling of their own."""
    base, scaling = shared["rotary_base"], shared.get("rotary_scaling")
    near = f.rotary(shared["n_ctx"], base=1e4, base_name="rope_local_base_freq", rope=local)
    pairs = [
        (base, scaling) if window is None else (near["rotary_base"], near["rotary_scaling"])
        for window in sliding
    ]
    bases, scalings = zip(*pairs, strict=True)
    return {"rotary_base": bases, "rotary_scaling": scalings if any(scalings) else None}


GEMMA_ACTIVATION = "gelu_pytorch_tanh"


def _gemma(f: Fields, activation: str, **defaults: Any) -> dict[str, Any]:
    f.only("use_bidirectional_attention", False)
    shared = rotary_config(
        f, **defaults, d_head=256, biases=_biases(f, mlp=False), tied=True,
        activation=(activation, GEMMA_ACTIVATION),
    )  # fmt: skip
    return shared | {"norm": "rmsnorm_plus1", "embed_scale": shared["d_model"] ** 0.5}


def _gemma2(f: Fields) -> dict[str, Any]:
    f.only("hidden_act", f.get("hidden_activation", GEMMA_ACTIVATION))
    scale = f.positive("query_pre_attn_scalar", 256.0) ** -0.5
    return {"norm_position": "both", "attn_scale": scale}


def _olmo_config(f: Fields) -> TransformerConfig:
    f.only("clip_qkv")
    shared = rotary_config(f, n_ctx=2048, n_kv_heads=None, biases=_biases(f, mlp=False))
    plain = {"norm": "layernorm", "norm_affine": False, "norm_eps": 1e-5}
    return TransformerConfig(**shared | plain)


def _olmo2_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(
        f, n_ctx=2048, n_kv_heads=None, biases=_biases(f, mlp=False),
        norm_eps=("rms_norm_eps", 1e-5),
    )  # fmt: skip
    return TransformerConfig(**shared, norm_position="output", qk_norm="all")


def _phi3_config(f: Fields) -> TransformerConfig:
    f.only("attention_bias", False)
    shared = rotary_config(
        f, n_ctx=4096, n_kv_heads=None, biases=NO_BIASES, norm_eps=("rms_norm_eps", 1e-5),
        rotary={"share": 1.0, "scalings": dict.fromkeys(("longrope", "su", "yarn"), "longrope")},
    )  # fmt: skip
    return TransformerConfig(**shared, sliding_window=_one_window(f, shared["n_layers"], None))


def _granite_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(f, n_ctx=2048, n_kv_heads=None, biases=_biases(f, mlp=True))
    return TransformerConfig(
        **shared,
        embed_scale=f.number("embedding_multiplier", 1.0),
        attn_scale=f.number("attention_multiplier", 1.0),
        residual_scale=f.number("residual_multiplier", 1.0),
        logit_scale=1 / f.positive("logits_scaling", 1.0),
    )


def _smollm3_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(
        f, n_ctx=32_768, n_kv_heads=4, biases=_biases(f, mlp=True), tied=True,
        rotary={"base": 2e6},
    )  # fmt: skip
    n_layers = shared["n_layers"]
    interval = f.size("no_rope_layer_interval", "n_layers", 4)
    turned = f.switches("no_rope_layers", n_layers)  # 1 is a layer with rotary embedding
    turned = turned or tuple((i + 1) % interval != 0 for i in range(n_layers))
    window = _window_if_used(f, None)
    slides = [window is not None and not on for on in turned]
    return TransformerConfig(
        **shared,
        rotary_layers=None if all(turned) else turned,
        sliding_window=windows(f, n_layers, window, slides),
    )


def _stablelm_config(f: Fields) -> TransformerConfig:
    biases = NO_BIASES | {"qkv_bias": f.flag("use_qkv_bias", False)}
    shared = rotary_config(
        f, n_ctx=4096, n_kv_heads=32, biases=biases, norm_eps=("layer_norm_eps", 1e-5),
        rotary={"share": 0.25},
    )  # fmt: skip
    parallel = f.flag("use_parallel_residual", False)
    blocks = {"norm": "layernorm", "parallel": parallel, "parallel_shared_norm": parallel}
    if f.flag("qk_layernorm", False):
        blocks |= {"qk_norm": "each", "qk_norm_bias": False}
    return TransformerConfig(**shared | blocks)


def _gpt_neox_config(f: Fields) -> TransformerConfig:
    attention = f.flag("attention_bias", True)
    biases = {"qkv_bias": attention, "attn_out_bias": attention, "mlp_bias": True}
    f.only("rope_theta", f.number("rotary_emb_base", 10_000.0))  # some versions wrote both
    f.only("partial_rotary_factor", f.number("rotary_pct", 0.25))
    shared = rotary_config(
        f, n_ctx=2048, n_kv_heads=None, biases=biases, norm_eps=("layer_norm_eps", 1e-5),
        activation=("hidden_act", "gelu"),
        rotary={"base_name": "rotary_emb_base", "share": 0.25, "share_name": "rotary_pct"},
    )  # fmt: skip
    parallel = f.flag("use_parallel_residual", True)
    blocks = {"norm": "layernorm", "mlp_gated": False, "parallel": parallel}
    return TransformerConfig(**shared | blocks)


def _phi_config(f: Fields) -> TransformerConfig:
    shared = rotary_config(
        f, n_ctx=2048, n_kv_heads=None, biases=dict.fromkeys(NO_BIASES, True),
        norm_eps=("layer_norm_eps", 1e-5), activation=("hidden_act", "gelu_new"),
        rotary={"share": 0.5},
    )  # fmt: skip
    blocks = {"norm": "layernorm", "mlp_gated": False}
    return TransformerConfig(
        **shared | blocks,
        parallel=True,
        parallel_shared_norm=True,
        qk_norm="head" if f.flag("qk_layernorm", False) else "none",
        unembed_bias=True,
    )


_EMBED = {"embed_tokens.weight": Target("embed.W_E")}
_UNEMBED = {**norm("norm", "ln_final"), "lm_head.weight": Target("unembed.weight")}
_QKV = qkv("layers.{}.self_attn.")
_OUT = {
    **linear("layers.{}.self_attn.o_proj", "blocks.{}.attn.out"),
    **linear("layers.{}.mlp.down_proj", "blocks.{}.mlp.out"),
}
_GATED = {
    **linear("layers.{}.mlp.gate_proj", "blocks.{}.mlp.in", "gate"),
    **linear("layers.{}.mlp.up_proj", "blocks.{}.mlp.in", "in"),
}
_NORMS = {
    **norm("layers.{}.input_layernorm", "blocks.{}.ln1"),
    **norm("layers.{}.post_attention_layernorm", "blocks.{}.ln2"),
}
_QK_NORMS = {
    **norm("layers.{}.self_attn.q_norm", "blocks.{}.attn.q_norm"),
    **norm("layers.{}.self_attn.k_norm", "blocks.{}.attn.k_norm"),
}
_HEAD_NORMS = {
    f"layers.{{}}.self_attn.{p}_layernorm.norms.{{head}}.weight": Target(
        f"blocks.{{}}.attn.{p}_norm.w", "head"
    )
    for p in "qk"
}
_OUTPUT_NORMS = {
    **norm("layers.{}.post_attention_layernorm", "blocks.{}.ln1_post"),
    **norm("layers.{}.post_feedforward_layernorm", "blocks.{}.ln2_post"),
}

_LLAMA = {**_EMBED, **_NORMS, **_QKV, **_OUT, **_GATED, **_UNEMBED}
_QWEN3 = {**_LLAMA, **_QK_NORMS}
_OLMO2 = {**_QWEN3, **_OUTPUT_NORMS}
_GEMMA3 = {**_OLMO2, **norm("layers.{}.pre_feedforward_layernorm", "blocks.{}.ln2")}
_PHI3 = {
    **_EMBED,
    **_NORMS,
    **linear("layers.{}.self_attn.qkv_proj", "blocks.{}.attn.qkv"),
    **linear("layers.{}.mlp.gate_up_proj", "blocks.{}.mlp.in"),
    **_OUT,
    **_UNEMBED,
}
_PHI = {
    **_EMBED,
    **_NORMS,
    **_QKV,
    **norm("layers.{}.self_attn.q_layernorm", "blocks.{}.attn.q_norm"),
    **norm("layers.{}.self_attn.k_layernorm", "blocks.{}.attn.k_norm"),
    **linear("layers.{}.self_attn.dense", "blocks.{}.attn.out"),
    **linear("layers.{}.mlp.fc1", "blocks.{}.mlp.in"),
    **linear("layers.{}.mlp.fc2", "blocks.{}.mlp.out"),
    **norm("final_layernorm", "ln_final"),
    "lm_head.weight": Target("unembed.weight"),
    "lm_head.bias": Target("unembed.bias"),
}
_GPT_NEOX = {
    "embed_in.weight": Target("embed.W_E"),
    **_NORMS,
    **linear("layers.{}.attention.query_key_value", "blocks.{}.attn.qkv", "heads"),
    **linear("layers.{}.attention.dense", "blocks.{}.attn.out"),
    **linear("layers.{}.mlp.dense_h_to_4h", "blocks.{}.mlp.in"),
    **linear("layers.{}.mlp.dense_4h_to_h", "blocks.{}.mlp.out"),
    **norm("final_layer_norm", "ln_final"),
    "embed_out.weight": Target("unembed.weight"),
    "lm_head.weight": Target("unembed.weight"),
}
_BUFFERS = ("layers.{}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")
_NEOX_BUFFERS = (
    *("layers.{}.attention.bias", "layers.{}.attention.masked_bias"),  # the causal mask
    "layers.{}.attention.rotary_emb.inv_freq",
)


def _llama_like(
    name: str,
    config: Callable[[Fields], TransformerConfig],
    rename: Mapping[str, Target] = _LLAMA,
) -> Family:
    return Family(name=name, config=config, rename=rename, prefixes=("model.",), dropped=_BUFFERS)


ROTARY_FAMILIES = (
    _llama_like("llama", _llama_config),
    _llama_like("mistral", _mistral_config),
    _llama_like("qwen2", _qwen2_config),
    _llama_like("qwen3", _qwen3_config, _QWEN3),
    _llama_like("gemma", _gemma_config),
    _llama_like("gemma2", _gemma2_config, _GEMMA3),
    _llama_like("gemma3_text", _gemma3_config, _GEMMA3),
    _llama_like("olmo", _olmo_config),
    _llama_like("olmo2", _olmo2_config, _OLMO2),
    _llama_like("phi3", _phi3_config, _PHI3),
    _llama_like("granite", _granite_config),
    _llama_like("smollm3", _smollm3_config),
    _llama_like("stablelm", _stablelm_config, {**_LLAMA, **_HEAD_NORMS}),
    _llama_like("phi", _phi_config, _PHI),
    Family(
        name="gpt_neox",
        config=_gpt_neox_config,
        rename=_GPT_NEOX,
        prefixes=("gpt_neox.",),
        dropped=_NEOX_BUFFERS,
    ),
)
