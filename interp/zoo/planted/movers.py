"""Planted heads that act against each other: a mover with sleeping backups, and a negative head.

Both were found in GPT-2 small on the indirect-object task: backup name movers that take over when
the name movers are removed (Wang et al. 2022), and copy suppression, a head that lowers a token
which is about to be predicted and stands in the context already (McDougall et al. 2023).

Prompts of both: BOS, seven fillers among which stands one name, END. At END the model says the
name. In the corrupted prompt another name stands there. No weight knows a position.
"""

from __future__ import annotations

import torch

from interp.core import chance
from interp.core.chance import seeded
from interp.core.config import TransformerConfig
from interp.model import HookedTransformer

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

END = 1
FILLERS = range(2, 10)
NAMES = range(10, 22)
D_VOCAB = 22
LENGTH = 10
D_HEAD = len(NAMES) + 1
SINK = len(NAMES)
"""The dimension inside a head by which BOS is found; names have the others."""
SHARPNESS = 16.0
MOVED = 1.0
"""What the mover writes to "out"."""
BACKUP = 0.45
"""What each of two awake backups writes: together .9 of the mover."""
SUPPRESSED = 0.5
"""What the negative head takes away."""


def backup_movers(
    n_distractors: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Planted:
    """A name mover in layer 0, and in layer 1 two backups that wake only when it is silent.

    Residual stream: tok (token, one-hot) | out (names; W_U reads 8 × it) | junk. β = 16:

    - mover, layer 0. W_Q: END → β e(0). W_K: every name → e(0). So END looks at the name.
      W_V: name v → e(v). W_O: e(v) → out v.
    - backups, layer 1, both alike. W_Q: END → β e(0), and every out v → 2β e(sink). W_K: every name
      → e(0), BOS → e(sink). The name has score β; BOS has 2β × (what is moved): asleep on BOS
      while the mover writes 1, awake on the name when it writes 0. W_V: name v → e(v), BOS → 0.
      W_O: e(v) → .45 out v.

    Zero-ablated alone, the mover costs a tenth of the logit (its backups write .9), and a backup
    nothing; mover and one backup .55; all three everything. An edit that leaves a name in the
    mover's place (mean, resample, patch) wakes nobody and shows the mover's whole effect: this
    truth is tied to zero ablation.
    """
    check_count(n_distractors)
    generator = seeded(seed)
    spaces = _spaces()
    tok, out = spaces["tok"], spaces["out"]
    model = _model(spaces, "backup_movers", n_heads=n_distractors + 2)
    read, _ = _shapes(spaces)
    backup = HeadWeights(
        Q=links(read, (tok[END], 0, SHARPNESS), (out, SINK, 2 * SHARPNESS)),
        K=links(read, (tok[NAMES], 0, 1.0), (tok[BOS], SINK, 1.0)),
        V=_copies(spaces, MOVED).V,
        O=_copies(spaces, BACKUP).O,
    )
    (mover,) = seats(n_distractors + 2, 1, generator)
    backups = seats(n_distractors + 2, 2, generator)
    set_heads(model.blocks[0].attn, {mover: _mover(spaces)}, spaces, generator)
    set_heads(model.blocks[1].attn, dict.fromkeys(backups, backup), spaces, generator)
    asleep = tuple((1, head) for head in sorted(backups))
    truth = Truth(
        roles={"mover": ((0, mover),), "backup": asleep},
        attends=(
            Attends((0, mover), "end", "name"),
            *(Attends(head, "end", "bos") for head in asleep),
        ),
        directions=spaces.directions("tok", "out", "junk"),
        note=(
            f"Mover 0.{mover}; backups {asleep} sleep on BOS until the mover writes nothing. Under "
            "zero ablation single removals hide them all: it takes pairs and the triple."
        ),
    )
    return Planted("backup_movers", model.to(dtype), truth, _named)


def copy_suppression(
    n_distractors: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Planted:
    """A name mover in layer 0, and in layer 1 a negative head that takes half of it back.

    Residual stream and mover as in `backup_movers`. The negative head, β = 16:

    - W_Q: out v → β e(v), END → β/2 e(sink). W_K: name v → e(v), BOS → e(sink). It looks where the
      very name stands that is about to be said, and at BOS where none is.
    - W_V: name v → e(v), BOS → 0. W_O: e(v) → −.5 out v.

    Ablating the mover loses the answer; ablating the negative head raises its logit by half.
    """
    check_count(n_distractors)
    generator = seeded(seed)
    spaces = _spaces()
    tok, out = spaces["tok"], spaces["out"]
    model = _model(spaces, "copy_suppression", n_heads=n_distractors + 1)
    read, _ = _shapes(spaces)
    names = torch.arange(len(NAMES))
    negative = HeadWeights(
        Q=links(read, (out, names, SHARPNESS), (tok[END], SINK, SHARPNESS / 2)),
        K=links(read, (tok[NAMES], names, 1.0), (tok[BOS], SINK, 1.0)),
        V=_copies(spaces, MOVED).V,
        O=_copies(spaces, -SUPPRESSED).O,
    )
    (mover,), (seat,) = (seats(n_distractors + 1, 1, generator) for _ in range(2))
    set_heads(model.blocks[0].attn, {mover: _mover(spaces)}, spaces, generator)
    set_heads(model.blocks[1].attn, {seat: negative}, spaces, generator)
    truth = Truth(
        roles={"mover": ((0, mover),), "negative": ((1, seat),)},
        attends=(Attends((0, mover), "end", "name"), Attends((1, seat), "end", "name")),
        directions=spaces.directions("tok", "out", "junk"),
        note=(
            f"Mover 0.{mover} writes the answer; head 1.{seat} works against it: its effect has "
            "the opposite sign, and it vanishes when the mover is removed."
        ),
    )
    return Planted("copy_suppression", model.to(dtype), truth, _named)


def _spaces() -> Spaces:
    return Spaces(tok=D_VOCAB, out=len(NAMES), junk=len(NAMES))


def _shapes(spaces: Spaces) -> tuple[tuple[int, int], tuple[int, int]]:
    return (spaces.d_model, D_HEAD), (D_HEAD, spaces.d_model)


def _copies(spaces: Spaces, strength: float) -> HeadWeights:
    """Values and outputs that copy a name to "out"; no queries, no keys."""
    (read, write), names = _shapes(spaces), torch.arange(len(NAMES))
    return HeadWeights(
        Q=links(read),
        K=links(read),
        V=links(read, (spaces["tok"][NAMES], names, 1.0)),
        O=links(write, (names, spaces["out"], strength)),
    )


def _mover(spaces: Spaces) -> HeadWeights:
    tok, (read, _) = spaces["tok"], _shapes(spaces)
    return _copies(spaces, MOVED)._replace(
        Q=links(read, (tok[END], 0, SHARPNESS)), K=links(read, (tok[NAMES], 0, 1.0))
    )


def _model(spaces: Spaces, name: str, n_heads: int) -> HookedTransformer:
    """Two attention-only layers without positions; "out" is read as the logits of the names."""
    cfg = TransformerConfig(
        n_layers=2, d_model=spaces.d_model, n_heads=n_heads, d_head=D_HEAD, d_vocab=D_VOCAB,
        n_ctx=LENGTH, norm="none", final_norm=False, positions="none", attn_scale=1.0,
        qkv_bias=False, attn_out_bias=False,
    )  # fmt: skip
    model = blank(cfg, name)
    model.W_E[:, spaces["tok"]] = torch.eye(D_VOCAB, dtype=torch.float64)
    model.W_U[spaces["out"], torch.tensor(NAMES)] = GAIN
    return model


def _named(n: int, generator: torch.Generator) -> Prompts:
    """BOS, fillers with one name among them, END."""
    fill = chance.integers(FILLERS.start, FILLERS.stop, n, LENGTH - 2, generator=generator)
    ids = torch.cat([torch.full((n, 1), BOS), fill, torch.full((n, 1), END)], dim=1)
    names = distinct(n, 2, NAMES, generator)
    at, row = chance.integers(1, LENGTH - 1, n, generator=generator), torch.arange(n)
    corrupted = ids.clone()
    ids[row, at], corrupted[row, at] = names.T
    roles = {"bos": torch.zeros_like(at), "name": at, "end": torch.full((n,), LENGTH - 1)}
    return Prompts.of(ids, corrupted, *names.T, roles)
