"""What a run reads that was computed before it: the tokens to its left, and an encoder's output.

A `Prefix` is generation's key-value cache, and the base run of a partial rerun.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.core.tokens import Tokens


class Encoded:
    """What a decoder reads of its source: the encoder's output, and for each layer of the decoder
    the keys and values made of it."""

    def __init__(
        self, resid: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"] | None
    ) -> None:
        self.resid, self.mask = resid, mask
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}
        """By layer, [batch pos kv_head d_head]; a layer adds its own when it first reads."""


class Prefix:
    """Keys (rotated) and values of every layer, and which of their columns are real tokens.

    `mask` None: all are. `extend` puts a run's own keys and values behind them. `encoded` is what a
    decoder reads of its source, once it has read it.
    """

    encoded: Encoded | None = None

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
