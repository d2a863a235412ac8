"""Where the tokens of a run stand and who sees whom: computed once, shared by all layers.

A `Prefix` is what lies to the left of a run, already computed: generation's key-value cache, and
later the base of a partial rerun. Rotary tables follow Su et al. 2021 (RoFormer), with the
scalings of Chen et al. 2023, Peng et al. 2023 (YaRN), Ding et al. 2024 (LongRoPE), the NTK-aware
base and Llama 3; ALiBi follows Press et al. 2022, the relative bias Raffel et al. 2020 (T5). A
`Memory` is what a decoder reads of its source.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.core.config import RotaryScaling, TransformerConfig
from interp.core.tap import Silent, Tap
from interp.core.tokens import Tokens

if TYPE_CHECKING:
    from .attention import Attention


class Memory:
    """What a decoder reads of its source: the encoder's output, and for each of the decoder's
    layers the keys and values made of it, once, when first read.

    To an attention it is the layout of a run in which every query sees all real tokens of the
    source; of a source without any, all its positions.
    """

    prefix = None

    def __init__(
        self,
        resid: Float[Tensor, "batch pos d_model"] | None,
        mask: Bool[Tensor, "batch pos"] | None,
    ) -> None:
        self.resid, self.key_mask = resid, mask
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_values(self, attn: Attention, tap: Silent | Tap) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer [batch pos kv_head d_head]."""
        if attn.layer not in self._made:
            self._made[attn.layer] = attn.project_memory(self.resid, tap)
        return self._made[attn.layer]

    @property
    def n_keys(self) -> int:
        """Positions of the source."""
        return self.resid.shape[1]

    def sees_all(self, window: int | None) -> bool:
        return self.key_mask is None

    def sees_left(self, window: int | None) -> bool:
        return False

    def mask(self, window: int | None) -> Bool[Tensor, "batch 1 1 k_pos"]:
        """True where a query sees a key."""
        sees = self.key_mask | ~self.key_mask.any(1, keepdim=True)
        return sees[:, None, None, :]


