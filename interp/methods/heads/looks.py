"""Where heads look: shares of attention by what stands at the key, on any text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.core.finite import finite_cache
from interp.core.tokens import Tokens

LOOKS = ("previous_token", "duplicate_token", "induction", "bos", "self")
"""Where a head may look, by the columns of `head_scores`."""
MEASURED = (*LOOKS, "local", "same_distance")
NEAR = 4
"""Tokens before a query that count as near it."""
ELEMENTS = 2**26
"""Numbers of all patterns that are held at once."""


@torch.no_grad()
def attention_scores(model: Any, tokens: Any) -> pd.DataFrame:
    """Where every head looks: layer head previous_token duplicate_token induction bos self local
    same_distance induction_stderr offset offset_share entropy.

    Shares of attention, averaged over the positions that have such a token: the one before, an
    equal one, the one behind an equal one (Olsson et al. 2022), the first, itself, and the four
    before. `same_distance` is the control of induction: the share of one token as far behind where
    nothing is repeated, which a head that looks a fixed distance back has too; NaN where there is
    none, as every share is that no position has. `induction_stderr` is over rows, NaN for one.
    `offset` is the distance, up to half a row, that gets most, and `offset_share` its share (below
    0: to the right). `entropy` is the mean entropy of a position's attention in bits. Of a causal
    model only what stands to the left counts, and the first position is left out.
    """
    given, cfg = model.accept(tokens), model.cfg
    layer, head = np.divmod(np.arange(cfg.n_layers * cfg.n_heads), cfg.n_heads)
    found = _measure(model, given)
    shares = found.shares.flatten(1).numpy()
    columns: dict[str, Any] = {"layer": layer, "head": head}
    columns |= dict(zip(MEASURED, shares, strict=True))
    columns["induction_stderr"] = found.induction_stderr.flatten().numpy()
    columns["offset"] = found.offset.flatten().numpy()
    columns["offset_share"] = found.offset_share.flatten().numpy()
    columns["entropy"] = found.entropy.flatten().numpy()
    return pd.DataFrame(columns)


@torch.no_grad()
def role_attention(model: Any, tokens: Tokens, query: str = "end") -> pd.DataFrame:
    """What one named position of a prompt puts on the others: layer head role share, averaged over
    rows. Raises ValueError where the tokens do not name the query."""
    tokens, cfg = model.accept(tokens), model.cfg
    if query not in tokens.roles:
        raise ValueError(f"query={query!r}: these tokens have the roles {', '.join(tokens.roles)}")
    total = torch.zeros(cfg.n_layers, cfg.n_heads, len(tokens.roles), dtype=torch.float64)
    for rows in chunks(model, tokens):
        part = tokens[rows]
        cache = finite_cache(model, part, "attn.pattern")
        at = {role: where.to(tokens.device) for role, where in part.roles.items()}
        row = torch.arange(len(part), device=tokens.device)
        for layer in range(cfg.n_layers):
            line = cache["attn.pattern", layer][row, :, at[query]]  # row, head, key
            shares = torch.stack([line[row, :, where].sum(0) for where in at.values()], dim=1)
            total[layer] += shares.double().cpu()
    layer, head, role = np.indices(total.shape).reshape(3, -1)
    frame = pd.DataFrame({"layer": layer, "head": head, "role": np.array([*tokens.roles])[role]})
    return frame.assign(share=(total / len(tokens)).flatten().numpy())


def random_repeats(model: Any, n: int, length: int, seed: int = 0) -> Tokens:
    """n rows of 2 · `length` random tokens, behind the beginning-of-sequence token where the
    tokenizer has one; the last length / 2 to `length` of them, balanced, are those before again.

    The distance of the repetition differs from row to row, so that it cannot be learned from the
    place alone; no token stands twice but for it. Shorter where the context or the vocabulary is.
    """
    tokenizer, cfg = model.tokenizer, model.cfg
    bos = None if tokenizer is None else tokenizer.bos_id
    special = () if tokenizer is None else tokenizer.special_ids
    ordinary = np.setdiff1d(np.arange(cfg.d_vocab), list(special))
    length = min(length, (cfg.n_ctx - (bos is not None)) // 2)
    while length > 2 and 2 * length - (length + 1) // 2 > len(ordinary):
        length -= 1
    spans = np.arange(max(2, (length + 1) // 2), length + 1)
    if length < 2 or 2 * length - spans[0] > len(ordinary):
        raise ValueError(f"n_ctx={cfg.n_ctx}, {len(ordinary)} ordinary tokens: nothing can repeat")
    rng = np.random.default_rng(seed)
    spans = rng.permutation(spans[np.arange(n) % len(spans)])
    rows = []
    for span in spans:
        drawn = rng.choice(ordinary, 2 * length - span, replace=False)
        rows.append(np.concatenate([drawn, drawn[-span:]]))
    start = np.full((n, int(bos is not None)), 0 if bos is None else bos)
    ids = torch.from_numpy(np.concatenate([start, np.stack(rows)], axis=1))
    return Tokens(ids, bos=bos is not None).to(model.device)


def targets(tokens: Tokens, causal: bool) -> dict[str, Bool[Tensor, "batch q k"]]:
    """Which keys each query would look at, by the names of `MEASURED`."""
    real = tokens.real
    place = real.cumsum(1) - 1
    both, behind = pairs_seen(tokens, causal)
    masks = {
        "previous_token": both & (behind == 1),
        "bos": both & (place == 0)[:, None, :],
        "self": both & (behind == 0),
        "local": both & (behind >= 1) & (behind <= NEAR),
    }
    if tokens.ids is None:
        same = torch.zeros_like(both)
    else:
        same = (tokens.ids[:, :, None] == tokens.ids[:, None, :]) & (behind != 0)
    masks["duplicate_token"] = both & same
    # A key's left neighbour equals the query: shift the keys by one real place.
    before = torch.zeros_like(same)
    before[:, :, 1:] = same[:, :, :-1] & real[:, None, :-1]
    masks["induction"] = both & before
    rest = place > 0 if tokens.bos is not False else real  # heads rest on a first token of its own
    allowed = both & ~same & rest[:, None, :]
    masks["same_distance"] = _as_far(masks["induction"], allowed, behind)
    return {name: masks[name] for name in MEASURED}


def pairs_seen(
    tokens: Tokens, causal: bool
) -> tuple[Bool[Tensor, "batch q k"], Int[Tensor, "batch q k"]]:
    """Which pairs of real tokens count, and how far the key stands to the left."""
    real = tokens.real
    place = real.cumsum(1) - 1
    both = real[:, :, None] & real[:, None, :]
    behind = place[:, :, None] - place[:, None, :]
    both &= (behind >= 0) & (place > 0)[:, :, None] if causal else True
    return both, behind


def _as_far(found: Tensor, allowed: Tensor, behind: Tensor) -> Bool[Tensor, "batch q k"]:
    """Pairs as far apart as those found in the same row, of queries for which there are none."""
    width = behind.shape[1]
    index = behind + width
    at = torch.zeros(len(found), 2 * width + 1, device=found.device)
    at.scatter_add_(1, index.flatten(1), found.flatten(1).float())
    near = at.gather(1, index.flatten(1)).view_as(index) > 0
    return allowed & near & ~found.any(-1, keepdim=True)


def weighed(name: str, mask: Tensor) -> Float[Tensor, "batch q k"]:
    """What a pattern is multiplied by to give the share of each query."""
    weights = mask.float()
    if name != "same_distance":
        return weights
    return weights / weights.sum(-1, keepdim=True).clamp_min(1)  # of one such key


class Measured(NamedTuple):
    """Over all rows; [look layer head] and [layer head], float64 on the CPU."""

    shares: Tensor
    induction_stderr: Tensor
    offset: Tensor
    offset_share: Tensor
    entropy: Tensor


def _measure(model: Any, tokens: Tokens) -> Measured:
    cfg, causal = model.cfg, model.cfg.causal
    looks, (n, width) = targets(tokens, causal), tokens.shape
    size = (cfg.n_layers, cfg.n_heads)
    sums = torch.zeros(len(MEASURED), n, *size, dtype=torch.float64)
    counts = torch.stack([looks[name].any(-1).sum(1) for name in MEASURED]).double().cpu()
    most = max(1, width // 2)
    offsets = range(0 if causal else -most, most + 1)
    apart, apart_counts = torch.zeros(len(offsets), *size).double(), torch.zeros(len(offsets))
    bits, asked_in_all = torch.zeros(size, dtype=torch.float64), 0
    for rows in chunks(model, tokens):
        part = tokens[rows]
        cache = finite_cache(model, part, "attn.pattern")
        asked = part.real & (part.real.cumsum(1) > 1 if causal else True)
        both, _ = pairs_seen(part, causal)
        weights = _weights({name: mask[rows.to(mask.device)] for name, mask in looks.items()})
        asked_in_all += int(asked.sum())
        apart_counts += torch.stack([_diagonal(both, d).sum() for d in offsets]).cpu()
        for layer in range(cfg.n_layers):
            pattern = cache["attn.pattern", layer].float()
            shares = torch.einsum("bhqk,sbqk->sbh", pattern, weights)
            sums[:, rows, layer] = shares.double().cpu()
            seen = pattern * both[:, None]
            apart[:, layer] += torch.stack(
                [_diagonal(seen, d).sum((0, 2)) for d in offsets]
            ).double().cpu()  # fmt: skip
            own = -(pattern * pattern.clamp_min(1e-30).log2()).sum(-1)
            bits[layer] += (own * asked[:, None]).sum((0, 2)).double().cpu()
    per_offset = (apart / apart_counts.clamp_min(1)[:, None, None]).max(0)
    return Measured(
        sums.sum(1) / counts.sum(1)[:, None, None],
        _stderr(sums[LOOKS.index("induction")], counts[LOOKS.index("induction")]),
        torch.tensor(list(offsets))[per_offset.indices],
        per_offset.values,
        bits / asked_in_all,
    )


def _diagonal(x: Tensor, behind: int) -> Tensor:
    return x.diagonal(-behind, dim1=-2, dim2=-1)


def _weights(looks: Mapping[str, Tensor]) -> Float[Tensor, "look batch q k"]:
    return torch.stack([weighed(name, mask) for name, mask in looks.items()])


def _stderr(sums: Float[Tensor, "row layer head"], counts: Float[Tensor, " row"]) -> Tensor:
    """Of Σ sums / Σ counts over the rows that have any, by the delta method."""
    has = counts > 0
    sums, counts = sums[has], counts[has, None, None]
    n = len(sums)
    if n < 2:
        return torch.full(sums.shape[1:], torch.nan, dtype=torch.float64)
    off = sums - counts * (sums.sum(0) / counts.sum(0))
    return off.std(0) / n**0.5 / counts.mean()


def chunks(model: Any, tokens: Tokens) -> Iterator[Tensor]:
    """Rows whose patterns fit together."""
    cfg, (n, width) = model.cfg, tokens.shape
    size = max(1, ELEMENTS // (cfg.n_layers * cfg.n_heads * width * width))
    yield from torch.arange(n).split(size)
