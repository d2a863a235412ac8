"""What heads write, read by the unembedding: the tokens that they raise and lower.

With every norm's scale held at what it was, what a head adds to a logit is linear in its z (direct
logit attribution; Elhage et al. 2021). What it does through later layers is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite, finite_cache
from interp.core.precision import wide, wide_dtype
from interp.core.tokens import Tokens

from .circuits import WORDS, rotation_z

MEAN = -1
"""In the column source: the mean of all that the head writes."""


class Writes(NamedTuple):
    """Of every head, on the CPU."""

    value: Float[Tensor, "layer head"]
    """In logits."""
    z: Float[Tensor, "layer head"]
    """How far that lies above 0, in standard deviations of a random rotation between the head's
    values and its outputs (`copying`)."""


def unreadable(model: Any) -> str | None:
    """Why the unembedding does not read what heads write; None: it does."""
    cfg = model.cfg
    if model.opaque:
        return model.opaque
    if cfg.head != "unembed":
        return f"head={cfg.head!r}: the output is no sum over the residual stream"
    if cfg.norm != "none" and cfg.norm_position == "post":
        return "norm_position='post': every norm rescales what was written before"
    return None


@torch.no_grad()
def direct_writes(
    model: Any, tokens: Tokens, direction: Float[Tensor, "batch pos d_model"]
) -> Writes:
    """What every head adds to the residual stream along `direction`, a vector of the unembedding
    for each position (0: it does not count), summed over positions.

    Raises ValueError where there is no such sum (`unreadable`).
    """
    why = unreadable(model)
    if why is not None:
        raise ValueError(f"{model.name}: {why}")
    cache = finite_cache(model, tokens, _sites(model, "attn.hook_z"))
    read = _back(model.ln_final, wide(direction) * (model.cfg.logit_scale or 1.0), cache)
    values, scores = [], []
    for layer, block in enumerate(model.blocks):
        own = _back(block.ln1_post, read, cache) * (block.scale or 1.0)
        z = cache["attn.hook_z", layer]
        asked = torch.einsum("bphd,bpm->hdm", z.to(own), own)
        W_O = block.attn.W_O.to(own)
        values.append((W_O * asked).sum((-2, -1)).double())  # tr(W_O askedᵀ)
        scores.append(rotation_z(W_O, asked.mT, own.dtype))  # R stands between V and O
    value = finite(torch.stack(values), model, "what heads write", tokens)
    return Writes(value.cpu(), torch.stack(scores).cpu())


@torch.no_grad()
def promoted_tokens(model: Any, tokens: Any, *, k: int = 5, sources: int = 3) -> pd.DataFrame:
    """Tokens that each head raises and lowers most: layer head source share kind rank token logit.

    `source` −1 is the mean of all that the head writes on these tokens, `share` 1; the others are
    the ids of the `sources` tokens that it takes most from (attention × length of what that writes,
    as a share of all), with what it writes of each. `kind` is "promoted" or "suppressed", `rank` 1
    to k, `logit` what it adds to the token beyond the mean of the vocabulary, the final norm's
    scale held at its mean. Raises ValueError where heads' outputs are no logits (`unreadable`).
    """
    why = unreadable(model)
    if why is not None:
        raise ValueError(f"{model.name}: {why}")
    tokens, cfg = model.accept(tokens), model.cfg
    k = min(k, cfg.d_vocab)
    cache = finite_cache(model, tokens, _sites(model, "attn.hook_v", "attn.hook_pattern"))
    frames, directions = [], []
    for layer, block in enumerate(model.blocks):
        index, vectors = _sources(model, cache, tokens, layer, sources)
        vectors = _onward(block.ln1_post, vectors, cache, tokens) * (block.scale or 1.0)
        frames.append(index.assign(layer=layer))
        directions.append(_onward(model.ln_final, vectors, cache, tokens).flatten(0, 1))
    written = torch.cat(directions) * (cfg.logit_scale or 1.0)
    index = pd.concat(frames, ignore_index=True)
    up, down = _extremes(model, written, k)
    parts = [_ranked(index, *up, "promoted", k), _ranked(index, *down, "suppressed", k)]
    columns = ["layer", "head", "source", "share", "kind", "rank", "token", "logit"]
    order = ["layer", "head", "at", "kind", "rank"]
    return pd.concat(parts).sort_values(order, ignore_index=True)[columns]


def _sites(model: Any, *parts: str) -> list[str]:
    """Those sites of all layers, and the scales of the norms behind them."""
    names = [name for part in parts for name in model.sites.select(part)]
    norms = [model.ln_final, *(block.ln1_post for block in model.blocks)]
    return names + [norm.hook_scale for norm in norms if norm is not None]


def _back(norm: Any, read: Tensor, cache: Any) -> Tensor:
    """What is read before a norm, where `read` is read behind it."""
    if norm is None:
        return read
    if norm.gain is not None:
        read = read * norm.gain
    if norm.kind == "layernorm":
        read = read - read.mean(-1, keepdim=True)
    return read / cache[norm.hook_scale].to(read)


def _onward(norm: Any, written: Tensor, cache: Any, tokens: Tokens) -> Tensor:
    """What becomes of vectors behind a norm, its scale held at its mean."""
    if norm is None:
        return written
    if norm.kind == "layernorm":
        written = written - written.mean(-1, keepdim=True)
    inverse = cache[norm.hook_scale][tokens.real].to(written).reciprocal().mean()
    return written * inverse if norm.gain is None else written * norm.gain * inverse


def _sources(
    model: Any, cache: Any, tokens: Tokens, layer: int, most: int
) -> tuple[pd.DataFrame, Float[Tensor, "head source d_model"]]:
    """What each head of a layer writes: on the mean, and of the tokens that it takes most from."""
    attn = model.blocks[layer].attn
    W_O, real = attn.W_O, tokens.real
    dtype = wide_dtype(W_O.dtype)
    pattern = cache["attn.hook_pattern", layer].to(dtype)
    taken = torch.einsum("bhqk,bq,bk->bhk", pattern, real.to(dtype), real.to(dtype))
    groups = model.cfg.n_heads // model.cfg.n_kv_heads
    v = cache["attn.hook_v", layer].to(dtype).repeat_interleave(groups, dim=2)
    gram = W_O.to(dtype) @ W_O.to(dtype).mT
    lengths = torch.einsum("bkhd,hde,bkhe->bhk", v, gram, v).clamp_min(0).sqrt()
    kinds, which = torch.unique(tokens.ids, return_inverse=True)
    own = torch.nn.functional.one_hot(which, len(kinds)).to(dtype)
    strength = torch.einsum("bhk,bku->hu", taken * lengths, own)
    weight = torch.einsum("bhk,bku->hu", taken, own)
    values = torch.einsum("bhk,bkhd,bku->hud", taken, v, own)
    share, best = strength.div(strength.sum(1, keepdim=True).clamp_min(1e-30)).topk(
        min(most, len(kinds))
    )
    picked = values.gather(1, best[..., None].expand(-1, -1, values.shape[-1]))
    picked = picked / weight.gather(1, best).clamp_min(1e-30)[..., None]
    mean = values.sum(1) / real.sum()
    both = torch.cat([mean[:, None], picked], dim=1)
    n_heads, n = both.shape[:2]
    source = torch.cat([torch.full((n_heads, 1), MEAN, device=best.device), kinds[best]], dim=1)
    whole = torch.cat([torch.ones_like(share[:, :1]), share], dim=1)
    index = pd.DataFrame(
        {
            "head": np.arange(n_heads).repeat(n),
            "at": np.tile(np.arange(n), n_heads),
            "source": source.flatten().cpu().numpy(),
            "share": whole.flatten().double().cpu().numpy(),
        }
    )
    return index, both @ W_O.to(dtype)


def _extremes(
    model: Any, written: Float[Tensor, "n d_model"], k: int
) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Of each vector the k largest and the k smallest logits above their mean, and their ids; the
    vocabulary a part at a time."""
    size, total = model.cfg.d_vocab, written.new_zeros(len(written), 1)
    kept: list[tuple[Tensor, Tensor] | None] = [None, None]
    for part in torch.arange(size, device=written.device).split(WORDS):
        logits = written @ model.W_U[:, part].to(written)
        finite(logits, model, "what heads write to the logits")
        total += logits.sum(1, keepdim=True)
        for side, largest in enumerate((True, False)):
            ids = part.expand_as(logits)
            before = kept[side]
            joined = (logits, ids) if before is None else tuple(
                torch.cat(both, dim=1) for both in zip(before, (logits, ids), strict=True)
            )  # fmt: skip
            values, at = joined[0].topk(min(k, joined[0].shape[1]), dim=1, largest=largest)
            kept[side] = values, joined[1].gather(1, at)
    mean = total / size
    return [((v - mean).double().cpu().numpy(), ids.cpu().numpy()) for v, ids in filter(None, kept)]


def _ranked(
    index: pd.DataFrame, logits: np.ndarray, ids: np.ndarray, kind: str, k: int
) -> pd.DataFrame:
    long = index.loc[index.index.repeat(k)].reset_index(drop=True)
    rank = np.tile(np.arange(1, k + 1), len(index))
    return long.assign(kind=kind, rank=rank, token=ids.flatten(), logit=logits.flatten())
