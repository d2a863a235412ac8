"""What the report on probes says in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from analyses._probe_texts import Config
from interp.methods.probes.compare import EMBEDDING, LEVEL, RANDOM, WORDS, Compared
from interp.methods.probes.fitting import PENALTIES
from interp.report import Report
from interp.report.spine import listed, number, out_of_reach, percent, signed
from interp.report.text import slug

NEEDS_NO_MODEL = {
    EMBEDDING: "the embedding",
    RANDOM: "a copy with random weights",
    WORDS: "counting the words",
}
"""Rivals in a word or two."""
OF_RIVAL = {
    EMBEDDING: "from the embedding, before any context",
    RANDOM: "from the best place of a copy with random weights",
    WORDS: "from the tokens of the text alone, counted",
}


def form_of(compared: Compared) -> Callable[[float], str]:
    """How a score stands in a sentence: an accuracy in per cent, an R² as a number."""
    return number if compared.examples.regression else partial(percent, form="z.1f")


def score_name(compared: Compared) -> str:
    """What the main score is."""
    return "R²" if compared.examples.regression else "accuracy"


def place_name(row: Any) -> str:
    """As places are called: resid_post of layer 2."""
    site = str(row["site"]).rpartition(".")[2].removeprefix("hook_")
    return site if pd.isna(row["layer"]) else f"{site} of layer {int(row['layer'])}"


PLAIN = {
    "resid_post": "behind layer {}",
    "attn_out": "in what the attention of layer {} adds",
    "mlp_out": "in what the MLP of layer {} adds",
}


def plain_place(row: Any) -> str:
    """A place for a reader who does not know the names of sites: behind layer 2."""
    plain = PLAIN.get(str(row["site"]))
    return f"at {place_name(row)}" if plain is None else plain.format(int(row["layer"]))


def answer_of(compared: Compared, config: Config) -> str:
    """The sentence of the first screen."""
    what, best, form = compared.examples.what, compared.best, form_of(compared)
    score = (
        f"R² {form(best['score'])}"
        if compared.examples.regression
        else f"{form(best['score'])} right"
    )
    if not compared.found:
        if _short(compared, config):
            return (
                f"This run cannot tell whether the layers hold “{what}”: there are too few "
                "shuffles to compare with."
            )
        return (
            f"No: at none of {len(compared.model)} places can a linear probe read “{what}” better "
            "than from shuffled labels."
        )
    start = f"“{what}” can be read {plain_place(best)} ({score})"
    if best["low"] <= best["constant"]:
        return f"{start}, yet not measurably better than by giving always the same answer."
    rivals = compared.rivals[compared.rivals["rival"].isin([*OF_RIVAL])]
    equal = rivals.loc[~(rivals["low"] > 0), "rival"].tolist()
    if equal:
        cheap = listed(NEEDS_NO_MODEL[rival] for rival in equal)
        return f"{start}, but not measurably better than from {cheap}."
    if len(rivals):
        beyond = listed(NEEDS_NO_MODEL[str(rival)] for rival in rivals["rival"])
        return f"Yes: {start}, better than from {beyond}."
    return f"Yes: {start}, better than from shuffled labels."


def _first_findings(report: Report, compared: Compared) -> None:
    """The score above its controls, the same probe without the model's layers, and where else."""
    best, form, model = compared.best, form_of(compared), compared.model
    constant = "the mean of the labels" if compared.examples.regression else "the commonest label"
    report.finding(
        f"{score_name(compared).capitalize()} is {form(best['score'])} {plain_place(best)}; "
        f"{constant} gives {form(best['constant'])}, shuffled labels up to "
        f"{form(best['null_high'])}.",
        at=slug(f"{best['site']}-figure"),
    )
    rivals = compared.rivals[compared.rivals["rival"].isin([*OF_RIVAL])]
    if len(rivals):
        told = listed(
            f"{form(row['score'])} from {NEEDS_NO_MODEL[str(row['rival'])]}"
            for _, row in rivals.iterrows()
        )
        report.finding(f"The same probe reaches {told}.", at="rivals")
    passed = model[model["p_adjusted"] <= LEVEL]
    if len(passed):
        first = passed.loc[passed["layer"].idxmin()]
        report.finding(
            f"Better than shuffled labels: {len(passed)} of {len(model)} places, the first at "
            f"layer {int(first['layer'])}.",
            at="by-layer",
        )
    else:
        report.finding(
            f"Better than shuffled labels: none of {len(model)} places (corrected p of the best "
            f"{best['p_adjusted']:.2f}).",
            at="by-layer",
        )


