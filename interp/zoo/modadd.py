"""Addition modulo a prime: the model that groks (Power et al. 2022, Nanda et al. 2023).

A sequence is a, b, =; the answer (a + b) mod p is asked at the last position. Every pair is known,
and the training pairs are a fixed share of them.
"""

from __future__ import annotations

import numpy as np

from ..config import TransformerConfig
from ..training.data import SPLITS, SampledData, Split

P = 113
SHARE = 0.3
"""Of all pairs, those trained on."""


def config(p: int = P) -> TransformerConfig:
    """One layer, 4 heads, d_model 128, 512 neurons, no norm, as in Nanda et al. 2023."""
    return TransformerConfig(
        n_layers=1,
        d_model=128,
        n_heads=4,
        d_mlp=512,
        d_vocab=p + 1,
        n_ctx=3,
        norm="none",
        final_norm=False,
        activation="relu",
        qkv_bias=False,
        attn_out_bias=False,
    )


def pairs(p: int = P) -> np.ndarray:
    """All sequences with their answers: [p², 4], a, b, =, (a + b) mod p."""
    a, b = np.divmod(np.arange(p * p), p)
    return np.stack([a, b, np.full(p * p, p), (a + b) % p], axis=1)


def split(p: int = P, share: float = SHARE, seed: int = 0) -> dict[Split, np.ndarray]:
    """The pairs trained on, and all others."""
    order = np.random.default_rng(seed).permutation(p * p)
    cut = int(p * p * share)
    every = pairs(p)
    return {"train": every[order[:cut]], "val": every[order[cut:]]}


def data(p: int = P, share: float = SHARE, seed: int = 0) -> SampledData:
    """The whole split as every batch, asked at the last position alone; the size of a batch is
    that of the split."""
    parts = split(p, share, seed)

    def draw(rng: np.random.Generator, which: Split, size: int) -> np.ndarray:
        rows = parts[which].copy()
        rows[:, :3] = ~rows[:, :3]  # given, not asked
        return rows

    return SampledData(draw, None, f"modadd {p} {share} {sorted(SPLITS)}", seed=seed)
