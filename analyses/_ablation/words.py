"""What head_ablation says: findings, how sure they are, and what would make them wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses._ablation.config import Config
from analyses._ablation.opening import open_with
from analyses._reference import mean_in_words
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.ablation import ALPHA, KEPT, Ablations, carriers
from interp.methods.stats import errors_needed
from interp.report import Report
from interp.report.spine import (
    head_name,
    listed,
    no_effect,
    number,
    out_of_reach,
    part_name,
    plus_minus,
    signed,
)

ORDER = ("resample", "mean", "zero")
"""Kinds by the damage that is commonly found, the least first."""


def tell(report: Report, m: Ablations, pairs: Pairs, text: Tokens | None, config: Config) -> None:
    """All sentences."""
    open_with(report, m)
    _heads(report, m, pairs, config)
    _other_parts(report, m, config)
    _kinds(report, m)
    _backups(report, m)
    _together(report, m, config)
    _losses(report, m, text is pairs.clean)
    _certainty(report, m, pairs, config)
    _doubts(report, m, config)


def _heads(report: Report, m: Ablations, pairs: Pairs, config: Config) -> None:
    lead, n = m.kinds[0], len(m.heads.nodes)
    table = m.heads.of(lead)
    if all(m.silent(kind) for kind in m.kinds):
        report.finding(
            f"Removing a head has {no_effect(m.noise)} on the logit difference, for any of {n} "
            f"heads, by {listed(m.kinds)} ablation."
        )
        return
    most = _strongest(table[table["effect"].abs() > m.noise], 3)
    if len(pairs) == 1:
        report.finding(
            f"By {lead} ablation the logit difference changes most without {_with_change(most, m)}."
            " There is one prompt, so nothing is tested."
        )
        return
    if not m.baseline.able:
        report.finding(
            "No head is named, since the unedited model does not do the task. The largest changes "
            f"of answer − wrong by {lead} ablation: {_with_change(most, m)}."
        )
        return
    bar = f"more than {config.least:.0%} of the logit difference"
    helps, _ = _named(m, lead)
    if len(helps):
        report.finding(
            f"{len(helps)} of {n} heads surely cost{'s' * (len(helps) == 1)} {bar} when removed "
            f"(by {lead} ablation): {_with_change(helps, m)}."
        )
    else:
        report.finding(
            f"No head of {n} surely costs {bar} when removed (by {lead} ablation); "
            + (f"there is {no_effect(m.noise)}." if m.silent(lead) else
               f"most changes {_with_change(_strongest(table, 1), m)}.{_hard(len(pairs), n)}")
        )  # fmt: skip
    for kind in m.kinds[1:]:
        own, _ = _named(m, kind)
        same = "the same heads: " if len(own) and {*own.index} == {*helps.index} else ""
        report.finding(f"By {kind} ablation, {same}{_with_change(own, m)}.")
    hinder = {kind: own for kind in m.kinds if len(own := _named(m, kind)[1])}
    if hinder:
        each = [f"{_with_change(own, m)} by {kind} ablation" for kind, own in hinder.items()]
        report.finding(
            "Negative heads, which work against the answer: the logit difference rises without "
            f"{'; '.join(each)}."
        )


def _hard(n: int, tests: int) -> str:
    """How much so few prompts ask of an effect; empty where it is little more than many ask."""
    needed, usual = errors_needed(n, tests, ALPHA), errors_needed(1000, tests, ALPHA)
    if needed < 1.5 * usual:
        return ""
    return (
        f" With {n} prompts and {tests} heads an effect must be {needed:.0f} standard errors large "
        f"to be named, with many prompts {usual:.1f}: --n takes more."
    )


def _named(m: Ablations, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The heads that are named, strongest first: those that help and those that hinder."""
    own = m.heads.of(kind)
    named = _strongest(own[own["named"]])
    return named[named["effect"] < 0], named[named["effect"] > 0]


def _other_parts(report: Report, m: Ablations, config: Config) -> None:
    lead = m.kinds[0]
    if m.mlps is not None and m.silent(lead, "mlp"):
        report.finding(f"MLPs by {lead} ablation: {no_effect(m.noise)} on the logit difference.")
    elif m.mlps is not None:
        own = m.mlps.of(lead)
        most = _strongest(own[own["effect"].abs() > m.noise], 3)
        report.finding(
            f"MLPs by {lead} ablation: the logit difference changes most without "
            f"{_with_change(most, m)}."
        )
    if m.neurons is not None:
        table = m.neurons.of(lead)
        changed = int(table["named"].sum())
        silent = float(table["effect"].abs().max()) <= m.noise
        report.finding(
            f"Neurons by {lead} ablation: {no_effect(m.noise)} on the logit difference."
            if silent
            else f"Neurons by {lead} ablation: {changed} of {len(table)} change the logit "
            f"difference at all (false discovery rate {ALPHA:.0%}), most "
            f"{_with_change(_strongest(table, 3), m)}."
        )


