"""Analogy questions: the rules that score an answer, how often it is right, and the controls.

"a is to b as c is to ?" is scored for every candidate x by one of three rules over unit vectors:
3CosAdd cos(x, b - a + c) (Mikolov et al. 2013); 3CosMul cos'(x, b) cos'(x, c) / (cos'(x, a) + .001)
with cos' = (cos + 1) / 2 (Levy & Goldberg 2014, eq. 4); PairDistance cos(x - c, b - a) (ibid.).
The baseline "neighbor", cos(x, c), has never seen a and b (Linzen 2016): what it gets right is owed
to the neighbourhood of c and not to the analogy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from ..stats import wilson

Method = Literal["3cosadd", "3cosmul", "pairdistance", "neighbor"]
METHODS: tuple[Method, ...] = ("3cosadd", "3cosmul", "pairdistance")
"""The three rules, without the baseline."""
QUESTION = ("category", "a", "b", "c", "expected")
"""The columns of a table of analogies: a is to b as c is to expected."""
SETTING = ("method", "centre", "exclude_inputs")
"""The columns that say how a question was asked."""


class Cosines(NamedTuple):
    """Cosines of every candidate with a, b and c, and of these with each other."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    ab: float
    ac: float
    bc: float

    # Each returns one fresh array of scores, higher is better.
    def add(self) -> np.ndarray:
        length = 3 + 2 * (self.bc - self.ab - self.ac)  # squared norm of b - a + c
        return (self.b - self.a + self.c) / math.sqrt(max(length, self.floor))

    def mul(self) -> np.ndarray:
        a, b, c = (self.a + 1) / 2, (self.b + 1) / 2, (self.c + 1) / 2
        return b * c / (a + 1e-3)

    def distance(self) -> np.ndarray:
        # A candidate on top of c lies in no direction from it: the floor makes its score 0.
        from_c = np.sqrt(np.maximum(2 - 2 * self.c, self.floor))
        offset = math.sqrt(max(2 - 2 * self.ab, self.floor))
        return ((self.b - self.a) - (self.bc - self.ac)) / (from_c * offset)

    def neighbor(self) -> np.ndarray:
        return self.c.copy()

    @property
    def floor(self) -> float:
        return float(np.finfo(self.a.dtype).eps)


SCORES: dict[str, Callable[[Cosines], np.ndarray]] = {
    "3cosadd": Cosines.add,
    "3cosmul": Cosines.mul,
    "pairdistance": Cosines.distance,
    "neighbor": Cosines.neighbor,
}


def cosines_of(unit: np.ndarray, rows: np.ndarray, pool: np.ndarray) -> Iterator[Cosines]:
    """The cosines of each question, from one matrix product over the distinct words."""
    inputs = rows[:, :3]
    words = np.unique(inputs)
    known = unit[words]
    candidates = unit if len(pool) == len(unit) else unit[pool]
    to_pool, to_words = known @ candidates.T, known @ known.T
    for a, b, c in np.searchsorted(words, inputs):
        between = to_words[a, b], to_words[a, c], to_words[b, c]
        yield Cosines(to_pool[a], to_pool[b], to_pool[c], *map(float, between))


def accuracy(frame: pd.DataFrame, by: Sequence[str] = ("category",)) -> pd.DataFrame:
    """Share of correct answers per setting and `by`: … n correct accuracy low high.

    low and high bound the 95 % Wilson interval, which takes the questions as independent. The input
    is what `Embedding.evaluate` returns; groups keep its order.
    """
    groups = frame.groupby([*SETTING, *by], sort=False)["correct"]
    table = groups.agg(n="size", correct="sum").reset_index()
    low, high = wilson(table["correct"].to_numpy(), table["n"].to_numpy())
    return table.assign(accuracy=table["correct"] / table["n"], low=low, high=high)


def swap_answers(analogies: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The control: each question with the answer of another question of its category, at random.

    Never its own answer nor one of its inputs; a question for which none is left is dropped.
    """
    rng = np.random.default_rng(seed)
    answers = analogies.groupby("category", sort=False)["expected"].unique().to_dict()
    swapped = []
    for category, *words in questions(analogies, QUESTION):
        own = {word.casefold() for word in words}
        others = [word for word in answers[category] if word.casefold() not in own]
        swapped.append(str(rng.choice(others)) if others else None)
    return analogies.assign(expected=swapped).dropna(subset="expected").reset_index(drop=True)


def questions(
    analogies: pd.DataFrame, columns: Sequence[str] = ("a", "b", "c", "expected")
) -> list[tuple[str, ...]]:
    """The questions as tuples of words; raises ValueError if a column is missing."""
    missing = [name for name in QUESTION if name not in analogies.columns]
    if missing:
        raise ValueError(
            f"analogies lack the columns {', '.join(missing)}; "
            f"expected {', '.join(QUESTION)}, got {', '.join(map(str, analogies.columns))}"
        )
    return list(analogies.loc[:, list(columns)].itertuples(index=False, name=None))


def place(scores: np.ndarray, expected: int, shut: Iterable[int]) -> tuple[int, int]:
    """Rank of the expected candidate among those not shut out, and the best of these."""
    shut = [i for i in set(shut) if i >= 0]
    kept = scores[shut]
    scores[shut] = -np.inf
    rank, best = int((scores >= scores[expected]).sum()), int(scores.argmax())
    scores[shut] = kept
    return rank, best


def check_methods(methods: Iterable[str]) -> list[str]:
    """The methods as a list; raises ValueError on none and on an unknown one."""
    methods = list(methods)
    unknown = [method for method in methods if method not in SCORES]
    if unknown or not methods:
        raise ValueError(f"methods={unknown or methods}: expected some of {', '.join(SCORES)}")
    return methods