class Prefix:
    """Keys (rotated) and values of every layer, and which of their columns are real tokens.

    `mask` None: all are. `extend` puts a run's own keys and values behind them. `memory` is what a
    decoder reads of its source.
    """

    memory: Memory | None = None

    def __init__(
        self,
        keys: list[Float[Tensor, "batch pos kv_head d_head"]],
        values: list[Float[Tensor, "batch pos kv_head d_head"]],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        self.keys, self.values, self.mask = keys, values, mask

    @property
    def length(self) -> int:
        """Columns, pads included."""
        return self.keys[0].shape[1]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix followed by `k` and `v`."""
        return (
            torch.cat([self.keys[layer], k], dim=1),
            torch.cat([self.values[layer], v], dim=1),
        )


class GrowingPrefix(Prefix):
    """A prefix that keeps what extends it, in buffers of fixed capacity: the key-value cache."""

    def __init__(self, cfg: TransformerConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (batch, capacity, cfg.n_kv_heads, cfg.d_head)
        self._keys = [like.new_empty(shape) for _ in range(cfg.n_layers)]
        self._values = [like.new_empty(shape) for _ in range(cfg.n_layers)]
        self._length = 0
        self.mask = None

    @property
    def keys(self) -> list[Tensor]:
        return [k[:, : self._length] for k in self._keys]

    @property
    def values(self) -> list[Tensor]:
        return [v[:, : self._length] for v in self._values]

    @property
    def length(self) -> int:
        return self._length

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self._length + k.shape[1]
        self._keys[layer][:, self._length : end] = k
        self._values[layer][:, self._length : end] = v
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def advance(self, tokens: Tokens) -> None:
        """Count the columns that the last run wrote."""
        if self.mask is not None or tokens.mask is not None:
            old = (
                tokens.real.new_ones(len(tokens), self._length) if self.mask is None else self.mask
            )
            self.mask = torch.cat([old, tokens.real], dim=1)
        self._length += tokens.shape[1]


class Layout:
    """Positions, masks, rotary tables and biases of one run, and the memory of its source."""

    def __init__(
        self,
        cfg: TransformerConfig,
        tokens: Tokens,
        prefix: Prefix | None,
        like: Tensor,
        relative: Float[Tensor, "bucket head"] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.cfg, self.prefix, self.like = cfg, prefix, like
        self.relative, self.memory = relative, memory
        self.device = like.device
        self.n_prefix = 0 if prefix is None else prefix.length
        self.n_keys = self.n_prefix + tokens.shape[1]
        self.queries = torch.arange(self.n_prefix, self.n_keys, device=self.device)[None]
        self._square, self._all_last = self.n_prefix == 0, tokens.shape[1] == 1
        self.key_mask = self._key_mask(tokens)
        self.positions, self.n_positions = self._positions(tokens)
        self._masks: dict[int | None, Tensor] = {}
        self._biases: dict[int | None, Tensor] = {}
        self._tables: dict[Any, tuple[Tensor, Tensor]] = {}

    def attend(
        self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, tap: Silent | Tap
    ) -> Float[Tensor, "batch pos head d_head"]:
        """What the queries of this run read through `attn`."""
        return attn.attend(q, k, v, self, tap)

    def read_memory(
        self, attn: Attention, q: Tensor, tap: Silent | Tap
    ) -> Float[Tensor, "batch pos head d_head"]:
        """What the queries of this run read of the source through `attn`."""
        return attn.attend(q, *self.memory.keys_values(attn, tap), self.memory, tap)

    def only(self, queries: Int[Tensor, "batch q_pos"]) -> Layout:
        """The same run with queries at some columns alone (columns of the prefix count)."""
        fewer = copy.copy(self)
        fewer.queries, fewer._masks, fewer._biases, fewer._square = queries, {}, {}, False
        fewer._all_last = bool((queries == self.n_keys - 1).all())
        return fewer

    def _key_mask(self, tokens: Tokens) -> Bool[Tensor, "batch k_pos"] | None:
        before = None if self.prefix is None else self.prefix.mask
        if before is None and tokens.mask is None:
            return None
        if before is None:
            before = tokens.real.new_ones(len(tokens), self.n_prefix)
        return torch.cat([before, tokens.real], dim=1)

    def _positions(self, tokens: Tokens) -> tuple[Int[Tensor, "#batch pos"], int | None]:
        """Position of each query, and how many there are at most (None: read from the data)."""
        if tokens.positions is not None:
            return tokens.positions, None
        if self.key_mask is None:
            counted = torch.arange(self.n_prefix, self.n_keys, device=self.device)[None]
        else:
            counted = (self.key_mask.long().cumsum(1) - 1).clamp(min=0)[:, self.n_prefix :]
        return counted, self.n_keys

    def check_context(self) -> None:
        """Raise ValueError where a position lies outside the context of the model."""
        if self.n_positions is not None and self.n_positions <= self.cfg.n_ctx:
            return
        if self.n_positions is None and torch.compiler.is_compiling():
            return  # given positions are data, which a graph does not look at
        last = int(self.positions.max())
        if last >= self.cfg.n_ctx or int(self.positions.min()) < 0:
            raise ValueError(
                f"the sequence reaches position {last}, but the context of this model is "
                f"n_ctx={self.cfg.n_ctx}; shorten the prompt"
            )

    def sees_all(self, window: int | None) -> bool:
        """Whether every query sees every key, so that no mask is needed."""
        narrow = window is not None and self.n_keys > window
        if self.key_mask is not None or narrow:
            return False
        return not self.cfg.causal or self._all_last

    def sees_left(self, window: int | None) -> bool:
        """Whether the mask is the plain causal triangle."""
        narrow = window is not None and self.n_keys > window
        return self.cfg.causal and self.key_mask is None and not narrow and self._square

    def mask(self, window: int | None) -> Bool[Tensor, "#batch 1 q_pos k_pos"]:
        """True where a query sees a key. A query that would see nothing sees itself."""
        if window not in self._masks:
            q = self.queries[:, None, :, None]
            k = torch.arange(self.n_keys, device=self.device)
            sees = k <= q if self.cfg.causal else torch.ones_like(k <= q)
            if window is not None:
                sees = sees & ((q - k).abs() < window)
            if self.key_mask is not None:
                sees = sees & self.key_mask[:, None, None, :]
                sees = sees | (~sees.any(-1, keepdim=True) & (k == q))
            self._masks[window] = sees
        return self._masks[window]

    @property
    def lengths(self) -> Int[Tensor, "#batch #pos"]:
        """How many tokens the sequence of each position has so far, its prefix included."""
        return self.positions.amax(-1, keepdim=True) + 1

    def rotary(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, [#batch pos 1 rotary_dim], in the dtype of the activations."""
        key = base, scaling = self.cfg.rotary_bases[layer], self.cfg.rotary_scalings[layer]
        if key not in self._tables:
            wide = torch.promote_types(self.like.dtype, torch.float32)
            width, device = self.cfg.rotary_dim, self.device
            frequency, factor = rotary_frequencies(base, scaling, width, device, wide)
            if scaling is not None and scaling.kind == "longrope":
                frequency = _longrope(frequency, scaling, self.lengths)
            angle = self.positions[..., None].to(wide) * frequency
            cos, sin = angle.cos() * factor, angle.sin() * factor
            if self.cfg.rotary_interleaved:
                cos, sin = cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
            else:
                cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
            self._tables[key] = (
                cos[:, :, None].to(self.like.dtype),
                sin[:, :, None].to(self.like.dtype),
            )
        return self._tables[key]

    def masked_bias(self, window: int | None) -> Float[Tensor, "#batch head q_pos k_pos"]:
        """What the fused kernels add to scores: the bias, −∞ where a query does not see a key."""
        if window not in self._biases:
            bias = self.bias()
            if not self.sees_all(window):
                bias = torch.where(self.mask(window), bias, -torch.inf)
            self._biases[window] = bias
        return self._biases[window]

    def bias(self) -> Float[Tensor, "#batch head #q_pos k_pos"]:
        """What is added to scores for the distance of query and key."""
        return self._alibi() if self.relative is None else self._relative_bias(self.relative)

    def _relative_bias(self, table: Float[Tensor, "bucket head"]) -> Tensor:
        """T5's: of each pair its bucket's entry. Pads do not count as distance."""
        if self.key_mask is None:
            q, k = self.queries, torch.arange(self.n_keys, device=self.device)[None]
        else:
            k = self.key_mask.long().cumsum(1) - 1
            q = k.gather(1, self.queries.expand(len(k), -1))
        buckets = relative_buckets(k[:, None, :] - q[:, :, None], self.cfg)
        return table[buckets].permute(0, 3, 1, 2).contiguous()

    def _alibi(self) -> Float[Tensor, "#batch head 1 k_pos"]:
        """The bias that ALiBi adds to scores, up to a constant per query."""
        slopes = alibi_slopes(self.cfg.n_heads).to(self.device)[:, None, None]
        if self.key_mask is None:
            k = torch.arange(self.n_keys, device=self.device)[None]
        else:
            k = (self.key_mask.long().cumsum(1) - 1) * self.key_mask
        k = k[:, None, None, :]
        if self.cfg.alibi_bfloat16:
            bias = (slopes.bfloat16() * k).to(self.like)
        else:
            bias = slopes.to(self.like) * k.to(self.like)
        return bias if self.cfg.alibi_scale is None else bias * self.cfg.alibi_scale


def relative_buckets(
    distance: Int[Tensor, "*pairs"], cfg: TransformerConfig
) -> Int[Tensor, "*pairs"]:
    """Which entry of T5's table a key this far to the right of its query has.

    Without a causal mask the upper half of the table is for keys on the right. In float32, as the
    published models were trained: in float64 some distances would fall into the next bucket.
    """
    n, right = cfg.relative_buckets, 0
    if cfg.causal:
        distance = (-distance).clamp(min=0)
    else:
        n //= 2
        right = (distance > 0).long() * n
        distance = distance.abs()
    exact = n // 2
    share = torch.log(distance.clamp(min=1).to(torch.float32) / exact)
    share = share / math.log(cfg.relative_max_distance / exact) * (n - exact)
    far = (exact + share.long()).clamp(max=n - 1)
    return right + torch.where(distance < exact, distance, far)


def rotate(x: Tensor, table: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
    """x [batch pos head d_head] with its leading rotary_dim dimensions turned."""
    cos, sin = table
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width]
    if interleaved:
        swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        swapped = turned.roll(width // 2, -1)
    turned = torch.addcmul(turned * cos, swapped, sin)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


def rotary_frequencies(
    base: float,
    scaling: RotaryScaling | None,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, " half"], float]:
    """Radians per position of each pair, and the factor on cosine and sine.

    Those of longrope are still to be divided by the factors of the sequence's length.
    """
    if scaling is not None and scaling.kind == "ntk":
        base = base * scaling.factor ** (width / (width - 2))
    exponent = torch.arange(0, width, 2, device=device).to(dtype) / width
    frequency = base**-exponent
    if scaling is None or scaling.kind == "ntk":
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequency, scaling), 1.0
    if scaling.kind == "longrope":
        return frequency, _longrope_factor(scaling)
    return _yarn(frequency, scaling, base, width)


