"""What the report on probes says in words."""

from __future__ import annotations

from typing import Any

from analyses._probes.config import Config
from analyses._probes.measure import (
    EMBEDDING,
    LEVEL,
    RANDOM,
    WORDS,
    Measured,
    place_name,
    score_name,
)
from interp.methods.probes.fitting import PENALTIES
from interp.report import Report
from interp.report.spine import listed, number, out_of_reach, signed

OF_RIVAL = {
    EMBEDDING: "from the embedding, before any context",
    RANDOM: "from the best place of a copy with random weights",
    WORDS: "from the tokens of the text alone, counted",
}


def findings(report: Report, measured: Measured, config: Config) -> None:
    """All sentences above the evidence."""
    _where(report, measured, config)
    _against_baselines(report, measured)
    _control(report, measured)
    _neighbours(report, measured)
    _compression(report, measured)
    _mistakes(report, measured)
    _certainty(report, measured, config)
    for sentence in (*measured.read.left_out, *measured.skipped):
        report.skip(sentence)


def _where(report: Report, measured: Measured, config: Config) -> None:
    best, form, what = measured.best, measured.form, measured.read.what
    score = (
        f"{score_name(measured)} {form(best['score'])} (95 % interval {form(best['low'])} to "
        f"{form(best['high'])})"
    )
    null = (
        f"shuffled labels {form(best['null_mean'])}, 95 % of them {form(best['null_low'])} to "
        f"{form(best['null_high'])}"
    )
    chance = (
        f"the mean of the labels {form(best['constant'])}" if measured.read.regression
        else f"always the commonest label {form(best['constant'])}"
    )  # fmt: skip
    if not measured.found:
        short = _short(measured, config)
        start = f"This run cannot tell whether one place holds “{what}”: {short}." if short else (
            f"Nothing is found: at none of {len(measured.model)} places can “{what}” be read "
            "better than from shuffled labels."
        )  # fmt: skip
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
    for site, own in measured.model.groupby("site", sort=False):
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


def _short(measured: Measured, config: Config) -> str:
    """Where the shuffles are too few for a place by itself; else empty."""
    places = len(measured.model)
    return out_of_reach(config.shuffles, places, "place", "shuffles", "shuffles")


def _gain(measured: Measured, row: Any) -> str:
    """A difference in words, and whether it is away from zero."""
    unit = "" if measured.read.regression else " points"
    numbers = [row[name] * (1 if measured.read.regression else 100)
               for name in ("difference", "low", "high")]  # fmt: skip
    digits = 2 if measured.read.regression else 1
    value, low, high = (signed(one, digits) for one in numbers)
    if row["low"] != row["low"]:
        return f"{value}{unit}, with one group without an interval"
    return f"{value}{unit}, 95 % interval {low} to {high}"


def _verdict(row: Any) -> str:
    if row["low"] > 0:
        return "more than"
    return "less than" if row["high"] < 0 else "not measurably more than"


def _against_baselines(report: Report, measured: Measured) -> None:
    told = []
    for _, row in measured.rivals.iterrows():
        if row["rival"] in OF_RIVAL:
            told.append(
                f"{_verdict(row)} {OF_RIVAL[str(row['rival'])]} ({measured.form(row['score'])}; "
                f"{_gain(measured, row)})"
            )
    if told:
        report.finding(f"At {place_name(measured.best)} one reads {'; '.join(told)}.")
    if EMBEDDING in measured.silent:
        report.finding(
            "The embedding of what stands at the position read is the same in all texts, so that "
            "it tells nothing: whatever is read there was brought by the layers."
        )
    others = [one for one in measured.silent if one != EMBEDDING]
    if others:
        report.skip(f"Places where all texts are alike, so that nothing can be read: "
                    f"{listed(others)}.")  # fmt: skip


def _control(report: Report, measured: Measured) -> None:
    model = measured.model
    if "selectivity" not in model:
        return
    best, form = measured.best, measured.form
    most = model.loc[model["selectivity"].idxmax()]
    beyond = best["low"] > best["control"]
    report.finding(
        f"On the control task, where each word has a random label wherever it stands, the same "
        f"probe at {place_name(best)} reaches {form(best['control'])}: its selectivity is "
        f"{_points(measured, best['selectivity'])}, so that the label is "
        f"{'read beyond' if beyond else 'not clearly read beyond'} what the probe can learn by "
        f"heart. Most selective: {place_name(most)}, {_points(measured, most['selectivity'])}."
    )


def _points(measured: Measured, value: float) -> str:
    if measured.read.regression:
        return number(value)
    return f"{number(100 * value, 'z.1f')} points"


def _neighbours(report: Report, measured: Measured) -> None:
    rows = measured.rivals[measured.rivals["rival"].str.startswith("layer ")]
    if not len(rows):
        return
    told = [f"{str(row['rival']).partition(',')[0]} ({_gain(measured, row)})"
            for _, row in rows.iterrows()]  # fmt: skip
    apart = int((rows["low"] > 0).sum())
    verdict = {
        0: "No measurable difference sets it apart from its neighbours",
        len(rows): "It is measurably better than its neighbours",
    }.get(apart, "It is measurably better than one neighbour and not than the other")
    report.finding(
        f"{verdict}: the gain over {listed(told)}"
        + (", chosen as the best of all, so that this favours it." if apart else ".")
    )


