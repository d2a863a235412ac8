"""What the report on attention heads says in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp import heads
from interp.core.tokens import Tokens
from interp.methods.heads.roles import LEAST, MIXED, MOVERS
from interp.methods.stats import reach
from interp.report import Report
from interp.report.spine import head_name, listed, no_effect, plus_minus

STRONGEST = 3


def findings(
    report: Report, table: pd.DataFrame, roles: pd.DataFrame, fed: pd.DataFrame, noise: float,
    null: int,
) -> None:  # fmt: skip
    """What was found, the names first. Effects up to `noise` are rounding; `null` rotations of each
    head were drawn."""
    named = roles[roles["named"]]
    tested = [role for role in heads.ROLES if role in set(roles["role"])]
    parts = []
    for role in tested:
        best = named[named["role"] == role].sort_values("score", ascending=False)
        if len(best):
            parts.append(f"{role} {listed(_scored(best), 6)}")
    none = [role for role in tested if role not in set(named["role"])]
    mixed = int((table["label"] == MIXED).sum())
    report.finding(
        f"Beyond chance, {len(table) - mixed} of {len(table)} heads have a name: "
        f"{'; '.join(parts) or 'none'}. {mixed} have none."
    )
    if none:
        report.finding(
            f"No head is named {' or '.join(none)}.{_closest(roles, none)}"
            f"{_few_rotations(len(roles), len(table), null)}"
        )
    _effects(report, table, noise)
    _feeding(report, table, fed)


def _few_rotations(tests: int, heads: int, null: int) -> str:
    """Where one name alone cannot pass the correction; the rotations of all heads are pooled."""
    own = reach(null * heads, tests, correction="bh")
    if own.alone <= 0.05:
        return ""
    return (
        f" With {null} rotations of each head the q of one name alone, corrected for {tests}, is "
        f"never below {own.alone:.2f}, so that none can pass .05 by itself; --null "
        f"{-(-own.needed // heads)} lets it."
    )


def _scored(rows: pd.DataFrame) -> list[str]:
    return [f"{head_name(row.layer, row.head)} ({row.score:.2f})" for row in rows.itertuples()]


def _closest(roles: pd.DataFrame, none: list[str]) -> str:
    """How close the heads came to the first of the names that none has."""
    rows = roles[roles["role"] == none[0]]
    best = rows.loc[rows["excess"].idxmax()]
    return (
        f" The closest to {none[0]} is {head_name(best['layer'], best['head'])}, with "
        f"{best['score']:.2f} (chance {best['chance']:.2f}, q = {best['q']:.2g})."
    )


def _effects(report: Report, table: pd.DataFrame, noise: float) -> None:
    units = {"task": ("logit(answer) − logit(wrong)", "logits", "+z.2f"),
             "loss": ("the loss", "nats per token", "+z.3f")}  # fmt: skip
    for name, (what, unit, form) in units.items():
        rows = table.dropna(subset=[f"{name}_effect"])
        if rows.empty:
            continue
        effect = rows[f"{name}_effect"].abs()
        effect = effect[effect > noise]
        if effect.empty:
            report.finding(
                f"Replaced by their mean, heads have {no_effect(noise)} on {what} ({len(rows)} "
                "heads)."
            )
            continue
        best = rows.loc[effect.nlargest(STRONGEST).index]
        texts = [
            f"{head_name(row['layer'], row['head'])} ({row['label']}{_at_the_end(row, name)}) "
            f"{plus_minus(row[f'{name}_effect'], row[f'{name}_stderr'], form)}"
            for _, row in best.iterrows()
        ]
        share = effect[rows.loc[effect.index, "label"] == MIXED].sum() / effect.sum()
        report.finding(
            f"Replaced by their mean, these heads change {what} most: {listed(texts)} {unit}. "
            f"Heads without a name make up {share:.0%} of all such changes (sum of amounts): so "
            "much the names leave unexplained."
        )


def _at_the_end(row: pd.Series, name: str) -> str:
    """Where the head looks from where the answer is expected: it may tell what the names do not."""
    if name != "task" or np.isnan(row["end_share"]):
        return ""
    return f"; “end” puts {row['end_share']:.2f} on “{row['end_role']}”"


def _feeding(report: Report, table: pd.DataFrame, fed: pd.DataFrame) -> None:
    """Whose keys the induction heads read."""
    inductive = table.loc[table["roles"].str.contains("induction"), ["layer", "head"]]
    keys = fed[fed["kind"] == "k"].merge(
        inductive, left_on=["to_layer", "to_head"], right_on=["layer", "head"]
    )
    if keys.empty:
        return
    best = keys.loc[keys["times"].idxmax()]
    writer = (int(best["from_layer"]), int(best["from_head"]))
    label = table.set_index(["layer", "head"]).loc[writer, "label"]
    report.finding(
        "Of the earlier heads, the keys of the induction heads read most of what "
        f"{head_name(*writer)} ({label}) writes: {best['times']:.1f} times a random direction, in "
        f"{head_name(best['to_layer'], best['to_head'])}."
    )


def certainty(
    report: Report, model: Any, rows: Tokens, texts: Tokens, roles: pd.DataFrame, config: Any
) -> None:
    """Controls, sizes and seeds."""
    tests, named = len(roles), int(roles["named"].sum())
    report.sure(
        f"A name needs three things: q ≤ .05, with all {tests} p-values (heads × names) corrected "
        "together (Benjamini–Hochberg; backup movers by themselves), so that at most about 5 % of "
        f"the {named} names are expected to be chance; a share of attention at least {LEAST:.0%} "
        "of the way from that of a head that looks everywhere alike to all; and, but for movers, a "
        "score above 95 % of the head's own null."
    )
    report.sure(
        f"The null of attention: {config.null} random rotations of each head's queries against its "
        "keys, which keep what it reads and how large its weights are. That of what is written: a "
        f"rotation between values and outputs. Seed {config.seed}."
    )
    report.sure(
        f"Names are measured on {len(rows)} rows of {rows.shape[1]} random tokens, partly said "
        "twice at distances that differ; induction counts only beyond the attention as far behind "
        f"where nothing is repeated{_moving(roles)}. Text: {len(texts)} rows of up to "
        f"{texts.shape[1]} tokens."
    )
    if model.cfg.head != "none":
        report.sure(
            "Effects are means over examples (± standard error where there are two or more), and "
            "are tied to mean ablation: zero ablation does more damage, resampling less often."
        )


def _moving(roles: pd.DataFrame) -> str:
    if MOVERS[0] not in set(roles["role"]):
        return ""
    return "; movers on the task's prompts"


def doubts(report: Report, model: Any) -> None:
    """What would make it wrong."""
    report.doubt(
        "A name says where a head looks and what it writes, on random tokens and one task. On "
        "other texts it may do something else as well; a head without a name is not idle."
    )
    report.doubt(
        "What a head writes is read by the unembedding alone. What later layers make of it, as in "
        "copying through an MLP, is not seen, and copying by weights takes tokens as they are "
        "embedded, not as earlier layers leave them."
    )
    report.doubt(
        "Removing one head at a time hides what others make up for (McGrath et al. 2023); the "
        "names do not tell a circuit. Path patching asks for that."
    )
    report.doubt(
        "The null asks whether queries and keys meet by chance. It says nothing about a head that "
        "looks at the first token because its key stands out to any query."
    )
