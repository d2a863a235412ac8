"""Pairs: clean prompts, their corrupted counterparts, and what each should be followed by.

The two runs of activation patching (Vig et al. 2020, Meng et al. 2022) can be compared position by
position only if row i of both has the same length and differs where it is said to; that, and the
rest of what a pair promises, is checked when it is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.core.indices import Indices, row_indices, whole_numbers
from interp.core.tokens import Tokens

SKIPPED = ("kind", "word", "reason")
"""Columns of `Pairs.skipped`."""


def _nothing_skipped() -> pd.DataFrame:
    return pd.DataFrame(columns=list(SKIPPED), dtype=object)


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Clean and corrupted prompts with answers. Made by `interp.tasks`, or by hand."""

    name: str
    clean: Tokens
    """Its `roles` name positions; "end" is the one whose logits should give the answer."""
    corrupted: Tokens
    """The same shape, mask and roles; only the tokens at the roles of `changed` are others."""
    answer: Int[Tensor, " batch"] | Int[Tensor, "batch k"]
    """Id of the right next token of the clean prompt; [batch, k]: any of k ids is right. A row has
    k different ids and no filler, so that metrics may sum or average over them."""
    wrong: Int[Tensor, " batch"] | Int[Tensor, "batch m"]
    """Id (or ids) that it is compared with."""
    clean_texts: Sequence[str] = ()
    corrupted_texts: Sequence[str] = ()
    changed: Sequence[str] = ()
    """Roles at which the two prompts differ, and nowhere else; empty: not said."""
    table: pd.DataFrame | None = None
    """One row per pair: the template and the words that it was made of."""
    skipped: pd.DataFrame = field(default_factory=_nothing_skipped)
    """Words and templates that this tokenizer could not use: kind word reason."""

    def __post_init__(self) -> None:
        _check_tokens(self)
        _check_answers(self)
        for side in (self.clean, self.corrupted):
            if "end" not in side.roles:
                raise ValueError(
                    f"{self.name}: roles {list(side.roles)} lack 'end', where the answer is "
                    "expected"
                )
        if set(self.clean.roles) != set(self.corrupted.roles):
            raise ValueError(
                f"{self.name}: clean has the roles {', '.join(self.clean.roles)} and corrupted "
                f"{', '.join(self.corrupted.roles)}; give both the same"
            )
        _check_difference(self)
        for what in ("clean_texts", "corrupted_texts", "table"):
            value = getattr(self, what)
            if value is not None and len(value) not in (0, len(self)):
                raise ValueError(f"{self.name}: {what} has {len(value)} rows for {len(self)} pairs")

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def both(self) -> Tokens:
        """The clean prompts and below them the corrupted ones: a reference that speaks for neither
        side's answer."""
        first, second = self.clean, self.corrupted
        real = torch.cat([first.real, second.real.to(first.device)])
        strings = None
        if first.strings is not None and second.strings is not None:
            strings = [*first.strings, *second.strings]
        assert first.ids is not None  # checked when the pairs were made
        assert second.ids is not None
        return Tokens(
            torch.cat([first.ids, second.ids.to(first.device)]),
            mask=None if bool(real.all()) else real, strings=strings, bos=first.bos,
            roles={role: torch.cat([where, second.roles[role].to(where.device)])
                   for role, where in first.roles.items()},
        )  # fmt: skip

    def __getitem__(self, rows: Indices) -> Pairs:
        """Some of the pairs, as Pairs, by index, slice, list or mask; one may be asked for several
        times."""
        index = row_indices(rows, len(self), f"pairs of {self.name}")
        at = index.tolist()
        return dataclasses.replace(
            self,
            clean=self.clean[index],
            corrupted=self.corrupted[index],
            answer=self.answer[index.to(self.answer.device)],
            wrong=self.wrong[index.to(self.wrong.device)],
            clean_texts=[self.clean_texts[i] for i in at] if self.clean_texts else (),
            corrupted_texts=[self.corrupted_texts[i] for i in at] if self.corrupted_texts else (),
            table=None if self.table is None else self.table.iloc[at].reset_index(drop=True),
        )

    def __repr__(self) -> str:
        shown = f"; first {self.clean_texts[0]!r}" if self.clean_texts else ""
        return (
            f"Pairs({self.name!r}, {len(self)} × {self.clean.shape[1]} tokens, "
            f"roles {' '.join(self.clean.roles)}, {len(self.skipped)} skipped{shown})"
        )


def _check_tokens(pairs: Pairs) -> None:
    clean, corrupted = pairs.clean, pairs.corrupted
    if clean.ids is None or corrupted.ids is None:
        raise ValueError(f"{pairs.name}: pairs need token ids; these tokens are vectors")
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"{pairs.name}: clean has the shape {list(clean.shape)} and corrupted "
            f"{list(corrupted.shape)}; make both of as many rows and tokens"
        )
    uneven = (clean.real != corrupted.real).any(1).nonzero()
    if len(uneven):
        row = int(uneven[0])
        raise ValueError(
            f"{pairs.name}: row {row} has {int(clean.real[row].sum())} clean and "
            f"{int(corrupted.real[row].sum())} corrupted tokens, or pads on different sides"
        )


def _check_answers(pairs: Pairs) -> None:
    sets = {}
    for what in ("answer", "wrong"):
        ids = whole_numbers(getattr(pairs, what), f"{pairs.name}: {what}")
        object.__setattr__(pairs, what, ids)
        if ids.ndim not in (1, 2) or ids.shape[0] != len(pairs):
            raise ValueError(
                f"{pairs.name}: {what} is {ids.dtype} {list(ids.shape)}; expected ids of shape "
                f"[{len(pairs)}] or [{len(pairs)}, k]"
            )
        if ids.numel() == 0 or int(ids.min()) < 0:
            raise ValueError(f"{pairs.name}: {what} holds no id, or a negative one: {ids}")
        sets[what] = [set(row) for row in ids.reshape(len(pairs), -1).tolist()]
        short = [i for i, row in enumerate(sets[what]) if len(row) < ids[0].numel()]
        if short:
            raise ValueError(f"{pairs.name}: {what} of row {short[0]} holds an id twice")
    for i, (right, other) in enumerate(zip(sets["answer"], sets["wrong"], strict=True)):
        if right & other:
            raise ValueError(
                f"{pairs.name}: in row {i} the ids {sorted(right & other)} are answer and wrong"
            )


def _check_difference(pairs: Pairs) -> None:
    """Every row differs somewhere; where roles are named, exactly there."""
    differs = (pairs.clean.ids != pairs.corrupted.ids.to(pairs.clean.device)) & pairs.clean.real
    same = (~differs.any(1)).nonzero()
    if len(same):
        raise ValueError(f"{pairs.name}: clean and corrupted of row {int(same[0])} are the same")
    unknown = [role for role in pairs.changed if role not in pairs.clean.roles]
    if unknown:
        raise ValueError(
            f"{pairs.name}: changed={unknown}: the roles are {', '.join(pairs.clean.roles)}"
        )
    if not pairs.changed:
        return
    told = torch.zeros_like(differs)
    rows = torch.arange(len(pairs), device=differs.device)
    for role in pairs.changed:
        told[rows, pairs.clean.roles[role].to(differs.device)] = True
    off = (told != differs).any(1).nonzero()
    if len(off):
        row = int(off[0])
        raise ValueError(
            f"{pairs.name}: row {row} differs at {differs[row].nonzero().flatten().tolist()}, but "
            f"changed={list(pairs.changed)} says {told[row].nonzero().flatten().tolist()}"
        )
