"""Analogy questions in every setting, and beside controls that must find nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from .analogies import METHODS, SETTING, Method, accuracy, swap_answers
from .vectors import Embedding


def every_setting(
    table: Embedding,
    a: str,
    b: str,
    c: str,
    k: int = 5,
    methods: Sequence[Method] = METHODS,
) -> pd.DataFrame:
    """The k first answers to "a is to b as c is to ?" by each rule, centred or not, with the three
    words left out or not: method centre exclude_inputs rank token score."""
    frames = []
    for setting in itertools.product(methods, (True, False), (True, False)):
        method, centre, exclude = setting
        frame = table.analogy(a, b, c, k=k, method=method, centre=centre, exclude_inputs=exclude)
        named = dict(zip(SETTING, setting, strict=True))
        frames.append(pd.DataFrame(named, index=frame.index).join(frame))
    return pd.concat(frames, ignore_index=True)


def analogy_controls(
    table: Embedding,
    analogies: pd.DataFrame,
    methods: Sequence[Method] = METHODS,
    seed: int = 0,
    *,
    answered: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """How often questions are answered as asked, with the answers of other questions of their
    category, and with the vectors dealt out to the tokens at random; centred, inputs left out.

    control method n correct accuracy low high. "as asked" is the positive control; "answers
    swapped" is missing where no category has a second answer, and its n is smaller where some lack
    one (`swap_answers`). `answered` saves asking again: `table.evaluate` of the same questions and
    methods in this setting or in all.
    """
    options = {"methods": methods, "centre": True, "exclude_inputs": True}
    swapped = swap_answers(analogies, seed)
    if answered is None:
        answered = table.evaluate(analogies, **options)
    runs = {
        "as asked": answered[answered["centre"] & answered["exclude_inputs"]],
        "answers swapped": table.evaluate(swapped, **options),
        "vectors shuffled": table.shuffled(seed).evaluate(analogies, **options),
    }
    shares = [accuracy(run, by=()).assign(control=name) for name, run in runs.items() if len(run)]
    return pd.concat(shares, ignore_index=True)[
        ["control", "method", "n", "correct", "accuracy", "low", "high"]
    ]
