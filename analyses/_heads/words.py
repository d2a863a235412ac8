"""What the report on attention heads says in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from interp import heads
from interp.core.tokens import Tokens
from interp.methods.heads.roles import LEAST, MIXED, MOVERS
from interp.methods.stats import errors_needed, reach
from interp.report import Report
from interp.report.spine import (
    head_links,
    head_name,
    listed,
    no_effect,
    number,
    part_name,
    percent,
    plus_minus,
    strongest,
)

Link = Callable[[int, int], str]
"""Where a layer and head are shown."""
STRONGEST = 3
KEYS = ["layer", "head"]
CLEAR = 2
"""How many times as much as a random direction is read of what clearly feeds a head."""


DOES = {
    "induction": "behind an earlier occurrence of the same token (induction)",
    "previous token": "at the previous token",
    "duplicate token": "at an earlier copy of the same token",
    "first token": "at the first token",
    "itself": "at the token itself",
    "local": "at the last few tokens",
}
"""Where a head of each role looks; movers, which are named by what they write, have `MOVES`."""
MOVES = {
    "name mover": "copies the answer to where it is asked for",
    "negative mover": "holds the answer back",
    "backup name mover": "copies the answer once the others are gone",
}
COPY = {
    "name mover": "copy the answer to where it is asked for",
    "negative mover": "hold the answer back",
    "backup name mover": "copy the answer once the others are gone",
}
"""The same of several heads."""
WORST = 2
"""Roles that the answer names; the others are counted together."""


def answer(table: pd.DataFrame) -> str:
    """How many heads have a role, and the commonest, in one sentence."""
    counts = table.loc[table["label"] != MIXED, "label"].value_counts(sort=False)
    counts = counts.reindex([role for role in heads.ROLES if role in counts.index])
    total, named = len(table), int(counts.sum())
    if not named:
        return f"None of the {total} heads has a role that chance would not give it as well."
    common = counts.sort_values(ascending=False, kind="stable")
    said = [_do(role, int(n)) for role, n in common.head(WORST).items()]
    others = int(common.iloc[WORST:].sum())
    if others:
        said.append(f"{others} {'has' if others == 1 else 'have'} another role")
    left = total - named
    without = f"; the other {'one has' if left == 1 else f'{left} have'} no clear role"
    return f"Of {total} heads, {listed(said)}{without if left else ''}."


def _do(role: object, n: int) -> str:
    """What n heads of a role do."""
    name = str(role)
    if name in DOES:
        return f"{n} {'looks' if n == 1 else 'look'} {DOES[name]}"
    return f"{n} {MOVES[name] if n == 1 else COPY[name]}"


def _say(report: Report, text: str, at: str, link: Link) -> None:
    """A finding in which every head is linked."""
    report.finding(text, at=at, links=head_links(text, link))


class Lead(NamedTuple):
    """What the unedited model does on the task: the answer's lead over the wrong one, its noise."""

    clean: float
    noise: float


def first_findings(
    report: Report,
    table: pd.DataFrame,
    fed: pd.DataFrame,
    lead: Lead | None,
    link: Link,
) -> None:
    """The three findings of the first screen; `link` leads from a layer and head to where it is
    shown. Without a task (`lead`), the loss stands in."""
    if lead is not None:
        _matters_most(report, table, lead, link)
    _reads(report, table, fed, link)
    _unexplained(report, table, "task" if lead is not None else "loss", lead)
    if lead is None:
        _strongest_role(report, table, link)


def _matters_most(report: Report, table: pd.DataFrame, lead: Lead, link: Link) -> None:
    """The head whose removal changes the task most, where that is beyond chance."""
    rows = table.dropna(subset=["task_effect"])
    if rows.empty:
        return
    row = strongest(rows, 1, by="task_effect").iloc[0]
    name, effect = part_name(row), float(row["task_effect"])
    role = "" if row["label"] == MIXED else f" ({row['label']})"
    if abs(effect) <= lead.noise:
        text = "Removing any one head changes the answer by no more than rounding."
    elif abs(effect) <= _needed(rows, row):
        by = plus_minus(effect, row["task_stderr"], "+z.2f")
        text = (
            f"No head alone clearly matters to the task; {name} changes the answer's lead most: by "
            f"{by} logits."
        )
    else:
        text = (
            f"Without {name}{role} the right answer leads the wrong one by "
            f"{number(lead.clean + effect, 'z.1f')} instead of {number(lead.clean, 'z.1f')} "
            "logits; no other head matters as much."
        )
    _say(report, text, "effects", link)


def _needed(rows: pd.DataFrame, row: pd.Series) -> float:
    """The size of an effect beyond chance, corrected for all heads; of one prompt, none is known
    and all count."""
    n = int(row["n"])
    return 0.0 if n < 2 else errors_needed(n, len(rows)) * float(row["task_stderr"])


def _reads(
    report: Report, table: pd.DataFrame, fed: pd.DataFrame,
    link: Link,
) -> None:  # fmt: skip
    """Whose writing the keys of an induction head read."""
    fitting = _feeds_induction(table, fed)
    if fitting is None:
        return
    reader = head_name(fitting["to_layer"], fitting["to_head"])
    writer = head_name(fitting["from_layer"], fitting["from_head"])
    times = f"{fitting['times']:.1f} times as much as a random direction"
    text = (
        f"Induction head {reader} finds its place by what {writer} ({fitting['label']}) writes: it "
        f"reads that {times}."
        if float(fitting["times"]) >= CLEAR
        else f"No earlier head clearly feeds the induction heads: {reader} reads {writer} {times}."
    )
    _say(report, text, "composition", link)


