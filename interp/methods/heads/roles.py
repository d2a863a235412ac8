"""Names for heads, and how likely chance would give them: each score beside its null distribution.

The null of attention: a random rotation R between a head's queries and its keys, q R k for q k. It
keeps all that the head reads, its weights' sizes, and the layers before it, and leaves nothing of
how queries and keys meet. If W_Q was drawn from any distribution that does not favour a direction
inside the head (such as a Gaussian), the head and its rotations are exchangeable, so that its rank
among them is an exact test (Phipson & Smyth 2010). The rotations of all heads are pooled, since a
p-value that survives correction needs thousands; a head that is sharper than the others must
exceed 95 % of its own as well. No forward pass is run for them. The null of what a head writes is
such a rotation between its values and its outputs, of which mean and variance are known
(`copying`). All p-values of a model are corrected together (Benjamini & Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from interp.core import chance
from interp.core.basis import random_orthonormal
from interp.core.finite import finite_cache
from interp.core.precision import wide
from interp.core.tokens import Tokens

from .circuits import copying
from .looks import pairs_seen, random_repeats, targets, weighed
from .outputs import direct_writes, unreadable

ROLES = (
    "induction",
    "previous token",
    "duplicate token",
    "name mover",
    "negative mover",
    "backup name mover",
    "first token",
    "itself",
    "local",
)
"""What a head may be called; of several the first is its label."""
LOOKED_FOR = {
    "induction": "induction",
    "previous token": "previous_token",
    "duplicate token": "duplicate_token",
    "first token": "bos",
    "itself": "self",
    "local": "local",
}
MOVERS = ("name mover", "negative mover")
BACKUP = "backup name mover"
CAUSAL_ONLY = ("induction", *MOVERS, BACKUP)
"""What asks for an order of words: a head that sees both sides predicts nothing by them."""
MIXED = "mixed"
LEAST = 0.3
"""What a head must put on a place beyond one that looks everywhere alike, as a share of what it
could (as Cohen's κ counts agreement), to be called after it."""
ELEMENTS = 2**21
"""Weights of rotated patterns that are held at once."""
COLUMNS = (
    *("layer", "head", "role", "score", "chance", "excess", "null_mean", "null_high"),
    *("writes", "p", "q", "named"),
)


class Asked(NamedTuple):
    """What a role asks of a pattern, and perhaps of what is written."""

    weights: Float[Tensor, "batch q k"]
    """What the pattern is multiplied by, over all rows and queries, to give the score."""
    writes: Float[Tensor, "layer head"] | None
    """Logits, where the head must raise (or lower) something as well."""
    p_writes: Float[Tensor, "layer head"] | None


@torch.no_grad()
def head_roles(
    model: Any,
    tokens: Any = None,
    pairs: Any = None,
    *,
    n: int = 16,
    length: int = 12,
    draws: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """What every head may be called, with the chance of it: layer head role score chance excess
    null_mean null_high writes p q named.

    `score` is a share of attention on `tokens`, by default `n` rows of `random_repeats` of
    `length`; of induction, less its share as far behind where nothing is repeated; of movers, the
    share that "end" puts on the answer where it stands in the clean prompts of `pairs` (Wang et al.
    2022). `chance` is that of a head that looks everywhere alike, `excess` = (score − chance) /
    (1 − chance). `null_mean` and `null_high` (95 %) are over `draws` random rotations of the head's
    queries against its keys. `p` is how often any head's rotations reach the score. `writes` is
    what the head adds to the logit of the token behind the earlier occurrence beyond the others of
    its row (induction: it has a p of its own, and `p` is the larger one), or to answer − wrong
    (movers: `p` is of this alone, since at one place on one kind of prompt many a random head looks
    at the answer). Where heads' outputs are no logits, `copying` stands in its place. NaN: not
    asked. `q` is p corrected over all heads and roles (Benjamini–Hochberg). `named`: q ≤ alpha,
    excess ≥ `LEAST`, and but for movers a score above the head's own null_high; a previous-token
    head is not named local as well.

    "backup name mover" (only where a name mover was named): what becomes a name mover when those
    found write nothing; corrected by itself. Roles that tokens, pairs or the model do not show are
    left out; of a model that sees both sides induction and movers. Random: the default tokens and
    the rotations, from `seed`. Raises ValueError on a model whose patterns are not made of queries
    and keys alone (behind the bridge, or edited).
    """
    if draws < 1 or not 0 < alpha < 1:
        raise ValueError(f"draws={draws}, alpha={alpha}: expected 1 or more, and 0 < alpha < 1")
    if model.opaque:
        raise ValueError(f"{model.name}: {model.opaque}; roles need its queries and keys")
    given = random_repeats(model, n, length, seed) if tokens is None else model.accept(tokens)
    found = [_tested(model, given, _looks(model, given), draws, seed)]
    asked = {} if pairs is None else _movers(model, pairs)
    if asked:
        found.append(_tested(model, model.accept(pairs.clean), asked, draws, seed + 1))
    frame = _decided(pd.concat(found, ignore_index=True), alpha)
    backups = _backups(model, pairs, frame, draws, alpha, seed + 2)
    frame = frame if backups is None else pd.concat([frame, backups], ignore_index=True)
    order = frame["role"].map(ROLES.index)
    frame = frame.assign(order=order).sort_values(["layer", "head", "order"], ignore_index=True)
    return frame[list(COLUMNS)]


def head_labels(roles: pd.DataFrame) -> pd.DataFrame:
    """One row per head of `head_roles`: layer head label roles, "mixed" where nothing is named.

    `label` is the first of `ROLES`, `roles` names all.
    """
    rows = []
    for _, own in roles.groupby(["layer", "head"]):
        names = own.loc[own["named"], "role"].tolist()
        first = own.iloc[0]
        label = names[0] if names else MIXED
        rows.append((first["layer"], first["head"], label, ", ".join(names) or MIXED))
    return pd.DataFrame(rows, columns=["layer", "head", "label", "roles"])


def rotated_shares(
    model: Any,
    tokens: Tokens,
    weights: Float[Tensor, "score batch q k"],
    draws: int,
    seed: int,
) -> tuple[Float[Tensor, "score layer head"], Float[Tensor, "score draw layer head"]]:
    """Σ pattern · weights of every head, and the same with its queries rotated at random.

    One rotation per layer and draw serves all heads of the layer. Costs one forward pass, and
    per draw the patterns alone, of those queries that have a weight.
    """
    cfg = model.cfg
    generator = chance.seeded(seed)
    cache = finite_cache(model, tokens, ["attn.hook_q", "attn.hook_k", "attn.hook_pattern"])
    layout = model.layout(tokens)
    asked = (weights != 0).any(-1).any(0)
    # Where a row asks for fewer queries than another, some that have no weight come along.
    columns = asked.int().argsort(dim=1, descending=True, stable=True)[:, : int(asked.sum(1).max())]
    index = columns[None, :, :, None].expand(len(weights), -1, -1, weights.shape[-1])
    weights = weights.gather(2, index)
    size = max(1, ELEMENTS // (cfg.n_heads * columns.numel() * weights.shape[-1]))
    observed, null = [], []
    for layer, block in enumerate(model.blocks):
        turns = rotations(draws, cfg.d_head, generator).to(model.like)
        own = torch.eye(cfg.d_head).to(turns)[None]  # the head as it is, by the same route
        q, k = cache["attn.hook_q", layer], cache["attn.hook_k", layer]
        both = torch.cat(
            [
                _summed(_rotated(block.attn, q, k, part, columns, layout), weights)
                for part in torch.cat([own, turns]).split(size)
            ],
            dim=1,
        )
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        plain = cache["attn.hook_pattern", layer].transpose(1, 2)[rows, columns].transpose(1, 2)
        error = (both[:, 0] - _summed(plain[:, :, None], weights)[:, 0]).abs().max()
        if not error <= max(1e-3, 8 * torch.finfo(model.dtype).eps):
            raise ValueError(
                f"layer {layer} of {model.name}: its pattern does not follow from its queries and "
                "keys (an edited pattern?), so that there is no null distribution"
            )
        observed.append(both[:, 0])
        null.append(both[:, 1:])
    return torch.stack(observed, dim=1).double().cpu(), torch.stack(null, dim=2).double().cpu()


def rotations(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "n size size"]:
    """Uniform over all rotations and reflections (Mezzadri 2007), float64."""
    return random_orthonormal(n, size, size, generator=generator)


def _rotated(
    attn: Any, q: Tensor, k: Tensor, turns: Float[Tensor, "draw d d"], columns: Tensor, layout: Any
) -> Float[Tensor, "batch head draw q k"]:
    """Patterns at some columns; the draws stand side by side, as if they were more queries."""
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    if attn.rotary:  # queries are turned to their positions, all of them
        placed = [attn.place(q @ turn, k, layout) for turn in turns]
        queries = torch.cat([one[rows, columns] for one, _ in placed], dim=1)
    else:
        asked = q[rows, columns]
        placed = [attn.place(asked @ turn, k, layout) for turn in turns]
        queries = torch.cat([one for one, _ in placed], dim=1)
    fewer = layout.only(columns.repeat(1, len(turns)))
    pattern = attn.pattern(queries.transpose(1, 2), placed[0][1].transpose(1, 2), fewer)
    return pattern.unflatten(2, (len(turns), -1))


def _summed(
    pattern: Float[Tensor, "batch head draw q k"], weights: Float[Tensor, "score batch q k"]
) -> Float[Tensor, "score draw head"]:
    flat = wide(pattern).flatten(-2).flatten(1, 2)  # batch, head·draw, q·k
    sums = torch.bmm(flat, weights.flatten(-2).permute(1, 2, 0).to(flat)).sum(0)
    return sums.T.unflatten(1, pattern.shape[1:3]).transpose(1, 2)


def _looks(model: Any, tokens: Tokens) -> dict[str, Asked]:
    masks = targets(tokens, model.cfg.causal)
    weights = {}
    for name, mask in masks.items():
        count = mask.any(-1).sum()
        if count:
            weights[name] = weighed(name, mask) / count
    asked = {role: Asked(weights[look], None, None) for role, look in LOOKED_FOR.items()
             if look in weights}  # fmt: skip
    if "induction" not in asked:
        return asked
    writes = _raises(model, tokens, masks["induction"]) if model.cfg.causal else None
    if writes is None:
        del asked["induction"]
        return asked
    control = weights.get("same_distance", torch.zeros_like(weights["induction"]))
    asked["induction"] = Asked(weights["induction"] - control, *writes)
    return asked


def _raises(
    model: Any, tokens: Tokens, found: Tensor
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]] | None:
    """What heads add to the logit of the token behind the earlier occurrence, and its p."""
    if unreadable(model) is not None:
        score, z = copying(model)
        return None if bool(score.isnan().any()) else (score, _upper(z))
    rows, at, key = found.nonzero().T
    words = wide(model.W_U.T[tokens.ids])
    real = tokens.real[..., None].to(words)
    others = (words * real).sum(1) / real.sum(1)
    direction = torch.zeros_like(words)
    direction.index_put_((rows, at), (words[rows, key] - others[rows]) / len(rows), accumulate=True)
    value, z = direct_writes(model, tokens, direction)
    return value, _upper(z)


def _movers(model: Any, pairs: Any) -> dict[str, Asked]:
    """Of the clean prompts; empty where the answer stands in fewer than half of them."""
    tokens = model.accept(pairs.clean)
    if not model.cfg.causal or model.cfg.head == "none" or tokens.ids is None:
        return {}
    answer = pairs.answer.reshape(len(pairs), -1).to(tokens.device)
    wrong = pairs.wrong.reshape(len(pairs), -1).to(tokens.device)
    end, rows = (
        tokens.roles["end"].to(tokens.device),
        torch.arange(len(pairs), device=tokens.device),
    )
    stands = (tokens.ids[:, :, None] == answer[:, None, :]).any(-1) & tokens.real
    stands &= torch.arange(tokens.shape[1], device=tokens.device) < end[:, None]
    has = stands.any(1)
    if 2 * int(has.sum()) < len(pairs):
        return {}
    weights = torch.zeros(*tokens.shape, tokens.shape[1], device=tokens.device)
    weights[rows, end] = stands.float() / has.sum()
    if unreadable(model) is not None:
        value, z = copying(model)
        if bool(value.isnan().any()):
            return {}
    else:
        words = model.W_U.T
        direction = torch.zeros(*tokens.shape, model.cfg.d_model).to(wide(words[:1]))
        direction[rows, end] = (wide(words[answer]).mean(1) - wide(words[wrong]).mean(1)) / len(
            pairs
        )
        value, z = direct_writes(model, tokens, direction)
    up, down = _upper(z), _upper(-z)
    return dict(zip(MOVERS, (Asked(weights, value, up), Asked(weights, value, down)), strict=True))


def _upper(z: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(stats.norm.sf(z.double().cpu().numpy())))


def _tested(
    model: Any, tokens: Tokens, asked: Mapping[str, Asked], draws: int, seed: int
) -> pd.DataFrame:
    """One row per head and role, but for what depends on all of them."""
    cfg = model.cfg
    weights = torch.stack([one.weights for one in asked.values()])
    observed, null = rotated_shares(model, tokens, weights, draws, seed)
    seen = pairs_seen(tokens, cfg.causal)[0].float()
    even = seen / seen.sum(-1, keepdim=True).clamp_min(1)
    layer, head = np.divmod(np.arange(cfg.n_layers * cfg.n_heads), cfg.n_heads)
    frames = []
    for at, (role, one) in enumerate(asked.items()):
        score = observed[at].flatten().numpy()
        p = _exceeded(score, null[at].flatten().numpy())
        writes = np.full_like(score, np.nan)
        if one.writes is not None and one.p_writes is not None:
            writes = one.writes.flatten().double().numpy()
            own = one.p_writes.flatten().numpy()
            p = own if role in (*MOVERS, BACKUP) else np.maximum(p, own)
        chance = float((even * one.weights.to(even)).sum())
        frame = pd.DataFrame({"layer": layer, "head": head, "role": role, "score": score})
        high = null[at].quantile(0.95, dim=0).flatten().numpy()
        frames.append(
            frame.assign(
                chance=chance,
                excess=(score - chance) / (1 - chance) if chance < 1 else 0.0,
                null_mean=null[at].mean(0).flatten().numpy(),
                null_high=high,
                writes=writes,
                p=p,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _exceeded(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """How often the null reaches each score, itself counted; rounding does not break a tie."""
    reached = len(null) - np.searchsorted(np.sort(null), score - 1e-6 * (1 + np.abs(score)))
    return (1 + reached) / (1 + len(null))


def _decided(frame: pd.DataFrame, alpha: float) -> pd.DataFrame:
    q = stats.false_discovery_control(frame["p"].to_numpy().clip(0, 1))
    beyond = (frame["score"] > frame["null_high"]) | frame["role"].isin([*MOVERS, BACKUP])
    named = (q <= alpha) & (frame["excess"] >= LEAST) & beyond
    # The previous token is near: that alone does not make a head local.
    back = frame[named & (frame["role"] == "previous token")].set_index(["layer", "head"]).index
    own = pd.MultiIndex.from_frame(frame[["layer", "head"]])
    return frame.assign(q=q, named=named & ~((frame["role"] == "local") & own.isin(back)))


def _backups(
    model: Any, pairs: Any, frame: pd.DataFrame, draws: int, alpha: float, seed: int
) -> pd.DataFrame | None:
    """Who becomes a name mover when those that were named write nothing."""
    movers = frame[frame["named"] & (frame["role"] == MOVERS[0])]
    if movers.empty or model.fwd_hooks:
        return None
    silent = model.with_hooks(_without(zip(movers["layer"], movers["head"], strict=True)))
    asked = {BACKUP: _movers(silent, pairs)[MOVERS[0]]}
    tested = _tested(silent, model.accept(pairs.clean), asked, draws, seed)
    others = tested.merge(movers[["layer", "head"]], how="left", indicator=True)
    tested = tested[(others["_merge"] == "left_only").to_numpy()]
    return None if tested.empty else _decided(tested, alpha)


def _without(heads: Any) -> Sequence[tuple[Any, Any]]:
    """Hooks under which these heads write nothing."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(int(layer), []).append(int(head))

    def silence(own: list[int]) -> Any:
        def edit(z: Tensor, hook: Any) -> None:
            z[:, :, own] = 0

        return edit

    return [(("attn.hook_z", layer), silence(own)) for layer, own in by_layer.items()]
