"""What the report on steering shows and says: side by side, how often, and at what price."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from analyses._steering.measure import SUMMARY, Words, shaded
from interp.methods.directions import Direction
from interp.report import Report
from interp.report.figures import curves
from interp.report.spine import listed, number, out_of_reach

SURE = 0.05


def say_findings(
    report: Report, model: Any, short: pd.DataFrame, words: Words, direction: Direction, told: str,
    n_random: int,
) -> None:  # fmt: skip
    toward, away = (_one_of(model, ids) for ids in words)
    base = short[short["factor"] == 0].iloc[0]
    steps = short[short["factor"] != 0]
    sure = steps[
        (steps["p"] <= SURE)
        & ((steps["positive_low"] > base["positive"]) | (steps["positive_high"] < base["positive"]))
    ]
    up = steps[steps["factor"] > 0]
    best = (up if len(up) else steps).iloc[-1]
    few = out_of_reach(n_random, 1, "factor", "random directions", "n-random", "none")
    acts = (
        f"cannot be told from chance: {few}"
        if few
        else f"changes what is written beyond random directions at {listed(_steps(sure))} steps"
        if len(sure)
        else "changes what is written no more than random directions do"
    )
    report.finding(f"Adding the direction ({told}; {direction.site}) {acts}.")
    for _, row in steps.iterrows():
        report.finding(
            f"At {_step(row['factor'])} steps {row['positive']:.0%} of the continuations hold "
            f"{toward} (95 % interval {row['positive_low']:.0%} to "
            f"{row['positive_high']:.0%}), unsteered {base['positive']:.0%}; with random "
            f"directions {row['random_low']:.0%} to {row['random_high']:.0%} (p = "
            f"{row['p']:.2f}); {row['negative']:.0%} hold {away}, unsteered "
            f"{base['negative']:.0%}."
        )
    report.finding(
        f"The price: the unsteered model's perplexity of what is written goes from "
        f"{base['perplexity']:.1f} to {best['perplexity']:.1f} at {_step(best['factor'])} steps; "
        f"with random directions of equal norm to {best['random_perplexity']:.1f}."
    )


def _one_of(model: Any, ids: Int[Tensor, " k"]) -> str:
    """The counted words of a side, each once, with or without its space."""
    texts = model.tokenizer.str_tokens(ids.tolist())
    named = list(dict.fromkeys(f"“{text.strip()[:30]}”" for text in texts))
    return named[0] if len(named) == 1 else f"one of {listed(named, 4)}"


def _steps(frame: pd.DataFrame) -> list[str]:
    return [_step(one) for one in frame["factor"]]


def _step(factor: float) -> str:
    return number(factor, "+g")


def show(
    report: Report, model: Any, short: pd.DataFrame, frame: pd.DataFrame, beside: pd.DataFrame,
    greedy: list, words: Words,
) -> None:  # fmt: skip
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
    section.table(_named(model, words), "Counted tokens", name="counted", rows=20)


def _named(model: Any, words: Words) -> pd.DataFrame:
    rows = [
        (side, model.tokenizer.str_tokens([i])[0], i)
        for side, ids in words._asdict().items()
        for i in ids.tolist()
    ]
    return pd.DataFrame(rows, columns=["side", "token", "id"])


def _share(short: pd.DataFrame) -> Any:
    columns = ["factor", "share", "low", "high"]
    own = short[["factor", "positive", "positive_low", "positive_high"]].set_axis(columns, axis=1)
    random = short[["factor", "random_positive", "random_low", "random_high"]]
    data = pd.concat(
        [own.assign(added="the direction"),
         random.set_axis(columns, axis=1).assign(added="random directions")],
        ignore_index=True,
    )[["factor", "added", "share", "low", "high"]]  # fmt: skip
    first, last = own.iloc[0], own.iloc[-1]
    return curves(
        data, x="factor", value="share", low="low", high="high", group="added",
        x_axis="steps added", axis="continuations with a positive word",
        alt=f"Continuations with a positive word: {first['share']:.0%} at "
        f"{number(first['factor'], 'g')} steps, {last['share']:.0%} at "
        f"{number(last['factor'], 'g')}; with random directions {random['random_low'].min():.0%} "
        f"to {random['random_high'].max():.0%}.",
    )  # fmt: skip


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
        data, x="factor", value="perplexity", low="low", high="high", group="added",
        x_axis="steps added", axis="perplexity under the unsteered model",
        alt=f"Perplexity of what is written: {np.exp(base['loss']):.1f} unsteered, "
        f"{own['perplexity'].iloc[0]:.1f} at {number(own['factor'].iloc[0], 'g')} and "
        f"{own['perplexity'].iloc[-1]:.1f} at {number(own['factor'].iloc[-1], 'g')} steps.",
    )  # fmt: skip