def findings(report: Report, compared: Compared, config: Config) -> None:
    """All sentences above the evidence."""
    _first_findings(report, compared)
    _where(report, compared, config)
    _against_baselines(report, compared)
    _control(report, compared)
    _neighbours(report, compared)
    _compression(report, compared)
    _mistakes(report, compared)
    _certainty(report, compared, config)
    for sentence in (*compared.examples.left_out, *compared.skipped):
        report.skip(sentence)


def _where(report: Report, compared: Compared, config: Config) -> None:
    best, form, what = compared.best, form_of(compared), compared.examples.what
    score = (
        f"{score_name(compared)} {form(best['score'])} (95 % interval {form(best['low'])} to "
        f"{form(best['high'])})"
    )
    null = (
        f"shuffled labels {form(best['null_mean'])}, 95 % of them {form(best['null_low'])} to "
        f"{form(best['null_high'])}"
    )
    chance = (
        f"the mean of the labels {form(best['constant'])}"
        if compared.examples.regression
        else f"always the commonest label {form(best['constant'])}"
    )
    if not compared.found:
        short = _short(compared, config)
        start = (
            f"This run cannot tell whether one place holds “{what}”: {short}."
            if short
            else (
                f"Nothing is found: at none of {len(compared.model)} places can “{what}” be read "
                "better than from shuffled labels."
            )
        )
        report.finding(
            f"{start} The best, {place_name(best)}, has {score}; {null}; {chance}. Corrected for "
            f"the number of places, p = {best['p_adjusted']:.2f}."
        )
        return
    report.finding(
        f"“{what}” can be read best at {place_name(best)}: {score}; {chance}, random "
        f"features {form(best['random_features'])}, {null}."
    )
    told = []
    for site, own in compared.model.groupby("site", sort=False):
        layers = own.loc[own["p_adjusted"] <= LEVEL, "layer"].astype(int).tolist()
        part = f"layers {listed(layers)}" if len(layers) > 1 else f"layer {listed(layers)}"
        told.append(f"{site}: {'no layer' if not layers else part} of {len(own)}")
    report.finding(
        "Better than from shuffled labels (p ≤ .05, corrected for the number of places): "
        f"{'; '.join(told)}."
    )
    if best["low"] <= best["constant"]:
        report.warn(
            f"Though better than from shuffled labels, the best probe is not measurably better "
            f"than a constant answer ({form(best['constant'])}): with labels this uneven, look at "
            "the other scores of the table by layer."
        )


def _short(compared: Compared, config: Config) -> str:
    """Where the shuffles are too few for a place by itself; else empty."""
    places = len(compared.model)
    return out_of_reach(config.shuffles, places, "place", "shuffles", "shuffles")


def _gain(compared: Compared, row: Any) -> str:
    """A difference in words, and whether it is away from zero."""
    unit = "" if compared.examples.regression else " points"
    numbers = [
        row[name] * (1 if compared.examples.regression else 100)
        for name in ("difference", "low", "high")
    ]
    digits = 2 if compared.examples.regression else 1
    value, low, high = (signed(one, digits) for one in numbers)
    if row["low"] != row["low"]:
        return f"{value}{unit}, with one group without an interval"
    return f"{value}{unit}, 95 % interval {low} to {high}"


def _verdict(row: Any) -> str:
    if row["low"] > 0:
        return "more than"
    return "less than" if row["high"] < 0 else "not measurably more than"


