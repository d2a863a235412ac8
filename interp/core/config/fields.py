"""The choices that make up an architecture, and what follows from them. Nothing is checked here."""

from __future__ import annotations

from dataclasses import dataclass

from .rotary_scaling import RotaryScaling
from .values import (
    Activation,
    ConfigError,
    ExpertWeights,
    Head,
    Inputs,
    Norm,
    NormPosition,
    Positions,
    QKNorm,
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The fields of a `TransformerConfig`, as they were given."""

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

    encoder: Architecture | None = None
    """The encoder of an encoder–decoder, of which all other fields are then the decoder's."""
    decoder_start_token_id: int | None = None
    """The id with which the decoder of an encoder–decoder begins."""
    decoder_forced_ids: tuple[int, ...] = ()
    """The ids that follow it (Whisper: language, task, no timestamps) before the model writes."""

    @property
    def least_params(self) -> int:
        """Parameters that a model of it has at least: its matrices, without biases, norms and
        encoder."""
        heads = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)
        neurons = self.d_model * self.d_mlp * (3 if self.mlp_gated else 2)
        rows = self.d_vocab if self.inputs == "tokens" else 0
        rows += self.n_ctx if self.positions == "learned" else 0
        return self.n_layers * (heads + neurons) + rows * self.d_model

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        if self.image_size is None or self.patch_size is None:
            raise ConfigError(f"inputs={self.inputs!r}: there are no patches")
        (height, width), (down, across) = self.image_size, self.patch_size
        return height // down, width // across

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
