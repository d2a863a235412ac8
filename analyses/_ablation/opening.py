"""The first screen of head_ablation: one sentence, the map of heads, three findings."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from interp.methods.ablation import Ablations, carriers
from interp.report import Report, figures
from interp.report.spine import (
    head_name,
    listed,
    moved,
    number,
    part_name,
    percent,
    strongest,
)

REMOVED = {
    "mean": "replaced by its average over prompts",
    "zero": "set to zero",
    "resample": "taken from another prompt",
}
LEAD = "the right answer's lead"
FIRST = 3
"""Findings of the first screen."""


class Said(NamedTuple):
    """A sentence, the exhibit behind it, and the heads that it names."""

    text: str
    at: str
    names: list[str]


def open_with(report: Report, m: Ablations) -> None:
    """The answer with its map, and the findings that matter most."""
    kind = m.kinds[0]
    text, _, names = _answer(m)
    answer = report.answer(text, links=dict.fromkeys(names, "strongest"))
    answer.figure(
        heads_map(m, kind),
        f"What removing each head (its output is {REMOVED[kind]}) does to {LEAD}: its logit less "
        "that of the wrong answer. Below zero the head helps.",
        name=f"heads-{kind}",
    )
    sentences = (_ways(m), _steps_in(m), _enough(m), _largest(m, "mlp"), _largest(m, "head"))
    for text, at, names in [said for said in sentences if said is not None][:FIRST]:
        report.finding(text, at=at, links=dict.fromkeys(names, "strongest"))


def heads_map(m: Ablations, kind: str) -> figures.Figure:
    """Layer × head; the maps of all kinds have one scale."""
    table = m.heads.of(kind)
    most = strongest(table, 1).iloc[0]
    return figures.heatmap(
        table[["layer", "head", "effect"]],
        rows="layer",
        columns="head",
        value="effect",
        limit=max(float(rows["effect"].abs().max()) for rows in map(m.heads.of, m.kinds)),
        noise=m.noise,
        axis=f"Change of the logit difference, {kind} ablation (logits)",
        alt=f"Heat map of layers and heads, {kind} ablation. The largest change is "
        f"{most['effect']:.2f} logits, at {part_name(most)}.",
    )


def _answer(m: Ablations) -> Said:
    table, at = m.heads.of(m.kinds[0]), f"heads-{m.kinds[0]}"
    n, largest = len(table), strongest(table, 1).iloc[0]
    if not m.baseline.able:
        return Said("The model cannot do this task, so no head can be said to carry it.", at, [])
    if all(m.silent(kind) for kind in m.kinds):
        text = f"No head matters by itself: without any one of {n} the answer stays as it is."
        return Said(text, at, [])
    if len(m.baseline.clean) == 1 and not m.silent(m.kinds[0]):
        name = part_name(largest)
        return Said(f"On this one prompt {name} matters most: {_without(m, largest)}.", at, [name])
    needed = _needed(m, m.kinds[0])
    if len(needed):
        head = needed.iloc[0]
        start = "One head" if len(needed) == 1 else f"{len(needed)} of {n} heads are needed, most"
        start += f", {part_name(head)}, is needed" if len(needed) == 1 else f" {part_name(head)}"
        return Said(f"{start}: {_without(m, head)}.", at, [part_name(head)])
    costliest = table.loc[table["effect"].idxmin()]
    if costliest["effect"] >= -m.noise:
        return Said(f"No single head is needed: without any one of {n}, {LEAD} does not fall.",
                    at, [])  # fmt: skip
    name = part_name(costliest)
    text = f"No single head is surely needed; {name} costs most: {_without(m, costliest)}."
    return Said(text, at, [name])


def _without(m: Ablations, row: pd.Series) -> str:
    """What becomes of the answer."""
    before = float(m.baseline.clean.mean())
    after = before + float(row["effect"])
    if before > m.noise and after < -m.noise:
        return f"without it the model is wrong ({LEAD} {moved(before, after)})"
    return f"without it {LEAD} {moved(before, after)}"


def _needed(m: Ablations, kind: str) -> pd.DataFrame:
    """The heads that surely cost something, the costliest first."""
    table = m.heads.of(kind)
    return strongest(table[table["named"] & (table["effect"] < 0)])


def _ways(m: Ablations) -> Said | None:
    """Whether every kind of ablation names the same heads."""
    if len(m.kinds) < 2 or not m.baseline.able or len(m.baseline.clean) == 1:
        return None
    if all(m.silent(kind) for kind in m.kinds):
        return None
    heads = {kind: [part_name(row) for _, row in _needed(m, kind).iterrows()] for kind in m.kinds}
    shared = [name for name in heads[m.kinds[0]] if all(name in names for names in heads.values())]
    if len({frozenset(names) for names in heads.values()}) == 1:
        named = f"the same: {listed(shared, 3)}" if shared else "no head"
        return Said(f"Every way to remove heads finds {named}.", "disagreement", shared[:3])
    counts = listed(f"{kind} {len(names)}" for kind, names in heads.items())
    everywhere = f"all agree on {listed(shared, 3)}" if shared else "on no head they all agree"
    return Said(
        f"Heads needed, by the way in which they are removed: {counts}; {everywhere}.",
        "disagreement",
        shared[:3],
    )


def _steps_in(m: Ablations) -> Said | None:
    """The clearest backup."""
    if m.seconds is None or not m.baseline.able or len(m.baseline.clean) == 1:
        return None
    if all(m.silent(kind) for kind in m.kinds):
        return None
    woken = m.seconds[m.seconds["wakes"]]
    if woken.empty:
        count = len(m.seconds[["first_layer", "first_head"]].drop_duplicates())
        gone = "the strongest head" if count == 1 else f"one of the {count} strongest heads"
        text = f"No head surely steps in for another once {gone} is gone."
        return Said(text, "second-removals", [])
    row = woken.loc[woken["interaction"].idxmin()]
    first, second = head_name(row["first_layer"], row["first_head"]), part_name(row)
    before = number(-row["alone"]) if row["alone"] < 0 else "nothing"
    text = (
        f"{second} steps in for {first}: with {first} gone, losing it costs "
        f"{number(-row['given'])} logits; before, {before} ({row['kind']} ablation)."
    )
    return Said(text, "second-removals", [first, second])


def _enough(m: Ablations) -> Said | None:
    """How few heads carry the lead, or what is left without the strongest ones."""
    if all(m.silent(kind) for kind in m.kinds) or not m.baseline.able:
        return None
    kind, n = m.kinds[0], len(m.heads.nodes)
    found = carriers(m.curve, kind) if m.shares else None
    if found is not None and found[0] < n:
        count, kept = found[0], percent(found[1]["share"])
        if count == 0:
            text = f"With all {n} heads removed at once {kept} of the lead is still there."
        else:
            heads = "One head is" if count == 1 else f"{count} heads are"
            text = f"{heads} enough: with all others of {n} removed, {kept} of the lead is left."
        return Said(text, f"together-{kind}", [])
    row = m.sets.iloc[0]
    before = float(m.curve.loc[m.curve["kind"] == kind, "baseline"].iloc[0])
    gone = "the strongest head" if row["k"] == 1 else f"the {row['k']} strongest heads together"
    text = f"Without {gone} {LEAD} {moved(before, before + row['effect'])}."
    return Said(text, "random-sets", [])


def _largest(m: Ablations, part: str) -> Said | None:
    """The MLP, or the head, whose removal changes most."""
    removals = m.mlps if part == "mlp" else m.heads
    if removals is None or m.silent(m.kinds[0], part):
        return None
    if part == "head" and not m.baseline.able:  # no head is named on such a model
        return None
    row = strongest(removals.of(m.kinds[0]), 1).iloc[0]
    before, name = float(m.baseline.clean.mean()), part_name(row)
    what = "MLP" if part == "mlp" else "head"
    at = "mlps" if part == "mlp" else "heads"
    text = f"Of {what}s {name} matters most: {_without(m, row)}."
    if not m.baseline.able:  # there is no right answer's lead to speak of
        change = moved(before, before + float(row["effect"]))
        text = f"Of {what}s {name} changes most: without it, answer less wrong {change}."
    return Said(text, at, [name] if part == "head" else [])