def _kinds(report: Report, m: Ablations) -> None:
    if len(m.kinds) < 2 or m.disagreement is None or all(m.silent(kind) for kind in m.kinds):
        return
    damage = m.damage.set_index("kind")["damage"]
    costs = damage.sort_values().items()
    told = ", ".join(f"{kind} {number(cost, 'z.3f')}" for kind, cost in costs)
    usual = [kind for kind in ORDER if kind in damage.index]
    holds = damage[usual].is_monotonic_increasing
    ranks = m.kinds_table[m.kinds_table["part"] == "head"]
    pairs = [f"{row['one']} and {row['other']} {number(row['spearman'])}"
             for _, row in ranks.iterrows()]  # fmt: skip
    row = m.disagreement.iloc[0]
    sides = listed(f"{kind} {signed(row[kind])}" for kind in m.kinds)
    report.finding(
        f"The kinds of ablation: logits lost on average per head are {told}; the usual order "
        f"{' < '.join(usual)} {'holds' if holds else 'does not hold here'}."
        + (f" Rank correlations over heads: {listed(pairs)}." if pairs else "")
        + f" They disagree most on {part_name(row)}: {sides} logits."
    )


def _backups(report: Report, m: Ablations) -> None:
    if m.seconds is None or all(m.silent(kind) for kind in m.kinds):
        return
    places = zip(m.seconds["first_layer"], m.seconds["first_head"], strict=True)
    seconds = m.seconds.assign(first=[head_name(*place) for place in places])
    quiet = []
    for kind in m.kinds:
        own = seconds[seconds["kind"] == kind]
        woken = own[own["wakes"]]
        quiet += [] if len(woken) else [kind]
        for first in woken["first"].unique():
            rows = woken[woken["first"] == first]
            each = [
                f"{part_name(row)} costs {number(-row['given'])} logits where it cost "
                f"{number(-row['alone'])}"
                for _, row in rows.sort_values("interaction").iterrows()
            ]
            report.finding(
                f"Backups that wake once {first} is gone, by {kind} ablation: "
                f"{listed(each)}. Single removal does not show that."
            )
    names = seconds["first"].unique()
    if quiet and m.baseline.able and len(m.baseline.clean) > 1:
        report.finding(
            f"By {listed(quiet)} ablation no head surely costs more once one of {listed(names)} is "
            "gone: no backup shows itself."
        )
    _series(report, seconds[seconds["kind"] == m.kinds[0]], m)


def _series(report: Report, own: pd.DataFrame, m: Ablations) -> None:
    sure = (own["p_corrected"] < ALPHA) & (own["interaction"] > m.noise) & (own["alone"] < 0)
    if m.baseline.able and bool(sure.any()):
        row = own.loc[own["interaction"].where(sure).idxmax()]
        report.finding(
            f"Not additive, as in series or doing the same ({m.kinds[0]} ablation): once "
            f"{row['first']} is gone, removing {part_name(row)} changes the logit difference by "
            f"{signed(row['given'])} in place of {signed(row['alone'])} (the largest such pair)."
        )


def _together(report: Report, m: Ablations, config: Config) -> None:
    if all(m.silent(kind) for kind in m.kinds):
        return
    row = m.sets.iloc[0]
    what = f"the {row['k']} strongest heads at once" if row["k"] > 1 else "the strongest head"
    others = [f"{one['kind']} {signed(one['effect'])}, p = {one['p']:.3f}"
              for _, one in m.sets.iloc[1:].iterrows()]  # fmt: skip
    report.finding(
        f"Without {what} ({row['heads']}; by {row['kind']} ablation) the logit difference "
        f"changes by {plus_minus(row['effect'], row['stderr'], '+z.2f')}. Random sets of "
        f"{row['k']} change it by {signed(row['random_mean'])} on average, 95 % of them from "
        f"{signed(row['random_low'])} to {signed(row['random_high'])}; {row['as_much']} of "
        f"{row['random_sets']} change it as much (p = {row['p']:.3f}), and "
        f"{row['as_much_without']} of the {row['without']} that hold none of these heads."
        + (f" The same by {'; '.join(others)}." if others else "")
        + _few_sets(int(row["random_sets"]))
    )
    told = []
    for kind in m.kinds:
        found = carriers(m.curve, kind) if m.shares else None
        if found is not None:
            told.append(f"{found[0]} by {kind} ablation ({found[1]['share']:.0%} kept)")
    if told:
        report.finding(
            f"Heads that carry {KEPT:.0%} of the logit difference when all others are removed at "
            f"once, of {len(m.heads.nodes)}: {listed(told)}."
        )


def _few_sets(sets: int) -> str:
    short = out_of_reach(sets, 1, "set", "random sets", "random-sets", "none")
    return f" No verdict: {short}." if short else ""


