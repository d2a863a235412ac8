"""Where the tokens of a run stand and who sees whom: computed once, shared by all layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.core.tokens import Tokens

from .bias import alibi, relative
from .prefix import Prefix
from .rotary import longrope, rotary_frequencies


class Places:
    """Where tokens stand in their sequences, whichever rows they are of.

    `lengths` says how many tokens the sequence of each position has so far; None: as many as the
    largest of its row's positions counts.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        positions: Int[Tensor, "#batch pos"],
        like: Tensor,
        lengths: Int[Tensor, "#batch #pos"] | None = None,
    ) -> None:
        self.cfg, self.like, self.device = cfg, like, like.device
        self.positions, self._lengths = positions, lengths
        self._tables: dict[Any, tuple[Tensor, Tensor]] = {}

    @property
    def lengths(self) -> Int[Tensor, "#batch #pos"]:
        """How many tokens the sequence of each position has so far, its prefix included."""
        if self._lengths is not None:
            return self._lengths
        return self.positions.amax(-1, keepdim=True) + 1

    def rotary(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, [#batch pos 1 rotary_dim], in the dtype of the activations."""
        key = base, scaling = self.cfg.rotary_bases[layer], self.cfg.rotary_scalings[layer]
        if key not in self._tables:
            wide = torch.promote_types(self.like.dtype, torch.float32)
            width, device = self.cfg.rotary_dim, self.device
            frequency, factor = rotary_frequencies(base, scaling, width, device, wide)
            if scaling is not None and scaling.kind == "longrope":
                frequency = longrope(frequency, scaling, self.lengths)
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


class Layout(Places):
    """Positions, masks and biases of the rows of one run, behind its prefix where there is one.

    `W_rel` is T5's table of biases.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        tokens: Tokens,
        prefix: Prefix | None,
        like: Tensor,
        W_rel: Float[Tensor, "bucket head"] | None = None,
    ) -> None:
        self.W_rel = W_rel
        self.n_prefix = 0 if prefix is None else prefix.length
        self.n_keys = self.n_prefix + tokens.shape[1]
        self.queries = torch.arange(self.n_prefix, self.n_keys, device=like.device)[None]
        self._square, self._all_last = self.n_prefix == 0, tokens.shape[1] == 1
        self.key_mask = self._key_mask(tokens, None if prefix is None else prefix.mask)
        positions, self.n_positions = self._counted(tokens)
        super().__init__(cfg, positions, like)
        self._masks: dict[int | None, Tensor] = {}
        self._biases: dict[int | None, Tensor] = {}

    def only(self, queries: Int[Tensor, "batch q_pos"]) -> Layout:
        """The same run with queries at some columns alone (columns of the prefix count)."""
        fewer = copy.copy(self)
        fewer.queries, fewer._masks, fewer._biases, fewer._square = queries, {}, {}, False
        fewer._all_last = bool((queries == self.n_keys - 1).all())
        return fewer

    def _key_mask(
        self, tokens: Tokens, before: Bool[Tensor, "batch pos"] | None
    ) -> Bool[Tensor, "batch k_pos"] | None:
        """Which keys are real tokens, those of the prefix `before` the run's; None: all are."""
        if before is None and tokens.mask is None:
            return None
        if before is None:
            before = tokens.real.new_ones(len(tokens), self.n_prefix)
        return torch.cat([before, tokens.real], dim=1)

    def _counted(self, tokens: Tokens) -> tuple[Int[Tensor, "#batch pos"], int | None]:
        """Position of each query, and how many there are at most (None: read from the data)."""
        if tokens.positions is not None:
            return tokens.positions, None
        if self.key_mask is None:
            counted = self.queries
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
        k_pos = self._key_positions
        if self.W_rel is None:
            if self.key_mask is not None:
                k_pos = k_pos * self.key_mask
            return alibi(k_pos, self.cfg, self.like)
        q_pos = self.queries
        if self.key_mask is not None:
            q_pos = k_pos.gather(1, q_pos.expand(len(k_pos), -1))
        return relative(q_pos, k_pos, self.W_rel, self.cfg)

    @property
    def _key_positions(self) -> Int[Tensor, "#batch k_pos"]:
        """Where the keys stand: pads do not count as distance."""
        if self.key_mask is None:
            return torch.arange(self.n_keys, device=self.device)[None]
        return self.key_mask.long().cumsum(1) - 1


class SourceLayout:
    """Of cross-attention: every query sees all real tokens of the source; of a source without any,
    all its positions."""

    def __init__(self, mask: Bool[Tensor, "batch k_pos"] | None) -> None:
        self.key_mask = mask

    def sees_all(self, window: int | None) -> bool:
        """Whether every query sees every key, so that no mask is needed."""
        return self.key_mask is None

    def sees_left(self, window: int | None) -> bool:
        """Whether the mask is the plain causal triangle."""
        return False

    def mask(self, window: int | None) -> Bool[Tensor, "batch 1 1 k_pos"]:
        """True where a query sees a key."""
        sees = self.key_mask | ~self.key_mask.any(1, keepdim=True)
        return sees[:, None, None, :]
