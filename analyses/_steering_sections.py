"""What the report on steering shows and says: side by side, how often, and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.methods.continuations import SUMMARY, Continued, Counted, name_of, shaded
from interp.methods.directions import Direction
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.figures import curves
from interp.report.spine import listed, number, out_of_reach, percent

SURE = 0.05


@dataclass(frozen=True)
class Said:
    """What a run says about one direction and the tokens that are counted."""

    toward: str
    """The words counted on the side that the direction leads to."""
    away: str
    base: Any
    """Row of the summary without steering."""
    steps: pd.DataFrame
    """Rows of the summary with steering."""
    sure: pd.DataFrame
    """Those that change what is written beyond random directions."""
    few: str
    """Why no number of these random directions could tell; empty where it could."""

    @property
    def clearest(self) -> Any:
        """The row that the first screen is about: of the sure ones the largest change, else the
        largest step towards the concept."""
        if len(self.sure):
            change = (self.sure["positive"] - self.base["positive"]).abs()
            return self.sure.loc[change.idxmax()]
        up = self.steps[self.steps["factor"] > 0]
        return (up if len(up) else self.steps).iloc[-1]


def said(model: HookedTransformer, short: pd.DataFrame, counted: Counted, n_random: int) -> Said:
    """Reads the summary. A step is sure where its p is small enough and its interval leaves out the
    unsteered share."""
    base = short[short["factor"] == 0].iloc[0]
    steps = short[short["factor"] != 0]
    few = out_of_reach(n_random, 1, "factor", "random directions", "n-random", "none")
    beyond = (steps["positive_low"] > base["positive"]) | (
        steps["positive_high"] < base["positive"]
    )
    sure = steps[(steps["p"] <= SURE) & beyond & (not few)]
    return Said(
        _one_of(model, counted.positive), _one_of(model, counted.negative), base, steps, sure, few
    )


def first_screen(
    report: Report,
    told: Said,
    beside: pd.DataFrame,
    greedy: list[tuple[float, Continued]],
    counted: Counted,
    origin: str,
) -> None:
    """The answer above two continuations of one prompt, and what stands behind it."""
    row, base = told.clearest, told.base
    opening = report.answer(answer_of(told))
    row_of_prompt, why = _telling_prompt(greedy, row["factor"], counted)
    shown = beside[beside["chosen"] == "greedy"].iloc[row_of_prompt]
    step = _step(row["factor"])
    opening.texts(
        {
            "As it is": f"{shown['prompt']} … {shown[name_of(0.0)].strip()}",
            f"With {step} steps of the direction": f"{shown['prompt']} … "
            f"{shown[name_of(row['factor'])].strip()}",
        },
        f"What the model writes behind “{shown['prompt']}”, most likely token by token. {why} "
        f"The direction: {origin}.",
        name="two-continuations",
    )
    report.finding(
        f"At {step} steps {percent(row['positive'])} of the continuations hold {told.toward}; "
        f"without steering {percent(base['positive'])}, with random directions "
        f"{percent(row['random_low'])} to {percent(row['random_high'])}.",
        at="share-by-factor",
    )
    report.finding(
        f"At {step} steps {percent(row['negative'])} hold {told.away}; without steering "
        f"{percent(base['negative'])}.",
        at="summary",
    )
    dearer = row["perplexity"] > base["perplexity"]
    report.finding(
        f"The text becomes {'less' if dearer else 'no less'} fluent: its perplexity under the "
        f"plain model is {row['perplexity']:.1f} instead of {base['perplexity']:.1f}; with random "
        f"directions {row['random_perplexity']:.1f}.",
        at="perplexity-by-factor",
    )


def answer_of(told: Said) -> str:
    """The sentence of the first screen."""
    row, base = told.clearest, told.base
    shares = (
        f"{percent(row['positive'])} of the continuations hold {told.toward} instead of "
        f"{percent(base['positive'])}"
    )
    if told.few:
        return (
            "This run cannot tell whether steering works, since too few random directions stand "
            f"beside it: at {_step(row['factor'])} steps {shares}."
        )
    if not len(told.sure):
        return (
            "No: adding the direction changes what is written no more than random directions do; "
            f"at {_step(row['factor'])} steps {shares}."
        )
    more = "more" if row["positive"] > base["positive"] else "less"
    price = row["perplexity"] > base["perplexity"]
    return (
        f"Yes: with {_step(row['factor'])} steps of the direction the model writes {told.toward} "
        f"{more} often: {shares}, {'at some' if price else 'at no'} price in fluency."
    )


def _telling_prompt(
    greedy: list[tuple[float, Continued]], factor: float, counted: Counted
) -> tuple[int, str]:
    """The row of the prompt that is shown, and why it is the one."""
    plain, steered = (next(told for at, told in greedy if at == wanted) for wanted in (0.0, factor))
    holds = [
        (
            torch.isin(told.generation.new_ids, counted.positive.to(told.generation.new_ids))
            & told.real
        ).any(1)
        for told in (plain, steered)
    ]
    texts = [told.generation.completions for told in (plain, steered)]
    n = len(texts[0])
    turned = [i for i in range(n) if bool(holds[0][i]) != bool(holds[1][i])]
    if turned:
        return turned[0], (
            f"A counted word comes or goes in {len(turned)} of {n} prompts; shown is the first of "
            "these."
        )
    moved = [i for i in range(n) if texts[0][i] != texts[1][i]]
    if moved:
        return moved[0], (
            f"In none of {n} prompts does a counted word come or go; shown is the first of "
            f"{len(moved)} where anything changes."
        )
    return 0, f"In none of {n} prompts does anything change."


def say_findings(report: Report, told: Said, direction: Direction, origin: str) -> None:
    """Every step in numbers, behind the first screen."""
    base = told.base
    acts = "changes what is written no more than random directions do"
    if told.few:
        acts = f"cannot be told from chance: {told.few}"
    elif len(told.sure):
        steps = listed(_step(factor) for factor in told.sure["factor"])
        acts = f"changes what is written beyond random directions at {steps} steps"
    report.finding(f"Adding the direction ({origin}; {direction.site}) {acts}.", at="summary")
    for _, row in told.steps.iterrows():
        report.finding(
            f"At {_step(row['factor'])} steps {percent(row['positive'])} of the continuations hold "
            f"{told.toward} (95 % interval {percent(row['positive_low'])} to "
            f"{percent(row['positive_high'])}), unsteered {percent(base['positive'])}; with random "
            f"directions {percent(row['random_low'])} to {percent(row['random_high'])} (p = "
            f"{row['p']:.2f}); {percent(row['negative'])} hold {told.away}, unsteered "
            f"{percent(base['negative'])}.",
            at="share-by-factor",
        )


def _one_of(model: HookedTransformer, ids: Int[Tensor, " k"]) -> str:
    """The counted word of a side, with or without its space; of several how many they are."""
    texts = model.tokenizer.str_tokens(ids.tolist())
    named = dict.fromkeys(f"“{text.strip()[:30]}”" for text in texts)
    return next(iter(named)) if len(named) == 1 else f"one of {len(named)} words"


def _step(factor: float) -> str:
    return number(factor, "+g")


def show(
    report: Report,
    model: HookedTransformer,
    short: pd.DataFrame,
    frame: pd.DataFrame,
    beside: pd.DataFrame,
    greedy: list[tuple[float, Continued]],
    counted: Counted,
) -> None:
    section = report.section(
        "Side by side",
        "The same prompts with as many steps of the direction added at every position. Sampled "
        "ones draw with the same seed.",
    )
    section.table(beside, "Continuations", name="continuations", rows=24)
    section = report.section(
        "How fluent it is",
        "Greedy continuations; the shade is what each written token costs the unsteered model.",
    )
    section.tokens(*shaded(model, greedy), "Cost of each written token", name="fluency")
    section = report.section(
        "How often it says so",
        "The share of sampled continuations that hold a counted word. Bands: 95 % intervals; of "
        "random directions of equal norm, the middle 95 %.",
    )
    section.figure(_share(short), "Positive words by steps", name="share-by-factor")
    section.figure(_price(frame), "Perplexity by steps", name="perplexity-by-factor")
    percent = [one for one in SUMMARY[1:9] if one != "p"]
    section.table(short, "By factor", name="summary", formats=dict.fromkeys(percent, ".0%"))
    section.table(frame, "Every direction", name="steered", rows=8)
    section.table(
        _named(model, counted),
        "The tokens that are counted: positive ones are those that the direction leads to",
        name="counted",
        rows=20,
    )


def _named(model: HookedTransformer, counted: Counted) -> pd.DataFrame:
    rows = [
        (side, model.tokenizer.str_tokens([i])[0], i)
        for side, ids in counted._asdict().items()
        for i in ids.tolist()
    ]
    return pd.DataFrame(rows, columns=["side", "token", "id"])


def _share(short: pd.DataFrame) -> Any:
    columns = ["factor", "share", "low", "high"]
    own = short[["factor", "positive", "positive_low", "positive_high"]].set_axis(columns, axis=1)
    random = short[["factor", "random_positive", "random_low", "random_high"]]
    data = pd.concat(
        [
            own.assign(added="the direction"),
            random.set_axis(columns, axis=1).assign(added="random directions"),
        ],
        ignore_index=True,
    )[["factor", "added", "share", "low", "high"]]
    first, last = own.iloc[0], own.iloc[-1]
    low, high = percent(random["random_low"].min()), percent(random["random_high"].max())
    return curves(
        data,
        x="factor",
        value="share",
        low="low",
        high="high",
        group="added",
        x_axis="steps added",
        axis="continuations with a positive word",
        alt=f"Continuations with a positive word: {percent(first['share'])} at "
        f"{number(first['factor'], 'g')} steps, {percent(last['share'])} at "
        f"{number(last['factor'], 'g')}; with random directions {low} "
        f"to {high}.",
    )


def _price(frame: pd.DataFrame) -> Any:
    base = frame[frame["factor"] == 0].iloc[0]
    rows = []
    for arm, name in (("found", "the direction"), ("random", "random directions")):
        own = frame[frame["arm"] == arm]
        for factor in sorted({0.0, *own["factor"]}):
            some = own[own["factor"] == factor]
            if factor == 0:
                told = [base["loss"], base["loss_low"], base["loss_high"]]
            elif arm == "found":
                told = list(some[["loss", "loss_low", "loss_high"]].iloc[0])
            else:
                told = [some["loss"].mean(), *np.quantile(some["loss"], [0.025, 0.975])]
            rows.append((factor, name, *np.exp(np.array(told, dtype=float))))
    data = pd.DataFrame(rows, columns=["factor", "added", "perplexity", "low", "high"])
    own = data[data["added"] == "the direction"]
    return curves(
        data,
        x="factor",
        value="perplexity",
        low="low",
        high="high",
        group="added",
        x_axis="steps added",
        axis="perplexity under the unsteered model",
        alt=f"Perplexity of what is written: {np.exp(base['loss']):.1f} unsteered, "
        f"{own['perplexity'].iloc[0]:.1f} at {number(own['factor'].iloc[0], 'g')} and "
        f"{own['perplexity'].iloc[-1]:.1f} at {number(own['factor'].iloc[-1], 'g')} steps.",
    )
