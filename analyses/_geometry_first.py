"""The first screen of the report on embedding geometry."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analyses._geometry_layers import RATIO
from analyses._geometry_senses import AFTER, senses_figure
from interp.methods.geometry import Senses
from interp.report import Report
from interp.report.spine import number, percent

SURE = 0.05


class Shape(NamedTuple):
    """What the sections measured."""

    width: int
    """Dimensions of a word vector."""
    sizes: pd.DataFrame
    """measure value control, of the table."""
    by_layer: pd.DataFrame | None
    """layer measure value control, of words in texts."""
    senses: dict[str, Senses]
    causal: bool


def first_screen(report: Report, shape: Shape) -> None:
    """The answer, the figure of it, and three findings before all others."""
    further, report.findings = report.findings, []
    dimension = shape.sizes.set_index("measure").loc[RATIO]
    used = f"Word vectors use about {dimension['value']:.0f} of their {shape.width} dimensions"
    opening = report.answer(f"{used}{_answer_on_senses(shape)}.")
    if shape.senses:
        opening.figure(
            senses_figure(shape.senses),
            "Words with two senses: the share of places nearest to the sense that they have, by "
            "layer. Bands: 95 % intervals.",
            name="senses-figure",
        )
    report.finding(
        f"The table of word vectors uses {dimension['value']:.0f} of {shape.width} dimensions; "
        f"random vectors without structure would use {dimension['control']:.0f}.",
        at="dimension",
    )
    if shape.senses:
        pooled = shape.senses[_telling(shape)].pooled
        first, best = pooled.iloc[0], pooled.loc[pooled["accuracy"].idxmax()]
        report.finding(
            f"{percent(first['accuracy'])} of ambiguous words lie nearest to their sense at layer "
            f"{first['layer']:.0f}, {percent(best['accuracy'])} at layer {best['layer']:.0f}; "
            f"shuffled senses: {percent(best['null_low'])} to {percent(best['null_high'])}.",
            at="senses-figure",
        )
    if shape.by_layer is not None:
        by_layer = shape.by_layer[shape.by_layer["measure"] == RATIO]
        least, most = (
            by_layer.loc[pick] for pick in (by_layer["value"].idxmin(), by_layer["value"].idxmax())
        )
        report.finding(
            f"Words in texts fill the fewest dimensions at layer {least['layer']} "
            f"({number(least['value'], '.0f')}), the most at layer {most['layer']} "
            f"({number(most['value'], '.0f')}).",
            at="dimension-by-layer-figure",
        )
    report.findings += further


def _telling(shape: Shape) -> str:
    """The texts in which the model can know the sense: of a left-to-right model not those whose cue
    comes behind the word."""
    known = [side for side in shape.senses if side != AFTER or not shape.causal]
    return next(iter(known or shape.senses))


def _answer_on_senses(shape: Shape) -> str:
    if not shape.senses:
        return "; no words with two senses could be looked at"
    side = _telling(shape)
    if side == AFTER and shape.causal:
        return "; the senses of a word cannot be known here, since every cue comes behind it"
    pooled = shape.senses[side].pooled
    best = pooled.loc[pooled["accuracy"].idxmax()]
    if best["p"] > SURE or best["low"] <= best["null_high"]:
        return "; in no layer do the senses of a word lie apart more than shuffled ones"
    apart = pooled[(pooled["p"] <= SURE) & (pooled["low"] > pooled["null_high"])].iloc[0]
    first = f"layer {apart['layer']:.0f}"
    if apart["layer"] != best["layer"]:
        first += f" already and most at layer {best['layer']:.0f}"
    return (
        f"; the senses of a word come apart at {first}, where {percent(best['accuracy'])} of "
        "ambiguous words lie nearest to theirs"
    )