def _compression(report: Report, measured: Measured) -> None:
    model = measured.model
    if "bits" not in model:
        return
    best = model.loc[model["bits"].idxmin()]
    uniform = best["bits"] * best["compression"]
    others = []
    for source in (EMBEDDING, RANDOM, WORDS):
        own = measured.of(source)
        if len(own):
            others.append(f"{source} {own['bits'].min():.0f}")
    report.finding(
        f"Description length: with what stands at {place_name(best)}, the labels take "
        f"{best['bits']:.0f} bits instead of {uniform:.0f} (compression {best['compression']:.2f})"
        + (f"; at the best place of each baseline: {', '.join(others)} bits." if others else ".")
    )


def _penalty(measured: Measured, config: Config) -> str:
    """How C was come by, and what it is at the best place."""
    own = f"{measured.best['C']:.2g}"
    if config.C is not None and len(config.C) == 1:
        return f"Penalty of the probe: C = {own}, as asked for."
    if config.C is None and not measured.read.regression:
        return f"Penalty of the probe: C = {own}, the same everywhere; --C tries others."
    how = "a cross-validation" if measured.read.regression else "a held-out fifth"
    among = len(config.C or PENALTIES)
    return (
        f"Penalty of the probe: every fold chose C among {among} by {how} within its training "
        f"part, anew for every place and labelling; at the best place {own} (median)."
    )


def _mistakes(report: Report, measured: Measured) -> None:
    own = measured.predictions
    if measured.read.regression:
        best = measured.best
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
    pairs = wrong.groupby(["label", "predicted"], sort=False).size().sort_values(
        ascending=False, kind="stable"
    )  # fmt: skip
    label, predicted = next(iter(pairs.index))
    of_label = int((own["label"] == label).sum())
    report.finding(
        f"There, {len(wrong)} of {len(own)} held-out examples are wrong; most often “{label}” is "
        f"taken for “{predicted}” ({pairs.iloc[0]} of {of_label})."
    )


def _certainty(report: Report, measured: Measured, config: Config) -> None:
    read, best = measured.read, measured.best
    labels = "numbers" if read.regression else f"{read.frame['label'].nunique()} labels"
    sides = (
        f"learned from {(read.frame['side'] == 'train').sum()} and asked about "
        f"{(read.frame['side'] == 'test').sum()} by the file's own split"
        if "side" in read.frame
        else f"each held out once in {config.folds} folds"
    )
    groups = (
        f" Members of a group ({read.frame['group'].nunique()} groups) are on one side together."
        if "group" in read.frame else ""
    )  # fmt: skip
    position = {
        "last": "the last token", "mean": "the mean over the tokens", "word": "the word"
    }[config.position]  # fmt: skip
    intervals = (
        "R² has an interval by the delta method; differences are paired, example by example."
        if read.regression
        else "Accuracies have Wilson intervals (95 %), their differences, paired example by "
        "example, Newcombe's (1998)."
    )
    report.sure(
        f"{len(read)} texts with {labels}, {sides}; read at {position} of each.{groups} {intervals}"
    )
    report.sure(_penalty(measured, config))
    units = {"examples": "the examples", "groups": "whole groups", "within": "a group"}
    report.sure(
        f"Null: {config.shuffles} shuffles of the labels (of {units[measured.shuffled]}) within "
        f"the folds; at the best place p = {best['p']:.3f}, and {best['p_adjusted']:.3f} corrected "
        f"for {len(measured.model)} places (Benjamini & Hochberg 1995)."
    )
    short = _short(measured, config)
    if measured.found and short:
        report.sure(f"Several places pass together: {short}.")
    slow = measured.sweep[~measured.sweep["converged"].astype(bool)]
    if len(slow):
        report.doubt(f"At {len(slow)} places a probe stopped short of its optimum: "
                     f"{listed((place_name(row) for _, row in slow.iterrows()), 3)}.")  # fmt: skip


def doubts(report: Report, measured: Measured, config: Config) -> None:
    """What would make it wrong."""
    report.doubt(
        "What can be read is not for that reason used: the model may never look at it. The "
        "analysis concept-direction removes or adds the direction and measures what changes."
    )
    words = measured.rivals[measured.rivals["rival"] == WORDS]
    told = (
        f" Here, counted tokens alone reach {measured.form(words['score'].iloc[0])}."
        if len(words) else ""
    )  # fmt: skip
    report.doubt(
        "A probe finds whatever goes along with the label in these texts, such as words, length "
        f"or topic, and not only the label itself.{told}"
    )
    report.doubt(
        "The best place was chosen as the best, so that its score is a little too high; and a "
        "linear probe cannot see what is held in another form, such as an exclusive or."
    )
    if "group" not in measured.read.frame:
        report.doubt(
            "Texts are taken as independent. Where they have sources, authors or templates in "
            "common, name them with --group-column: intervals and p-values are too narrow "
            "otherwise."
        )
    elif measured.shuffled == "examples":
        report.doubt(
            "Labels were shuffled over groups, since most groups have one label but some have "
            "several; where groups matter, this p-value is too small."
        )
    else:
        report.doubt("Wilson intervals take the members of a group as independent, and are too "
                     "narrow where they are not; the paired differences allow for it.")  # fmt: skip
