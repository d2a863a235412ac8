"""The architecture of a transformer, one documented field per choice, never per model name.

A config is a value: frozen, validated when made, equal to another by its fields. It can be written
to JSON and read back; reading refuses fields that it does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Norm = Literal["layernorm", "rmsnorm", "rmsnorm_plus1", "none"]
NormPosition = Literal["pre", "post", "output", "both"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu"]
Head = Literal["unembed", "mlm", "none"]
Inputs = Literal["tokens", "patches", "frames", "trajectory"]
QKNorm = Literal["none", "head", "each", "all"]
ExpertWeights = Literal["chosen", "all"]
RotaryKind = Literal["linear", "ntk", "yarn", "llama3", "longrope"]

# No model of 2026 comes near these; a number past them is a broken or hostile file.
BOUNDS = {
    "n_layers": (1, 10_000),
    "d_model": (1, 1_000_000),
    "n_heads": (1, 100_000),
    "n_kv_heads": (1, 100_000),
    "d_head": (1, 100_000),
    "d_mlp": (0, 10_000_000),
    "n_experts": (0, 10_000),
    "experts_per_token": (0, 10_000),
    "d_vocab": (1, 10_000_000),
    "n_ctx": (1, 100_000_000),
    "position_offset": (0, 1_000),
    "rotary_dim": (2, 100_000),
    "n_token_types": (0, 1_000),
    "n_channels": (0, 1_000),
    "n_mels": (0, 10_000),
    "d_state": (0, 1_000_000),
    "decoder_start_token_id": (0, 9_999_999),
    "relative_buckets": (4, 10_000),
    "relative_max_distance": (2, 100_000_000),
}
MAX_PIXELS = 100_000
"""Of a side of an image or patch."""


class ConfigError(ValueError):
    """A config that contradicts itself or holds a value that no model has."""


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary frequencies are stretched past the trained context.

    linear: positions divided by `factor` (Chen et al. 2023). ntk: the base is raised so that the
    slowest frequency is divided by `factor` (static). yarn: Peng et al. 2023. llama3: low
    frequencies divided by `factor`, high ones kept, a linear ramp between. longrope: each frequency
    divided by a factor of its own (Ding et al. 2024), one set for sequences that fit into
    `original_n_ctx` and one for those that reach past it.
    """

    kind: RotaryKind
    factor: float
    """How many times longer the context becomes."""
    original_n_ctx: int | None = None
    """Context of pre-training, in tokens; required by yarn, llama3 and longrope."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_n_ctx / this are fully scaled."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_n_ctx / this are kept."""
    beta_fast: float = 32.0
    """yarn: rotations over the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """yarn: rotations over the original context below which a frequency is fully scaled."""
    attention_factor: float | None = None
    """Multiplies cosine and sine; by default yarn has 0.1 ln(factor) + 1, and longrope
    √(1 + ln(factor) / ln(original_n_ctx)); 1 where factor ≤ 1."""
    truncate: bool = True
    """yarn: round the ends of the ramp to whole frequencies."""
    short_factors: tuple[float, ...] | None = None
    """longrope: divides each frequency of a sequence of at most original_n_ctx tokens."""
    long_factors: tuple[float, ...] | None = None
    """longrope: divides each frequency of a longer sequence, at all of its positions."""

    def __post_init__(self) -> None:
        _check_choice("rotary_scaling.kind", self.kind, RotaryKind)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < 1e6):
                raise ConfigError(f"rotary_scaling.{name}={value!r}: expected a number in (0, 1e6)")
        factor, context = self.attention_factor, self.original_n_ctx
        if factor is not None and not (_is_number(factor) and 0 < factor < 1e6):
            raise ConfigError(f"rotary_scaling.attention_factor={factor!r}: expected a number > 0")
        if context is not None and not (_is_int(context) and 0 < context <= BOUNDS["n_ctx"][1]):
            raise ConfigError(
                f"rotary_scaling.original_n_ctx={context!r}: expected a size in tokens"
            )
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"rotary_scaling.truncate={self.truncate!r}: expected true or false")
        if self.kind in ("yarn", "llama3", "longrope") and self.original_n_ctx is None:
            raise ConfigError(
                f"rotary_scaling.kind={self.kind!r} needs rotary_scaling.original_n_ctx"
            )
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"rotary_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"rotary_scaling.high_freq_factor={self.high_freq_factor}"
            )
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if (factors is not None) != (self.kind == "longrope"):
                raise ConfigError(
                    f"rotary_scaling.{name} goes with kind='longrope', and only there"
                )
            if factors is not None and not (
                isinstance(factors, tuple) and all(_is_number(f) and 0 < f < 1e6 for f in factors)
            ):
                raise ConfigError(
                    f"rotary_scaling.{name}={factors!r}: expected numbers in (0, 1e6)"
                )
        if self.kind == "longrope" and self.original_n_ctx == 1:
            raise ConfigError("rotary_scaling.original_n_ctx=1: longrope divides by its logarithm")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Every architectural choice of `HookedTransformer`. Sizes count elements."""

    n_layers: int
    """Blocks."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Query heads per layer."""
    d_vocab: int
    """Rows of the token embedding, and the width of logits: words, an image's labels, or the
    numbers of an action."""
    n_ctx: int
    """Longest sequence, in tokens; under inputs="trajectory", in timesteps."""
    d_head: int = None  # type: ignore[assignment]  # resolved below
    """Width of one head; by default d_model / n_heads."""
    n_kv_heads: int = None  # type: ignore[assignment]  # resolved below
    """Key-value heads; each serves n_heads / n_kv_heads query heads. By default n_heads."""
    d_mlp: int = 0
    """Neurons per layer, those of all experts; 0 leaves out the MLP (an attention-only model)."""
    n_experts: int = 0
    """Experts that share the neurons out, d_mlp / n_experts each; 0: one MLP for all tokens."""
    experts_per_token: int = 0
    """How many experts, those of the largest router logits, a token uses."""

    norm: Norm = "layernorm"
    """layernorm, rmsnorm, rmsnorm_plus1 (gain stored as an offset from 1), none."""
    norm_eps: float = 1e-5
    """Added to the variance (or mean square) under the root."""
    norm_position: NormPosition = "pre"
    """pre: on a sublayer's input. post: on the residual stream after the sum (BERT).
    output: on a sublayer's output, before the sum. both: pre and output."""
    norm_affine: bool = True
    """Norms have a gain (and LayerNorm a bias)."""
    norm_bias: bool = True
    """LayerNorm has a bias beside its gain."""
    embed_norm: bool = False
    """A norm on the embedding, before the first block."""
    final_norm: bool = True
    """A norm before the unembedding."""
    parallel: bool = False
    """Attention and MLP both read resid_pre, and both are added to it; there is no resid_mid."""
    parallel_shared_norm: bool = False
    """In a parallel block both read the one ln1; otherwise the MLP has its own ln2."""
    residual_scale: float | None = None
    """Factor on what attention and MLP write (behind an output norm), before it is added."""

    positions: Positions = "learned"
    """learned and sinusoidal are added to the embedding, rotary turns q and k, alibi and relative
    (T5: a learned number per head and bucket of distances, one table for all layers; Raffel et al.
    2020) bias scores."""
    position_offset: int = 0
    """Rows of W_pos skipped before position 0."""
    rotary_dim: int = None  # type: ignore[assignment]  # resolved below
    """Leading dimensions of a head that are turned; by default all."""
    rotary_interleaved: bool = False
    """Pairs are neighbours (0,1),(2,3)…; otherwise halves (0,d/2),(1,d/2+1)…"""
    rotary_base: float | tuple[float, ...] = 10_000.0
    """Base of the frequencies, one for all layers or one per layer."""
    rotary_layers: tuple[bool, ...] | None = None
    """Which layers turn q and k; by default all."""
    rotary_scaling: RotaryScaling | tuple[RotaryScaling | None, ...] | None = None
    """How frequencies are stretched, one for all layers or one per layer; by default not at all."""
    alibi_scale: float | None = None
    """Factor on ALiBi's bias; by default 1."""
    alibi_bfloat16: bool = False
    """ALiBi's bias, slope times position, is rounded to bfloat16 (before alibi_scale)."""
    relative_buckets: int = 32
    """Distances that T5's bias tells apart: half of them exact, the others growing with the
    logarithm; without a causal mask, half of them on either side."""
    relative_max_distance: int = 128
    """Distance, in tokens, from which on T5's bias stays the same."""

    causal: bool = True
    """A token sees itself and what lies left of it; otherwise it sees everything."""
    sliding_window: tuple[int | None, ...] | None = None
    """Per layer, how many tokens back (itself included) a token sees; None: no limit."""
    attn_scale: float | None = None
    """Factor on q·k; by default 1/√d_head."""
    attn_scale_by_layer: bool = False
    """q·k is divided by (layer + 1) as well."""
    attn_softcap: float | None = None
    """Scores become cap · tanh(scores / cap)."""
    attn_sinks: bool = False
    """Each head has a learned score that joins the softmax and reads nothing: a place for the
    attention that goes nowhere (Miller 2023)."""
    logit_scale: float | None = None
    """Factor on logits, before final_softcap."""
    final_softcap: float | None = None
    """Logits become cap · tanh(logits / cap)."""
    qk_norm: QKNorm = "none"
    """Norm of queries and keys before rotation. head: over each head, with one gain for all heads.
    each: over each head, with a gain for each. all: over all heads together."""
    qk_norm_bias: bool = True
    """Those norms have a bias where the others have one."""
    qkv_bias: bool = True
    """Queries, keys and values have a bias."""
    attn_out_bias: bool = True
    """The attention output has a bias."""

    mlp_gated: bool = False
    """Neurons are act(x W_gate) · (x W_in): hook_pre is x W_gate, hook_pre_linear is x W_in."""
    activation: Activation = "gelu"
    """gelu is exact; gelu_tanh is the tanh approximation of GPT-2; relu2 is relu squared."""
    mlp_clamp: float | None = None
    """Gated: x W_gate is clamped to at most this and x W_in to ± this before they are used."""
    mlp_linear_offset: float = 0.0
    """Gated: added to x W_in (behind the clamp)."""
    mlp_bias: bool = True
    """The MLP's maps have biases; each expert has its own."""
    expert_weights: ExpertWeights = "chosen"
    """What a chosen expert's output is multiplied by: its share in the softmax over the router
    logits of the chosen experts, which sums to 1, or of all experts, which does not."""
    router_bias: bool = False
    """Router logits have a bias."""

    inputs: Inputs = "tokens"
    """What a sequence is made of. tokens: vocabulary ids. patches: a class vector, then the patches
    of an image, row by row (ViT). frames: two convolutions over a spectrogram, the second of stride
    2 (Whisper). trajectory: a return, a state and an action per timestep (decision transformer)."""
    image_size: tuple[int, int] | None = None
    """patches: height and width of an image, in pixels."""
    patch_size: tuple[int, int] | None = None
    """patches: height and width of a patch, in pixels."""
    n_channels: int = 0
    """patches: numbers per pixel."""
    n_mels: int = 0
    """frames: bins of the spectrogram; it has 2 n_ctx columns."""
    d_state: int = 0
    """trajectory: numbers of a state; those of an action are d_vocab."""
    embed_scale: float | None = None
    """Factor on the token embedding."""
    n_token_types: int = 0
    """Rows of the token-type embedding (BERT's segments); 0: none."""
    head: Head = "unembed"
    """unembed: logits over the vocabulary. mlm: the same behind a transform, norm(act(x W + b)).
    none: the residual."""
    tied: bool = False
    """The unembedding is the token embedding."""
    unembed_bias: bool = False
    """Logits have a bias."""

    encoder: TransformerConfig | None = None
    """The encoder of an encoder–decoder (Vaswani et al. 2017). All other fields are then the
    decoder's, whose blocks attend to the encoder's output after attending to themselves."""
    decoder_start_token_id: int | None = None
    """The id with which the decoder of an encoder–decoder begins."""
    decoder_forced_ids: tuple[int, ...] = ()
    """The ids that follow it (Whisper: language, task, no timestamps) before the model writes."""

    def __post_init__(self) -> None:
        self._resolve_defaults()
        self._check_values()
        self._check_contradictions()

    def _resolve_defaults(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        sizes = (self.d_model, self.n_heads)
        if self.d_head is None and all(_is_int(size) and size > 0 for size in sizes):
            if self.d_model % self.n_heads:
                raise ConfigError(
                    f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                    "give d_head"
                )
            put("d_head", self.d_model // self.n_heads)
        if self.n_kv_heads is None:
            put("n_kv_heads", self.n_heads)
        if self.rotary_dim is None:
            put("rotary_dim", self.d_head)

    def _check_values(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if name == "rotary_dim" and self.positions != "rotary":
                continue
            if name == "decoder_start_token_id" and value is None:
                continue
            if not _is_int(value) or not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: expected a whole number in [{low}, {high}]")
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{field.name}={value!r}: expected true or false")
        numbers = ("norm_eps", "attn_scale", "attn_softcap", "final_softcap", "embed_scale")
        more = ("alibi_scale", "residual_scale", "logit_scale", "mlp_clamp", "mlp_linear_offset")
        for name in (*numbers, *more):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < 1e9):
                raise ConfigError(f"{name}={value!r}: expected a number in [0, 1e9)")
        self._check_layer_lists()
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if value is not None and not _is_size(value):
                raise ConfigError(
                    f"{name}={value!r}: expected a pair (height, width) in pixels, each in "
                    f"[1, {MAX_PIXELS}]"
                )

    def _check_layer_lists(self) -> None:
        layers = self.rotary_layers
        for scaling in self.rotary_scalings:
            if scaling is not None and not isinstance(scaling, RotaryScaling):
                raise ConfigError(f"rotary_scaling={scaling!r}: expected a RotaryScaling")
        if layers is not None and not (
            isinstance(layers, tuple) and all(isinstance(on, bool) for on in layers)
        ):
            raise ConfigError(f"rotary_layers={layers!r}: expected one true or false per layer")
        if self.encoder is not None and not isinstance(self.encoder, TransformerConfig):
            raise ConfigError(f"encoder={self.encoder!r}: expected a TransformerConfig")
        start = self.decoder_start_token_id
        if start is not None and start >= self.d_vocab:
            raise ConfigError(
                f"decoder_start_token_id={start!r}: expected an id below d_vocab={self.d_vocab}"
            )
        forced = self.decoder_forced_ids
        if not (isinstance(forced, tuple) and all(map(_is_int, forced))) or any(
            not 0 <= i < self.d_vocab for i in forced
        ):
            raise ConfigError(
                f"decoder_forced_ids={forced!r}: expected ids below d_vocab={self.d_vocab}"
            )
        if forced and start is None:
            raise ConfigError(f"decoder_forced_ids={forced} needs decoder_start_token_id")
        if self.sliding_window is not None and not isinstance(self.sliding_window, tuple):
            raise ConfigError(f"sliding_window={self.sliding_window!r}: expected one per layer")
        for base in self.rotary_bases:
            if not (_is_number(base) and 1 < base < 1e15):
                raise ConfigError(f"rotary_base={base!r}: expected a number in (1, 1e15)")

    def _check_contradictions(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}"
            )
        if self.positions == "rotary":
            if self.rotary_dim > self.d_head or self.rotary_dim % 2:
                raise ConfigError(
                    f"rotary_dim={self.rotary_dim} must be even and at most d_head={self.d_head}"
                )
        elif any(self.rotary_scalings):
            raise ConfigError(f"rotary_scaling is given but positions={self.positions!r}")
        if self.positions != "alibi" and (self.alibi_scale is not None or self.alibi_bfloat16):
            raise ConfigError(
                f"alibi_scale and alibi_bfloat16 go with positions='alibi', not {self.positions!r}"
            )
        for name in ("rotary_layers", "sliding_window", "rotary_base", "rotary_scaling"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.n_layers:
                raise ConfigError(f"{name} has {len(value)} entries but n_layers={self.n_layers}")
        for window in self.sliding_window or ():
            if window is not None and not (_is_int(window) and window > 0):
                raise ConfigError(
                    f"sliding_window holds {window!r}: expected positive numbers or None"
                )
        self._check_scalings()
        self._check_mlp()
        if self.attn_sinks and self.attn_scale == 0:
            raise ConfigError("attn_sinks=True needs scores, but attn_scale=0")
        if self.attn_sinks and self.positions == "alibi":
            raise ConfigError(
                "attn_sinks=True goes with other positions than 'alibi', whose bias on scores is "
                "known up to a constant that a sink would see"
            )
        if self.parallel and self.norm_position != "pre":
            raise ConfigError(
                f"parallel=True goes with norm_position='pre', not {self.norm_position!r}"
            )
        if self.parallel and self.d_mlp == 0:
            raise ConfigError("parallel=True needs an MLP, but d_mlp=0")
        if self.parallel_shared_norm and not self.parallel:
            raise ConfigError("parallel_shared_norm=True needs parallel=True")
        if self.head == "none" and (self.tied or self.unembed_bias):
            raise ConfigError("head='none' has no unembedding: tied and unembed_bias must be false")
        if self.head == "none" and self.logit_scale is not None:
            raise ConfigError(f"head='none' has no logits, but logit_scale={self.logit_scale}")
        if self.head == "none" and self.final_softcap is not None:
            raise ConfigError(f"head='none' has no logits, but final_softcap={self.final_softcap}")
        if self.norm == "none" and (self.embed_norm or self.qk_norm != "none"):
            raise ConfigError("norm='none' goes with embed_norm=False and qk_norm='none'")
        if self.norm == "none" and self.head == "mlm":
            raise ConfigError("head='mlm' norms what it transforms, but norm='none'")
        if self.positions == "relative":
            exact = self.relative_buckets // (2 if self.causal else 4)
            if self.relative_buckets % (2 if self.causal else 4) or (
                self.relative_max_distance <= exact
            ):
                raise ConfigError(
                    f"relative_buckets={self.relative_buckets} and relative_max_distance="
                    f"{self.relative_max_distance}: expected a multiple of 2 (4 with causal=False) "
                    f"and a distance above the {exact} exact ones"
                )
        self._check_inputs()
        self._check_encoder()

    def _check_encoder(self) -> None:
        encoder = self.encoder
        if encoder is None:
            if self.decoder_start_token_id is not None:
                raise ConfigError(
                    f"decoder_start_token_id={self.decoder_start_token_id} needs an encoder"
                )
            return
        for name in ("d_model", "d_vocab"):  # the decoder reads its output, and shares W_E
            own, other = getattr(self, name), getattr(encoder, name)
            if own != other:
                raise ConfigError(f"encoder.{name}={other} must be the decoder's {name}={own}")
        expected = {"causal": False, "head": "none", "encoder": None}
        for name, value in expected.items():
            if getattr(encoder, name) != value:
                raise ConfigError(f"encoder.{name} must be {value!r}")
        # What has no meaning where a block has two attentions that read different streams.
        expected = {"causal": True, "parallel": False, "qk_norm": "none"}
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} does not go with an encoder: "
                    f"expected {value!r}"
                )
        if self.inputs != "tokens":
            raise ConfigError(f"inputs={self.inputs!r} beside an encoder: set encoder.inputs")

    def _check_inputs(self) -> None:
        for name, inputs in SIZES_OF_INPUTS.items():
            given = bool(getattr(self, name))
            if given != (inputs == self.inputs):
                fault = f"inputs={self.inputs!r} needs {name}"
                if given:
                    fault = f"{name} goes with inputs={inputs!r}, not {self.inputs!r}"
                raise ConfigError(fault)
        if self.inputs == "tokens":
            return
        for name, plain in (("tied", False), ("embed_scale", None)):
            if getattr(self, name) != plain:
                raise ConfigError(
                    f"inputs={self.inputs!r} has no token embedding: {name} must be {plain}"
                )
        if self.inputs == "patches":
            sides = zip(self.image_size or (), self.patch_size or (), strict=True)
            if any(side % patch for side, patch in sides):
                raise ConfigError(
                    f"image_size={self.image_size} is not a multiple of "
                    f"patch_size={self.patch_size}"
                )
            n_patches = math.prod(self.patch_grid)
            if self.n_ctx != 1 + n_patches:
                raise ConfigError(
                    f"n_ctx={self.n_ctx}: expected {1 + n_patches}, the class vector and the "
                    f"{n_patches} patches that image_size and patch_size make"
                )

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        if self.image_size is None or self.patch_size is None:
            raise ConfigError(f"inputs={self.inputs!r}: there are no patches")
        (height, width), (down, across) = self.image_size, self.patch_size
        return height // down, width // across

    def _check_scalings(self) -> None:
        for scaling in self.rotary_scalings:
            if scaling is None:
                continue
            if scaling.kind == "ntk" and self.rotary_dim == 2:
                raise ConfigError(
                    "rotary_scaling.kind='ntk' divides the slowest of several frequencies, but "
                    "rotary_dim=2 has only one"
                )
            for name in ("short_factors", "long_factors"):
                factors = getattr(scaling, name)
                if factors is not None and len(factors) != self.rotary_dim // 2:
                    raise ConfigError(
                        f"rotary_scaling.{name} has {len(factors)} entries, but "
                        f"rotary_dim={self.rotary_dim} has {self.rotary_dim // 2} frequencies"
                    )

    def _check_mlp(self) -> None:
        if self.mlp_gated and self.d_mlp == 0:
            raise ConfigError("mlp_gated=True needs an MLP, but d_mlp=0")
        for name, neutral in (("mlp_clamp", None), ("mlp_linear_offset", 0.0)):
            value = getattr(self, name)
            if value != neutral and not self.mlp_gated:
                raise ConfigError(f"{name}={value} needs mlp_gated=True")
        if not self.n_experts:
            absent = {"experts_per_token": 0, "expert_weights": "chosen", "router_bias": False}
            for name, value in absent.items():
                if getattr(self, name) != value:
                    raise ConfigError(f"{name}={getattr(self, name)!r} is given but n_experts=0")
        elif self.d_mlp == 0 or self.d_mlp % self.n_experts:
            raise ConfigError(
                f"d_mlp={self.d_mlp} is not a multiple of n_experts={self.n_experts}; d_mlp counts "
                "the neurons of all experts"
            )
        elif not 1 <= self.experts_per_token <= self.n_experts:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token}: expected 1 to "
                f"n_experts={self.n_experts}"
            )

    @property
    def rotary_scalings(self) -> tuple[RotaryScaling | None, ...]:
        """One rotary scaling per layer."""
        if isinstance(self.rotary_scaling, tuple):
            return self.rotary_scaling
        return (self.rotary_scaling,) * self.n_layers

    @property
    def rotary_bases(self) -> tuple[float, ...]:
        """One rotary base per layer."""
        if isinstance(self.rotary_base, tuple):
            return self.rotary_base
        return (self.rotary_base,) * self.n_layers

    def is_rotary(self, layer: int) -> bool:
        """Whether this layer turns its queries and keys."""
        on = self.rotary_layers is None or self.rotary_layers[layer]
        return self.positions == "rotary" and on

    def window(self, layer: int) -> int | None:
        """How many tokens back this layer sees; None: no limit."""
        return self.sliding_window[layer] if self.sliding_window else None

    def scale(self, layer: int) -> float:
        """The factor on q·k in this layer."""
        base = self.d_head**-0.5 if self.attn_scale is None else self.attn_scale
        return base / (layer + 1) if self.attn_scale_by_layer else base

    def of_parameter(self, name: str) -> TransformerConfig:
        """The config of the stack that a parameter of the model belongs to."""
        own = self.encoder is None or not name.startswith("encoder.")
        return self if own else self.encoder  # type: ignore[return-value]

    def replace(self, **changes: Any) -> TransformerConfig:
        """A copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The config of these fields. Raises ConfigError on a field that does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown config field {name!r}{hint}")
        # JSON knows only lists and dicts.
        values = _tuples(values)
        try:
            scaling = values.get("rotary_scaling")
            if isinstance(scaling, dict):
                values["rotary_scaling"] = RotaryScaling(**_tuples(scaling))
            elif isinstance(scaling, tuple):
                made = (RotaryScaling(**_tuples(s)) if isinstance(s, dict) else s for s in scaling)
                values["rotary_scaling"] = tuple(made)
            if isinstance(values.get("encoder"), dict):
                values["encoder"] = cls.from_dict(values["encoder"])
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"config: {error}") from None


SIZES_OF_INPUTS = {
    **dict.fromkeys(("image_size", "patch_size", "n_channels"), "patches"),
    "n_mels": "frames",
    "d_state": "trajectory",
}
"""Which inputs need, and alone have, a size."""

CHOICES: dict[str, Any] = {
    "norm": Norm,
    "norm_position": NormPosition,
    "positions": Positions,
    "activation": Activation,
    "head": Head,
    "inputs": Inputs,
    "qk_norm": QKNorm,
    "expert_weights": ExpertWeights,
}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        allowed = ", ".join(map(repr, get_args(choices)))
        raise ConfigError(f"{name}={value!r}: expected one of {allowed}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return all(_is_int(side) and 0 < side <= MAX_PIXELS for side in value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