def _against_baselines(report: Report, compared: Compared) -> None:
    form = form_of(compared)
    gains = [
        f"{_verdict(row)} {OF_RIVAL[str(row['rival'])]} ({form(row['score'])}; "
        f"{_gain(compared, row)})"
        for _, row in compared.rivals.iterrows()
        if row["rival"] in OF_RIVAL
    ]
    if gains:
        report.finding(f"At {place_name(compared.best)} one reads {'; '.join(gains)}.", at="rivals")
    if EMBEDDING in compared.silent:
        report.finding(
            "The embedding of what stands at the position read is the same in all texts, so that "
            "it tells nothing: whatever is read there was brought by the layers."
        )
    others = [one for one in compared.silent if one != EMBEDDING]
    if others:
        report.skip(
            f"Places where all texts are alike, so that nothing can be read: {listed(others)}."
        )


def _control(report: Report, compared: Compared) -> None:
    model = compared.model
    if "selectivity" not in model:
        return
    best, form = compared.best, form_of(compared)
    most = model.loc[model["selectivity"].idxmax()]
    beyond = best["low"] > best["control"]
    report.finding(
        f"On the control task, where each word has a random label wherever it stands, the same "
        f"probe at {place_name(best)} reaches {form(best['control'])}: its selectivity is "
        f"{_points(compared, best['selectivity'])}, so that the label is "
        f"{'read beyond' if beyond else 'not clearly read beyond'} what the probe can learn by "
        f"heart. Most selective: {place_name(most)}, {_points(compared, most['selectivity'])}."
    )


def _points(compared: Compared, value: float) -> str:
    if compared.examples.regression:
        return number(value)
    return f"{number(100 * value, 'z.1f')} points"


def _neighbours(report: Report, compared: Compared) -> None:
    rows = compared.rivals[compared.rivals["rival"].str.startswith("layer ")]
    if not len(rows):
        return
    told = [
        f"{str(row['rival']).partition(',')[0]} ({_gain(compared, row)})"
        for _, row in rows.iterrows()
    ]
    apart = int((rows["low"] > 0).sum())
    verdict = {
        0: "No measurable difference sets it apart from its neighbours",
        len(rows): "It is measurably better than its neighbours",
    }.get(apart, "It is measurably better than one neighbour and not than the other")
    report.finding(
        f"{verdict}: the gain over {listed(told)}"
        + (", chosen as the best of all, so that this favours it." if apart else ".")
    )


def _compression(report: Report, compared: Compared) -> None:
    model = compared.model
    if "bits" not in model:
        return
    best = model.loc[model["bits"].idxmin()]
    uniform = best["bits"] * best["compression"]
    others = []
    for source in (EMBEDDING, RANDOM, WORDS):
        own = compared.of(source)
        if len(own):
            others.append(f"{source} {own['bits'].min():.0f}")
    report.finding(
        f"Description length: with what stands at {place_name(best)}, the labels take "
        f"{best['bits']:.0f} bits instead of {uniform:.0f} (compression {best['compression']:.2f})"
        + (f"; at the best place of each baseline: {', '.join(others)} bits." if others else ".")
    )


def _penalty(compared: Compared, config: Config) -> str:
    """How C was come by, and what it is at the best place."""
    own = f"{compared.best['C']:.2g}"
    if config.C is not None and len(config.C) == 1:
        return f"Penalty of the probe: C = {own}, as asked for."
    if config.C is None and not compared.examples.regression:
        return f"Penalty of the probe: C = {own}, the same everywhere; --C tries others."
    how = "a cross-validation" if compared.examples.regression else "a held-out fifth"
    among = len(config.C or PENALTIES)
    return (
        f"Penalty of the probe: every fold chose C among {among} by {how} within its training "
        f"part, anew for every place and labelling; at the best place {own} (median)."
    )


