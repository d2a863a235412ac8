"""The tables and figures of head_ablation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from analyses._ablation.config import Config
from analyses._ablation.opening import heads_map
from interp.methods.ablation import Ablations, Removals
from interp.report import Report, figures
from interp.report.report import Section
from interp.report.spine import head_name, part_name

BARS = 12
"""Heads of the figure of the strongest."""
COLUMNS = 40
"""Second heads of a figure of pairs."""
SHARES = dict.fromkeys(("lost", "lost_low", "lost_high"), ".1%")
HOLES = (
    *("stderr", "low", "high", "lost", "lost_low", "lost_high", "p", "p_corrected", "share"),
    *("given_stderr", "given_p_corrected"),
)


def show(report: Report, m: Ablations, config: Config) -> None:
    """All sections behind the words."""
    _alone(report, m)
    _kinds(report, m)
    _seconds(report, m)
    _together(report, m)
    _losses(report, m)


def _alone(report: Report, m: Ablations) -> None:
    section = report.section(
        "Removed alone",
        "effect: logit difference without the part, less the unedited one; below zero the part "
        "helps. lost: the same as a share of the unedited logit difference, above zero for a loss. "
        "p_corrected: Holm over the parts of one sort and kind (neurons: Benjamini–Hochberg).",
    )
    for kind in m.kinds[1:]:  # the first one's stands beside the answer
        section.figure(
            heads_map(m, kind), f"Every head removed by {kind} ablation", name=f"heads-{kind}"
        )
    _bars(section, m)
    _part_table(section, m.heads, "Every head removed alone", "heads")
    if m.mlps is not None:
        _part_table(section, m.mlps, "Every MLP removed alone", "mlps")
    if m.neurons is not None:
        _part_table(section, m.neurons, "Neurons removed alone", "neurons")


def _bars(section: Section, m: Ablations) -> None:
    kinds, lead = m.kinds[:2], m.heads.of(m.kinds[0])
    order = np.argsort(-lead["effect"].abs().to_numpy(), kind="stable")[:BARS]
    lines = []
    for i, kind in itertools.product(order, kinds):
        row = m.heads.of(kind).iloc[i]
        low, high = (row[one] if pd.notna(row[one]) else row["effect"] for one in ("low", "high"))
        lines.append((part_name(row), kind, row["effect"], low, high))
    frame = pd.DataFrame(lines, columns=["name", "kind", "effect", "low", "high"])
    section.figure(
        figures.bars(
            frame, label="name", value="effect", low="low", high="high", group="kind",
            axis="Change of the logit difference (logits, 95 % interval)",
            alt=f"Bars of the {len(order)} strongest heads by {' and '.join(kinds)} ablation; most "
            f"changes {frame['name'][0]}, by {frame['effect'][0]:.2f} logits.",
        ),
        f"The strongest heads by {kinds[0]} ablation",
        name="strongest",
    )  # fmt: skip


def _part_table(section: Section, one: Removals, caption: str, name: str) -> None:
    table = one.table.assign(size=one.table["effect"].abs())
    table["rank"] = table["kind"].map({kind: i for i, kind in enumerate(one.effects)})
    table = table.sort_values(["rank", "size"], ascending=[True, False], kind="stable")
    table = table.drop(columns=["rank", "size"]).reset_index(drop=True)
    table.attrs = dict(one.table.attrs)
    section.table(table, caption, name=name, missing=HOLES, formats=SHARES, rows=60)


def _kinds(report: Report, m: Ablations) -> None:
    if len(m.kinds) < 2 or m.disagreement is None:
        return
    section = report.section(
        "The kinds of ablation side by side",
        "damage: logits lost on average over heads; size: the mean of |effect| over heads. "
        "spearman: rank correlation of effects over nodes, and of their sizes.",
    )
    section.table(m.damage, "Damage of the kinds", name="damage", missing=("low", "high"))
    if len(m.kinds_table):
        section.table(m.kinds_table, "Rank correlations of the kinds", name="kinds")
    section.table(
        m.disagreement, "Heads on which the kinds disagree, most first", name="disagreement",
        rows=12,
    )  # fmt: skip
    sorts = [one for one in (m.heads, m.mlps) if one is not None]
    for one, other in itertools.combinations(m.kinds, 2):
        frame = pd.concat(
            [
                pd.DataFrame(
                    {
                        "part": {"head": "heads", "mlp": "MLPs"}[sort.part],
                        one: sort.effects[one].mean(1),
                        other: sort.effects[other].mean(1),
                    }
                )
                for sort in sorts
            ],
            ignore_index=True,
        )
        section.figure(
            figures.scatter(
                frame, x=one, y=other, group="part",
                x_axis=f"{one} ablation (logits)", y_axis=f"{other} ablation (logits)",
                alt=f"Change of the logit difference by {one} against {other} ablation, a point "
                "for each head and MLP.",
            ),
            f"Removal by {one} and by {other}",
            name=f"{one}-against-{other}",
        )  # fmt: skip


def _seconds(report: Report, m: Ablations) -> None:
    if m.seconds is None:
        return
    section = report.section(
        "Removed second",
        "Every head removed once more, given that one of the strongest is gone. alone and given: "
        "its effect in the whole model, and in the one without the first; interaction: given − "
        "alone, which is what both cost together less what each costs alone. Below zero the head "
        "costs more than before: it steps in. Above zero the two work in series, or do the same.",
    )
    for kind in m.kinds:
        own = m.seconds[m.seconds["kind"] == kind]
        size = own.groupby(["layer", "head"])["interaction"].apply(lambda x: x.abs().max())
        kept = sorted(size.nlargest(COLUMNS).index)
        names = [head_name(*place) for place in kept]
        own = own[[place in kept for place in zip(own["layer"], own["head"], strict=True)]]
        frame = pd.DataFrame(
            {
                "first": [head_name(*place) for place in zip(own["first_layer"], own["first_head"],
                                                             strict=True)],
                "second": [kept.index(place) for place in zip(own["layer"], own["head"],
                                                              strict=True)],
                "interaction": own["interaction"].to_numpy(),
            }
        )  # fmt: skip
        section.figure(
            figures.heatmap(
                frame, rows="first", columns="second", value="interaction",
                names={"second": names}, titles={"first": "gone first", "second": "then"},
                axis=f"Interaction of two removals, {kind} ablation (logits; below zero: backup)",
                alt=f"Heat map of pairs of heads, {kind} ablation; interactions from "
                f"{frame['interaction'].min():.2f} to {frame['interaction'].max():.2f} logits.",
            ),
            f"Second removals by {kind} ablation",
            name=f"pairs-{kind}",
        )  # fmt: skip
    order = m.seconds["interaction"].abs().sort_values(ascending=False, kind="stable").index
    table = m.seconds.loc[order].reset_index(drop=True)
    table.attrs = dict(m.seconds.attrs)
    section.table(table, "Second removals", name="second-removals", missing=HOLES, rows=30)


def _together(report: Report, m: Ablations) -> None:
    section = report.section(
        "Removed together",
        "More and more heads removed at once: the strongest first, the weakest first, and in "
        "random order (the band holds 90 % of the orders; around the other two it is the 95 % "
        "interval of the mean).",
    )
    for kind in m.kinds:
        frame = _curve(m.curve[m.curve["kind"] == kind])
        section.figure(
            figures.curves(
                frame, x="removed", value="value", low="low", high="high", group="order",
                x_axis=f"Heads removed, of {frame['removed'].max()}", axis="Logit difference",
                alt=f"Logit difference over the number of heads removed by {kind} ablation, in "
                f"three orders, from {frame['value'].iloc[0]:.2f} with all heads to "
                f"{frame['value'].iloc[len(frame) // 3 - 1]:.2f} without any.",
            ),
            f"Heads removed together by {kind} ablation",
            name=f"together-{kind}",
        )  # fmt: skip
    section.table(
        m.sets, "The strongest heads beside random sets", name="random-sets", missing=HOLES
    )
    section.table(m.curve, "All sets that were removed", name="together", missing=HOLES, rows=30)


def _curve(own: pd.DataFrame) -> pd.DataFrame:
    """The two orders with the interval of their means, and the spread of the random ones."""
    told = {"most": "strongest first", "least": "weakest first"}
    lines = own[own["order"].isin(list(told))].assign(order=lambda rows: rows["order"].map(told))
    half = 1.96 * lines["stderr"].fillna(0)
    lines = lines.assign(low=lines["value"] - half, high=lines["value"] + half)
    drawn = own[own["order"] == "random"].groupby("removed")["value"]
    spread = pd.DataFrame(
        {"value": drawn.mean(), "low": drawn.quantile(0.05), "high": drawn.quantile(0.95)}
    )
    spread = spread.reset_index().assign(order="random order")
    columns = ["order", "removed", "value", "low", "high"]
    return pd.concat([lines[columns], spread[columns]], ignore_index=True)


def _losses(report: Report, m: Ablations) -> None:
    section = report.section(
        "In nats",
        "answer: rise of −ln p(answer) where it is expected. text: rise of the mean loss per token "
        "over the text, or else over the clean prompts.",
    )
    section.table(
        m.losses, "Loss without each head and MLP", name="losses",
        missing=("head", "answer_stderr", "text", "text_stderr"), rows=60,
    )  # fmt: skip