def _longrope(frequency: Tensor, scaling: RotaryScaling, lengths: Tensor) -> Tensor:
    """[#batch #pos half]: divided by the long factors where a sequence passes original_n_ctx."""
    short, long = (frequency.new_tensor(f) for f in (scaling.short_factors, scaling.long_factors))
    return frequency / torch.where((lengths > scaling.original_n_ctx)[..., None], long, short)


def _longrope_factor(scaling: RotaryScaling) -> float:
    if scaling.attention_factor is not None or scaling.factor <= 1:
        return scaling.attention_factor or 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_n_ctx))


def _llama3(frequency: Tensor, scaling: RotaryScaling) -> Tensor:
    rotations = scaling.original_n_ctx * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def _yarn(
    frequency: Tensor, scaling: RotaryScaling, base: float, width: int
) -> tuple[Tensor, float]:
    def pair_at(rotations: float) -> float:
        """The pair that turns this often over the original context."""
        turns = scaling.original_n_ctx / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(base))

    low, high = pair_at(scaling.beta_fast), pair_at(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    pair = torch.arange(width // 2, device=frequency.device).to(frequency.dtype)
    scaled = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return scaled * frequency / scaling.factor + (1 - scaled) * frequency, factor


def alibi_slopes(n_heads: int) -> Float[Tensor, " head"]:
    """2^(−8 i / n) for the nearest power of two n; further heads take the odd steps of 2n."""
    n = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (2 * i + 1) / n) for i in range(n_heads - n)]
    return torch.tensor(slopes, dtype=torch.float64)
