"""The ways in which a part is removed: its output is averaged, set to zero, or another prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from interp.core.tokens import Tokens
from interp.sweeps import edits
from interp.sweeps.edits import Edit

Kind = Literal["mean", "zero", "resample"]
KINDS: tuple[Kind, ...] = ("mean", "zero", "resample")
Per = Literal["pos", "all"]


def removal_edits(
    tokens: Tokens,
    donors: Tokens,
    mean_of: Tokens,
    kinds: Sequence[Kind] = KINDS,
    *,
    per: Per | None = None,
    own_donor: bool = False,
    seed: int = 0,
) -> dict[str, Edit]:
    """The edit of each kind, for rows of `tokens`.

    Means are taken over `mean_of` (`mean_edit`). Resampled values come from a random row of
    `donors` (drawn from `seed`), or with `own_donor` from the row of the same number. Without
    "resample" where a random donor cannot stand in for every row, since they are not equally long.
    """
    alike = aligned(tokens) and aligned(donors)
    made = {"zero": edits.zero(), "mean": mean_edit(tokens, mean_of, per)}
    if own_donor and donors is not tokens:
        made["resample"] = edits.patch(donors)
    elif alike and donors.shape[1] == tokens.shape[1]:
        made["resample"] = edits.resample(donors, seed)
    return {kind: made[kind] for kind in kinds if kind in made}


def mean_edit(tokens: Tokens, reference: Tokens, per: Per | None = None) -> Edit:
    """The mean over a reference, by default for each position where all rows are equally long."""
    return edits.mean(reference, per=per or usual_per(tokens, reference))


def usual_per(tokens: Tokens, reference: Tokens) -> Per:
    """For each position where all rows are equally long and there are several, else over all."""
    return "pos" if aligned(tokens) and aligned(reference) and len(reference) > 1 else "all"


def aligned(tokens: Tokens) -> bool:
    """Whether rows are equally long, so that position i is the i-th of all."""
    return bool(tokens.real.all())