def _feeds_induction(table: pd.DataFrame, fed: pd.DataFrame) -> pd.Series | None:
    """The pair of heads of which the later, an induction head, reads most of the earlier by its
    keys, with the label of the earlier."""
    inductive = table.loc[table["roles"].str.contains("induction"), KEYS]
    keys = fed[fed["kind"] == "k"].merge(inductive, left_on=["to_layer", "to_head"], right_on=KEYS)
    if keys.empty:
        return None
    closest = keys.loc[keys["times"].idxmax()]
    writer = (int(closest["from_layer"]), int(closest["from_head"]))
    return pd.concat([closest, pd.Series({"label": table.set_index(KEYS).loc[writer, "label"]})])


def _unexplained(report: Report, table: pd.DataFrame, name: str, lead: Lead | None) -> None:
    """How much of what removing heads changes is due to heads without a role."""
    share = _share_without_a_name(table, name, 0.0 if lead is None else lead.noise)
    if share is None:
        return
    what = "the task" if name == "task" else "the loss"
    report.finding(
        f"Heads without a role make up {percent(share)} of all that removing single heads changes "
        f"in {what}: so much the roles leave unexplained.",
        at="heads",
    )


def _share_without_a_name(table: pd.DataFrame, name: str, noise: float) -> float | None:
    effect = table[f"{name}_effect"].dropna().abs()
    effect = effect[effect > noise]
    if effect.empty:
        return None
    return float(effect[table.loc[effect.index, "label"] == MIXED].sum() / effect.sum())


def _strongest_role(report: Report, table: pd.DataFrame, link: Link) -> None:
    """Where no task tells which head matters: a head of the commonest role."""
    counts = table.loc[table["label"].isin(DOES), "label"].value_counts()
    if counts.empty:
        return
    row = table[table["label"] == counts.index[0]].iloc[0]
    name = part_name(row)
    text = (
        f"{name} is one of those that look {DOES[row['label']]}."
        if counts.iloc[0] > 1
        else f"{name} alone looks {DOES[row['label']]}."
    )
    _say(report, text, "heads", link)


def findings(
    report: Report, table: pd.DataFrame, roles: pd.DataFrame, fed: pd.DataFrame, noise: float,
    null: int, link: Link,
) -> None:  # fmt: skip
    """What was found in full, the names first. Effects up to `noise` are rounding; `null` rotations
    of each head were drawn."""
    named = roles[roles["named"]]
    tested = [role for role in heads.ROLES if role in set(roles["role"])]
    parts = []
    for role in tested:
        best = named[named["role"] == role].sort_values("score", ascending=False)
        if len(best):
            parts.append(f"{role} {listed(_scored(best), 6)}")
    none = [role for role in tested if role not in set(named["role"])]
    mixed = int((table["label"] == MIXED).sum())
    _say(
        report,
        f"Beyond chance, {len(table) - mixed} of {len(table)} heads have a name: "
        f"{'; '.join(parts) or 'none'}. {mixed} have none.",
        "head-roles",
        link,
    )
    if none:
        _say(
            report,
            f"No head is named {' or '.join(none)}.{_closest(roles, none)}"
            f"{_few_rotations(len(roles), len(table), null)}",
            "head-roles",
            link,
        )
    _effects(report, table, noise, link)
    _feeding(report, table, fed, link)


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


def _effects(report: Report, table: pd.DataFrame, noise: float, link: Link) -> None:
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
        share = _share_without_a_name(table, name, noise) or 0.0
        _say(
            report,
            f"Replaced by their mean, these heads change {what} most: {listed(texts)} {unit}. "
            f"Heads without a name make up {percent(share)} of all such changes (sum of amounts): "
            "so much the names leave unexplained.",
            "heads",
            link,
        )


def _at_the_end(row: pd.Series, name: str) -> str:
    """Where the head looks from where the answer is expected: it may tell what the names do not."""
    if name != "task" or np.isnan(row["end_share"]):
        return ""
    return f"; “end” puts {row['end_share']:.2f} on “{row['end_role']}”"


def _feeding(report: Report, table: pd.DataFrame, fed: pd.DataFrame, link: Link) -> None:
    """Whose keys the induction heads read."""
    closest = _feeds_induction(table, fed)
    if closest is None:
        return
    _say(
        report,
        "Of the earlier heads, the keys of the induction heads read most of what "
        f"{head_name(closest['from_layer'], closest['from_head'])} ({closest['label']}) writes: "
        f"{closest['times']:.1f} times a random direction, in "
        f"{head_name(closest['to_layer'], closest['to_head'])}.",
        "composition",
        link,
    )


def certainty(
    report: Report, model: Any, rows: Tokens, texts: Tokens, roles: pd.DataFrame, config: Any
) -> None:
    """Controls, sizes and seeds."""
    tests, named = len(roles), int(roles["named"].sum())
    report.sure(
        f"A name needs three things: q ≤ .05, with all {tests} p-values (heads × names) corrected "
        "together (Benjamini–Hochberg; backup movers by themselves), so that at most about 5 % of "
        f"the {named} names are expected to be chance; a share of attention at least "
        f"{percent(LEAST)} of the way from that of a head that looks everywhere alike to all; and, "
        "but for movers, a score above 95 % of the head's own null."
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