def _losses(report: Report, m: Ablations, own: bool) -> None:
    lead = m.kinds[0]
    rows = m.losses[(m.losses["kind"] == lead) & (m.losses["part"] == "head")]
    rows = rows.reset_index(drop=True)
    best = rows.loc[rows["answer"].idxmax()]
    if bool(np.nanmax(rows[["answer", "text"]].abs()) <= m.noise):
        report.finding(f"In nats: {no_effect(m.noise)} of removing a head, by {lead} ablation.")
        return
    told = (
        f"The answer's loss rises most without {part_name(best)} ({signed(best['answer'])} nats "
        f"by {lead} ablation)"
        if float(best["answer"]) > m.noise
        else f"The answer's loss rises without no head ({lead} ablation)"
    )
    if np.isfinite(rows["text"]).all():
        top, where = rows.loc[rows["text"].idxmax()], "the clean prompts" if own else "the text"
        change = plus_minus(top["text"], top["text_stderr"], "+z.3f")
        told += f"; the plain loss over {where} without {part_name(top)} ({change} nats per token)"
        both = pd.DataFrame({"task": m.heads.of(lead)["effect"].abs(), "text": rows["text"]})
        both = both.where(both.abs() > m.noise, 0.0)
        if bool(both.nunique().gt(1).all()):
            rank = float(both.corr(method="spearman").loc["task", "text"])
            told += (
                ". Over heads, the size of the effect on the task and the rise of that loss have "
                f"the rank correlation {number(rank)}"
            )
    report.finding(told + ".")


def _certainty(report: Report, m: Ablations, pairs: Pairs, config: Config) -> None:
    n, count = len(pairs), len(m.heads.nodes)
    if n > 1:
        report.sure(
            f"± is a standard error, intervals are 95 %, both over {n} prompts; percentages are "
            "ratios of means, change by unedited logit difference. A head is named where a paired "
            f"t test says that its effect exceeds {config.least:.0%} of that difference, p < "
            f"{ALPHA} after Holm's correction over the {count} heads of one kind of ablation; a "
            "pair of heads likewise, over all pairs. Nothing is named on a model that cannot do "
            "the task."
        )
    if n > 1 and m.halves[0] < n:
        report.sure(
            f"For removing heads together, they were ranked on {m.halves[0]} prompts and removed "
            f"on the other {m.halves[1]}, so that chance does not choose them; random orders are "
            f"drawn from seed {config.seed}."
        )
    elif n > 1:
        report.sure(
            f"Of {n} prompts no half can be spared, so heads were ranked and removed together on "
            "the same ones, which flatters the strongest."
        )
    if "mean" in m.kinds:
        report.sure(mean_in_words(pairs, config))
    if "resample" in m.kinds:
        source = {
            "corrupted": f"a random corrupted prompt, one donor per node and prompt (seed "
            f"{config.seed})",
            "own": "each prompt's own corrupted one, so that only what the corruption changes is "
            "removed, and replaced by what speaks for the wrong answer",
            "clean": f"a random clean prompt, now and then the prompt itself (seed {config.seed})",
        }[config.donors]
        report.sure(f"Resample ablation takes values from {source}.")


def _doubts(report: Report, m: Ablations, config: Config) -> None:
    report.doubt(
        "The effect of one removal is a lower bound of what a part does: later parts make up for "
        "it (backup heads; the Hydra effect, McGrath et al. 2023). The second removals show that "
        f"for the {config.top} strongest heads only; two heads that stand in for each other "
        "completely are both weak, and only --top as large as the number of heads tries all pairs."
    )
    report.doubt(
        "A kind of ablation is part of the question. Zero puts later layers where no prompt puts "
        "them; a mean keeps what all prompts have in common; resampled values bring in what the "
        "donor was about. A head that only one of them names is not settled."
    )
    report.doubt(
        "Heads are removed at all positions at once, with biases left in. Which position matters, "
        "and by which path, needs patching."
    )
    report.doubt(
        "Heads removed together go in the order of their single effects; another set of as many "
        "may carry more, since backups and series are not in that order."
    )
    if not m.shares:
        report.doubt(
            "The unedited logit difference is not surely above zero, so no effect is a share of it."
        )


def _strongest(table: pd.DataFrame, k: int | None = None) -> pd.DataFrame:
    order = np.argsort(-table["effect"].abs().to_numpy(), kind="stable")
    return table.iloc[order[:k]]


def _with_change(table: pd.DataFrame, m: Ablations) -> str:
    """L2 H1 (−3.21 ± 0.10 logits, −71%)."""
    return listed(
        f"{part_name(row)} ({plus_minus(row['effect'], row['stderr'], '+z.2f')} logits"
        + (f", {_share(-row['lost'])})" if m.shares else ")")
        for _, row in table.iterrows()
    )


def _share(value: float) -> str:
    return number(value, "+z.0%")
