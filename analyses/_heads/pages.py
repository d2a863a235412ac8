"""A page per head: its pattern, what it writes, what it may be called, who feeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp.methods.heads.outputs import MEAN
from interp.report import Report
from interp.report.attention import Attention
from interp.report.spine import head_name, plus_minus, signed

PARTNERS = 4
"""Heads that feed it, and that it feeds, of each kind."""
OF_THE_MEAN = "(mean)"
CHANCES = {"p": ".2g", "q": ".2g"}
"""How p-values are shown."""


def tokens_frame(model: Any, told: pd.DataFrame) -> pd.DataFrame:
    """`promoted_tokens` with tokens in place of ids."""
    tokenizer = model.tokenizer

    def named(ids: pd.Series) -> list[str]:
        known = [i if i != MEAN else 0 for i in ids.tolist()]
        texts = list(map(str, known)) if tokenizer is None else tokenizer.str_tokens(known)
        return [OF_THE_MEAN if i == MEAN else text for i, text in zip(ids, texts, strict=True)]

    return told.assign(source=named(told["source"]), token=named(told["token"]))


def head_page(
    report: Report,
    head: tuple[int, int],
    table: pd.DataFrame,
    roles: pd.DataFrame,
    fed: pd.DataFrame,
    written: pd.DataFrame | None,
    shown: Attention,
) -> None:
    """Adds the page heads/L0H3.html."""
    own = table[(table["layer"] == head[0]) & (table["head"] == head[1])].iloc[0]
    name = head_name(*head)
    page = report.page(
        f"heads/L{head[0]}H{head[1]}.html", f"{name}: {own['label']}", f"What does {name} do?"
    )
    mine = roles[(roles["layer"] == head[0]) & (roles["head"] == head[1])]
    for line in _sentences(own, mine):
        page.finding(line)
    page.section("Where it looks").one_head(shown, *head, f"Attention of {name}")
    if written is not None:
        lines = written[(written["layer"] == head[0]) & (written["head"] == head[1])]
        page.section(
            "What it writes",
            f"On the mean and of the tokens that it takes most from, in logits beyond the mean of "
            f"the vocabulary; {OF_THE_MEAN} is all that it writes.",
        ).table(_compact(lines), "Tokens raised and lowered", name="head-tokens")
    section = page.section("In numbers")
    section.table(
        _roles(mine), "What it may be called", name="head-roles", missing=("writes",),
        formats=CHANCES,
    )  # fmt: skip
    section.table(_numbers(own), "All its scores", name="heads", rows=40)
    for title, side, other in (("Who feeds it", "to", "from"), ("Whom it feeds", "from", "to")):
        partners = _partners(fed, head, side, other)
        if len(partners):
            page.section(title).table(partners, "Closest by weights", name="composition")


def _sentences(own: pd.Series, roles: pd.DataFrame) -> list[str]:
    named = roles[roles["named"]]
    lines = [
        f"{one.role.capitalize()}: {one.score:.2f}, where a head that looks everywhere alike has "
        f"{one.chance:.2f} and 95 % of its own rotations lie below {one.null_high:.2f} "
        f"(q = {one.q:.2g})."
        for one in named.itertuples()
    ]
    if not lines:
        best = roles.loc[roles["excess"].idxmax()]
        lines.append(
            f"No name fits it beyond chance; it comes closest to {best['role']} "
            f"({best['score']:.2f}, chance {best['chance']:.2f}, q = {best['q']:.2g})."
        )
    if not np.isnan(own["end_share"]):
        lines.append(
            f"Where the answer is expected, it puts {own['end_share']:.2f} on “{own['end_role']}”, "
            "most of all named places."
        )
    if not np.isnan(own["task_effect"]):
        lines.append(
            "Replaced by its mean, it changes logit(answer) − logit(wrong) by "
            f"{plus_minus(own['task_effect'], own['task_stderr'], '+z.3f')}."
        )
    if not np.isnan(own["loss_effect"]):
        lines.append(
            "The loss changes by "
            f"{plus_minus(own['loss_effect'], own['loss_stderr'], '+z.4f')} nats per token."
        )
    return lines


def _compact(lines: pd.DataFrame) -> pd.DataFrame:
    """One row per source and kind, with its tokens side by side."""
    rows = []
    for _, group in lines.groupby(["source", "share", "kind"], sort=False):
        pairs = zip(group["token"], group["logit"], strict=True)
        texts = [f"{word.strip() or word} {signed(by)}" for word, by in pairs]
        first = group.iloc[0]
        rows.append((first["source"], first["share"], first["kind"], " · ".join(texts)))
    return pd.DataFrame(rows, columns=["source", "share", "kind", "tokens"])


def _roles(mine: pd.DataFrame) -> pd.DataFrame:
    columns = ["role", "score", "chance", "null_mean", "null_high", "writes", "p", "q", "named"]
    return mine[columns].sort_values("p", kind="stable")


def _numbers(own: pd.Series) -> pd.DataFrame:
    values = own.drop(["layer", "head", "label", "roles", "end_role"]).dropna()
    return pd.DataFrame({"score": values.index, "value": values.to_numpy(dtype=float)})


def _partners(fed: pd.DataFrame, head: tuple[int, int], side: str, other: str) -> pd.DataFrame:
    here = fed[(fed[f"{side}_layer"] == head[0]) & (fed[f"{side}_head"] == head[1])]
    best = here.groupby("kind", sort=False).head(PARTNERS).sort_values(
        ["kind", "times"], ascending=[True, False]
    )  # fmt: skip
    others = zip(best[f"{other}_layer"], best[f"{other}_head"], strict=True)
    names = [head_name(*pair) for pair in others]
    frame = best[["kind", "value", "baseline", "times"]].reset_index(drop=True)
    frame.insert(1, "head", names)
    return frame
