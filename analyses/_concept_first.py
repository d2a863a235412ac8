"""The first screen of the report on a concept's direction: the verdict in plain words."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analyses._concept_causes import dose
from interp.methods.concepts import METHODS, Directions, Method, Verdict
from interp.report import Report
from interp.report.spine import number, percent, signed


@dataclass(frozen=True)
class Outcome:
    """What the first screen says of the direction of one layer and method."""

    layer: int
    method: Method
    verdict: Verdict
    separated: pd.Series
    """Its row of the separation of held-out texts."""
    caused: pd.DataFrame
    """Its rows of the causal summary: ablated, and added by each factor."""
    tried: pd.DataFrame
    """Every direction that was tried at this layer (`causal_check`)."""
    dormant: bool
    """Whether it acts by a part along which the texts do not vary."""
    asked: str
    """What the effects are changes of."""
    changed: str
    """The same in plain words: the answer, or the next token."""


def first_screen(report: Report, found: Directions, outcome: Outcome) -> None:
    """The answer above dose and response, and three findings before all others; then the verdict
    with its provenance."""
    first, second = found.concept.classes
    report.answer(answer_of(found, outcome)).figure(
        dose(outcome.tried, outcome.asked, outcome.layer),
        f"How far {outcome.asked} moves when the direction is added, beside random directions and "
        "ones drawn as the texts vary. Bands: 95 %.",
        name="dose-response",
    )
    further, report.findings = report.findings, []
    added, gone = outcome.caused[outcome.caused["action"] == "steer"], outcome.caused
    top = added.loc[added["factor"].idxmax()]
    gone = gone[gone["action"] == "ablate"].iloc[0]
    read = outcome.separated
    unit = "standard deviation" if top["factor"] == 1 else "standard deviations"
    report.finding(
        f"In new texts the direction puts “{second}” above “{first}” in {percent(read['auroc'])} "
        f"of comparisons; directions from shuffled labels in up to {percent(read['shuffled'])}.",
        at="separation-by-layer",
    )
    report.finding(
        f"Adding {number(top['factor'], 'g')} {unit} changes {outcome.asked} by "
        f"{signed(top['effect'])}; random directions by up to {top['random_size']:.2f}.",
        at="dose-response",
    )
    report.finding(
        f"Removing the direction changes that by {gone['size']:.2f} per prompt; random directions "
        f"by up to {gone['random_size']:.2f}, those drawn as texts vary "
        f"{gone['covariance_size']:.2f}.",
        at="causal-methods",
    )
    report.finding(
        f"The direction from {first} to {second} ({found.concept.name}; {METHODS[outcome.method]}, "
        f"layer {outcome.layer}) is {outcome.verdict.words}.",
        at="causal-methods",
    )
    report.findings += further


def answer_of(found: Directions, outcome: Outcome) -> str:
    """The sentence of the first screen."""
    first, second = (f"“{name}”" for name in found.concept.classes)
    verdict, layer, changed = outcome.verdict, outcome.layer, outcome.changed
    illusion = (
        ", though only by a part of it along which no text varies"
        if outcome.dormant and (verdict.used or verdict.moves)
        else ""
    )
    if not verdict.testable:
        return (
            f"This run cannot tell whether the model uses a direction from {first} to {second}: "
            "too few random directions stand beside it."
        )
    if not verdict.readable:
        acts = ", though adding what was found acts" if verdict.moves else ""
        return (
            f"No direction is found: at layer {layer} none tells {first} and {second} of new texts "
            f"apart better than one from shuffled labels{acts}{illusion}."
        )
    read = f"A direction at layer {layer} tells {second} from {first}"
    if verdict.used and verdict.moves:
        return f"{read}, and the model uses it: removing or adding it changes {changed}{illusion}."
    if verdict.used:
        return (
            f"{read}, and the model needs it: removing it changes {changed}, but adding more of it "
            f"does no more than other directions do{illusion}."
        )
    if verdict.moves:
        return (
            f"{read}, and adding it changes {changed}, but the model does without it: removing it "
            f"does no more than removing other directions{illusion}."
        )
    if verdict.plain:
        return f"{read}, but acts no more on {changed} than whatever else the texts vary along."
    return f"{read}, but the model does not use it: it acts no more on {changed} than chance does."
