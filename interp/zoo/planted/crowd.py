"""Real heads among distractors of the same norms.

A distractor is a real head turned at random: W_Q → R W_Q S, W_K → R' W_K S, W_V → R'' W_V T with R
and S, T random orthogonal matrices of the residual stream and of the head. So W_Q W_Kᵀ and W_V W_O
have the singular values of the real head, and nothing in their size gives the real one away. What
a distractor writes lies in the block "junk" but for a share LEAK of its length that falls on all
other coordinates: its effects are small, not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.core import chance
from interp.model.attention import Attention

from .base import Spaces, orthogonal

LEAK = 0.15
"""Share of a distractor's output that falls outside "junk", as a ratio of lengths."""


class HeadWeights(NamedTuple):
    """The four matrices of one head."""

    Q: Float[Tensor, "d_model d_head"]
    K: Float[Tensor, "d_model d_head"]
    V: Float[Tensor, "d_model d_head"]
    O: Float[Tensor, "d_head d_model"]  # noqa: E741  # the name of the field


def seats(n_heads: int, n_real: int, generator: torch.Generator) -> list[int]:
    """Where the real heads sit: at random, but neither first nor last where that can be.

    At the ends a wrong grouping of query heads (h % n_kv_heads for h // group) would go unseen.
    """
    inner = range(1, n_heads - 1) if n_heads - 2 >= n_real else range(n_heads)
    order = chance.permutation(len(inner), generator)
    return [inner[int(i)] for i in order[:n_real]]


def check_count(n_distractors: int) -> None:
    """Raise ValueError on a number of distractors that there cannot be."""
    if n_distractors < 0:
        raise ValueError(f"n_distractors={n_distractors}: expected 0 or more")


def set_heads(
    attn: Attention, real: Mapping[int, HeadWeights], spaces: Spaces, generator: torch.Generator
) -> None:
    """Write the real heads at their places, and distractors everywhere else.

    With grouped queries the heads beside a real one share its keys and values as they are, and only
    their queries and outputs are turned.
    """
    group = attn.n_heads // attn.n_kv_heads
    patterns = list(real.values())
    turn = lambda: orthogonal(spaces.d_model, generator)  # noqa: E731
    spin = lambda: orthogonal(attn.d_head, generator)  # noqa: E731
    for kv in range(attn.n_kv_heads):
        members = range(kv * group, (kv + 1) * group)
        own = [real[head] for head in members if head in real]
        assert len(own) <= 1, "two real heads in one group would need the same keys and values"
        pattern, S, T = patterns[kv % len(patterns)], spin(), spin()
        if own:
            pattern = own[0]
            S = T = torch.eye(attn.d_head, dtype=torch.float64)
            attn.W_K[kv], attn.W_V[kv] = pattern.K, pattern.V
        else:
            attn.W_K[kv], attn.W_V[kv] = turn() @ pattern.K @ S, turn() @ pattern.V @ T
        for head in members:
            if head in real:
                attn.W_Q[head], attn.W_O[head] = pattern.Q, pattern.O
            else:
                attn.W_Q[head] = turn() @ pattern.Q @ S
                attn.W_O[head] = T.T @ elsewhere(pattern.O, spaces, generator)


def elsewhere(
    W: Float[Tensor, "d_in any"], spaces: Spaces, generator: torch.Generator
) -> Float[Tensor, "d_in d_model"]:
    """W with its outputs turned into "junk", singular values kept, LEAK of the length outside."""
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    rank = int((S / S[0] > 1e-12).sum())
    inside = torch.zeros(spaces.d_model, dtype=torch.bool)
    inside[spaces["junk"]] = True
    rows = torch.zeros(rank, spaces.d_model, dtype=torch.float64)
    assert rank <= min(int(inside.sum()), int((~inside).sum())), "junk is too narrow for this map"
    rows[:, inside] = orthogonal(int(inside.sum()), generator)[:rank] * (1 - LEAK**2) ** 0.5
    rows[:, ~inside] = orthogonal(int((~inside).sum()), generator)[:rank] * LEAK
    return U[:, :rank] * S[:rank] @ rows
