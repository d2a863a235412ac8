"""Attention patterns for tests: heads of known kinds, as a model would give them."""

from __future__ import annotations

import numpy as np

KINDS = ("previous", "first", "itself", "mixed")


def patterns(layers: int, heads: int, n: int, *, seed: int = 0, causal: bool = True) -> np.ndarray:
    """[layer head q_pos k_pos] float32; head h is of the kind h mod 4, the more clearly the deeper
    its layer."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(layers, heads, n, n))
    at, strength = np.arange(n), 4 + 2 * np.arange(layers)[:, None]
    for head in range(heads):
        kind = KINDS[head % 4]
        if kind == "previous":
            scores[:, head, at[1:], at[:-1]] += strength
        elif kind == "first":
            scores[:, head, :, 0] += strength
        elif kind == "itself":
            scores[:, head, at, at] += strength
    if causal:
        scores[:, :, ~np.tri(n, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def words(n: int) -> list[str]:
    """n tokens, the last called " end"."""
    return ["<s>", *(f" w{i}" for i in range(1, n - 1)), " end"]
