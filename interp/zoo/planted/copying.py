"""Planted heads that copy: induction, with plain and grouped queries, and a rotary look one back.

Induction (Olsson et al. 2022) completes "… A B … A" with B by two heads in series: one tells every
token which token stood before it; the other looks for a place whose predecessor is the present
token, and copies what stands there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.core import chance
from interp.core.chance import seeded
from interp.core.config import TransformerConfig

from .base import (
    BOS,
    GAIN,
    Attends,
    Planted,
    Prompts,
    Spaces,
    Truth,
    blank,
    distinct,
    links,
)
from .crowd import HeadWeights, check_count, seats, set_heads

D_VOCAB = 24
N_CTX = 24
LENGTH = 16
"""Tokens of a prompt."""
SHARPNESS = 14.0
"""Score of the place that is looked for; all others have 0, so it gets 1 − 24 e^−14 and more."""
ROTARY_SHARPNESS = 60.0
ROTARY_BASE = 4.0


def induction(
    n_distractors: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Planted:
    """Two attention-only layers: a previous-token head and an induction head among distractors.

    Residual stream: tok (token, one-hot, from W_E) | pos (position, one-hot, from W_pos) | prev
    (token before this one) | out (answer; W_U reads 8 × it) | junk (what distractors write).
    Scores are q·k (attn_scale 1), β = 14:

    - previous token, layer 0. W_Q: pos t → β e(t−1). W_K: pos t → e(t). Score β at offset −1.
      W_V: tok v → e(v). W_O: e(v) → prev v. Position 0 sees only itself, and BOS is never asked.
    - induction, layer 1. W_Q: tok v → β e(v). W_K: prev v → e(v). Score β where the token before
      is the present one. W_V: tok v → e(v). W_O: e(v) → out v.

    Prompts are 16 tokens, all different but for the last, which repeats the one at role "first";
    the answer follows that at "answer". In the corrupted prompt the tokens at "first" and "other"
    have changed places, so that the token after "other", at "wrong", follows.
    """
    return _induction("induction", n_distractors, 1 + n_distractors, seed, dtype)


def grouped_induction(
    n_distractors: int = 7,
    *,
    n_kv_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Planted:
    """`induction` with grouped queries: n_kv_heads divides 1 + n_distractors.

    The heads beside a real one have its very keys and values; their queries and outputs are turned.
    """
    return _induction("grouped_induction", n_distractors, n_kv_heads, seed, dtype)


def _induction(
    name: str, n_distractors: int, n_kv_heads: int, seed: int, dtype: torch.dtype
) -> Planted:
    check_count(n_distractors)
    generator, n_heads = seeded(seed), 1 + n_distractors
    spaces = Spaces(tok=D_VOCAB, pos=N_CTX, prev=D_VOCAB, out=D_VOCAB, junk=D_VOCAB)
    tok, pos, prev, out = (spaces[name] for name in ("tok", "pos", "prev", "out"))
    d_head = max(D_VOCAB, N_CTX)
    model = blank(
        _attention_only(spaces, n_layers=2, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head),
        name,
    )
    model.W_E[:, tok] = torch.eye(D_VOCAB, dtype=torch.float64)
    model.W_pos[:, pos] = torch.eye(N_CTX, dtype=torch.float64)
    model.W_U[out] = GAIN * torch.eye(D_VOCAB, dtype=torch.float64)
    inner, token = torch.arange(d_head), torch.arange(D_VOCAB)
    read, write = (spaces.d_model, d_head), (d_head, spaces.d_model)
    previous = HeadWeights(
        Q=links(read, (pos[1:], inner[: N_CTX - 1], SHARPNESS)),
        K=links(read, (pos, inner[:N_CTX], 1.0)),
        V=links(read, (tok, token, 1.0)),
        O=links(write, (token, prev, 1.0)),
    )
    match = HeadWeights(
        Q=links(read, (tok, token, SHARPNESS)),
        K=links(read, (prev, token, 1.0)),
        V=links(read, (tok, token, 1.0)),
        O=links(write, (token, out, 1.0)),
    )
    (first,), (second,) = (seats(n_heads, 1, generator) for _ in range(2))
    set_heads(model.blocks[0].attn, {first: previous}, spaces, generator)
    set_heads(model.blocks[1].attn, {second: match}, spaces, generator)
    truth = Truth(
        roles={"previous_token": ((0, first),), "induction": ((1, second),)},
        attends=(
            Attends((0, first), "answer", "first"),
            Attends((0, first), "wrong", "other"),
            Attends((1, second), "end", "answer"),
        ),
        directions=spaces.directions("tok", "pos", "prev", "out", "junk"),
        note=(
            f"The previous-token head 0.{first} and the induction head 1.{second} work in series: "
            "removing either loses the answer, whatever it is replaced by, and patching either "
            "one's z from the clean run into the corrupted one restores it."
        ),
    )
    return Planted(name, model.to(dtype), truth, _repeated)


def _attention_only(spaces: Spaces, **changes) -> TransformerConfig:
    values = {
        "d_model": spaces.d_model, "d_vocab": D_VOCAB, "n_ctx": N_CTX, "norm": "none",
        "final_norm": False, "attn_scale": 1.0, "qkv_bias": False, "attn_out_bias": False,
    }  # fmt: skip
    return TransformerConfig(**(values | changes))


def _repeated(n: int, generator: torch.Generator) -> Prompts:
    """… A B … C D … A → B, corrupted to … C B … A D … A → D."""
    body = distinct(n, LENGTH - 2, range(BOS + 1, D_VOCAB), generator)
    ids = torch.cat([torch.full((n, 1), BOS), body, body[:, :1]], dim=1)
    # Both are followed by a token of the body, and neither by the other.
    apart = [(i, j) for i in range(1, LENGTH - 2) for j in range(1, LENGTH - 2) if abs(i - j) > 1]
    chosen = torch.tensor(apart)[chance.integers(0, len(apart), n, generator=generator)]
    first, other = chosen.T
    row = torch.arange(n)
    ids[row, -1] = ids[row, first]
    corrupted = ids.clone()
    corrupted[row, first], corrupted[row, other] = ids[row, other], ids[row, first]
    last = torch.full((n,), LENGTH - 1)
    roles = {"first": first, "answer": first + 1, "other": other, "wrong": other + 1, "end": last}
    return Prompts.of(ids, corrupted, ids[row, first + 1], ids[row, other + 1], roles)


def rotary_previous_token(
    n_distractors: int = 3,
    *,
    interleaved: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Planted:
    """One layer with rotary positions (Su et al. 2021), one head of which looks one token back.

    Residual stream: tok | const (1 at every token) | out | junk. No weight knows a position. Of the
    P = 16 rotated pairs of the head, pair i turns by ω_i = 4^(−i/16) per token. W_Q takes const to
    (1, 0) √(β/P) in every pair; W_K takes it to (cos ω_i, sin ω_i) √(β/P), already one step ahead.
    Turned to their places, a query at t and a key at s meet at the angle ω_i (t − s − 1):

        score(t, s) = β/P Σ_i cos(ω_i (t − s − 1)),    β = 60

    which is 60 at s = t − 1, 49.5 on either side of it, and below 24 at every other of the 24
    offsets: the frequencies lie between .27 and 1, so that no two offsets look alike. W_V: tok v →
    e(v). W_O: e(v) → out v.

    Prompts are random tokens; the answer is the last but one (role "previous"), which alone differs
    in the corrupted prompt.
    """
    check_count(n_distractors)
    generator = seeded(seed)
    spaces = Spaces(tok=D_VOCAB, const=1, out=D_VOCAB, junk=D_VOCAB)
    n_heads, d_head = 1 + n_distractors, 32
    cfg = _attention_only(
        spaces, n_layers=1, n_heads=n_heads, d_head=d_head, positions="rotary",
        rotary_base=ROTARY_BASE, rotary_interleaved=interleaved,
    )  # fmt: skip
    model = blank(cfg, "rotary_previous_token")
    model.W_E[:, spaces["tok"]] = torch.eye(D_VOCAB, dtype=torch.float64)
    model.W_E[:, spaces["const"]] = 1.0
    model.W_U[spaces["out"]] = GAIN * torch.eye(D_VOCAB, dtype=torch.float64)
    head = _one_back(spaces, d_head, interleaved)
    (seat,) = seats(n_heads, 1, generator)
    set_heads(model.blocks[0].attn, {seat: head}, spaces, generator)
    truth = Truth(
        roles={"previous_token": ((0, seat),)},
        attends=(Attends((0, seat), "end", "previous"),),
        directions=spaces.directions("tok", "const", "out", "junk"),
        note=(
            f"Head 0.{seat} alone moves the answer; its attention depends on the offset only, and "
            "with rotation switched off it is the same at every offset."
        ),
    )
    return Planted("rotary_previous_token", model.to(dtype), truth, _last_but_one)


def _one_back(spaces: Spaces, d_head: int, interleaved: bool) -> HeadWeights:
    """The rotary head: a constant query, and a constant key that is one step ahead of it."""
    tok, const, out = (spaces[name] for name in ("tok", "const", "out"))
    token = torch.arange(D_VOCAB)
    pairs = d_head // 2
    omega = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    strength = (ROTARY_SHARPNESS / pairs) ** 0.5
    query, key = torch.zeros(1, d_head).double(), torch.zeros(1, d_head).double()
    along, across = _pair_axes(d_head, interleaved)
    query[0, along] = strength
    key[0, along], key[0, across] = strength * omega.cos(), strength * omega.sin()
    read, write = (spaces.d_model, d_head), (d_head, spaces.d_model)
    return HeadWeights(
        Q=links(read).index_copy(0, const, query),
        K=links(read).index_copy(0, const, key),
        V=links(read, (tok, token, 1.0)),
        O=links(write, (token, out, 1.0)),
    )


def _pair_axes(d_head: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The two axes of every rotated pair."""
    axes = torch.arange(d_head)
    return (axes[::2], axes[1::2]) if interleaved else (axes[: d_head // 2], axes[d_head // 2 :])


def _last_but_one(n: int, generator: torch.Generator) -> Prompts:
    body = chance.integers(BOS + 1, D_VOCAB, n, LENGTH - 1, generator=generator)
    ids = torch.cat([torch.full((n, 1), BOS), body], dim=1)
    shift = chance.integers(1, D_VOCAB - 1, n, generator=generator)
    answer = ids[:, -2]
    wrong = (answer - 1 + shift) % (D_VOCAB - 1) + 1
    corrupted = ids.clone()
    corrupted[:, -2] = wrong
    roles = {"previous": torch.full((n,), LENGTH - 2), "end": torch.full((n,), LENGTH - 1)}
    return Prompts.of(ids, corrupted, answer, wrong, roles)
