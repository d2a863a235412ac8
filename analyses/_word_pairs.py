"""Two pictures of word pairs for the report on embedding arithmetic: the plane that shows most of
a few pairs, with the parallelogram of the question, and the direction that all pairs of a category
share, with other words placed along it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.methods.geometry import Embedding
from interp.report import Report, Section
from interp.report.figures import places, plane
from interp.report.spine import number, percent

Pair = tuple[str, str]
SHOWN_PAIRS = 8
"""Pairs of the plane; the names of more would cover each other."""
PERCENT = {"explained": ".0%"}


def pairs_of(questions: pd.DataFrame, category: str) -> list[Pair]:
    """The distinct pairs of a category, a with b and c with the answer, in order."""
    own = questions[questions["category"] == category]
    both = [*zip(own["a"], own["b"], strict=True), *zip(own["c"], own["expected"], strict=True)]
    return list(dict.fromkeys(sorted(both, key=both.index)))


def plane_section(
    report: Report,
    opening: Section,
    table: Embedding,
    pairs: Sequence[Pair],
    question: tuple[str, str, str],
    answer: str,
    seed: int,
) -> None:
    """The words of the question, its answer and the first of `pairs`, in two dimensions.

    The picture stands in the opening section.
    """
    a, b, c = question
    own = [(a, c), (b, answer)]
    shown = [*own, *(one for one in pairs if not {*one} & {a, b, c, answer})][:SHOWN_PAIRS]
    words = list(dict.fromkeys(word for pair in shown for word in pair))
    if len({table.row(word) for word in words}) < len(words) or len(words) < 4:
        report.skip("The plane of the word pairs: the words of the question are not four tokens.")
        return
    found = table.plane(words, seed=seed)
    across, up = found.attrs["explained"]
    low, high = found.attrs["control"]
    made = f"{b} − {a} + {c}"
    place = found.set_index("word")[["x", "y"]]
    x, y = place.loc[b] - place.loc[a] + place.loc[c]
    seconds = {pair[1] for pair in shown}
    drawn = pd.concat(
        [
            found.assign(
                kind=["second of a pair" if w in seconds else "first of a pair" for w in words]
            ),
            pd.DataFrame([{"word": made, "x": x, "y": y, "kind": "b − a + c"}]),
        ],
        ignore_index=True,
    )
    told = (
        f"{percent(across + up, 'z.1f')} of the variance of {len(words)} words "
        f"({percent(across, 'z.1f')} along x, {percent(up, 'z.1f')} along y)"
    )
    random = f"{percent(low, 'z.1f')} to {percent(high, 'z.1f')}"
    more = "more than" if across + up > high else "no more than"
    section = report.section(
        "The word pairs in a plane",
        f"The first two principal components of {len(words)} centred unit vectors. They "
        f"show {told}, {more} 95 % of sets of as many random tokens ({random}). What "
        f"looks near here may be far in the {table.vectors.shape[1]} dimensions; the last column "
        "of the table says how much of each word the plane shows.",
    )
    figure = plane(
        drawn.drop(columns="explained"),
        label="word",
        x="x",
        y="y",
        group="kind",
        links=shown,
        outline=(a, b, made, c),
        x_axis=f"first component ({percent(across)} of the variance)",
        y_axis=f"second component ({percent(up)} of the variance)",
        alt=f"{len(words)} words in a plane that shows {told}; pairs joined by lines. A dashed "
        f"parallelogram joins {a}, {b}, {made} and {c}; the nearest word to its last corner in "
        f"this picture is {_nearest(place, x, y)}.",
    )
    opening.figure(
        figure,
        f"The dashed parallelogram leads from {a}, {b} and {c} to {made}. Lines join pairs of "
        f"words. The plane shows {percent(across + up)} of how they differ; the three words of the "
        "question do not count as answers.",
        name="plane-figure",
    )
    section.table(
        found, "How much of each word the plane shows", name="plane", formats=PERCENT, rows=6
    )
    report.finding(
        f"The plane of the word pairs shows {told}, {more} what random tokens give ({random}).",
        at="plane-figure",
    )


def direction_section(
    report: Report,
    table: Embedding,
    category: str,
    pairs: Sequence[Pair],
    words: Sequence[str],
    seed: int,
) -> None:
    """What the pairs share, tested on pairs left out, and other words along it."""
    if len(pairs) < 3:
        report.skip(f"The {category} direction: the list has {len(pairs)} pairs of it, 3 needed.")
        return
    agreement = table.agreement(pairs, seed=seed)
    low, high = agreement.attrs["control"]
    explained = agreement.attrs["explained"]
    agree = int((agreement["cosine"] > 0).sum())
    told = (
        f"{agree} of {len(pairs)} pairs point the way the others do (mean cosine "
        f"{number(agreement['cosine'].mean())}; random directions of equal norm "
        f"{number(agreement['control'].mean())})"
    )
    section = report.section(
        f"The {category} direction",
        f"The mean difference of {len(pairs)} pairs of the list. Each pair is compared with the "
        f"direction that the other pairs make: {told}. One component holds "
        f"{percent(explained)} of the squared length of all differences; of random directions of "
        f"equal norm, {percent(low)} to {percent(high)}.",
    )
    section.table(
        agreement.sort_values("cosine", ascending=False, kind="stable"),
        "Each pair against the direction of the others",
        name="pairs",
        rows=6,
    )
    report.finding(f"The {category} direction: {told}.", at="pairs")
    kept = _known(report, table, words, {word for pair in pairs for word in pair}, category)
    if not kept:
        return
    toward = table.direction(pairs)
    along = table.along(toward, kept, seed=seed).sort_values(
        "cosine", ascending=False, kind="stable"
    )
    outside = along[(along["cosine"] > along["high"]) | (along["cosine"] < along["low"])]
    first, second = pairs[0]
    ends = along["word"].iloc[0], along["word"].iloc[-1]
    figure = places(
        along,
        label="word",
        value="cosine",
        low="low",
        high="high",
        axis=f"cosine with the {category} direction (← {first}   {second} →); grey: random pairs",
        alt=f"{len(along)} words along the {category} direction, from {ends[0]} towards {second} "
        f"to {ends[1]} towards {first}. {len(outside)} lie outside of what 95 % of the directions "
        "between random tokens give.",
    )
    section.figure(
        figure, f"Words that no pair contains, along the {category} direction", name="along-figure"
    )
    report.finding(
        f"Of {len(along)} words placed along it, {len(outside)} lie outside of what 95 % of the "
        f"directions between random tokens give (by chance about {0.05 * len(along):.0f}); "
        f"“{ends[0]}” is farthest towards {second}, “{ends[1]}” towards {first}.",
        at="along-figure",
    )
    report.doubt(
        f"The {category} direction is what these pairs share, which may be more than {category} "
        "(age, frequency, register). That a word lies along it does not show that the model uses "
        "it."
    )


def _known(
    report: Report, table: Embedding, words: Sequence[str], taken: set[str], category: str
) -> list[str]:
    kept, lost = [], []
    for word in dict.fromkeys(words):
        try:
            table.row(word)
            (lost if word in taken else kept).append(word)
        except ValueError:
            lost.append(word)
    if lost:
        report.skip(
            f"{len(lost)} of {len(words)} words to place along the {category} direction are not "
            f"one token or are in a pair: {', '.join(lost[:5])}{' …' * (len(lost) > 5)}."
        )
    return kept


def _nearest(place: pd.DataFrame, x: float, y: float) -> str:
    return str(((place["x"] - x) ** 2 + (place["y"] - y) ** 2).idxmin())
