"""What is added to scores for the distance of query and key: ALiBi (Press et al. 2022) and the
relative bias of T5 (Raffel et al. 2020)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core.config import TransformerConfig


def alibi(
    k_pos: Int[Tensor, "#batch k_pos"], cfg: TransformerConfig, like: Tensor
) -> Float[Tensor, "#batch head 1 k_pos"]:
    """ALiBi's bias of keys at these positions, up to a constant per query, with the dtype and
    device of `like`."""
    slopes = alibi_slopes(cfg.n_heads).to(like.device)[:, None, None]
    k = k_pos[:, None, None, :]
    exact = not cfg.alibi_bfloat16
    bias = slopes.to(like) * k.to(like) if exact else (slopes.bfloat16() * k).to(like)
    return bias if cfg.alibi_scale is None else bias * cfg.alibi_scale


def alibi_slopes(n_heads: int) -> Float[Tensor, " head"]:
    """2^(−8 i / n) for the nearest power of two n; further heads take the odd steps of 2n."""
    n = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (2 * i + 1) / n) for i in range(n_heads - n)]
    return torch.tensor(slopes, dtype=torch.float64)


def relative(
    q_pos: Int[Tensor, "#batch q_pos"],
    k_pos: Int[Tensor, "#batch k_pos"],
    table: Float[Tensor, "bucket head"],
    cfg: TransformerConfig,
) -> Float[Tensor, "#batch head q_pos k_pos"]:
    """T5's bias: of each pair its bucket's entry in the table."""
    buckets = relative_buckets(k_pos[:, None, :] - q_pos[:, :, None], cfg)
    return table[buckets].permute(0, 3, 1, 2).contiguous()


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