def _mistakes(report: Report, compared: Compared) -> None:
    own = compared.predictions
    if compared.examples.regression:
        best = compared.best
        report.finding(
            f"There, predictions are off by {own['error'].abs().mean():.3g} on average (labels: "
            f"deviation {own['label'].std():.3g}); Spearman's rank correlation is "
            f"{best['spearman']:.2f}."
        )
        return
    wrong = own[~own["right"]]
    if wrong.empty:
        report.finding(f"There, all {len(own)} held-out examples are right.")
        return
    pairs = (
        wrong.groupby(["label", "predicted"], sort=False)
        .size()
        .sort_values(ascending=False, kind="stable")
    )
    label, predicted = next(iter(pairs.index))
    of_label = int((own["label"] == label).sum())
    report.finding(
        f"There, {len(wrong)} of {len(own)} held-out examples are wrong; most often “{label}” is "
        f"taken for “{predicted}” ({pairs.iloc[0]} of {of_label})."
    )


def _certainty(report: Report, compared: Compared, config: Config) -> None:
    read, best = compared.examples, compared.best
    labels = "numbers" if read.regression else f"{read.frame['label'].nunique()} labels"
    sides = (
        f"learned from {(read.frame['side'] == 'train').sum()} and asked about "
        f"{(read.frame['side'] == 'test').sum()} by the file's own split"
        if "side" in read.frame
        else f"each held out once in {config.folds} folds"
    )
    groups = (
        f" Members of a group ({read.frame['group'].nunique()} groups) are on one side together."
        if "group" in read.frame
        else ""
    )
    position = {"last": "the last token", "mean": "the mean over the tokens", "word": "the word"}[
        config.position
    ]
    intervals = (
        "R² has an interval by the delta method; differences are paired, example by example."
        if read.regression
        else "Accuracies have Wilson intervals (95 %), their differences, paired example by "
        "example, Newcombe's (1998)."
    )
    report.sure(
        f"{len(read)} texts with {labels}, {sides}; read at {position} of each.{groups} {intervals}"
    )
    report.sure(_penalty(compared, config))
    units = {"examples": "the examples", "groups": "whole groups", "within": "a group"}
    report.sure(
        f"Null: {config.shuffles} shuffles of the labels (of {units[compared.shuffled]}) within "
        f"the folds; at the best place p = {best['p']:.3f}, and {best['p_adjusted']:.3f} corrected "
        f"for {len(compared.model)} places (Benjamini & Hochberg 1995)."
    )
    short = _short(compared, config)
    if compared.found and short:
        report.sure(f"Several places pass together: {short}.")
    slow = compared.sweep[~compared.sweep["converged"].astype(bool)]
    if len(slow):
        report.doubt(
            f"At {len(slow)} places a probe stopped short of its optimum: "
            f"{listed((place_name(row) for _, row in slow.iterrows()), 3)}."
        )


def doubts(report: Report, compared: Compared, config: Config) -> None:
    """What would make it wrong."""
    report.doubt(
        "What can be read is not for that reason used: the model may never look at it. The "
        "analysis concept-direction removes or adds the direction and measures what changes."
    )
    words = compared.rivals[compared.rivals["rival"] == WORDS]
    told = (
        f" Here, counted tokens alone reach {form_of(compared)(words['score'].iloc[0])}."
        if len(words)
        else ""
    )
    report.doubt(
        "A probe finds whatever goes along with the label in these texts, such as words, length "
        f"or topic, and not only the label itself.{told}"
    )
    report.doubt(
        "The best place was chosen as the best, so that its score is a little too high; and a "
        "linear probe cannot see what is held in another form, such as an exclusive or."
    )
    if "group" not in compared.examples.frame:
        report.doubt(
            "Texts are taken as independent. Where they have sources, authors or templates in "
            "common, name them with --group-column: intervals and p-values are too narrow "
            "otherwise."
        )
    elif compared.shuffled == "examples":
        report.doubt(
            "Labels were shuffled over groups, since most groups have one label but some have "
            "several; where groups matter, this p-value is too small."
        )
    else:
        report.doubt(
            "Wilson intervals take the members of a group as independent, and are too "
            "narrow where they are not; the paired differences allow for it."
        )
